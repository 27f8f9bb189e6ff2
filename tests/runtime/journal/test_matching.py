"""Which record answers a call: the same address, a changed program, reuse across runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from afnio.runtime._journal import Journal, ProgramChanged

if TYPE_CHECKING:
    from conftest import Reply

Write = Callable[..., None]


def taken(journal: Journal, address: str, key: str = "aa") -> bytes | None:
    record = journal.take(address, key, address.rpartition("/")[0])
    return None if record is None else record.payload


def test_resume_takes_each_record_once(path: Path, record: Write, reply: Reply) -> None:
    """By address and key, in any order; an address that isn't there is no change of the program."""
    record(*(reply(f"s/{n}", b"%d" % n, key=f"{n:04x}") for n in range(20)))
    with Journal.open(path) as journal:
        assert [b"%d" % n for n in reversed(range(20))] == [
            taken(journal, f"s/{n}", f"{n:04x}") for n in reversed(range(20))
        ]
        assert taken(journal, "s/3", "0003") is None
        assert taken(journal, "s/99", "0003") is None
        assert journal.changed is None


def test_resume_replays_what_is_not_reusable(path: Path, record: Write, reply: Reply) -> None:
    """A truncation was what the program got at this address; nobody else gets it."""
    record(reply("s/1", b"cut", reusable=False), reply("s/2", key="bb"))
    with Journal.open(path) as journal:
        assert taken(journal, "s/2", "cc") is None
        assert taken(journal, "s/3") is None
        assert taken(journal, "s/1") == b"cut"
    with Journal.open(path, "reuse") as journal:
        assert taken(journal, "s/1") is None


def test_changed_program_is_told_once(path: Path, record: Write, reply: Reply) -> None:
    """With the first address where it shows, and both keys."""
    record(reply("s/1", key="aa"), reply("t/1", key="aa"))
    told: list[ProgramChanged] = []
    with Journal.open(path, on_change=told.append) as journal:
        for address in ("s/1", "s/1", "t/1"):
            assert taken(journal, address, "bb") is None
        assert told == [ProgramChanged("s/1", "s", "aa", "bb")]
        assert journal.changed is told[0]


def test_changed_program_is_logged(
    path: Path, record: Write, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody else wants to know."""
    record(reply("s/1", key="aa" * 32))
    with caplog.at_level(logging.WARNING, "afnio"), Journal.open(path) as journal:
        taken(journal, "s/1", "bb" * 32)
    assert [message.partition(" bbbbbbbbbbbb")[0] for message in caplog.messages] == [
        "The program has changed: at s/1 it made the request aaaaaaaaaaaa, and now makes"
    ]


def test_changed_scope_takes_by_key(path: Path, record: Write, reply: Reply) -> None:
    """In natural order of address, its own address first, of this scope alone."""
    record(*(reply(f"s/{n}", b"%d" % n) for n in (10, 9, 2)), reply("s/1", key="bb"), reply("t/1", b"t"))
    with Journal.open(path, on_change=lambda notice: None) as journal:
        assert taken(journal, "s/3") is None
        assert taken(journal, "s/1", "cc") is None
        assert [taken(journal, f"s/{n}") for n in (9, 3, 4, 5)] == [b"9", b"2", b"10", None]
        assert taken(journal, "t/2") is None
        assert taken(journal, "t/1") == b"t"


def test_changed_program_is_resumed_as_it_ran(path: Path, record: Write, reply: Reply) -> None:
    """A reply that moved is found where it moved to; the original program still finds its own."""
    record(*(reply(f"s/{n}", b"%d" % n) for n in (1, 2, 3)))
    with Journal.open(path, on_change=lambda notice: None) as journal:
        assert taken(journal, "s/1", "bb") is None
        journal.append(reply("s/1", b"new", key="bb"), lambda error: None)
        assert [taken(journal, f"s/{n}") for n in (4, 2, 3)] == [b"1", b"2", b"3"]
    with Journal.open(path) as journal:
        assert [taken(journal, f"s/{n}") for n in (3, 4, 2)] == [b"3", b"1", b"2"]
        assert taken(journal, "s/1", "bb") == b"new"
        assert journal.changed is None
        assert journal.spent().total.calls == 4
    with Journal.open(path) as journal:
        assert [taken(journal, f"s/{n}") for n in (1, 2, 3)] == [b"1", b"2", b"3"]
        assert journal.changed is None


def test_newest_session_answers_first(path: Path, record: Write, reply: Reply) -> None:
    """Where an address was recorded twice, what the last run saw."""
    record(reply("s/1", b"old"))
    record(reply("s/1", b"new"))
    with Journal.open(path) as journal:
        assert [taken(journal, "s/1") for _ in range(3)] == [b"new", b"old", None]


def test_reuse_counts_uses(path: Path, record: Write, reply: Reply) -> None:
    """The n-th use gets the n-th reply, wherever it is asked; old sessions first, then by address."""
    record(reply("s/10", b"b"), reply("s/9", b"a"), reply("s/8", b"no", reusable=False))
    record(reply("r/1", b"c"))
    for _ in range(2):
        with Journal.open(path, "reuse") as journal:
            assert [taken(journal, f"x/{n}") for n in range(5)] == [b"a", b"b", b"c", None, None]
            assert taken(journal, "s/9", "bb") is None
            assert journal.changed is None


def test_reuse_leaves_room_for_what_is_called(path: Path, record: Write, reply: Reply) -> None:
    """A use without a reply is called, and its record answers that use in the next run."""
    record(reply("s/1", b"1"))
    with Journal.open(path, "reuse") as journal:
        assert [taken(journal, f"s/{n}") for n in (1, 2)] == [b"1", None]
        journal.append(reply("s/2", b"2"), lambda error: None)
        journal.flush()
        assert taken(journal, "s/3") is None
    with Journal.open(path, "reuse") as journal:
        assert [taken(journal, f"s/{n}") for n in (1, 2)] == [b"1", b"2"]


def test_key_must_be_hex(path: Path) -> None:
    with Journal.open(path) as journal, pytest.raises(ValueError, match="non-hexadecimal"):
        journal.take("s/1", "key")
