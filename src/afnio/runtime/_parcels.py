"""Parcels: calls that a provider's batch API carries out within a day, at a reduced price.

A provider's batch is called a parcel here, because "batch" is Afnio's word for lanes. A call of a `batch_api` block
boards the parcel that its group (account, endpoint, model and journal) collects. The parcel leaves once no call has
come for `linger` seconds, or when it is full. It takes no place in flight and no quota.

    forming → planned → created → results in a file → each call has its reply on disk → closed

**What survives a kill** are the rows of the journal. `planned` is on disk, with the ids of all lines, before anything
is sent, and `created` has the provider's name for the parcel. A line's id is a digest of the call's key, scope and
address, so a program that is started again makes the same ids, and claims its lines of the parcels that are open
(`Parcel.claim`). Nothing is asked about such a parcel before. `closed` follows the last reply of it.

**What isn't known is found out, not assumed.** A parcel whose creation got no answer is looked for in the provider's
list before it is created again. A line that was paid for and never came is charged at its reserve. Lines that no call
has claimed when the journal is closed are counted by a row, and a later claim isn't charged again.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import anyio
import anyio.to_thread

from afnio.errors import (
    FinalModelError,
    JournalError,
    ModelError,
    ProviderDownError,
    RateLimitedError,
    TransientModelError,
    UnreachableError,
)
from afnio.runtime._batch_api import (
    AT_ONCE,
    FAMILY,
    KEY,
    BatchApi,
    Batched,
    LineOutcome,
    NoBatchApiError,
    ParcelPlan,
    ParcelStatus,
    Rider,
    goes_live,
    lines_at,
    no_file,
    recorded_lines,
    results_of,
    said_limit,
    scan,
    usage_at,
    write_lines,
    write_results,
)
from afnio.runtime._loop import Signal, Task, call_later, loop_time
from afnio.runtime._spending import BATCH, at_tier
from afnio.runtime.events import Usage

if TYPE_CHECKING:
    from afnio.runtime._journal import Journal
    from afnio.runtime._kernel import Runtime

_logger = logging.getLogger("afnio")

# Seconds after which a parcel that the provider's list doesn't show was never created.
GRACE: Final = 60.0
# Seconds between two questions about a parcel: a twentieth of its age, within these bounds.
POLL_FIRST, POLL_MAX = 2.0, 60.0
BACKOFF_MAX: Final = 60.0
# Seconds in which a host that was never reached is tried.
FIRST_CONTACT: Final = 5.0
# Seconds that a provider may take to cancel a parcel. OpenAI says up to ten minutes.
CANCELLING: Final = 900.0
# Seconds for which a single call waits for room in the provider's queue that our own parcels don't fill.
REFUSED_FOR: Final = 3600.0
_MISSING: Final = LineOutcome("lost", reason="its line is missing from the results")


@final
class Depot:
    """All groups of a runtime, and their tasks.

    Attributes:
        live: calls of `batch_api` blocks that are on the wire. What follows from them may share the next parcel.
        reading: parcels whose lines are handed out now.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.live = self.reading = 0
        self.groups: dict[Any, Group] = {}
        self._tasks: set[Task] = set()

    @classmethod
    def of(cls, runtime: Runtime) -> Depot:
        return runtime.resource(cls, lambda: cls(runtime))

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Task:
        task = self.runtime.spawn(coroutine, Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def carry(self, rider: Rider, ends: float, *, reached: bool) -> LineOutcome:
        """Wait until a parcel has carried out a call's line.

        Args:
            ends: the loop's time at which the parcel is cancelled, and what it has done is read.
            reached: True if the host has answered before.

        Raises:
            ModelError: if the parcel can't be sent or read, or the line was refused.
            JournalError: if the journal can't note the parcel.
        """
        group = self._group(rider.batched)
        group.reached |= reached
        group.board(rider)
        timer = call_later(
            ends - loop_time(), rider.hurry, CANCELLING
        )  # a tenth of what a cancel scope takes
        try:
            await rider.done.wait()
        except BaseException:
            if rider.outcome is None:
                group.leave(rider)
            elif isinstance(rider.outcome, LineOutcome):  # it came in the moment of the cancellation
                rider.keep(rider)
            raise
        finally:
            timer.cancel()
        if rider.outcome is None:
            group.leave(rider)
            return LineOutcome("late", reason="it took too long")
        if isinstance(rider.outcome, BaseException):
            raise rider.outcome
        return rider.outcome

    def _group(self, batched: Batched[Any]) -> Group:
        api, journal = batched.api, batched.journal
        key = (api.account, api.endpoint, api.model, journal)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(self, api, journal)

            def stop() -> None:
                self.groups.pop(key, None)
                group.stop()

            def close() -> None:
                group.end()
                self.runtime.post(stop)

            journal.before_close.append(close)
        group.api = api  # the newest credentials
        return group

    def waiting(self) -> list[Group]:
        """Return the groups in which calls wait. Safe on any thread."""
        return [group for group in list(self.groups.values()) if group.waiting]

    async def aclose(self) -> None:
        for group in self.groups.values():
            group.end()
        for task in list(self._tasks):
            task.cancel()


@final
class Group:
    """The calls that may share a parcel, and the parcels that are open.

    Attributes:
        forming: the calls that wait for the next parcel to leave, by the ids of their lines.
        limit: the most tokens that the provider's queue takes, once it has said so.
        reached: True once the provider has answered, this program or an earlier one.
        refused_since: when it began to refuse parcels because its queue was full, or None.
        room: set, and replaced, when a parcel ends.
    """

    def __init__(self, depot: Depot, api: BatchApi, journal: Journal) -> None:
        self.depot, self.api, self.journal = depot, api, journal
        self.forming: dict[str, Rider] = {}
        self.limit: int | None = None
        self.room = anyio.Event()
        self.refused_since: float | None = None
        self._unreached: float | None = None
        self.has_api, self._ended = True, False
        self._size = self._tokens = 0
        self._last = 0.0
        self._timed = False
        names = {"url": api.account.url, "endpoint": api.endpoint, "model": api.model}
        rows = [row for row in journal.parcels() if names.items() <= row.items()]
        self.parcels = [Parcel(self, row) for row in rows]
        self.reached = any(row["remote"] for row in rows)

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self.forming) + sum(len(parcel.riders) for parcel in list(self.parcels))

    def board(self, rider: Rider) -> None:
        if not self.has_api:
            rider.end(LineOutcome("live"))
            return
        for parcel in reversed(self.parcels):
            if parcel.claim(rider):
                return
        self._add(rider)

    def _add(self, rider: Rider) -> None:
        api = self.api
        full = (
            len(self.forming) >= api.most_lines
            or self._size + rider.size > api.most_bytes
            or (self.limit is not None and self._tokens + rider.tokens > self.limit)
            or rider.id in self.forming
        )
        if self.forming and full:
            self.send(self._taken())
        self.forming[rider.id] = rider
        self._size += rider.size
        self._tokens += rider.tokens
        self._last = loop_time()
        if not self._timed:
            self._timed = True
            call_later(rider.batched.plan.linger, partial(self._lingered, rider.batched.plan))

    def _lingered(self, plan: ParcelPlan) -> None:
        if self.depot.reading or self.depot.live:  # what follows from their replies is about to come
            self._last = loop_time()
        rest = self._last + plan.linger - loop_time()
        self._timed = bool(self.forming) and rest > 1e-3
        if self._timed:
            call_later(rest, partial(self._lingered, plan))
        elif len(self.forming) >= plan.least:
            self.send(self._taken())
        else:
            for rider in self._taken():
                rider.end(LineOutcome("live"))

    def _taken(self) -> list[Rider]:
        riders, self.forming = list(self.forming.values()), {}
        self._size = self._tokens = 0
        return riders

    def send(self, riders: Iterable[Rider]) -> None:
        """Send calls as one parcel, or as several if the provider's queue is too small for one."""
        part: list[Rider] = []
        tokens = 0
        for rider in riders:
            if part and self.limit is not None and tokens + rider.tokens > self.limit:
                self._start(part)
                part, tokens = [], 0
            part.append(rider)
            tokens += rider.tokens
        if part:
            self._start(part)

    def _start(self, riders: list[Rider]) -> None:
        api = self.api
        row = {
            "name": secrets.token_hex(8), "state": "planned", "created": time.time(), "remote": "",
            "url": api.account.url, "account": api.account.key_digest, "endpoint": api.endpoint, "model": api.model,
        }  # fmt: skip
        parcel = Parcel(self, row, riders)
        self.parcels.append(parcel)
        parcel.start()

    async def pause(self, error: ModelError, trial: int) -> None:
        """Wait before a request is tried again.

        Raises:
            ProviderDownError: if the host was never reached, and has been tried for some seconds.
        """
        if not isinstance(error, UnreachableError):
            self.reached = True
        elif not self.reached:
            self._unreached = self._unreached or loop_time()
            if loop_time() - self._unreached > FIRST_CONTACT:
                raise ProviderDownError(str(error)) from None
        longest = min(BACKOFF_MAX, 0.5 * 2 ** min(trial, 10))
        await anyio.sleep((error.retry_after or 0.0) + random.uniform(0.1, max(0.1, longest)))

    def leave(self, rider: Rider) -> None:
        """Let a call go that doesn't wait any longer. If it is on its way, its reply is recorded when it comes."""
        rider.left = True
        if self.forming.get(rider.id) is rider:
            del self.forming[rider.id]
            self._size -= rider.size
            self._tokens -= rider.tokens

    def forget(self, parcel: Parcel) -> None:
        if parcel in self.parcels:
            self.parcels.remove(parcel)
        self.make_room()

    def make_room(self) -> None:
        """Wake the parcels that wait for their turn."""
        self.room.set()
        self.room = anyio.Event()

    def end(self) -> None:
        """Say which parcels go on, and count what was paid for and not asked for. On any thread."""
        if self._ended:
            return
        self._ended = True
        for parcel in list(self.parcels):
            if parcel.at_provider and not parcel.settled_all:
                text = "%s goes on at %s with %d calls; start the program again to get their replies"
                _logger.warning(text, parcel.remote, self.api.account.url, len(parcel.ids))
            with suppress(JournalError, OSError):
                parcel.end()

    def stop(self) -> None:
        """End the tasks of its parcels, because their journal is closed."""
        for parcel in self.parcels:
            if parcel.task is not None:
                parcel.task.cancel()


