"""Typical uses, for pyright in strict mode: `agent(…)` and `await agent(…)` have the types that users rely on."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any, assert_type

import afnio
import afnio.cognitive as cog
from afnio.models import ChatClient, ChatResponse
from afnio.models.openai import AsyncOpenAI
from afnio.testing import ScriptedClient


class Agent(cog.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prompt = cog.Parameter("Be brief.", role="prompt")
        self.chat = cog.ChatCompletion()

    def forward(self, client: ChatClient, question: str, *, model: str = "m") -> cog.Completion:
        messages: list[dict[str, Any]] = [{"role": "user", "content": [self.prompt]}]
        reply = self.chat(client, messages, inputs={"question": question}, model=model)
        assert_type(reply, cog.Completion)
        return reply


class Plain(cog.Module):
    def forward(self, value: afnio.Variable) -> afnio.Variable:
        return value.map(str.upper)


class Async(cog.Module):
    async def forward(self, value: afnio.Variable) -> afnio.Variable:
        return await value


class Pair(cog.Module):
    def forward(self, prediction: afnio.Variable) -> cog.Judgement:
        return cog.ExactMatchEvaluator()(prediction, ["a"])


def call_any(module: cog.Module) -> None:
    assert_type(module(1, "x"), Any)


@cog.agent(prompts={"system": "s"}, loop="caller")
async def foreign(question: str, system: str) -> dict[str, str]:
    return {system: question}


async def foreign_calls() -> None:
    assert_type(foreign, cog.Agent)
    assert_type(foreign(["a", "b"]), afnio.Variable)
    assert_type(await foreign("a"), afnio.Variable)
    assert_type(cog.Agent(str.upper, prompts={})("a"), afnio.Variable)
    assert_type(afnio.Variable("a").map(str.upper, loop="runtime"), afnio.Variable)
    afnio.Variable("a").map(str.upper, loop="mine")  # pyright: ignore[reportArgumentType]


async def calls(agent: Agent, client: ScriptedClient) -> None:
    assert_type(agent(client, "why?"), cog.Completion)
    assert_type(await agent(client, "why?"), cog.Completion)
    assert_type(Plain()(afnio.Variable("x")), afnio.Variable)
    assert_type(await Plain()(afnio.Variable("x")), afnio.Variable)
    assert_type(await Async()(afnio.Variable("x")), afnio.Variable)
    agent(client, question="why?", model="n")


def wrong_calls(agent: Agent, client: ScriptedClient) -> None:
    agent(client)  # pyright: ignore[reportCallIssue]
    agent(client, 3)  # pyright: ignore[reportArgumentType]
    agent("gpt-5", "why?")  # pyright: ignore[reportArgumentType]
    agent(client, "why?", temperature=1)  # pyright: ignore[reportCallIssue]
    Plain()("x")  # pyright: ignore[reportArgumentType]
    cog.ExactMatchEvaluator()("x", "y")  # pyright: ignore[reportArgumentType]
    cog.ChatCompletion()(client)  # pyright: ignore[reportCallIssue]
    afnio.optim.TGD(agent.parameters())  # pyright: ignore[reportCallIssue]


async def evaluators(prediction: afnio.Variable, client: ChatClient) -> None:
    score, explanation = cog.ExactMatchEvaluator()(prediction, ["a"])
    assert_type(score, cog.Score)
    assert_type(explanation, afnio.Variable)
    assert_type(score.samples, list[Any])
    score, explanation = await cog.DeterministicEvaluator()(
        prediction, None, lambda p, t: len(p), "length", success_fn=lambda scores: scores[0] >= 0.5
    )
    assert_type(score, cog.Score)
    assert_type(explanation, afnio.Variable)
    messages = [{"role": "user", "content": [prediction]}]
    score, explanation = await cog.LMJudgeEvaluator()(client, messages, prediction, max_score=10, model="m")
    assert_type((score, explanation), tuple[cog.Score, afnio.Variable])
    assert_type(Pair()(prediction), cog.Judgement)
    assert_type(await Pair()(prediction), cog.Judgement)
    await explanation.backward()


async def the_rest(agent: Agent, client: AsyncOpenAI) -> None:
    optimizer = afnio.optim.TGD(agent.parameters(), client, constraints=["short"], momentum=3, model="m")
    await optimizer.step()
    assert_type(agent.prompt, cog.Parameter)
    assert_type(agent.prompt.grad, list[afnio.Variable])
    assert_type(await agent.prompt, cog.Parameter)
    assert_type(agent.train(), Agent)
    assert_type(await afnio.resolve([agent.prompt]), list[cog.Parameter])
    assert_type(await client.achat(messages=[{"role": "user", "content": "hi"}], model="m"), ChatResponse)
    assert_type(cog.functional.add(agent.prompt, agent.prompt), afnio.Variable)
    assert_type(cog.functional.split(agent.prompt), tuple[afnio.Variable, ...])
    assert_type(afnio.run(calls(agent, ScriptedClient())), None)
    with afnio.no_grad(), afnio.tolerate(quorum=0.9):
        pass
    async with afnio.scope(name="s"):
        pass
    with agent.register_forward_hook(print), agent.prompt.register_hook(print) as handle:
        assert_type(handle.remove(), None)
    assert_type(cog.ModuleDict({"agent": agent})["agent"], cog.Module)
