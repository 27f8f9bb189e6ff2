"""A state machine: a run that appends, crashes, is opened again and replayed in other orders."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from afnio.runtime import _journal_file
from afnio.runtime._journal import Journal
from afnio.runtime._journal_file import Record

ADDRESSES = st.sampled_from([f"s/{number}" for number in range(12)])
KEYS = st.sampled_from(["aa", "bb", "cc"])


class Dying(sqlite3.Connection):
    """A writer's connection that can be killed: from then on nothing reaches the disk."""

    dead = False

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if Dying.dead and sql != "ROLLBACK":
            raise sqlite3.OperationalError("killed")
        return super().execute(sql, *args)


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, factory=Dying, timeout=0)


class Replay(RuleBasedStateMachine):
    """One program whose address always asks for the same; a call is replayed or appended."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.path = Path(self.folder) / "calls.journal"
        self.original = _journal_file.connect_writer
        _journal_file.connect_writer = connect  # type: ignore[assignment]
        self.program: dict[str, str] = {}
        self.acknowledged: dict[str, bytes] = {}
        self.paid = 0

    @initialize()
    def start(self) -> None:
        self.open()

    def open(self) -> None:
        Dying.dead = False
        self.journal = Journal.open(self.path)
        self.replayable = dict(self.acknowledged)
        self.called: set[str] = set()

    @rule(address=ADDRESSES, key=KEYS)
    def call(self, address: str, key: str) -> None:
        """Each address once per run, as the runtime does it: take, or pay and append."""
        if address in self.called:
            return
        self.called.add(address)
        key = self.program.setdefault(address, key)
        record = self.journal.take(address, key, "s")
        if address in self.replayable:
            assert record is not None
            assert self.replayable.pop(address) == record.payload
            return
        assert record is None
        self.paid += 1
        payload = b"%d" % self.paid
        reply = Record(address=address, scope="s", key=key, model="m", purpose="forward", payload=payload)
        self.journal.append(reply, lambda error: self.acknowledge(reply, error))

    def acknowledge(self, reply: Record, error: BaseException | None) -> None:
        if error is None:
            self.acknowledged[reply.address] = reply.payload

    @rule()
    def take_twice(self) -> None:
        for address in self.called:
            assert self.journal.take(address, self.program[address], "s") is None

    @rule()
    def flush(self) -> None:
        self.journal.flush()

    @rule(crash=st.booleans())
    def reopen(self, crash: bool) -> None:
        Dying.dead = crash
        self.journal.close()
        self.open()

    @invariant()
    def never_changed(self) -> None:
        if hasattr(self, "journal"):
            assert self.journal.changed is None

    def teardown(self) -> None:
        self.journal.close()
        assert len(self.acknowledged) == Journal.stat(self.path).records
        _journal_file.connect_writer = self.original
        shutil.rmtree(self.folder)


TestReplay = Replay.TestCase
TestReplay.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
