"""A journal's life: append, acknowledge, take, count, close."""

from __future__ import annotations

import gc
import logging
import os
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from afnio.errors import JournalClosedError, JournalError
from afnio.runtime._journal import Journal
from afnio.runtime._journal_file import Record
from afnio.runtime._spending import Item, Spent
from afnio.runtime.events import Usage

if TYPE_CHECKING:
    from conftest import Reply, Script


def count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM records").fetchone()[0])


def test_record_comes_back_whole(path: Path, reply: Reply) -> None:
    """All fields survive, and the payload is any bytes."""
    usage = Usage(1, 2, 3, 4)
    kept = reply(
        "epoch 2/step 5/3/17/forward",
        bytes(range(256)) * 9,
        key="00ff" * 16,
        account="https://example.org/v1",
        usage=usage,
        attempts=3,
        seconds=1.5,
        reusable=False,
    )
    with Journal.open(path) as journal:
        journal.append(kept, lambda error: None)
    with Journal.open(str(path)) as journal:
        assert kept == journal.take(kept.address, kept.key, kept.scope)


def test_done_comes_after_the_commit(path: Path, reply: Reply) -> None:
    """In the writer's thread, once, when another connection already sees the record."""
    seen = []
    with Journal.open(path) as journal:
        for number in range(20):
            journal.append(
                reply(f"{number}"),
                lambda error, n=number: seen.append(
                    (error, count(path) > n, threading.current_thread().name)
                ),
            )
    assert seen == [(None, True, "afnio-journal")] * 20


def test_what_waits_is_committed_together(path: Path, reply: Reply) -> None:
    """Records that come while the disk is busy share a transaction, up to 512."""
    running, go_on = threading.Event(), threading.Event()
    counts = []

    def hold(error: BaseException | None) -> None:
        running.set()
        go_on.wait()

    with Journal.open(path) as journal:
        journal.append(reply("first"), hold)
        running.wait()
        for number in range(600):
            journal.append(reply(f"{number}"), lambda error: counts.append(count(path)))
        go_on.set()
    assert counts == [513] * 512 + [601] * 88


def test_payload_is_made_by_the_writer(path: Path, reply: Reply) -> None:
    """A payload given as a function is encoded off the caller's thread."""
    names = []

    def payload() -> bytes:
        names.append(threading.current_thread().name)
        return b"encoded"

    with Journal.open(path) as journal:
        journal.append(reply("1"), lambda error: None, payload=payload)
    with Journal.open(path) as journal:
        record = journal.take("1", "aa")
    assert record is not None
    assert (record.payload, names) == (b"encoded", ["afnio-journal"])


def test_counts_that_the_file_cant_hold(path: Path, reply: Reply) -> None:
    """They are cut to what it can; the journal goes on."""
    errors: list[BaseException | None] = []
    with Journal.open(path) as journal:
        for number, usage in enumerate([Usage(10**30, 1), Usage(-5, 1), Usage(2, 1)]):
            journal.append(reply(f"{number}", usage=usage), errors.append)
        journal.flush()
    assert errors == [None] * 3
    with Journal.open(path) as journal:
        assert _tokens(journal.take("0", "aa")) == (10**12, 1)
        assert _tokens(journal.take("1", "aa")) == (0, 1)
    assert (Journal.stat(path).total.calls, Journal.stat(path).total.usage.prompt_tokens) == (3, 10**12 + 2)


def _tokens(record: Record | None) -> tuple[int, int]:
    assert record is not None
    return record.usage.prompt_tokens, record.usage.completion_tokens


def test_unfit_record_fails_alone(path: Path, reply: Reply) -> None:
    """A payload that can't be made, a key that is no digest, a text that is no Unicode."""
    told: dict[str, BaseException | None] = {}

    def payload() -> bytes:
        raise TypeError("a set is not JSON")

    with Journal.open(path) as journal:
        journal.append(reply("1"), lambda error: told.update(payload=error), payload=payload)
        journal.append(reply("2", key="no hex"), lambda error: told.update(key=error))
        journal.append(reply("\udc80"), lambda error: told.update(address=error))
        journal.append(reply("4"), lambda error: told.update(good=error))
        journal.flush()
        assert journal.broken is None
    assert told.pop("good") is None
    assert "the reply to 1 can't be recorded (TypeError: a set is not JSON)" in str(told["payload"])
    assert [type(error) for error in told.values()] == [JournalError] * 3
    assert count(path) == 1


def test_failing_waiter_is_logged(path: Path, reply: Reply, caplog: pytest.LogCaptureFixture) -> None:
    """It ends neither the thread nor the others' wait."""
    told = []

    def broken(error: BaseException | None) -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "afnio"), Journal.open(path) as journal:
        journal.append(reply("1"), broken)
        journal.append(reply("2"), told.append)
    assert told == [None]
    assert "a callback of a record failed" in caplog.text


def test_nothing_new_is_taken(path: Path, reply: Reply) -> None:
    """A call is answered from earlier openings only."""
    with Journal.open(path) as journal:
        journal.append(reply("1"), lambda error: None)
        journal.flush()
        assert journal.take("1", "aa") is None


