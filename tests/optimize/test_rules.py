"""optimize: guards, constraints, lengths, and rows that are too few to measure on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optimize.task import answer, client, rows
from optimize.task import optimized as optimized_on

import afnio
from afnio.testing import ScriptedClient


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forgetful(request: Any) -> Any:
    """Answer like the task's model, but any prompt above level 2 gets rows 0, 10, 20, … wrong."""
    reply = answer(request)
    texts = [str(message.get("content")) for message in request.messages]
    if len(texts) == 2 and texts[0].startswith("level ") and texts[0] != "level 2" and texts[1].endswith("0"):
        return "no"
    return reply


optimized = partial(optimized_on, count=60)
GUARDS = [("row 100", "yes"), ("row 110", "yes"), ("row 120", "yes")]


def test_guards_refuse_every_prompt_that_breaks_one() -> None:
    """Without them the better prompt is kept; with them it isn't, and the verdict says by whom."""
    assert optimized(ScriptedClient(forgetful)).changed
    result = optimized(ScriptedClient(forgetful), guards=GUARDS)
    assert not result.changed
    assert result.verdict.startswith("No gain beyond noise: the guards vetoed ")
    assert any(note.startswith("the guards vetoed ") for note in result.notes)
    assert result.splits == {"train": 33, "held": 30}


def test_guards_that_hold_change_nothing_else() -> None:
    result = optimized(guards=GUARDS)
    assert result.verdict.startswith("Better: +")
    assert not [note for note in result.notes if "guard" in note]


def test_a_function_picks_guards_from_the_rows() -> None:
    """They leave the rows that are held out. Those that the old prompt gets wrong are named, and guard nothing."""
    result = optimized(guards=lambda row: row[0] in ("row 0", "row 9", "row 11"))
    (note,) = [note for note in result.notes if "guard" in note]
    assert note.startswith("1 of 3 guards guard nothing")
    assert note.endswith("3 times of 3: row 9")
    assert sum(result.splits.values()) == 60
    held = {example.inputs for example in result.examples}
    assert not held & {"row 0", "row 9", "row 11"}


def test_no_firm_guard_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"guards must have a sample .* \(got none of 1\)"):
        optimized(guards=[("row 9", "yes")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guards": lambda row: False}, r"guards must pick rows that must not break \(got none of 60\)"),
        ({"guards": GUARDS, "testset": [*GUARDS, *rows(60)[:20]]}, r"guards must not be in testset.*row 100"),
        ({"guards": "row 1"}, "guards must be a sequence of rows"),
        ({"constraints": "Be short."}, r"constraints must be a list .*write \[\.\.\.\]"),
        ({"constraints": [3]}, r"a constraint must be a text or a def .*\(got 3\)"),
        ({"constraints": ["\ud800"]}, "UTF-8 can express"),
        (
            {"constraints": [lambda name, text: "no levels" if "level" in text else None]},
            r"constraints must hold for the start prompts \(got 'system': no levels\)",
        ),
        ({"constraints": [lambda name, text: True]}, r"a constraint must return None or the reason .*got True"),
        ({"max_chars": 0}, r"max_chars must be a number of characters, 1 or more, or None \(got 0 for 'system'\)"),
        ({"max_chars": {"sistem": 9}}, r"max_chars must name prompts: system \(got 'sistem'\)"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_kept_are_refused_before_the_first_call(
    changes: dict[str, Any], message: str
) -> None:
    model = client()
    with pytest.raises((TypeError, ValueError), match=message):
        optimized(model, **changes)
    assert len(model.requests) == 0


def test_a_constraint_that_raises_shows_its_own_error() -> None:
    def check(name: str, text: str) -> str | None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        optimized(constraints=[check])


def test_constraints_are_told_and_checked() -> None:
    """A text reaches the proposer. A function refuses what breaks it, and the proposer hears why."""
    model = client()

    def below(name: str, text: str) -> str | None:
        return "stay below level 5" if name == "system" and "level 6" in text else None

    result = optimized(model, constraints=["Name no competitor.", below])
    asked = [str(request.messages) for request in model.requests]
    assert any("Name no competitor." in text for text in asked)
    assert any("stay below level 5" in text for text in asked)
    assert result.prompts == {"system": "level 4"}


@pytest.mark.parametrize("most", [8, {"system": 8}])
def test_prompts_stay_within_their_length(most: Any) -> None:
    """One that has ten characters is refused."""

    def wordy(request: Any) -> Any:
        reply = answer(request)
        if isinstance(reply, dict) and "edits" in reply:
            reply["edits"][0]["text"] += "!!"
        return reply

    assert not optimized(ScriptedClient(wordy), max_chars=most).changed
    assert optimized(ScriptedClient(wordy), max_chars=None).changed


def test_rules_make_another_call() -> None:
    """With another guard, constraint or length, the finished result isn't returned."""

    def again(**rules: Any) -> afnio.Result:
        return optimized(count=8, budget=afnio.budget(max_calls=60), **{"max_chars": 500, **rules})

    assert [again().earlier != "" for _ in range(2)] == [False, True]
    for rules in (
        {"max_chars": 400},
        {"guards": GUARDS[:1]},
        {"constraints": ["Be kind."]},
        {"constraints": [lambda name, text: None if text else "empty"]},
    ):
        assert not again(**rules).earlier


# Too few rows


@pytest.mark.parametrize("count", [8, 19])
def test_few_rows_train_and_measure_nothing(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The old prompts are the result, the new ones are there to read. No power is foretold of no rows."""
    result = optimized(count=count, budget=afnio.budget(max_calls=200))
    assert result.verdict == (
        f"Not measured: {count} rows. The old prompts are kept; the new ones are in .candidate."
    )
    assert result.prompts == result.start == {"system": "level 2"}
    assert result.candidate != result.start
    assert result.gain is None
    assert result.splits == {"train": count, "held": 0}
    assert "after" not in str(result)
    assert f"system (candidate, not measured):\n  {result.candidate['system']}" in str(result)
    told = capsys.readouterr().err
    assert f"{count} rows train, and none are held out, so nothing is measured" in told
    assert "held-out rows" not in told
    again = optimized(count=count, budget=afnio.budget(max_calls=200))
    assert (again.earlier != "", again.candidate) == (True, result.candidate)


def test_fewer_than_eight_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 8 rows with different inputs to train on \(got 7\)"):
        optimized(count=7)


def test_the_candidate_of_a_measured_result_is_there_too() -> None:
    result = optimized()
    assert result.candidate == result.prompts
