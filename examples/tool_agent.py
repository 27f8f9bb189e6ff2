"""An agent with tools: it asks the model, calls the tool that the model names, and stops after a few rounds.

The loop is an `async def forward`, because it must read a reply before it can decide to continue. Questions run
concurrently. Each round's call is a node of the graph, so feedback reaches the prompt through all of them.

Offline a small script plays the model, because the simulated LM doesn't call tools.
"""

from __future__ import annotations

import ast
import json
import operator
import os
import re
from typing import Any

from offline import MODEL, endpoint

import afnio
import afnio.cognitive as cog
from afnio.models import ChatClient, ChatRequest, ChatResponse, ToolCall
from afnio.testing import ScriptedClient

ROUNDS = 4
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "The value of an arithmetic expression of numbers, + - * / and brackets.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    }
]
OPERATORS: dict[type, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def calculate(expression: str) -> str:
    """Return the value, or what is wrong with the expression: the model may try again."""

    def value(node: ast.AST) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"only numbers and + - * / are known (got {ast.unparse(node)})")

    try:
        return f"{value(ast.parse(expression, mode='eval').body):g}"
    except (SyntaxError, ValueError, ZeroDivisionError) as error:
        return f"error: {error}"


class ToolAgent(cog.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prompt = cog.Parameter("Answer with a number. Use the tools.", role="system prompt")
        self.chat = cog.ChatCompletion()

    async def forward(self, client: ChatClient, question: str) -> afnio.Variable:
        messages = [
            {"role": "system", "content": [self.prompt]},
            {"role": "user", "content": [afnio.Variable("{question}", role="question")]},
        ]
        inputs: dict[str, Any] = {"question": question}
        for turn in range(ROUNDS):
            last = turn == ROUNDS - 1
            tools = {} if last else {"tools": TOOLS}  # without tools it must answer
            reply = await self.chat(client, messages, inputs=dict(inputs), model=MODEL, **tools)
            if not reply.response.tool_calls:
                break
            for number, call in enumerate(reply.response.tool_calls):
                expression = json.loads(call.arguments).get("expression", "")
                name = f"result_{turn}_{number}"
                inputs[name] = f"{expression} = {calculate(expression)}"
                messages = [
                    *messages,
                    {
                        "role": "user",
                        "content": [afnio.Variable(f"{call.name}: {{{name}}}", role="tool result")],
                    },
                ]
        return reply


async def main() -> None:
    questions = [
        ("What is 12 * 7 + 5?", "89"),
        ("What is (3 + 4) * 6?", "42"),
        ("What is 1 / 0?", "undefined"),
    ]
    live = os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")
    with endpoint() as served:
        client = served if live else ScriptedClient(play)
        agent = ToolAgent()
        optimizer = afnio.optim.TGD(agent.parameters(), served, model=MODEL)
        replies = await _together(agent, client, [question for question, _ in questions])
        results = [
            cog.functional.exact_match_evaluator(reply, target)
            for reply, (_, target) in zip(replies, questions, strict=True)
        ]
        for (question, target), reply, (score, _) in zip(questions, replies, results, strict=True):
            print(f"{question} {(await reply).data} (expected {target}, score {(await score).data})")
        await afnio.autodiff.backward([explanation for _, explanation in results])
        await optimizer.step()
        print((await agent.prompt).data)


async def _together(agent: ToolAgent, client: ChatClient, questions: list[str]) -> list[afnio.Variable]:
    import anyio

    replies: dict[int, afnio.Variable] = {}

    async def ask(number: int, question: str) -> None:
        # They run in one task group. A scope for each gives it the same address in every run.
        async with afnio.scope(name=f"question {number}"):
            replies[number] = await agent(client, question)

    async with anyio.create_task_group() as tasks:
        for number, question in enumerate(questions):
            tasks.start_soon(ask, number, question)
    return [replies[number] for number in range(len(questions))]


def play(request: ChatRequest) -> str | ChatResponse:
    """Play a model that calculates what it is asked, then says the result."""
    last = str(request.messages[-1]["content"])
    if last.startswith("calculate: "):
        return last.rpartition("= ")[2]
    found = re.search(r"[\d(][\d\s+*/().-]*", last)
    arguments = json.dumps({"expression": found[0].strip() if found else ""})
    call = ToolCall(id="1", name="calculate", arguments=arguments)
    return ChatResponse(content=None, tool_calls=(call,), finish_reason="tool_calls", model=request.model)


if __name__ == "__main__":
    afnio.run(main())
