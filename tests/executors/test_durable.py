"""`durable=`: results of functions in workers, which a resumed run takes from its journal."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit import errands

import afnio
import afnio.cognitive.functional as F
from afnio.errors import BatchError

WORKERS = functools.partial(ProcessPoolExecutor, 2, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def evaluate(journal: Path, runs: Path, rows: list[str], durable: int, mode: Any = "resume") -> Any:
    """Score rows, and return what came out and how often the function has run so far."""
    counted = functools.partial(errands.counted, str(runs))
    with afnio.journal(journal, mode=mode) as opened:
        score, explanation = F.deterministic_evaluator(
            afnio.Variable(rows),
            "2",
            counted,
            "equality",
            reduction_fn=None,
            reduction_fn_purpose=None,
            executor=WORKERS,
            durable=durable,
        )
        found = score.data, explanation.data
        assert opened is not None
        opened.flush()
        assert opened.spent().total.attempts == opened.spent().total.calls == 0
    return found, len(runs.read_text())


def test_a_result_is_computed_once_for_each_version(
    tmp_path: Path, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = tmp_path / "calls.journal"
    found = [False, True, False], ["1 for 2", "2 for 2", "3 for 2"]
    with caplog.at_level(logging.WARNING):
        assert evaluate(journal, runs, ["1", "2", "3"], 1) == (found, 3)
        assert evaluate(journal, runs, ["1", "2", "3"], True) == (found, 3)
        assert evaluate(journal, runs, ["1", "2", "3"], 2) == (found, 6)
        assert evaluate(journal, runs, ["1", "2", "3"], 2) == (found, 6)
    assert caplog.messages == [], "a version is raised on purpose"
    with closing(sqlite3.connect(journal)) as connection:
        assert connection.execute("SELECT kind, count(*) FROM records GROUP BY kind").fetchall() == [
            ("result", 6)
        ]


def test_a_changed_program_and_other_programs_find_results_by_what_was_asked(
    tmp_path: Path, runs: Path
) -> None:
    journal = tmp_path / "calls.journal"
    assert evaluate(journal, runs, ["1", "2", "3"], 1)[1] == 3
    moved = evaluate(journal, runs, ["0", "1", "2", "3"], 1)
    assert moved == (([False, False, True, False], ["0 for 2", "1 for 2", "2 for 2", "3 for 2"]), 4)
    assert moved == evaluate(journal, runs, ["0", "1", "2", "3"], 1)
    assert evaluate(journal, runs, ["3", "0"], 1, mode="reuse")[1] == 4


class Opaque:
    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass
class Settings:
    """Its repr is the same whatever it holds."""

    held: Opaque

    def __repr__(self) -> str:
        return "Settings(…)"


def opened(held: Any, x: Any) -> Any:
    value = held.held.value if isinstance(held, Settings) else held
    return [str(value), x]


def test_what_a_partial_binds_is_a_part_of_what_is_asked(tmp_path: Path) -> None:
    for value in (1, 2, 1):
        for held in (value, Settings(Opaque(value)), {"a": [value]}):
            expected = [str(value if isinstance(held, Settings) else held), "x"]
            with afnio.journal(tmp_path / "calls.journal"):
                found = afnio.Variable(["x"]).map(
                    functools.partial(opened, held), executor=WORKERS, durable=1
                )
                assert found.data == [expected]
    with closing(sqlite3.connect(tmp_path / "calls.journal")) as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchall() == [(6,)]


def test_what_json_cannot_hold_is_named(tmp_path: Path) -> None:
    with afnio.journal(tmp_path / "calls.journal"), afnio.tolerate(quorum=0.1):
        row = afnio.Variable([1])
        with pytest.raises(BatchError, match=r"must return what JSON can hold \(got \{1\} from as_set\)"):
            _ = row.map(errands.as_set, executor=WORKERS, durable=1).data
        unstable = functools.partial(opened, {(1, 2): 3})
        with pytest.raises(
            BatchError, match="what the durable function opened gets must be equal in the next run"
        ):
            _ = row.map(unstable, executor=WORKERS, durable=1).data
