"""Feed: the batches of a loader, loaded in a worker thread, one ahead of the training.

Loading one batch ahead hides slow files behind the step. It also means that the loader is further than the training.
Each batch therefore carries the loader's state after it (`Fetched.state`). Checkpoints and `Feed.close` use that one.

A loader may be a DataLoader, any iterable that can be iterated over once for each epoch, or one with `state_dict` and
`load_state_dict`. A resumed training restores the state if there is one, else it skips the batches that were done.
"""

from __future__ import annotations

import math
import random
import sys
from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Final, final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from afnio.trainer._options import Share, batch_size
from afnio.utils.data import DataLoader

NO_BATCH: Final = object()


@final
@dataclass(frozen=True, slots=True)
class Fetched:
    """One batch, or the end of an epoch.

    Attributes:
        number: of the batch in its epoch, from 0; at the end, how many there were.
        batch: the batch, or `NO_BATCH` at the end of an epoch.
        state: the loader's state after it, for a checkpoint; None if the loader has none.
    """

    number: int
    batch: Any
    size: int
    state: dict[str, Any] | None


def loader_state(loader: Any) -> dict[str, Any] | None:
    """Return the loader's state, or None. Asking for it fixes seeds that were not given."""
    state = getattr(loader, "state_dict", None)
    return dict(state()) if callable(state) else None


def length(loader: Any) -> int | None:
    """Return how many batches a loader gives, or None if it has no length."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a sampler without a length
        return None


def sample_count(loader: Any, batches: int | None) -> int | None:
    """Return how many samples `batches` batches of a loader have, or None if that is unknown."""
    total, per_batch = length(loader), getattr(loader, "batch_size", None)
    samples = getattr(loader, "sampler", None)
    if batches is None or not isinstance(per_batch, int) or not isinstance(samples, Sized):
        return None
    most = len(samples) if total is None or not getattr(loader, "drop_last", False) else total * per_batch
    return min(most, batches * per_batch)


def limited(total: int | None, limit: Share | None, name: str) -> int | None:
    """Return how many batches of `total` a limit leaves: a whole number of them, or a fraction up to 1.0.

    >>> limited(10, 0.25, "limit"), limited(10, 3, "limit"), limited(None, 3, "limit")
    (2, 3, 3)
    """
    if limit is None:
        return total
    if isinstance(limit, float):
        if limit == 1.0:
            return total
        if total is None:
            raise ValueError(
                f"{name}={limit} is a fraction, and the loader has no length; give a number of batches"
            )
        return math.floor(total * limit)
    return limit if total is None else min(limit, total)


@final
class Feed:
    """The batches of all epochs of a training, with the end of each epoch. The next batch loads in the background.

    Args:
        loader: a DataLoader, or anything that can be iterated once for each epoch.
        limit: batches of an epoch at most.
        start: the number of the first batch, if an epoch is resumed.
        skip: batches before it that the loader would give again.
        state: the loader's state at the start.
        more: returns True if another epoch may follow the one that is ending.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        loader: Any,
        *,
        limit: int | None = None,
        start: int = 0,
        skip: int = 0,
        state: dict[str, Any] | None = None,
        more: Callable[[], bool] = lambda: True,
    ) -> None:
        self._tasks = tasks
        self._loader = loader
        self._limit = limit
        self._start = start
        self._skip = skip
        self._more = more
        self._items = self._all()
        self._ahead: _Pull | None = None
        self._next: Fetched | None = None
        self._state = state

    async def peek(self) -> Fetched | None:
        """Return the batch that `take` will return, or None at the end of the epoch."""
        if self._next is None:
            pull, self._ahead = self._ahead or self._pull(), None
            self._next = await pull.result()
        return None if self._next.batch is NO_BATCH else self._next

    async def take(self) -> Fetched:
        """Return the next batch, or the end of the epoch, and start to load the one after it."""
        await self.peek()
        fetched, self._next = self._next, None
        assert fetched is not None
        self._state = fetched.state
        if fetched.batch is not NO_BATCH or self._more():
            self._ahead = self._pull()
        return fetched

    async def close(self) -> None:
        """Stop, and move the loader back to where the training is, from one batch ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await ahead.wait()
        if (ahead is not None or self._next is not None) and self._state is not None:
            restore(self._loader, self._state, 0)

    def _pull(self) -> _Pull:
        pull = _Pull(lambda: next(self._items))
        self._tasks.start_soon(pull.run)
        return pull

    def _all(self) -> Iterator[Fetched]:
        number, skip = self._start, self._skip
        while True:
            batches = Pass(self._loader, self._limit, start=number, skip=skip)
            for number, batch in batches:
                yield Fetched(number, batch, batch_size(batch), loader_state(self._loader))
            state = loader_state(self._loader)
            end = None if state is None else {**state, "drained": batches.drained}
            yield Fetched(batches.end, NO_BATCH, 0, end)
            number = skip = 0


def restore(loader: Any, state: Mapping[str, Any] | None, batch: int, limit: int | None = None) -> int:
    """Restore a loader from a checkpoint. Return how many batches must still be skipped.

    Args:
        state: its state in the checkpoint, or None.
        batch: how many batches of the epoch were trained on.
        limit: batches of an epoch at most.
    """
    load = getattr(loader, "load_state_dict", None)
    if state is None or not callable(load):
        return batch
    load({name: value for name, value in state.items() if name != "drained"})
    if not state.get("drained", True) or _is_left_early(loader, batch, limit):
        # Start the abandoned epoch and leave it, so that the next epoch starts from its beginning. An iterator has no
        # epochs: it continues.
        items = iter(loader)
        if items is not loader and not isinstance(loader, DataLoader):
            next(items, None)  # a generator doesn't run before its first item is asked for
    return 0


def _is_left_early(loader: Any, batch: int, limit: int | None) -> bool:
    """Return True if the limit has ended the epoch, and the loader has more batches."""
    total = length(loader)
    return limit is not None and 0 < limit <= batch and (total is None or limit < total)


async def batches(items: Iterator[tuple[int, Any]]) -> AsyncIterator[tuple[int, Any]]:
    """Yield a pass's batches with their numbers. Each is loaded in a worker thread."""
    while True:
        item = await anyio.to_thread.run_sync(next, items, None, abandon_on_cancel=True)
        if item is None:
            return
        yield item


