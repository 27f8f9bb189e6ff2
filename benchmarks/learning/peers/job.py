"""Job: what a peer's script is told and reports; it imports nothing of ours, as its environment has none of it."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import OpenAI


class Job:
    """The task, the endpoint, and a count of what they took; read from a file."""

    def __init__(self, path: str) -> None:
        with open(path, encoding="utf-8") as file:
            self.spec: dict[str, Any] = json.load(file)
        self.client = OpenAI(base_url=self.spec["base_url"], api_key=self.spec["api_key"], max_retries=5)
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self.tokens: dict[str, list[int]] = {}  # by model: in and out
        self.note = ""
        self.path: list[tuple[float, int, int, dict[str, str]]] = []
        self.rounds, self.round_ended = 0, 0.0
        self.lock = threading.Lock()
        self.began = time.monotonic()

    @property
    def spent(self) -> bool:
        return self.calls >= self.spec["budget"]

    def ask(self, messages: list[dict[str, str]], arguments: dict[str, Any]) -> str:
        """Return the reply of one counted call."""
        started = time.monotonic()
        reply = self.client.chat.completions.create(messages=messages, **arguments)
        with self.lock:
            if started >= self.round_ended:  # it had to wait for another call
                self.rounds, self.round_ended = self.rounds + 1, time.monotonic()
            self.calls += 1
            if reply.usage is not None:
                self.prompt_tokens += reply.usage.prompt_tokens
                self.completion_tokens += reply.usage.completion_tokens
                of_model = self.tokens.setdefault(arguments["model"], [0, 0])
                of_model[0] += reply.usage.prompt_tokens
                of_model[1] += reply.usage.completion_tokens
        return reply.choices[0].message.content or ""

    def reflect(self, messages: list[dict[str, str]]) -> str:
        """Return what critic or optimizer say."""
        return self.ask(messages, self.spec["critic"])

    def run(self, prompts: dict[str, str], item: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
        """Run the steps on one item; returns each step's message and reply, and the answer."""
        values, seen = dict(item["inputs"]), []
        for step in self.spec["steps"]:
            message = filled(step["template"], values)
            told = [
                {"role": "system", "content": prompts[step["name"]]},
                {"role": "user", "content": message},
            ]
            reply = self.ask(told, {**self.spec["student"], **step["arguments"]})
            values[step["output"]] = reply
            seen.append((message, reply))
        return seen, self.read(seen[-1][1])

    def read(self, reply: str) -> str:
        """Return the answer in a reply."""
        kind, name = self.spec["read"]
        if kind == "number":
            return (re.findall(r"-?\d+", re.sub(r"(?<=\d),(?=\d)", "", reply)) or [reply.strip()])[-1]
        if kind == "words":
            return " ".join(reply.replace(",", " ").split())
        if kind == "sentence":
            return reply.strip().rstrip(".")
        if kind == "text":
            return reply.strip()
        try:
            answer = json.loads(reply)
        except ValueError:
            return ""
        if kind == "flags":
            return ", ".join(sorted(flag for flag, value in answer.items() if value))
        return str(answer.get(name)).lower()

    def score(self, answer: str, target: str) -> float:
        """Return the score of an answer, from 0 to 1."""
        kind, names = self.spec["score"]
        if kind == "exact":
            return float(answer == target)
        said, wanted = set(answer.split(", ")), set(target.split(", "))
        return sum((name in said) == (name in wanted) for name in names) / len(names)

    def measured(self, prompts: dict[str, str], items: Sequence[dict[str, Any]]) -> list[float]:
        """Return the score of each item."""
        with ThreadPoolExecutor(self.spec["threads"]) as pool:
            return list(pool.map(lambda i: self.score(self.run(prompts, i)[1], i["target"]), items))

    def feedback(self, answer: str, target: str) -> str:
        """Return what a deterministic evaluator says, in the same words for everyone."""
        said, wanted = json.dumps(answer), json.dumps(target)
        return f"exact match: predicted {said}, expected {wanted}, score {self.score(answer, target):g}."

    def remember(self, prompts: dict[str, str]) -> None:
        """Note what the training would return if it ended now."""
        if self.spec["traced"]:
            self.path.append((time.monotonic() - self.began, self.calls, self.rounds, dict(prompts)))

    def result(self, prompts: dict[str, str]) -> dict[str, Any]:
        """Return the prompts that the training ended with and what it took."""
        return {
            "prompts": prompts,
            "note": self.note,
            "path": self.path,
            "rounds": self.rounds,
            "calls": self.calls,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "tokens": self.tokens,
            "seconds": time.monotonic() - self.began,
        }


def report(train: Callable[[Job], dict[str, str]]) -> None:
    """Run `train` on the job in each file that the arguments name, and print each result as a line."""
    for path in sys.argv[1:]:
        job = Job(path)
        sys.stdout.write("\n" + json.dumps({"run": job.result(train(job))}) + "\n")
        sys.stdout.flush()


def filled(template: str, values: dict[str, str]) -> str:
    """Return the template with its placeholders filled in one pass."""
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)
