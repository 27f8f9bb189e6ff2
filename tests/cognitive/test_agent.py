"""Agents of foreign functions: how they are called, what they learn from their traces, and what ends them."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import threading
from typing import Any

import httpx2
import openai
import pytest
from kit.roles import comment, kind, play, prompt, shown, variables

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError, BlockingReadError, BudgetExceeded
from afnio.models import ChatResponse, ToolCall
from afnio.optim import TGD
from afnio.testing import ScriptedClient, SimulatedLM
from afnio.utils.agents import RESPONSE_FORMAT, SentimentAnalyzer

MODEL = {"model": "m"}


def messages(system: str, user: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


async def say(client: Any, system: str, user: str, **args: Any) -> str:
    return str(await client.achat(messages=messages(system, user), **MODEL, **args))


def echo(prefix: str = "") -> ScriptedClient:
    return ScriptedClient(lambda request: f"{prefix}{request.messages[-1]['content']}")


def critic(script: Any) -> ScriptedClient:
    client = ScriptedClient(script)
    afnio.set_backward_model_client(client, completion_args={"model": "b"})
    return client


# How the function is called ----------------------------------------------------------------------


def test_an_async_function_is_called_once_for_each_sample() -> None:
    client = echo()

    async def answer(question: str, system: str) -> str:
        return await say(client, system, question)

    agent = cog.Agent(answer, prompts={"system": "Be brief."})
    assert agent(["a", "b"]).data == ["a", "b"]
    assert [request.messages[0]["content"] for request in client.requests] == ["Be brief."] * 2
    assert agent("a").data == "a"
    assert {name: value.data for name, value in agent.state_dict().items()} == {"system": "Be brief."}


def test_a_def_runs_in_a_thread_with_any_values() -> None:
    def look_up(row: dict[str, int], key: str, *, factor: float, prompt: str) -> Any:
        return {"found": row[key], "times": factor, "prompt": prompt}

    agent = cog.Agent(look_up, prompts={"prompt": "p"})
    found = agent([{"a": 1}, {"a": 2}], "a", factor=2)
    assert found.data == [{"found": 1, "times": 2, "prompt": "p"}, {"found": 2, "times": 2, "prompt": "p"}]
    assert found.map(lambda value: value["found"]).data == [1, 2]
    assert found.role == "output of look_up"


def test_a_def_may_wait_for_calls_in_as_many_threads_as_there_are() -> None:
    """A call needs no worker thread, so threads full of waiting agents can't lock each other out."""
    client = echo()

    def answer(question: str, system: str) -> str:
        return str(client.chat(messages=messages(system, question), **MODEL))

    agent = cog.Agent(answer, prompts={"system": "s"})
    with afnio.set_threads(2):
        assert agent([str(number) for number in range(9)]).data == [str(number) for number in range(9)]

    async def on_the_loop(question: str) -> str:
        return str(client.chat(messages=messages("s", question), **MODEL))

    with pytest.raises(BlockingReadError, match="the runtime's thread"):
        cog.Agent(on_the_loop, prompts={})("a").data


def test_prompts_keep_what_their_parameters_say() -> None:
    fixed = cog.Parameter("Fixed.", role="fixed prompt", requires_grad=False, max_tokens=9)
    agent = cog.Agent(lambda text, a, b: text + a + b, prompts={"a": fixed, "b": "free"})
    assert agent.a is fixed
    assert (agent.b.requires_grad, agent.b.role) == (True, "b prompt of fn")
    assert agent("x").data == "xFixed.free"
    copied = copy.deepcopy(agent)
    copied.b.data = "other"
    assert (agent("x").data, copied("x").data) == ("xFixed.free", "xFixed.other")


def test_a_decorated_function_is_an_agent() -> None:
    @cog.agent(prompts={"mark": "!"})
    def shout(text: str, mark: str) -> str:
        """Say it loud."""
        return text.upper() + mark

    assert isinstance(shout, cog.Module)
    assert (shout.__name__, shout.__doc__) == ("shout", "Say it loud.")
    assert shout("hi").data == "HI!"


class Bot:
    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, text: str, system: str = "") -> str:
        return f"{self.name}: {system}{text}"

    def __call__(self, text: str, *, system: str) -> str:
        return self.reply(text, system)