@final
class Pass:
    """The batches of one pass, up to a limit, with their numbers.

    A loader with fewer batches than the limit is read to its end, so that it starts a new epoch next. A loader that
    gives nothing is iterated over again: if it was restored at an epoch's end, the rest of that epoch is empty.

    Args:
        start: the number of the first batch, if a pass is resumed.
        skip: batches before it that the loader would give again.

    Attributes:
        end: how many batches there were, those before `start` included; known at the end.
        drained: True if the loader itself ended the pass, not the limit.

    >>> one = Pass("abc", 2)
    >>> list(one), one.drained
    ([(0, 'a'), (1, 'b')], False)
    """

    def __init__(self, loader: Iterable[Any], limit: int | None, *, start: int = 0, skip: int = 0) -> None:
        self._loader = loader
        self._limit = math.inf if limit is None else limit
        self._skip = skip
        self.end = self._start = start
        self.drained = False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        total = length(self._loader)
        shortened = self._limit < (math.inf if total is None else total)
        self.drained = not shortened
        if self._start >= self._limit:
            return
        for _ in range(1 if self._start else 2):
            items = iter(self._loader)
            for _ in range(self._skip):
                next(items, None)
            for batch in items:
                self.end += 1
                yield self.end - 1, batch
                if self.end >= self._limit:
                    self.drained = not shortened and next(items, NO_BATCH) is NO_BATCH
                    return
            self.drained = True
            if self.end > self._start:
                return


@final
class _Pull:
    """One batch that is being loaded."""

    def __init__(self, load: Callable[[], Fetched]) -> None:
        self._load = load
        self._done = anyio.Event()
        self._fetched: Fetched | None = None
        self._error: BaseException | None = None

    async def run(self) -> None:
        try:
            self._fetched = await anyio.to_thread.run_sync(self._load, abandon_on_cancel=True)
        except Exception as error:  # a loader's own; it is raised where the batch is taken
            self._error = error
        finally:
            self._done.set()

    async def wait(self) -> None:
        await self._done.wait()

    async def result(self) -> Fetched:
        await self._done.wait()
        if self._error is not None:
            raise self._error
        assert self._fetched is not None
        return self._fetched


# The process's random generators, as plain data for checkpoints


def seed_all(seed: int) -> None:
    """Seed Python's generator, and NumPy's if the program uses it."""
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def generators_state() -> dict[str, Any]:
    """Return where the generators stand.

    >>> state = generators_state()
    >>> first = random.random()
    >>> restore_generators(state)
    >>> first == random.random()
    True
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, array("I", words).tobytes().hex(), gauss]}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = [kind, keys.tobytes().hex(), int(position), int(has_gauss), float(cached)]
    return state


def restore_generators(state: Mapping[str, Any]) -> None:
    """Restore the state that `generators_state` returned."""
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(array("I", bytes.fromhex(words))), gauss))
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in state:
        kind, keys, position, has_gauss, cached = state["numpy"]
        words = numpy.frombuffer(bytes.fromhex(keys), dtype=numpy.uint32)
        numpy.random.set_state((kind, words, position, has_gauss, cached))
