"""The base class of sinks, and the sink that writes JSON lines.

Events happen on the runtime's loop. If a sink wrote to a disk or a server there, every call would wait for it. `Sink`
puts events into a queue instead, and its thread passes them to `take` in batches. If the other system is too slow for
the queue, events are dropped with one warning; the run is never slowed down.

`RunSinks` is the sink that a run itself uses. It calls each sink that the user named, so one that is a plain function
can't slow the program down either.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import IO, Any, Final, NamedTuple, Self, TypeAlias, final

from afnio.models._messages import ChatRequest
from afnio.models._raw import RawReply, RawRequest
from afnio.runtime._files import make_private_folder
from afnio.runtime.events import RunEnded, subscribe, subscribed
from afnio.tellurio._redaction import Redaction

# The most events in one batch.
BATCH: Final = 1_000
# The most events in the queue. Beyond that they are dropped, except the end of the run, to bound the memory
# used.
BACKLOG: Final = 100_000


class Moment(NamedTuple):
    """An event and its time in nanoseconds since 1970 UTC."""

    time: int
    event: Any


class Sink(ABC):
    """Base class of sinks. Subclasses implement `take`.

    If `take` raises, the sink logs one warning and continues with the next batch. In a forked child the sink ignores
    events, because its thread only exists in the parent.

    Args:
        process_wide: as a context manager, take the events of the whole process while the block is open, not
            only of what is launched in the block.
    """

    def __init__(self, *, process_wide: bool = False) -> None:
        # SimpleQueue.put() never blocks and is reentrant.
        self._queue: SimpleQueue[Moment | threading.Event | None] = SimpleQueue()
        self._warned = False
        self._closed = False
        self._process_wide = process_wide
        self._pid = os.getpid()
        self._block = ExitStack()
        self._thread = threading.Thread(target=self._run, name=f"afnio-{type(self).__name__}", daemon=True)
        self._thread.start()

    @abstractmethod
    def take(self, moments: Sequence[Moment]) -> None:
        """Send a batch of events, in order. Called on the sink's thread."""

    def end(self) -> None:  # noqa: B027 - most have nothing to end
        """Release files or connections. Called once on the sink's thread, after the last batch."""

    def __call__(self, event: Any) -> None:
        """Queue an event that happened now. Never blocks."""
        self.at(time.time_ns(), event)

    def at(self, moment: int, event: Any) -> None:
        """Queue an event that happened at `moment`, in nanoseconds since 1970 UTC. Never blocks."""
        if self._closed or self._pid != os.getpid():
            return
        if self._queue.qsize() >= BACKLOG and not isinstance(event, RunEnded):
            self._warn(f"it is {BACKLOG:,} events behind")
            return
        self._queue.put(Moment(moment, event))

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the events queued so far are sent, at most `timeout` seconds."""
        reached = threading.Event()
        self._queue.put(reached)
        while self._thread.is_alive() and not reached.wait(0.5 if timeout is None else timeout):
            if timeout is not None:
                return

    def close(self, timeout: float | None = None) -> None:
        """Send the queued events and end the sink. Later events are dropped. Waits at most `timeout` seconds."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            logging.getLogger("afnio").warning(
                "%s hasn't sent all its events after %g seconds; what it hasn't sent when the program exits is lost",
                type(self).__name__,
                timeout,
            )

    def __enter__(self) -> Self:
        if self._process_wide:
            self._block.callback(subscribe(self))
        else:
            self._block.enter_context(subscribed(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._block.close()
        self.close()

    def _run(self) -> None:
        while True:
            batch, flushed, closing = self._next()
            self._guarded(lambda moments=batch: self.take(moments) if moments else None)
            for event in flushed:
                event.set()
            if closing:
                self._guarded(self.end)
                return

    def _next(self) -> tuple[list[Moment], list[threading.Event], bool]:
        batch: list[Moment] = []
        flushed: list[threading.Event] = []
        item = self._queue.get()
        while True:
            if item is None:
                return batch, flushed, True
            if isinstance(item, Moment):
                batch.append(item)
            else:
                flushed.append(item)
            if flushed or len(batch) >= BATCH:
                return batch, flushed, False
            try:
                item = self._queue.get_nowait()
            except Empty:
                return batch, flushed, False

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logging.getLogger("afnio").warning(
                "%s has lost events (%s); further losses aren't reported", type(self).__name__, reason
            )


# A function that gets every event of a run. If it has an `at(time, event)`, that is called in its place, with
# nanoseconds since 1970 UTC. If it has a `close()`, that is called after the last event.
SinkFunction: TypeAlias = Callable[[Any], object]


@final
class RunSinks(Sink):
    """The sinks of a run: passes each event, redacted, to one after the other.

    A sink that fails is reported once and still called for later events. It affects neither the others nor the run.

    >>> events = []
    >>> with RunSinks([events.append], Redaction(None)) as sinks:
    ...     sinks("event")
    >>> events
    ['event']
    """

    def __init__(self, sinks: Sequence[SinkFunction], redaction: Redaction) -> None:
        for sink in sinks:
            if not callable(sink):
                raise TypeError(f"a sink must be a function of an event (got {sink!r})")
        self._sinks = list(sinks)
        self._redaction = redaction
        self._failed: set[int] = set()
        super().__init__()

    def take(self, moments: Sequence[Moment]) -> None:
        for moment in moments:
            event = self._redaction.value(moment.event)
            for number, sink in enumerate(self._sinks):
                timed = getattr(sink, "at", None)
                self._call(
                    number, partial(timed, moment.time, event) if callable(timed) else partial(sink, event)
                )

    def end(self) -> None:
        for number, sink in enumerate(self._sinks):
            close = getattr(sink, "close", None)
            if callable(close):
                self._call(number, close)

    def _call(self, number: int, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            if number not in self._failed:
                self._failed.add(number)
                logging.getLogger("afnio").exception(
                    "the sink %r failed; it is still called, and this is reported once", self._sinks[number]
                )


# Fields that hold prompts, replies or samples.
TEXTS: Final = frozenset(
    {"request", "reply", "inputs", "prediction", "target", "explanation", "changes", "candidates", "values"}
)


@final
class JsonlSink(Sink):
    """Appends a line `{"time": …, "event": "CallEnded", …}` for each event; the time is in seconds since 1970 UTC.

    Args:
        path: the file. It is created with mode 0600, and its folder with 0700.
        content: also write prompts, replies and samples.
        process_wide: see `Sink`.

    >>> import json, tempfile, afnio
    >>> from pathlib import Path
    >>> from afnio.testing import ScriptedClient
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with JsonlSink(Path(folder) / "events.jsonl") as sink:
    ...         _ = ScriptedClient("Hi").chat(messages=[{"role": "user", "content": "Hello"}], model="m")
    ...     [json.loads(line)["event"] for line in sink.path.read_text().splitlines()]
    ['CallEnded']
    """

    def __init__(
        self, path: str | os.PathLike[str], *, content: bool = False, process_wide: bool = False
    ) -> None:
        self.path = Path(path)
        self._content = content
        make_private_folder(self.path.parent)
        self._file: IO[str] = os.fdopen(
            os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8"
        )
        super().__init__(process_wide=process_wide)

    def take(self, moments: Sequence[Moment]) -> None:
        lines = [json.dumps(self._row(moment), ensure_ascii=False) for moment in moments]
        self._file.write("\n".join([*lines, ""]))
        self._file.flush()

    def end(self) -> None:
        self._file.close()

    def _row(self, moment: Moment) -> dict[str, Any]:
        event = moment.event
        row: dict[str, Any] = {"time": moment.time / 1e9, "event": type(event).__name__}
        if not is_dataclass(event):
            return {**row, "value": _plain(event)}
        for field in fields(event):
            if self._content or field.name not in TEXTS:
                row[field.name] = _plain(getattr(event, field.name))
        return row


def _plain(value: Any) -> Any:
    """Make `value` JSON-serializable: models become dicts, unknown types become strings."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, ChatRequest):
        return _plain(value.body)
    if isinstance(value, RawRequest):
        return _plain(value.json)
    if isinstance(value, RawReply):
        return _plain(value.response)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.compare}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
