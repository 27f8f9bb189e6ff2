"""The block `batch_api`, a provider's batch API as the engine sees it, and the lines that go through it.

This module knows no HTTP: `models/_batch_apis.py` has the providers' APIs. `_parcels` collects, sends and reads.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    ClassVar,
    Final,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    final,
)

import anyio
import anyio.to_thread

from afnio.errors import FinalModelError, JournalError
from afnio.runtime._limits import warn_once
from afnio.runtime._loop import Signal, call_later
from afnio.runtime._settings import Priority, Setting, current_priority
from afnio.runtime._waiting import active_journal
from afnio.runtime.events import Usage

if TYPE_CHECKING:
    from afnio.runtime._journal import Journal
    from afnio.runtime._limits import Account

R = TypeVar("R")

# Bytes of a parcel's results. They are kept in a file, not in memory.
MOST_RESULTS: Final = 4 << 30
# Bytes of a line of the results. A longer one counts as garbled.
MOST_LINE: Final = 96 << 20
# Lines that are read, and handed out, before other tasks have their turn.
AT_ONCE: Final = 500


# The block


@final
@dataclass(frozen=True, slots=True)
class ParcelPlan:
    """How the calls of a block use batch APIs; see `batch_api`."""

    max_wait: float
    linger: float
    least: int
    retries: int
    late: Literal["fail", "live"]


current_plan: Final[Setting[ParcelPlan | None]] = Setting("batch_api", None)


@final
class batch_api(AbstractContextManager[None]):  # noqa: N801
    """Send the block's calls by their providers' batch APIs, at half the price of OpenAI, Anthropic and Groq.

    A reply comes within a day, mostly within an hour. The block needs a journal, because a batch outlives the program:
    start the program again, and it gets the replies of the batches that it left. Calls of priority "serving", streams,
    and calls of providers without a batch API are sent at once, at the full price.

    Args:
        max_wait: the longest wait of a call: seconds, or a text such as "90m" or "24h". Then its batch is cancelled,
            and what it has done is read.
        linger: seconds without another call after which a batch is sent.
        least: fewer calls together are sent at once, at the full price: a wait of hours isn't worth it.
        retries: how often a request that wasn't carried out is put into another batch.
        late: what happens to a call that no batch has carried out: "fail", or be sent at once ("live").

    Raises:
        ValueError: if an argument is out of its range.

    >>> with batch_api(max_wait="12h", late="live"):
    ...     pass
    """

    def __init__(
        self,
        *,
        max_wait: float | str = "24h",
        linger: float = 5.0,
        least: int = 8,
        retries: int = 2,
        late: Literal["fail", "live"] = "fail",
    ) -> None:
        if late not in ("fail", "live"):
            raise ValueError(f'late must be "fail" or "live" (got {late!r}); choose one')
        for name, number in (("linger", linger), ("least", least), ("retries", retries)):
            if isinstance(number, bool) or not isinstance(number, int | float) or not number >= 0:
                raise ValueError(f"{name} must be a number of 0 or more (got {number!r}); pass one")
        self._plan = ParcelPlan(_seconds(max_wait), float(linger), int(least), int(retries), late)
        self._entered = ExitStack()

    def __enter__(self) -> None:
        self._entered.enter_context(current_plan.override(self._plan))

    def __exit__(self, *exc: object) -> None:
        self._entered.close()


def _seconds(wait: float | str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(wait))
    if isinstance(wait, bool) or match is None or float(match[1]) == 0:
        raise ValueError(
            f'max_wait must be seconds, or a text such as "90m" or "24h" (got {wait!r}); pass one'
        )
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]


def wanted_parcel() -> tuple[ParcelPlan, Journal] | None:
    """Return how a call that is made here goes by a batch API, and its journal; None if it goes live.

    Raises:
        FinalModelError: if there is no journal.
    """
    plan = current_plan.get()
    if plan is None or current_priority() is Priority.SERVING:
        return None
    journal = active_journal.get()
    if journal is None:
        raise FinalModelError(
            "afnio.batch_api must have a journal, because a batch outlives the program; put it into `with "
            "afnio.journal(path):` or a run"
        )
    if not journal.before_close:
        journal.before_close.append(partial(close_recorded, journal))
    return plan, journal


def goes_live(url: str, why: str) -> None:
    """Say once that calls don't go by a batch API."""
    warn_once(url, f"no batch: {why}", "calls to %s are sent at once, at the full price: %s", why)


# A provider's API


class LineOutcome(NamedTuple):
    """The end of a line.

    Attributes:
        kind: "answered" by the provider, maybe with an error; "unserved", which is free; "lost": it may have been paid
            for, and there is no reply; "late": there was no end in time; "live": it was never sent, and goes live.
        status, body: of the answer.
        reason: why there is none.
    """

    kind: Literal["answered", "unserved", "lost", "late", "live"]
    status: int = 0
    body: bytes = b""
    reason: str = ""