# A parcel


@final
class Parcel:
    """One batch at a provider, from its first row on disk to its last line.

    Args:
        row: what the journal says of it.
        riders: the calls in it, or None if an earlier program has made it.

    Attributes:
        ids: of its lines, in the provider's order.
        riders: the calls that wait for it, by the ids of their lines.
        remote: the provider's name for it; "" before it is created.
        status: the provider's last word on it.
        over: True once its results are here, or there are none.
    """

    def __init__(self, group: Group, row: dict[str, Any], riders: list[Rider] | None = None) -> None:
        self.group = group
        self.earlier = riders is None
        self.riders = {} if riders is None else {rider.id: rider for rider in riders}
        self.tokens = sum(rider.tokens for rider in self.riders.values())
        self.ids: list[str] = row["ids"] if riders is None else list(self.riders)
        self.remote: str = row["remote"]
        self.created: float = row["created"]
        self.status = ParcelStatus("")
        self.over = False
        self._row = row
        self._name = str(row["name"])
        self._counted: set[str] = set(row.get("counted", ()))
        self._open = set(self.ids) - set(row.get("settled", ()))
        self._free = set(self._open) if riders is None else set()
        self._families: dict[str, list[str]] | None = None
        self._index: dict[str, tuple[int, int]] = {}
        self._running = self._hurried = False
        self._hurry = anyio.Event()
        self._rejected: set[str] = set()
        self._ours = 0
        self._guessed = bool(row.get("guessed"))
        self.task: Task | None = None
        for rider in self.riders.values():
            rider.parcel = self

    @property
    def at_provider(self) -> bool:
        """True while it goes on there, as far as it is known."""
        return bool(self.remote) and not self.over

    @property
    def results(self) -> Path:
        return results_of(self.group.journal.path, self._name)

    async def is_at_provider(self) -> bool:
        """Ask the provider about it once. Return False if it doesn't have it."""
        if not self.remote:
            self.remote = await self._look_for()
            if self.remote:
                await self._note("created")
        if self.remote:
            self.status = await self.group.api.status(self.remote)
        return bool(self.remote)

    async def fetch(self) -> bool:
        """Fetch its results into a file beside the journal, if it has ended."""
        if self.status.ended != "done":
            return False
        if self._row["state"] != "fetched" or not self.results.exists():
            await self._fetch()
            await self._note("fetched")
        return True

    def start(self) -> None:
        self._running = True
        self.task = self.group.depot.spawn(self._run())

    def hurry(self) -> None:
        """Cancel it, because a call can't wait any longer. What it has done is read."""
        self._hurried = True
        self._hurry.set()

    def claim(self, rider: Rider) -> bool:
        """Give a call its line, if an earlier program has put it here and no other call has taken it."""
        ident = rider.id if rider.id in self._free else self._similar(rider)
        if ident is None:
            return False
        try:
            rider.go()
        except Exception as error:
            rider.end(error, unpaid=True)
            return True
        self._free.discard(ident)
        rider.id, rider.parcel, rider.counted = ident, self, ident in self._counted
        self.riders[ident] = rider
        if not self._running:
            self.start()
        return True

    def _similar(self, rider: Rider) -> str | None:
        """Return a line with the same request of the same scope, if the program has changed, or None."""
        if not self._free or not rider.batched.journal.has_changed(rider.scope):
            return None
        size = KEY if rider.batched.journal.mode == "reuse" else FAMILY
        if self._families is None:
            self._families = {}
            for ident in reversed(self.ids):
                self._families.setdefault(ident[:size], []).append(ident)
        line = self._families.get(rider.id[:size], [])
        while line:
            if (ident := line.pop()) in self._free:
                return ident
        return None

    async def _run(self) -> None:
        try:
            if self.over:
                await self._serve()
                return
            if self.earlier:
                await anyio.to_thread.run_sync(partial(self._lines.unlink, missing_ok=True))
            if not self.remote:
                await (self._find_again() if self.earlier else self._submit())
            if self.remote:
                await self._follow()
                await (self._refused() if self.status.ended == "failed" else self._read())
        except Exception as error:
            if not isinstance(error, ModelError | JournalError):
                _logger.exception("the batch %s failed", self.remote or self._name)
            self._fail(error)
        finally:
            self._running = False
            if self.over and self.riders:  # claimed meanwhile
                self.start()

    def _fail(self, error: BaseException, *, unpaid: bool = False) -> None:
        riders, self.riders = self.riders, {}
        for rider in riders.values():
            rider.end(error, unpaid=unpaid)
        if unpaid:
            self.group.forget(self)

    async def _note(self, state: str, **more: Any) -> None:
        written = Signal()
        post = self.group.depot.runtime.post
        self._append(state, lambda error: post(written.set, error), **more)
        await written.wait()

    def _append(
        self,
        state: str,
        done: Callable[[BaseException | None], object],
        usage: Usage | None = None,
        **more: Any,
    ) -> None:
        from afnio.runtime._journal_file import Record  # with sqlite3, which `import afnio` leaves out

        self._row["state"] = state
        now = {"state": state, "remote": self.remote, "guessed": self._guessed}
        fields = self._row if state == "planned" else now
        api = self.group.api
        record = Record(
            address=self._name, scope="", key="", model=api.model, purpose="batch",
            account=at_tier(api.account.url, BATCH), usage=usage or Usage(),
            payload=json.dumps({**fields, **more}).encode(), kind="parcel", reusable=False,
        )  # fmt: skip
        self.group.journal.append(record, done)

    @property
    def _lines(self) -> Path:
        """The file beside the journal with the lines to be sent."""
        return self.results.with_suffix(".lines")

    # Sending

    async def _submit(self) -> None:
        for rider in list(self.riders.values()):
            try:
                if not rider.left:
                    rider.go()
                    continue
            except Exception as error:
                rider.end(error, unpaid=True)
            del self.riders[rider.id]
        self.ids = list(self.riders)
        self._open = set(self.ids)
        path = self._lines
        try:
            await self._note("planned", ids=self.ids)
            await anyio.to_thread.run_sync(write_lines, path, self.group.api, list(self.riders.values()))
        except (OSError, JournalError) as error:
            self._fail(error if isinstance(error, JournalError) else no_file(path, error), unpaid=True)
            return
        try:
            await self._send(path)
        finally:
            await anyio.to_thread.run_sync(partial(path.unlink, missing_ok=True))

    async def _send(self, path: Path) -> None:
        group, uploaded, unsure = self.group, "", False
        for trial in itertools.count():
            if not unsure and (self._hurried or all(rider.left for rider in self.riders.values())):
                await self._pass_on(LineOutcome("unserved", reason="it wasn't sent in time"))
                return
            api, creating = group.api, False
            try:
                await self._wait_for_turn()
                if unsure:
                    await anyio.sleep(GRACE)
                    self.remote, unsure = await self._look_for(), False
                if not self.remote:
                    uploaded = uploaded or await api.upload(self._name, path)
                    creating = True
                    self.remote = await api.create(self._name, path, uploaded)
                break
            except RateLimitedError as error:
                if not await self._wait_for_room(error):
                    return
            except TransientModelError as error:
                unsure = unsure or (creating and not isinstance(error, UnreachableError))
                try:
                    await group.pause(error, trial)
                except ProviderDownError as down:
                    await self._note("closed")
                    self._fail(down, unpaid=True)
                    return
            except FinalModelError as error:
                if unsure:
                    raise
                if isinstance(error, NoBatchApiError):
                    group.has_api = False
                    goes_live(api.account.url, "it has no batch API")
                    await self._pass_on(LineOutcome("live"))
                else:
                    await self._note("closed")
                    self._fail(error, unpaid=True)
                return
        group.reached = True
        await self._note("created")
        _logger.info("%d calls are in %s (%s)", len(self.ids), self.remote, api.account.url)

    async def _look_for(self) -> str:
        """Return the provider's name for it, or "" if its list doesn't show it."""
        taken = {parcel.remote for parcel in self.group.parcels if parcel.remote} | self._rejected
        try:
            batch = await self.group.api.find(self._name, self.created, len(self.ids), taken)
        except RateLimitedError as error:  # no refusal of the parcel
            raise TransientModelError(str(error)) from None
        self._guessed |= bool(batch) and not self.group.api.marks
        return batch or ""

    async def _pass_on(self, outcome: LineOutcome) -> None:
        for rider in await self._end_unserved():
            rider.end(outcome)

    async def _resend(self, *parts: Iterable[Rider]) -> None:
        """Send its calls in other parcels. It is the same attempt, because this one was refused."""
        await self._end_unserved()
        for part in parts:
            self.group.send(rider for rider in part if not rider.left)

    async def _board_again(self) -> None:
        for rider in await self._end_unserved():
            if not rider.left:
                self.group.board(rider)

    async def _end_unserved(self) -> list[Rider]:
        """Close it, because nothing of it was carried out, and return its calls."""
        riders, self.riders, self._free = list(self.riders.values()), {}, set()
        await self._note("closed")
        self.over = True
        self.group.forget(self)
        return riders

    async def _wait_for_turn(self) -> None:
        """Wait until the provider's queue has room beside our other parcels, as far as its limit is known."""
        group = self.group
        while group.limit is not None and not self._hurried:
            others = [parcel.tokens for parcel in group.parcels if parcel is not self and parcel.at_provider]
            if not others or sum(others) + self.tokens <= group.limit:
                return
            with anyio.move_on_after(POLL_MAX):
                await group.room.wait()

    async def _wait_for_room(self, error: ModelError) -> bool:
        """Wait, because the provider's queue is full. Return False if the parcel has ended instead."""
        group, riders, text = self.group, list(self.riders.values()), str(error)
        group.refused_since = group.refused_since or loop_time()
        said = said_limit(text)
        alone = not any(parcel.at_provider for parcel in group.parcels if parcel is not self)
        limit = min(group.limit or self.tokens, said or self.tokens)
        if len(riders) > 1 and "oken" in text and (alone or self.tokens > limit):
            # Refused though it fits: the provider counts more tokens than we do, or others fill its queue.
            group.limit = max(1, limit if self.tokens > limit else self.tokens // 2)
            await self._resend(riders)
            return False
        too_large = 0 < said < self.tokens
        if too_large or (alone and loop_time() - group.refused_since > REFUSED_FOR):
            await self._note("closed")
            refused = FinalModelError(f"the batch API has no room for the call ({text})", status=429)
            self._fail(refused, unpaid=True)
            return False
        with anyio.move_on_after(max(error.retry_after or 0.0, POLL_MAX * random.uniform(0.5, 1.0))):
            await (group.room if not alone else self._hurry).wait()
        return True

    # Finding an earlier one

    async def _find_again(self) -> None:
        """Look for a parcel that an earlier program planned: it was killed before it noted the provider's name."""
        for trial in itertools.count():
            try:
                self.remote = await self._look_for()
                if self.remote:
                    await self._note("created")
                    return
                if time.time() - self.created > GRACE:
                    break
                await anyio.sleep(min(GRACE, 5.0))
            except TransientModelError as error:
                await self.group.pause(error, trial)
        await self._board_again()

    # Following it

    async def _follow(self) -> None:
        """Ask for its state until it has ended."""
        if self._row["state"] == "fetched" and self.results.exists():
            return
        failures, began, cancelled = 0, time.time(), False
        while True:
            api = self.group.api
            try:
                if self._hurried and not cancelled:
                    with suppress(TransientModelError):  # then it is sent again; it may have ended meanwhile
                        cancelled = await self._cancel()
                self.status = await api.status(self.remote)
                self.group.reached, failures = True, 0
                if self.status.ended:
                    return
            except TransientModelError as error:
                failures += 1
                await self.group.pause(error, failures)
                continue
            except FinalModelError as error:
                if error.status != 404:
                    raise
                self._gone(error)
                return
            pause = min(POLL_MAX, max(POLL_FIRST, (time.time() - began) / 20)) * random.uniform(0.8, 1.2)
            with anyio.move_on_after(POLL_FIRST if self._hurried else pause):
                await (anyio.sleep_forever() if self._hurried else self._hurry.wait())

    async def _cancel(self) -> bool:
        with suppress(FinalModelError):  # it has ended
            await self.group.api.cancel(self.remote)
        return True

    def _gone(self, error: FinalModelError) -> None:
        url = self.group.api.account.url
        if self._row["account"] != self.group.api.account.key_digest:
            raise FinalModelError(
                f"the batch {self.remote} belongs to another key of {url}, and holds replies that this program paid "
                "for; use the key that it was sent with",
                status=404,
            ) from None
        text = "%s knows the batch %s no longer; its %d calls are charged as unknown and sent again (%s)"
        _logger.warning(text, url, self.remote, len(self._open), error)
        self.status = ParcelStatus("done")

    async def _refused(self) -> None:
        """Sort out a parcel that the provider refused as a whole. Nothing was paid."""
        errors = self.status.errors
        text = "; ".join(message for *_, message in errors) or "it gave no reason"
        if self.earlier:
            await self._board_again()
            return
        if any(code == "token_limit_exceeded" for _, code, _ in errors):
            self.remote = ""
            if await self._wait_for_room(RateLimitedError(text)):
                late = LineOutcome("unserved", reason="it wasn't sent in time")
                await (self._pass_on(late) if self._hurried else self._resend(list(self.riders.values())))
            return
        refused = f"{self.group.api.account.url} refused the call in a batch ({{}})"
        named = {self.ids[line - 1]: why for line, _, why in errors if line and 0 < line <= len(self.ids)}
        for ident, why in named.items():
            rider = self.riders.pop(ident, None)
            if rider is not None:
                rider.end(FinalModelError(refused.format(why), status=400), unpaid=True)
        riders = list(self.riders.values())
        if not named and len(riders) == 1:
            riders.pop().end(FinalModelError(refused.format(text), status=400), unpaid=True)
        middle = len(riders) // 2
        await self._resend(*([riders] if named else [riders[:middle], riders[middle:]]))

    # Reading the results

    async def _read(self) -> None:
        """Fetch the results into a file beside the journal, and hand out the lines."""
        path = self.results
        await self.fetch()
        if self.earlier:
            ids = list(self._free)
            recorded = await anyio.to_thread.run_sync(recorded_lines, self.group.journal.path, ids)
            self._free -= recorded
            self._open -= recorded
        self.group.depot.reading += 1
        try:
            answered = await self._hand_out(path)
        finally:
            self.group.depot.reading -= 1
        self.over = True
        self.group.make_room()
        if self._guessed and not self._ours:
            await self._not_ours()
            return
        self.group.refused_since = None
        self._free &= answered
        self._open &= answered | set(self.riders)
        for rider in [rider for ident, rider in self.riders.items() if ident not in answered]:
            self._hand(rider, _MISSING)
        if self.earlier:
            await self._serve()
        self.settled()

    async def _not_ours(self) -> None:
        """Look for it again: what was found by its time and size has none of its lines."""
        self._rejected.add(self.remote)
        self.remote, self.over, self.status = "", False, ParcelStatus("")
        self._row["state"] = "planned"
        await self._find_again()
        if self.remote:
            await self._follow()
            await self._read()

    async def _fetch(self) -> None:
        for trial in itertools.count():
            try:
                await write_results(self.results, self.group.api, self.status)
            except OSError as error:
                raise no_file(self.results, error) from None
            except TransientModelError as error:
                await self.group.pause(error, trial)
            else:
                return

    async def _hand_out(self, path: Path) -> set[str]:
        """Hand out the lines, each once, and return the ids of those that were answered."""
        mine, seen, answered, start = set(self.ids), set[str](), set[str](), 0
        while True:
            lines, start = await anyio.to_thread.run_sync(scan, path, start, self.group.api)
            if not lines:
                return answered
            for ident, outcome, place in lines:
                if ident not in mine or ident in seen:
                    continue
                seen.add(ident)
                self._ours += 1
                if outcome.kind == "answered":
                    answered.add(ident)
                    if self.earlier:
                        self._index[ident] = place
                rider = self.riders.get(ident)
                if rider is not None:
                    self._hand(rider, outcome)
                elif outcome.kind != "answered":
                    self._free.discard(ident)
            await anyio.lowlevel.checkpoint()

    def _hand(self, rider: Rider, outcome: LineOutcome) -> None:
        self.riders.pop(rider.id, None)
        if outcome.kind != "answered":
            self._open.discard(rider.id)
        rider.end(outcome)

    async def _serve(self) -> None:
        """Give the calls that have claimed lines since the results were read their outcomes."""
        while self.riders:
            riders = list(self.riders.values())[:AT_ONCE]
            places = [self._index.get(rider.id) for rider in riders]
            lines = await anyio.to_thread.run_sync(lines_at, self.results, places)
            for rider, line in zip(riders, lines, strict=True):
                self._hand(rider, _MISSING if line is None else self.group.api.outcome(line)[1])
            await anyio.lowlevel.checkpoint()

    def settled(self, ident: str = "") -> None:
        """Note that a line has its end on disk, or has none, and close the parcel after the last one."""
        self._open.discard(ident)
        if self.over and not self._open and not self.riders and self._row["state"] != "closed":
            self._row["state"] = "closed"
            self.group.depot.spawn(self._close())

    async def _close(self) -> None:
        with suppress(JournalError):  # closed meanwhile, which has noted it
            await self._note("closed")
            await anyio.to_thread.run_sync(partial(self.results.unlink, missing_ok=True))
        self.group.forget(self)

    @property
    def settled_all(self) -> bool:
        """True once each of its lines has its end on disk, or has none."""
        return not self._open and self._row["state"] != "planned"

    def end(self) -> None:
        """Close it if it is done, because its journal is closed; else note the tokens of lines that were paid for and
        that no call has asked for. On any thread."""
        if self.settled_all:  # the last call may have ended before the last line was read
            self._append("closed", lambda error: None)
            self.results.unlink(missing_ok=True)
            return
        unclaimed = self._free - self._counted if self.over else set()
        if not unclaimed:
            return
        usage = usage_at(self.results, [self._index.get(ident) for ident in unclaimed], self.group.api)
        counted = sorted(self._counted | unclaimed)
        settled = sorted(set(self.ids) - self._open)
        self._append(self._row["state"], lambda error: None, usage, counted=counted, settled=settled)
