"""Functions that tests run in worker processes, which import them from here."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from afnio.autodiff import Function


def double(x: Any) -> Any:
    return x * 2


def match(prediction: str, target: str) -> tuple[float, str]:
    return float(prediction == target), f"worker: {prediction}/{target}"


async def later(x: Any) -> Any:
    return x + 1


class OddError(Exception):
    def __init__(self, text: str, *, number: int) -> None:
        super().__init__(text)
        self.number = number


class PlainError(Exception):
    pass


def fail(x: Any) -> Any:
    if x == 1:
        raise PlainError("one is wrong")
    if x == 2:
        raise OddError("two is odd", number=2)
    return x


def unpicklable(x: Any) -> Any:
    import threading

    return threading.Lock() if x == 1 else x


def poison(x: Any) -> Any:
    """Kill the worker for a negative number."""
    if isinstance(x, int) and x < 0:
        os._exit(3)
    return x * 2


def once(folder: str, number: str) -> str:
    """Kill the worker, once for each folder and number."""
    mark = Path(folder) / number
    if not mark.exists():
        mark.touch()
        os._exit(3)
    return number


def raised(x: float, exponent: int) -> float:
    return x**exponent


def counted(path: str, prediction: str, target: str) -> tuple[bool, str]:
    """Score, and write one character for each run."""
    with Path(path).open("a") as file:
        file.write("x")
    return prediction == target, f"{prediction} for {target}"


def as_set(x: Any) -> Any:
    return {x}


def pid(x: Any) -> str:
    return str(os.getpid())


def host_name(x: Any) -> str:
    time.sleep(0.2)
    return socket.gethostname()


def wait_for(path: str) -> str:
    """Wait until there is a file."""
    Path(path + ".started").touch()
    while not Path(path).exists():
        time.sleep(0.01)
    return path


class Measured(Function):
    """Measures in a worker, and keeps something for backward."""

    outputs = ("size", "shout")

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        (text,) = args
        ctx.save_for_backward(os.getpid())
        ctx.words = text.split()
        return len(text), f"{text.upper()} {ctx.lane} {ctx.needs_input_grad[0]}"

    @staticmethod
    def backward(ctx: Any, *feedback: Any) -> Any:
        return f"{feedback[1]} of {len(ctx.words)} words, measured elsewhere: {ctx.saved_values[0] != os.getpid()}"


# Calls of language models


_made: dict[str, Any] = {}


def _client(kind: str, url: str | None) -> Any:
    """Return the process's client, which was made in the first lane that asked for it."""
    name = f"{kind} {url}"
    if name not in _made:
        import openai

        _made[name] = getattr(openai, kind)(api_key="any-key-0123", max_retries=0, base_url=url)
    return _made[name]


def _question(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def ask(url: str | None, text: str) -> str:
    reply = _client("OpenAI", url).chat.completions.create(**_question(text))
    return str(reply.choices[0].message.content)


async def ask_later(url: str, text: str) -> str:
    client = _client("AsyncOpenAI", url)
    events = await client.chat.completions.create(**_question(text), stream=True)
    return "".join([event.choices[0].delta.content or "" async for event in events if event.choices])


def ask_natively(url: str, text: str) -> str:
    from afnio.models.openai import AsyncOpenAI

    if url not in _made:
        _made[url] = AsyncOpenAI(base_url=url, api_key="any-key-0123")
    return str(_made[url].chat(**_question(text)).content)


async def ask_by_aiohttp(url: str, text: str) -> str:
    import aiohttp

    headers = {"authorization": "Bearer any-key-0123"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.post(f"{url}/chat/completions", json=_question(text)) as reply:
            return str((await reply.json())["choices"][0]["message"]["content"])


def ask_twice_in_a_block(url: str, text: str) -> str:
    """Return the statuses of two requests in a block that is entered in the worker, with a limit of one a minute."""
    import httpx2

    from afnio import Limits, bridge

    with bridge.installed(limits=Limits(requests_per_minute=1)):
        replies = [httpx2.post(f"{url}/chat/completions", json=_question(text), timeout=60) for _ in range(2)]
    return " ".join(str(reply.status_code) for reply in replies)


def ask_by_environment(text: str) -> str:
    """Ask as a subprocess does that reads OPENAI_BASE_URL."""
    body = json.dumps(_question(text)).encode()
    headers = {"content-type": "application/json", "authorization": "Bearer any-key-0123"}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    with urllib.request.urlopen(request) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"])


def ask_and_die(url: str, folder: str, text: str) -> str:
    """Ask twice the same and once something else. The worker ends after the first reply, or in the second call."""
    first = ask(url, "same")
    before = Path(folder) / f"{text}.between"
    if not before.exists():
        before.touch()
        os._exit(3)
    during = Path(folder) / f"{text}.during"
    if not during.exists():
        during.touch()
        threading.Thread(target=_die_when, args=(Path(folder) / "asked",)).start()
    return f"{first} {ask(url, 'same')} {ask(url, text)}"


def fail_and_die(url: str, folder: str, text: str) -> str:
    """Ask. The worker of the first run ends after it was refused."""
    try:
        return ask(url, text)
    except Exception:
        if (Path(folder) / "failed").exists():
            raise
        (Path(folder) / "failed").touch()
        os._exit(3)


def _die_when(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)
    os._exit(3)


def agent(question: str, system: str, url: str) -> str:
    return ask(url, f"{system} {question}")


def slowly(text: str) -> str:
    time.sleep(0.02)
    return text.upper()


def ask_slowly(url: str, text: str) -> str:
    """Ask twice, with some work in between."""
    first = ask(url, text)
    time.sleep(0.02)
    return ask(url, first)


def end_while_starting(folder: str, ends: int, code: int) -> None:
    """End the first workers that start: by a signal, as the system does if memory is short, or with an exit code."""
    for number in range(ends):
        try:
            Path(folder, f"ended-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)