class ParcelStatus(NamedTuple):
    """A parcel at its provider.

    Attributes:
        ended: "" while it goes on; "failed" if it was refused as a whole, which is free.
        completed: lines that were carried out.
        errors: of a refused one: line (from 1, None if not named), code, message.
        files: names of its results.
    """

    ended: Literal["", "done", "failed"]
    completed: int = 0
    errors: tuple[tuple[int | None, str, str], ...] = ()
    files: tuple[str, ...] = ()


class BatchApi(Protocol):
    """A provider's batch API, for one account, endpoint and model.

    Attributes:
        most_lines, most_bytes: of a parcel.
        frame: what comes before the lines, between two, and after them.
        marks: True if its parcels carry our names. Otherwise one is recognized by its time and size.
    """

    most_lines: ClassVar[int]
    most_bytes: ClassVar[int]
    frame: ClassVar[tuple[bytes, bytes, bytes]]
    marks: ClassVar[bool]
    account: Account
    endpoint: str
    model: str

    def line(self, ident: str, body: bytes) -> bytes: ...
    async def upload(self, name: str, path: Path) -> str: ...
    async def create(self, name: str, path: Path, uploaded: str) -> str: ...
    async def find(self, name: str, created: float, lines: int, taken: set[str]) -> str | None: ...
    async def status(self, remote: str) -> ParcelStatus: ...
    async def results(self, status: ParcelStatus, write: Callable[[bytes], Awaitable[object]]) -> None: ...
    async def cancel(self, remote: str) -> None: ...
    def outcome(self, line: bytes) -> tuple[str, LineOutcome]: ...
    def usage(self, body: bytes) -> Usage: ...


class NoBatchApiError(FinalModelError):
    """The endpoint has no batch API."""


@final
@dataclass(frozen=True, slots=True)
class Batched(Generic[R]):
    """How a call goes by a batch API.

    Attributes:
        body: returns the request's JSON. It isn't kept while the call waits.
        read: returns the reply of an answer's status and body; raises as `Call.attempt`.
    """

    api: BatchApi
    plan: ParcelPlan
    journal: Journal
    body: Callable[[], bytes]
    read: Callable[[int, bytes], R]


def line_id(key: str, scope: str, address: str) -> str:
    """Return the id of a call's line: 24 digits of its request, 8 of its scope and 12 of its address."""
    return f"{key[:24]}-{_digest(scope)[:8]}-{_digest(address)[:12]}"


# Characters of an id that name the request, and the request in its scope.
KEY, FAMILY = 24, 33


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# A call


@final
class Rider:
    """A call that waits for its line.

    Args:
        depart: called when the line is sent; it may raise, and then the line isn't.
        keep: records an outcome that comes after the call has left.

    Attributes:
        id: of its line.
        outcome: how it ended, or the error; None while it waits.
        sent: True once the line may be paid for.
        unpaid: True if it failed, and certainly cost nothing.
        parcel: that has its line; None while it is forming.
        counted: True if a row of an earlier program has counted its tokens.
    """

    __slots__ = (
        "batched", "counted", "depart", "done", "id", "keep", "left", "outcome", "parcel", "scope", "sent", "size",
        "tokens", "unpaid",
    )  # fmt: skip

    def __init__(
        self,
        ident: str,
        scope: str,
        batched: Batched[Any],
        tokens: int,
        depart: Callable[[], object],
        keep: Callable[[Rider], object],
    ) -> None:
        self.id = ident
        self.scope = scope
        self.batched = batched
        self.tokens = tokens
        self.depart = depart
        self.keep = keep
        self.size = len(batched.body()) + 200
        self.done = Signal()
        self.parcel: Any = None
        self.outcome: LineOutcome | BaseException | None = None
        self.sent = self.left = self.unpaid = self.counted = False

    def go(self) -> None:
        """Note that its line is sent now, once: a parcel that is refused as a whole is sent again."""
        if not self.sent:
            self.depart()
            self.sent = True

    def hurry(self, grace: float) -> None:
        """Have its parcel cancelled, because it has waited for long enough, and wait for the end of that."""
        if self.parcel is None or self.outcome is not None:
            self.done.set()
        else:
            self.parcel.hurry()
            call_later(grace, self.done.set)

    def end(self, outcome: LineOutcome | BaseException, *, unpaid: bool = False) -> None:
        self.outcome, self.unpaid = outcome, unpaid
        self.done.set()
        if self.left and isinstance(outcome, LineOutcome):
            self.keep(self)

    def settled(self) -> None:
        """Note that its reply is on disk, or that there is none to keep."""
        if self.parcel is not None:
            self.parcel.settled(self.id)


