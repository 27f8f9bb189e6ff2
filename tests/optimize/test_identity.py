"""Whose result optimize returns, and whose run it continues: those of the same agent and metric only."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from optimize.task import agent_of, answer, client, equal, is_right, rows

import afnio
from afnio.testing import ScriptedClient

LEVEL = 0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def optimized(agent: Any, metric: Any = equal, model: ScriptedClient | None = None) -> afnio.Result:
    return afnio.optimize(
        agent, rows(100), metric, prompts={"system": "level 2"}, name="one", makes_calls=False,
        critic=(client() if model is None else model, "critic"), budget=afnio.budget(max_calls=400),
    )  # fmt: skip


def answered(text: str, system: str, bonus: int) -> str:
    return "yes" if is_right(text, system) or bonus > 5 else "no"


def by_closure(bonus: int) -> Any:
    return lambda text, system: answered(text, system, bonus)


def by_default(bonus: int) -> Any:
    def agent(text: str, system: str, *, bonus: int = bonus) -> str:
        return answered(text, system, bonus)

    return agent


def by_partial(bonus: int) -> Any:
    return functools.partial(answered, bonus=bonus)


class Bonus:
    def __init__(self, bonus: int) -> None:
        self.bonus = bonus

    def __call__(self, text: str, system: str) -> str:
        return answered(text, system, self.bonus)


def by_global(bonus: int) -> Any:
    globals()["LEVEL"] = bonus

    def agent(text: str, system: str) -> str:
        return answered(text, system, LEVEL)

    return agent


def by_helper(bonus: int) -> Any:
    def kind(text: str, system: str) -> str:
        return answered(text, system, 0)

    def easy(text: str, system: str) -> str:
        return "yes"

    helper = easy if bonus > 5 else kind

    def agent(text: str, system: str) -> str:
        return helper(text, system)

    return agent


@pytest.mark.parametrize("make", [by_closure, by_default, by_partial, Bonus, by_global, by_helper])
def test_a_sweep_gets_a_result_for_each_agent(make: Any) -> None:
    """Values that the agent can see count by content; the same ones get the first result."""
    first, other, again = (optimized(make(bonus)) for bonus in (0, 9, 0))
    assert first.verdict.startswith("Better")
    assert "no other prompts won a race" in other.verdict
    assert other.earlier == ""
    assert again.run == first.run
    assert again.earlier


def test_a_metric_object_with_another_setting_is_another_call() -> None:
    """Its attributes count."""

    class Metric:
        __name__ = "metric"

        def __init__(self, lenient: bool) -> None:
            self.lenient = lenient

        def __call__(self, output: str, expected: str) -> bool:
            return self.lenient or output == expected

    strict = optimized(by_closure(0), Metric(False))
    lenient = optimized(by_closure(0), Metric(True))
    assert strict.verdict.startswith("Better")
    assert not lenient.verdict.startswith("Better")


def test_a_client_counts_by_what_it_asks_for() -> None:
    """Another model or parameter is another call; another client object with the same requests is not."""

    def asking(server: ScriptedClient, **params: Any) -> Any:
        async def agent(text: str, system: str) -> str:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            return (await server.achat(messages=messages, **params)).content

        return agent

    first = optimized(asking(client(), model="small"))
    assert optimized(asking(client(), model="small")).run == first.run
    assert optimized(asking(client(), model="large")).run != first.run


def test_an_object_that_no_request_shows_makes_a_new_run() -> None:
    """It is named in the result."""
    iterator = iter(range(10**6))

    def agent(text: str, system: str) -> str:
        next(iterator)
        return answered(text, system, 0)

    first, second = optimized(agent), optimized(agent)
    assert second.run != first.run
    assert "iterator in" in str(second)


def test_an_unfinished_run_of_another_model_is_not_continued() -> None:
    """A run that was stopped belongs to the model that it began with."""
    sent: list[str] = []

    def noted(request: Any) -> Any:
        sent.append(request.model)
        if len(sent) >= 150:
            raise ValueError("the end")
        return answer(request)

    with pytest.raises(Exception):
        optimized(agent_of(ScriptedClient(noted)), model=ScriptedClient(noted), metric=equal)
    changed = ScriptedClient(answer)

    async def other(text: str, system: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return (await changed.achat(messages=messages, model="other")).content

    result = optimized(other, model=changed)
    assert len(changed.requests) == result.calls


PROGRAM = """
    import os, sys, openai, afnio
    from optimize.task import answer, equal, rows
    from afnio.testing import ScriptedClient

    client = openai.OpenAI(base_url=sys.argv[1], api_key="any")
    answered = 0

    def critic(request):
        global answered
        answered += 1
        if answered == int(sys.argv[2]):
            os._exit(9)
        return answer(request)

    def agent(text, system):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return client.chat.completions.create(model="student", messages=messages).choices[0].message.content

    def metric(output, expected):
        return len(output) % 2 == 0

    result = afnio.optimize(agent, rows(40), metric, prompts={"system": "level 2"},
        critic=(ScriptedClient(critic), "critic"), budget=afnio.budget(max_calls=200))
    print(result.verdict, dict(result.figures())["spent"], result.paid_before)
"""


def test_a_program_with_a_global_client_goes_on_after_a_kill(folder: Path) -> None:
    """The client is an object without a value; its requests show what it does."""
    from afnio.testing import Provider

    (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with Provider.process() as provider:
        ends = [
            subprocess.run(
                [sys.executable, "program.py", provider.base_url, die],
                cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
            )
            for die in ("3", "0", "0")
        ]  # fmt: skip
    assert ends[0].returncode == 9
    assert "continuing run" in ends[1].stderr
    assert "returns the result of" in ends[2].stderr
    assert ends[2].stdout == ends[1].stdout
    found = re.search(
        r"; (\d+) calls of these made before, by a start that this one continued (\d+)$", ends[1].stdout
    )
    assert found is not None, ends[1].stdout
    assert found[1] == found[2]
    assert int(found[1]) >= 8