def test_spent_adds_up_all_kinds(path: Path, reply: Reply) -> None:
    """Replies, paid failures and unknown attempts of all openings; a replay is free."""
    with Journal.open(path) as journal:
        journal.append(reply("1", usage=Usage(10, 5), attempts=2), lambda error: None)
        journal.append(reply("2", usage=Usage(7, 0), kind="failed"), lambda error: None)
        journal.append(reply("3", usage=Usage(8, 90), kind="unknown"), lambda error: None)
        journal.append(reply("4", model="n", purpose="judge", account="a"), lambda error: None)
    with Journal.open(path) as journal:
        before = {
            Item("forward", "", "m"): Spent(1, 3, 1, Usage(17, 5), Usage(8, 90), unpriced=2),
            Item("judge", "a", "n"): Spent(calls=1, attempts=1, unpriced=1),
        }
        assert before == journal.spent().items == journal.spent_before.items
        assert journal.take("1", "aa") is not None
        assert journal.take("2", "aa") is None
        assert journal.take("3", "aa") is None
        journal.append(reply("2", usage=Usage(1, 1)), lambda error: None)
        journal.flush()
        assert journal.spent().items[Item("forward", "", "m")].usage == Usage(18, 6)
        assert journal.spent() == Journal.stat(path).spent


def test_shared_reply_is_paid_once(path: Path, reply: Reply) -> None:
    """A call that joined another one has its own row, and cost nothing."""
    with Journal.open(path) as journal:
        journal.append(reply("1", b"same", usage=Usage(3, 4)), lambda error: None)
        journal.append(reply("2", b"same", usage=Usage(3, 4), kind="shared"), lambda error: None)
    with Journal.open(path) as journal:
        spent = Spent(calls=1, attempts=1, usage=Usage(3, 4), unpriced=1)
        assert journal.spent().items == {Item("forward", "", "m"): spent}
        assert [journal.take(address, "aa").payload for address in ("1", "2")] == [b"same"] * 2
    with Journal.open(path, "reuse") as journal:
        assert [journal.take("1", "aa") is not None for _ in range(2)] == [True, False]


def test_private_to_this_user(tmp_path: Path, reply: Reply) -> None:
    """The file, its side files and the folder made for it."""
    path = tmp_path / "new" / "calls.journal"
    old = os.umask(0)
    try:
        with Journal.open(path) as journal:
            journal.append(reply("1"), lambda error: None)
            journal.flush()
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [path.parent, *path.parent.iterdir()]}
    finally:
        os.umask(old)
    assert modes.pop("new") == 0o700
    assert (
        dict.fromkeys(["calls.journal", *(f"calls.journal{s}" for s in (".lock", "-shm", "-wal"))], 0o600)
        == modes
    )


def test_close_leaves_one_file(path: Path, reply: Reply) -> None:
    """It may come often, from anywhere; what follows it raises."""
    journal = Journal.open(path)
    journal.append(reply("1"), lambda error: journal.close())
    journal.close()
    journal.close()
    assert os.listdir(path.parent) == ["calls.journal"]
    uses = [
        lambda: journal.take("1", "aa"),
        lambda: journal.append(reply("1"), lambda error: None),
        journal.flush,
    ]
    for use in uses:
        with pytest.raises(JournalClosedError, match=r"calls.journal is closed; open it again"):
            use()
    assert journal.broken is None
    assert journal.spent().items[Item("forward", "", "m")].calls == 1


def test_closed_by_a_waiter(path: Path, reply: Reply) -> None:
    """The file is held until the writer has ended, not only until the close returns."""
    going = threading.Event()
    held = []
    journal = Journal.open(path)

    def close(error: BaseException | None) -> None:
        journal.close()
        held.append(path.with_name(path.name + ".lock").exists())
        going.set()

    journal.append(reply("1"), close)
    going.wait()
    journal.close()
    assert held == [True]
    Journal.open(path).close()


def test_dropped_journal_is_closed(path: Path, reply: Reply) -> None:
    """What was appended is written, and the file is free."""
    journal = Journal.open(path)
    journal.append(reply("1"), lambda error: None)
    del journal
    gc.collect()
    with Journal.open(path) as journal:
        assert journal.take("1", "aa") is not None


def test_exit_writes_what_waits(path: Path, script: Script) -> None:
    """A program that ends without closing loses nothing."""
    program = script(
        """
        journal = Journal.open(path)
        for number in range(1000):
            journal.append(reply(f"{number}", b"x" * 2000), lambda error: None)
        """
    )
    assert program.communicate(timeout=50) == ("", "")
    assert count(path) == 1000
    assert os.listdir(path.parent) == ["calls.journal"]


def test_mode_is_checked(path: Path) -> None:
    """A mode that is none names itself."""
    with pytest.raises(ValueError, match=r"\"resume\" or \"reuse\" \(got 'of'\)"):
        Journal.open(path, "of")  # type: ignore[arg-type]
    assert not path.exists()