# Files beside the journal, and rows of it; in a thread


def private_file(path: Path) -> BinaryIO:
    """Open a new file for this user only. An older one of that name is replaced."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def no_file(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"a batch must have a file beside the journal ({path}: {error}); make room there and start again, as nothing "
        "is lost"
    )


def write_lines(path: Path, api: BatchApi, riders: Iterable[Rider]) -> None:
    before, between, after = api.frame
    with private_file(path) as file:
        file.write(before)
        for number, rider in enumerate(riders):
            file.write(between if number else b"")
            file.write(api.line(rider.id, rider.batched.body()))
        file.write(after)


async def write_results(path: Path, api: BatchApi, status: ParcelStatus) -> None:
    """Write a parcel's results into a file.

    Raises:
        ModelError: if they can't be read, or are too large.
        OSError: if the file can't be written.
    """
    size = 0
    with await anyio.to_thread.run_sync(private_file, path) as file:

        async def write(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            if size > MOST_RESULTS:
                raise FinalModelError(f"{api.account.url} sent results of more than {MOST_RESULTS:,} bytes")
            await anyio.to_thread.run_sync(file.write, piece)

        await api.results(status, write)


def scan(path: Path, start: int, api: BatchApi) -> tuple[list[tuple[str, LineOutcome, tuple[int, int]]], int]:
    """Return some lines of the results from `start` on, and where the next ones begin."""
    outcomes: list[tuple[str, LineOutcome, tuple[int, int]]] = []
    size = 0
    with path.open("rb") as file:
        file.seek(start)
        while len(outcomes) < AT_ONCE and size < 16 << 20:
            line = file.readline(MOST_LINE)
            if not line:
                break
            place = (start, len(line))
            whole = line.endswith(b"\n") or len(line) < MOST_LINE
            while line and not line.endswith(b"\n") and not whole:  # the rest of a line that is too long
                line = file.readline(MOST_LINE)
            start = file.tell()
            size += place[1]
            with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                if whole:
                    outcomes.append((*api.outcome(line), place))
                    continue
            outcomes.append(("", LineOutcome("lost"), place))
    return outcomes, start


def lines_at(path: Path, places: list[tuple[int, int] | None]) -> list[bytes | None]:
    with path.open("rb") as file:
        lines: list[bytes | None] = []
        for place in places:
            if place is not None:
                file.seek(place[0])
            lines.append(None if place is None else file.read(place[1]))
        return lines


def results_of(journal: Path, name: str) -> Path:
    """Return the path of a parcel's results beside the journal."""
    return journal.with_name(f"{journal.name}.{name}.results")


def close_recorded(journal: Journal) -> None:
    """Close the parcels of which an earlier program recorded every reply before it was killed: no call claims a line
    of them. In the thread that closes the journal."""
    from afnio.runtime._journal_file import Record

    for row in journal.parcels():
        ids = set(row["ids"]) - set(row.get("settled", ()))
        if row["state"] == "fetched" and ids <= recorded_lines(journal.path, list(ids)):
            payload = b'{"state": "closed"}'
            record = Record(
                address=row["name"], scope="", key="", model=row["model"], purpose="batch", kind="parcel",
                payload=payload, reusable=False,
            )  # fmt: skip
            with suppress(JournalError, OSError):
                journal.append(record, lambda error: None)
                results_of(journal.path, row["name"]).unlink(missing_ok=True)


def usage_at(path: Path, places: list[tuple[int, int] | None], api: BatchApi) -> Usage:
    """Return the tokens of some lines of the results."""
    usage = Usage()
    for start in range(0, len(places), AT_ONCE):
        for line in lines_at(path, places[start : start + AT_ONCE]):
            usage += Usage() if line is None else api.usage(api.outcome(line)[1].body)
    return usage


def said_limit(refusal: str) -> int:
    """Return the limit in tokens that a refusal for a full queue names, or 0.

    >>> said_limit("Enqueued token limit reached for m. Limit: 2,000,000 enqueued tokens.")
    2000000
    """
    match = re.search(r"[Ll]imit: ([\d,]+)", refusal)
    return int(match[1].replace(",", "") or 0) if match is not None else 0


def recorded_lines(journal: Path, ids: list[str]) -> set[str]:
    """Return the lines whose replies an earlier program has recorded."""
    from afnio.runtime._journal_file import recorded_calls

    recorded = set()
    wanted = set(ids)
    for key, calls in recorded_calls(journal, (ident[:KEY] for ident in ids)).items():
        for scope, address in calls:
            while address:  # a line that equal lanes share has the address of their launch
                recorded.add(line_id(key, scope, address))
                address = address.rpartition("/")[0]
    return recorded & wanted
