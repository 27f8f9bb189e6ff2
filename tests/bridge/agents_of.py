"""Agents in frameworks, as their documentation writes them. Each runs in an environment of its own.

`python agents_of.py NAME URL JOURNAL LANES` runs one over so many rows, and prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import afnio
from afnio import bridge
from afnio.runtime.events import CallEnded, CallReplayed, subscribed

LIMITS = afnio.Limits(max_in_flight=20)
KEY = "any-key-0123"


def openai_sdk(url: str) -> Callable[..., Any]:
    import openai

    module = "httpx2" if openai.__version__.startswith("3") else "httpx"
    client = openai.AsyncOpenAI(
        api_key=KEY, base_url=f"{url}/v1", http_client=bridge.client(limits=LIMITS, module=module)
    )

    async def agent(text: str) -> str:
        reply = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
        return reply.choices[0].message.content or ""

    return agent


def anthropic(url: str) -> Callable[..., Any]:
    from anthropic import Anthropic

    client = Anthropic(api_key=KEY, base_url=url, http_client=bridge.sync_client(limits=LIMITS))

    def agent(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        return client.messages.create(model="m", max_tokens=9, messages=messages).content[0].text

    return agent


def pydantic_ai(url: str) -> Callable[..., Any]:
    import openai
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    client = openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", http_client=bridge.client(limits=LIMITS))
    inner = Agent(OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client)))

    async def agent(text: str) -> str:
        return (await inner.run(text)).output

    return agent


def openai_agents(url: str) -> Callable[..., Any]:
    """On the Responses API, with a tool."""
    import openai
    from agents import Agent, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled

    set_tracing_disabled(True)
    client = openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", http_client=bridge.client(limits=LIMITS))

    @function_tool
    def look_up(question: str) -> str:
        return f"found {question}"

    inner = Agent(name="a", model=OpenAIResponsesModel("m", openai_client=client), tools=[look_up])

    async def agent(text: str) -> str:
        return str((await Runner.run(inner, text)).final_output)

    return agent


def langgraph(url: str) -> Callable[..., Any]:
    """Three parallel tools, each of which blocks on a model of its own."""
    import openai
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.prebuilt import create_react_agent

    model = ChatOpenAI(model="m", api_key=KEY, base_url=f"{url}/v1")
    sdk = openai.OpenAI(api_key=KEY, base_url=f"{url}/v1")

    def ask(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        return sdk.chat.completions.create(model="m", messages=messages).choices[0].message.content or ""

    @tool
    def first(question: str) -> str:
        """Ask the first."""
        return ask(f"first {question}")

    @tool
    def second(question: str) -> str:
        """Ask the second."""
        return ask(f"second {question}")

    @tool
    def third(question: str) -> str:
        """Ask the third."""
        return ask(f"third {question}")

    inner = create_react_agent(model, [first, second, third])

    def agent(text: str) -> str:
        return str(inner.invoke({"messages": [("user", text)]})["messages"][-1].content)

    return agent


def genai(url: str) -> Callable[..., Any]:
    from google.genai import Client, types

    options = types.HttpOptions(base_url=url, httpx_client=bridge.sync_client(limits=LIMITS))
    client = Client(api_key=KEY, http_options=options)

    def agent(text: str) -> str:
        return str(client.models.generate_content(model="m", contents=text).text)

    return agent


def genai_async(url: str) -> Callable[..., Any]:
    from google.genai import Client, types

    options = types.HttpOptions(base_url=url, httpx_async_client=bridge.client(limits=LIMITS))
    client = Client(api_key=KEY, http_options=options)

    async def agent(text: str) -> str:
        return str((await client.aio.models.generate_content(model="m", contents=text)).text)

    return agent


def llama_index(url: str) -> Callable[..., Any]:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai import OpenAI

    model = OpenAI(model="gpt-4o-mini", api_key=KEY, api_base=f"{url}/v1")

    def agent(text: str) -> str:
        return str(model.chat([ChatMessage(role="user", content=text)]).message.content)

    return agent


def llama_index_streams(url: str) -> Callable[..., Any]:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai import OpenAI

    model = OpenAI(model="gpt-4o-mini", api_key=KEY, api_base=f"{url}/v1")

    async def agent(text: str) -> str:
        stream = await model.astream_chat([ChatMessage(role="user", content=text)])
        return "".join([part.delta or "" async for part in stream])

    return agent


def smolagents(url: str) -> Callable[..., Any]:
    from smolagents import OpenAIServerModel

    model = OpenAIServerModel("m", api_base=f"{url}/v1", api_key=KEY)

    def agent(text: str) -> str:
        return str(model([{"role": "user", "content": [{"type": "text", "text": text}]}]).content)

    return agent


def crewai(url: str) -> Callable[..., Any]:
    from crewai import LLM, Agent, Crew, Task

    llm = LLM(model="openai/gpt-4o-mini", base_url=f"{url}/v1", api_key=KEY)

    def agent(text: str) -> str:
        worker = Agent(role="r", goal="g", backstory="b", llm=llm)
        task = Task(description=text, expected_output="a text", agent=worker)
        return str(Crew(agents=[worker], tasks=[task]).kickoff())

    return agent


def crewai_anthropic(url: str) -> Callable[..., Any]:
    from crewai import LLM, Agent, Crew, Task

    llm = LLM(model="anthropic/claude-sonnet-4-5", base_url=url, api_key=KEY, max_tokens=99)

    def agent(text: str) -> str:
        worker = Agent(role="r", goal="g", backstory="b", llm=llm)
        task = Task(description=text, expected_output="a text", agent=worker)
        return str(Crew(agents=[worker], tasks=[task]).kickoff())

    return agent


def ag2(url: str) -> Callable[..., Any]:
    from ag2 import Agent
    from ag2.config import OpenAIConfig

    inner = Agent("a", prompt="p", config=OpenAIConfig(model="m", api_key=KEY, base_url=f"{url}/v1"))

    async def agent(text: str) -> str:
        return str((await inner.ask(text)).body)

    return agent


def litellm_router(url: str) -> Callable[..., Any]:
    """Two deployments of a model at one endpoint."""
    from litellm import Router

    deployment = {"model": "openai/m", "api_base": f"{url}/v1", "api_key": KEY}
    router = Router([{"model_name": "any", "litellm_params": deployment} for _ in range(2)], num_retries=0)

    async def agent(text: str) -> str:
        reply = await router.acompletion("any", messages=[{"role": "user", "content": text}])
        return str(reply.choices[0].message.content)

    return agent


def plain_requests(url: str) -> Callable[..., Any]:
    import requests

    def agent(text: str) -> str:
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        headers = {"authorization": f"Bearer {KEY}"}
        reply = requests.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        reply.raise_for_status()
        return str(reply.json()["choices"][0]["message"]["content"])

    return agent


def plain_aiohttp(url: str) -> Callable[..., Any]:
    import aiohttp

    async def agent(text: str) -> str:
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        headers = {"authorization": f"Bearer {KEY}"}
        async with (
            aiohttp.ClientSession(headers=headers, raise_for_status=True) as session,
            session.post(f"{url}/v1/chat/completions", json=body) as reply,
        ):
            return str((await reply.json())["choices"][0]["message"]["content"])

    return agent


def boto3_bedrock(url: str) -> Callable[..., Any]:
    """Each request is signed, so no two have the same headers."""
    import boto3

    bridge.register(
        "model/m/converse", lambda reply: (reply["usage"]["inputTokens"], reply["usage"]["outputTokens"])
    )
    session = boto3.Session(aws_access_key_id=KEY, aws_secret_access_key=KEY, region_name="us-east-1")
    client = session.client("bedrock-runtime", endpoint_url=url)

    def agent(text: str) -> str:
        reply = client.converse(modelId="m", messages=[{"role": "user", "content": [{"text": text}]}])
        return str(reply["output"]["message"]["content"][0]["text"])

    return agent


class Messages(logging.Handler):
    """Collects what Afnio logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


async def main(name: str, url: str, journal: str, lanes: int) -> dict[str, Any]:
    said = Messages()
    logging.getLogger("afnio").addHandler(said)
    events: list[Any] = []
    rows = [f"row {n}" for n in range(lanes)]
    async with afnio.journal(journal):
        with subscribed(events.append), bridge.installed(limits=LIMITS), afnio.budget() as spent:
            outputs = (await afnio.Variable(rows).map(globals()[name](url))).data
    return {
        "outputs": hashlib.sha256(json.dumps(outputs).encode()).hexdigest(),
        "last": outputs[-1],
        "ledger": spent.ledger.total.calls,
        "paid": sum(isinstance(event, CallEnded) for event in events),
        "replayed": sum(isinstance(event, CallReplayed) for event in events),
        # A busy machine takes more than half a second for the first steps of 400 agents.
        "said": [text for text in said.texts if "google-genai" not in text and "has blocked" not in text],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))))  # type: ignore[arg-type]