@pytest.mark.parametrize(
    "fn",
    [
        Bot("bot").reply,
        Bot("bot"),
        functools.partial(lambda name, text, system: f"{name}: {system}{text}", "bot"),
        lambda text, **prompts: f"bot: {prompts['system']}{text}",
        lambda system, text: f"bot: {system}{text}",  # the prompt stands first
        lambda *texts, system: f"bot: {system}{texts[0]}",
        functools.partial(Bot("bot").reply, system="unused"),
    ],
    ids=["method", "callable", "partial", "kwargs", "prompt first", "args", "bound partial"],
)
def test_any_callable_will_do(fn: Any) -> None:
    assert cog.Agent(fn, prompts={"system": "s"})(["a", "b"]).data == ["bot: sa", "bot: sb"]


def only_by_position(text: str, system: str, /) -> str:
    return text + system


@pytest.mark.parametrize(
    ("fn", "prompts", "match"),
    [
        (
            lambda text: text,
            {"system": "s"},
            r"every prompt must be a parameter of fn .*got 'system', which isn't one",
        ),
        (only_by_position, {"system": "s"}, "by position only"),
        (lambda system, *texts: system, {"system": "s"}, "must be keyword-only"),
        (lambda text, system: text, ["s"], "prompts must be a dict"),
        (lambda text, system: text, {"system": 1}, "must be a text or a Parameter"),
        ("no function", {"system": "s"}, "fn must be a function"),
        (SentimentAnalyzer(), {}, "a Module needs no Agent"),
    ],
)
def test_what_does_not_fit_is_an_error_at_construction(fn: Any, prompts: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        cog.Agent(fn, prompts=prompts)


def test_inputs_that_do_not_fit_are_an_error_at_the_call() -> None:
    agent = cog.Agent(lambda text, system: text, prompts={"system": "s"})
    with pytest.raises(TypeError, match=r"the inputs must fit fn\(text, system\) \(got missing a required"):
        agent()
    with pytest.raises(TypeError, match=r"got 2 inputs for 1 parameters"):
        agent("a", "b")
    with pytest.raises(TypeError, match=r"its prompts, system, are passed by name"):
        agent()
    with pytest.raises(TypeError, match=r"pass inputs that fit, or name its prompts in prompts=\{…\}"):
        cog.Agent(lambda text, system: text, prompts={})("a")
    with pytest.raises(TypeError, match="'system' is a prompt of fn"):
        agent("a", system="other")
    with pytest.raises(ValueError, match="loop must be 'runtime' or 'caller'"):
        cog.Agent(lambda text: text, prompts={}, loop="mine")  # type: ignore[arg-type]


def test_none_is_a_missing_sample_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    agent = cog.Agent(lambda text: None if text == "b" else text, prompts={})
    assert agent(["a", "b"]).data == ["a", None]
    assert "returned None for sample 1; a sample with None is missing" in caplog.text


def test_a_failed_sample_names_the_function() -> None:
    def broken(text: str) -> str:
        raise ValueError(f"no {text}")

    with pytest.raises(
        BatchError, match=r"2 of 2 samples of broken launched at .*test_agent.py:\d+ .*no [ab]"
    ):
        cog.Agent(broken, prompts={})(["a", "b"]).data


# What its critic reads ---------------------------------------------------------------------------


def two_steps(client: Any) -> cog.Agent:
    async def answer(question: str, plan: str, write: str) -> str:
        steps = await say(client, plan, question)
        return await say(client, write, f"{question} by {steps}")

    return cog.Agent(answer, prompts={"plan": "Plan it.", "write": "Write it."})


def test_one_critic_call_for_each_sample_has_the_whole_trace() -> None:
    asked = critic(play(critic=comment(lambda v: "shorter" if v.attributes["name"] == "write" else "")))
    agent = two_steps(echo("said "))
    output = agent(["x", "y"])
    output.backward(afnio.Variable(["too long", "too long"]))
    assert [g.data for g in agent.write.grad] == ["shorter", "shorter"]
    assert agent.plan.grad == []
    assert len(asked.requests) == 2
    assert list(asked.get_usage()["phases"]) == ["backward"]
    request = asked.requests[0]
    plan, write = variables(request)
    assert (plan.attributes["name"], plan.attributes["seen_in"], plan.text) == ("plan", "1", "Plan it.")
    assert (write.attributes["name"], write.attributes["seen_in"]) == ("write", "2")
    assert shown(request, "message") == ["Plan it.", "x", "Write it.", "x by said x"]
    assert shown(request, "reply") == ["said x", "said x by said x"]
    assert (
        shown(request, "agent_output"),
        shown(request, "feedback"),
    ) == (["said x by said x"], ["too long"])
    (source,) = agent.write.grad[0].provenance
    assert (source["inputs"], source["sample"]) == ({"question": "x"}, 0)


def test_a_tool_loop_is_shown_once() -> None:
    """Each call of a loop repeats its history; the critic reads every message once."""
    asked = critic(play(critic=comment("do")))
    search = ToolCall(id="1", name="search", arguments='{"q": "x"}')
    client = ScriptedClient([ChatResponse(content=None, tool_calls=(search,)), "done"])
    tool = {
        "type": "function",
        "function": {"name": "search", "parameters": {}, "description": "Find texts."},
    }

    async def answer(question: str, system: str, hint: str) -> str:
        history = messages(system, question)
        first = await client.achat(messages=history, tools=[tool | {"hint": hint}], **MODEL)
        (call,) = first.tool_calls
        called = {"name": call.name, "arguments": call.arguments}
        history += [
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": called}]},
            {"role": "tool", "tool_call_id": "1", "content": "RESULT"},
        ]
        return str(await client.achat(messages=history, tools=[tool], **MODEL))

    agent = cog.Agent(answer, prompts={"system": "Search first.", "hint": "Use it when unsure."})
    agent("q").backward(afnio.Variable("wrong"))
    text = prompt(asked.requests[0])
    assert text.count("RESULT") == 1
    assert text.count('{"tool": "search", "arguments": "{\\"q\\": \\"x\\"}"}') == 1
    assert '<call id="2" model="m" tools="search" begins_like="1" shared="3">' in text
    system, hint = variables(asked.requests[0])
    assert (system.attributes["seen_in"], hint.attributes["seen_in"]) == ("1 2", "1")


def test_a_long_trace_is_cut_but_neither_prompt_nor_end() -> None:
    asked = critic(play(critic=comment("do")))
    client = ScriptedClient("r" * 2_000)
    long_prompt = "Follow the rules. " * 2_000

    async def answer(question: str, system: str) -> str:
        for number in range(30):
            await say(client, system + "s" * 9_000, f"{number} {'d' * 40_000} {question}")
        return await say(client, "short", "the last message")

    agent = cog.Agent(answer, prompts={"system": long_prompt})
    agent("q").backward(afnio.Variable("wrong"))
    text = prompt(asked.requests[0])
    assert len(text) < 4 * 16_000 + 2 * len(long_prompt) + 10_000
    assert text.count(long_prompt.strip()) == 2  # among the variables, and in the first call
    assert "\nthe last message\n" in text
    assert "characters are left out" in text
    assert "r" * 2_000 in text.rpartition("</call>")[0]


def test_of_many_calls_those_in_the_middle_are_left_out() -> None:
    asked = critic(play(critic=comment("do")))
    client = ScriptedClient("ok")

    async def answer(question: str, system: str) -> str:
        for number in range(500):
            await say(client, system, f"Call {number}: {'long ' * 200}")
        return "done"

    cog.Agent(answer, prompts={"system": "Go."})("q").backward(afnio.Variable("wrong"))
    text = prompt(asked.requests[0])
    assert "Call 0:" in text
    assert "Call 499:" in text
    assert "(left out: calls " in text
    assert len(text) < 4 * 16_000 * 3


def test_a_function_without_calls_works_and_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    asked = critic(play(critic=comment("louder")))
    agent = cog.Agent(lambda text, mark: text + mark, prompts={"mark": "!"})
    agent(["a", "b"]).backward(afnio.Variable(["not loud", "not loud"]))
    assert [g.data for g in agent.mark.grad] == ["louder"] * 2
    assert caplog.text.count("made no language model call") == 1
    request = asked.requests[0]
    (text,) = shown(request, "agent_input")
    assert shown(request, "agent_output") == [f"{text}!"]


def test_nothing_is_recorded_if_nothing_wants_feedback(caplog: pytest.LogCaptureFixture) -> None:
    with afnio.no_grad():
        output = cog.Agent(lambda text, mark: text + mark, prompts={"mark": "!"})("a")
        assert output.data == "a!"
    assert not output.requires_grad
    assert caplog.text == ""


def test_agents_in_a_chain_blame_each_other() -> None:
    """The second agent's feedback on its input is the first one's feedback."""
    asked = critic(play(critic=comment(lambda v: f"fix {v.attributes['name']}")))
    first = cog.Agent(lambda text, a: text + a, prompts={"a": "1"})
    second = cog.Agent(lambda text, b: text + b, prompts={"b": "2"})
    second(first("x")).backward(afnio.Variable("wrong"))
    assert ([g.data for g in first.a.grad], [g.data for g in second.b.grad]) == (["fix a"], ["fix b"])
    assert shown(asked.requests[1], "feedback") == ["fix text"]


def test_without_a_backward_model_the_line_of_backward_says_so() -> None:
    agent = cog.Agent(lambda text, mark: text + mark, prompts={"mark": "!"})
    with pytest.raises(RuntimeError, match="no backward model has been set"):
        agent("a").backward(afnio.Variable("f"))


# What ends the lane ------------------------------------------------------------------------------


@pytest.mark.parametrize("instead", ["returns", "raises"])
def test_a_budget_that_ends_in_a_careless_agent_ends_the_sample(instead: str) -> None:
    """Whatever the function makes of it: an answer that was made up must not be scored."""
    client = ScriptedClient("fine")

    async def careless(text: str, system: str) -> str:
        try:
            return await say(client, system, text)
        except Exception as error:
            if instead == "raises":
                raise ValueError("the agent gave up") from error
            return "I don't know"

    agent = cog.Agent(careless, prompts={"system": "s"})
    with afnio.budget(max_calls=1), pytest.raises(BatchError) as caught:
        agent(["a", "b", "c"]).data
    assert len(client.requests) == 1
    assert {type(error) for error in caught.value.errors.values()} == {BudgetExceeded}
    assert len(caught.value.errors) == 2


def test_a_budget_ends_an_agent_over_an_sdk_that_turns_errors_into_its_own() -> None:
    reply = {"choices": [{"message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}]}
    sent: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(200, json=reply)

    async def careless(text: str, system: str) -> str:
        transport = afnio.bridge.transport(inner=httpx2.MockTransport(answer))
        async with httpx2.AsyncClient(transport=transport) as http_client:
            sdk = openai.AsyncOpenAI(api_key="k", base_url="http://sdk/v1", http_client=http_client)
            try:
                found = await sdk.chat.completions.create(model="m", messages=messages(system, text))  # type: ignore[arg-type]
                return found.choices[0].message.content or ""
            except openai.APIError:
                return "I don't know"

    agent = cog.Agent(careless, prompts={"system": "s"})
    with afnio.budget(max_calls=1), pytest.raises(BatchError) as caught:
        agent(["a", "b", "c"]).data
    assert (len(sent), len(caught.value.errors)) == (1, 2)
    assert {type(error) for error in caught.value.errors.values()} == {BudgetExceeded}


def test_an_end_in_an_inner_agent_ends_the_outer_one() -> None:
    client = ScriptedClient("fine")

    async def inner(text: str) -> str:
        return await say(client, "s", text)

    tool = cog.Agent(inner, prompts={})

    async def outer(text: str) -> str:
        try:
            return (await tool(text)).data
        except Exception:
            return "swallowed"

    with afnio.budget(max_calls=0), pytest.raises(BudgetExceeded):
        cog.Agent(outer, prompts={})("a").data


def test_a_cancelled_caller_cancels_the_function() -> None:
    ended = threading.Event()

    async def main() -> None:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def wait(text: str) -> str:
            loop.call_soon_threadsafe(started.set)
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
            return text

        agent = cog.Agent(wait, prompts={})

        async def ask() -> None:
            await agent("a")

        task = asyncio.ensure_future(ask())
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert ended.wait(60)


# What it learns ----------------------------------------------------------------------------------


def simulated() -> ScriptedClient:
    lm = SimulatedLM()
    return ScriptedClient(lambda request: lm(request.body))


def label_of(reply: str) -> str:
    return str(json.loads(reply)["sentiment"])


def train(agent: Any, predict: Any, pairs: list[Any], client: ScriptedClient) -> None:
    critic_args = {"completion_args": {"model": "simulated"}}
    afnio.set_backward_model_client(client, **critic_args)
    optimizer = TGD(agent.parameters(), model_client=client, model="simulated")
    for start in range(0, len(pairs), 33):
        texts, labels = zip(*pairs[start : start + 33], strict=True)
        _, explanation = cog.functional.exact_match_evaluator(predict(list(texts)), list(labels))
        explanation.backward()
        optimizer.step()
        optimizer.clear_grad()


def test_a_function_learns_what_the_native_agent_learns(facility: Any) -> None:
    training, held_out = facility
    client = simulated()
    native = SentimentAnalyzer()

    async def classify(message: str, system: str) -> str:
        user = f"**Message:**\n\n{message}\n\n"
        return label_of(await say(client, system, user, response_format=RESPONSE_FORMAT))

    foreign = cog.Agent(classify, prompts={"system": native.sentiment_task.data})

    def native_predict(texts: list[str]) -> afnio.Variable:
        return native(client, inputs={"message": texts}, model="m").map(label_of)

    def right(predict: Any) -> int:
        texts, labels = zip(*held_out, strict=True)
        with afnio.no_grad():
            return sum(a == b for a, b in zip(predict(list(texts)).data, labels, strict=True))

    before = right(foreign)
    train(native, native_predict, training, client)
    train(foreign, foreign, training, client)
    assert native.sentiment_task.data == foreign.system.data
    assert (before, right(foreign)) == (before, right(native_predict))
    assert before + 10 <= right(foreign)


NOTES = "[1] Elm House, lifts, {y}: 7\n[2] Elm House, area, {y}: {old}\n[3] Elm House, area, 2022: {new}"
FIND = "List the notes that help. Take only notes whose topic matches the question as well as the place."
DRAFT = "Answer the question from the retrieved notes."
FULL = f"{DRAFT} Go by the most recent note where several answer."


class Native(cog.Module):
    """The twin in the graph: two chat completions, each with its own critic."""

    def __init__(self, client: Any, find: str, draft: str) -> None:
        super().__init__()
        self.client = client
        self.find = cog.Parameter(find, role="retrieves")
        self.draft = cog.Parameter(draft, role="drafts")
        self.asks = [
            afnio.Variable("Question: {question}\nNotes:\n{notes}", role="t"),
            afnio.Variable("Question: {question}\nRetrieved:\n{notes}", role="t"),
        ]

    def forward(self, question: str, notes: Any) -> afnio.Variable:
        for system, ask in zip((self.find, self.draft), self.asks, strict=True):
            chat = [{"role": "system", "content": [system]}, {"role": "user", "content": [ask]}]
            notes = cog.functional.chat_completion(
                self.client, chat, {"question": question, "notes": notes}, **MODEL
            )
        return notes


@pytest.mark.parametrize(
    ("find", "draft", "blamed"),
    [(FIND, DRAFT, "draft"), ("List the notes that help.", FULL, "find")],
    ids=["draft", "find"],
)
def test_of_two_prompts_the_one_to_blame_changes(find: str, draft: str, blamed: str) -> None:
    """The other one stays byte for byte, and both come out as in the graph."""
    client = simulated()
    question = "What is the area of Elm House?"
    rows = [(NOTES.format(y=2019, old=n, new=n + 1), str(n + 1)) for n in range(40, 46)]

    async def answer(question: str, notes: str, find: str, draft: str) -> str:
        found = await say(client, find, f"Question: {question}\nNotes:\n{notes}")
        return await say(client, draft, f"Question: {question}\nRetrieved:\n{found}")

    native = Native(client, find, draft)
    foreign = cog.Agent(answer, prompts={"find": find, "draft": draft})
    for agent in (native, foreign):
        train(agent, functools.partial(agent, question), rows, client)
    assert [p.data for p in native.parameters()] == [p.data for p in foreign.parameters()]
    kept = {"find": find, "draft": draft}
    changed = [name for name, prompt in foreign.named_parameters() if prompt.data != kept[name]]
    assert changed == [blamed]
    texts, expected = zip(*rows, strict=True)
    assert list(expected) == foreign(question, list(texts)).data
    critics = [request for request in client.requests if kind(request) == "critic"]
    assert critics
