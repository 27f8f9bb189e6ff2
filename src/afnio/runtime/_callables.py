"""User callables: where they run, and how many samples may fail.

A `def` runs in a worker thread, because it may block; an `async def` runs on the runtime's loop, or on the loop that
launched it (`loop="caller"`). `call_in_node` calls the callables of nodes (agents, evaluators, `map`, hooks),
`to_thread` a function of the user's own that may read pending values. The two have separate thread limits. With a
shared one, `to_thread` functions that wait for nodes could hold every thread that those nodes need.

`tolerate` sets the fraction of a batch that must succeed; `batch_failure` applies it to a node's outcomes.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any, Final, ParamSpec, TypeVar, cast, final

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from afnio.errors import BatchError, RuntimeClosedError, ScoreError, chain, likeness, reason, text_of
from afnio.runtime._kernel import Job, Launch, Runtime, Slot, on_runtime_thread, within
from afnio.runtime._limits import most_in_flight
from afnio.runtime._loop import CallerLoop, current_task, running_caller, running_library, running_loop
from afnio.runtime._settings import Assignment, Setting
from afnio.runtime._tracebacks import Failure, folding, is_users
from afnio.runtime._waiting import Pending, inside_node

P = ParamSpec("P")
T = TypeVar("T")

# The worker threads of node callables, where neither `set_threads` nor a limit on calls in flight says more.
NODE_THREADS: Final = 32
# The most worker threads that `to_thread` uses.
STEP_THREADS: Final = 32
# The most worker threads for what the engine looks up before a call.
LOOKUP_THREADS: Final = 8
# Callables that run on the loop itself: a thread would cost more than they do.
QUICK: Final[Sequence[Any]] = (sum, len, min, max, abs, round, any, all, sorted, str, int, float, bool)


# Threads


_most_threads: Final[Setting[int | None]] = Setting("threads", None)


class set_threads(Assignment[int | None]):  # noqa: N801
    """Set how many blocking callables may run at the same time, each in a worker thread.

    These are the `def` functions of agents, Functions, `map`, evaluators and hooks. A plain call sets the number for
    the process, a `with` block for what is launched in it.

    Args:
        most: the number; None, the default, is the largest `max_in_flight` of the accounts, and at least 32.

    Raises:
        ValueError: for a number below 1.

    >>> with set_threads(512):
    ...     pass
    """

    def __init__(self, most: int | None) -> None:
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise ValueError(
                f"the number of threads must be at least 1 (got {most!r}); None follows max_in_flight"
            )
        super().__init__(_most_threads, most)


@final
class _Threads:
    """The limiters of a runtime's worker threads."""

    def __init__(self) -> None:
        self._nodes = anyio.CapacityLimiter(NODE_THREADS)
        self._set: dict[int, anyio.CapacityLimiter] = {}
        self.steps = anyio.CapacityLimiter(STEP_THREADS)

    def nodes(self) -> anyio.CapacityLimiter:
        """Return the limiter for a callable of this context. Equal settings share one."""
        most = _most_threads.get()
        if most is not None:
            if most not in self._set:
                self._set[most] = anyio.CapacityLimiter(most)
            return self._set[most]
        wanted = max(NODE_THREADS, most_in_flight())
        if wanted != self._nodes.total_tokens:
            self._nodes.total_tokens = wanted
        return self._nodes

    @property
    def busy(self) -> int:
        """The number of threads in use."""
        limiters = (self._nodes, self.steps, *self._set.values())
        return sum(limiter.borrowed_tokens for limiter in limiters)

    async def aclose(self) -> None:
        return


def _threads(runtime: Runtime) -> _Threads:
    return runtime.resource(_Threads, _Threads)


_lookups: Final[RunVar[anyio.CapacityLimiter]] = RunVar("afnio_lookups")


async def look_up(function: Callable[..., T], *args: Any) -> T:
    """Run a short function of the engine's, such as the look-up of a price, in a worker thread.

    Every call waits for these. In anyio's own limiter they would queue behind the blocking work of an app.
    """
    limiter = _lookups.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(LOOKUP_THREADS)
        _lookups.set(limiter)
    return await anyio.to_thread.run_sync(function, *args, limiter=limiter)


# Callables of nodes


def is_async(function: Callable[..., object]) -> bool:
    """Return True if calling `function` gives a coroutine: an `async def`, a partial of one, an async `__call__`."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the question is if it is async, not if it exists
    )


def caller_loop(launch: Launch) -> CallerLoop | None:
    """Return the loop that runs here, for the `async def` callables of a launch with `loop="caller"`.

    None stands for the runtime's own.

    Raises:
        RuntimeError: without a running loop.
    """
    if on_runtime_thread():
        return None
    home = running_caller(make=True)
    if home is None:
        raise RuntimeError(
            f"loop='caller' needs a running event loop where {launch.name} is launched (got none); launch it in an "
            "`async def`, or leave loop out"
        )
    home.awaited.add(launch)
    return home


async def call_in_node(
    job: Job, function: Callable[..., Any], *args: Any, home: CallerLoop | None = None
) -> Any:
    """Call a node's callable for one lane: an `async def` on a loop, a `def` in a worker thread.

    Its launches get addresses below the job's. Only an `async def` can await them: a blocking read here raises.

    Args:
        home: the loop for an `async def`; by default the one that its launch names, else the runtime's.
    """
    if function in QUICK:
        return function(*args)
    home = home or job.launch.home
    with within(job.scope):
        token = inside_node.set(True)
        try:
            if is_async(function):
                return await _on_loop(job, partial(function, *args), home)
            result = await anyio.to_thread.run_sync(
                partial(function, *args),
                limiter=_threads(job.launch.runtime).nodes(),
                abandon_on_cancel=True,
            )
            # A `def` or lambda that returned a coroutine: run that on a loop.
            return await _on_loop(job, lambda: result, home) if inspect.iscoroutine(result) else result
        finally:
            inside_node.reset(token)


async def _on_loop(job: Job, start: Callable[[], Coroutine[Any, Any, Any]], home: CallerLoop | None) -> Any:
    """Run a coroutine on the caller's loop, or here."""
    if home is not None:
        return await home.run(start)
    watch: LoopWatch = job.launch.runtime.resource(LoopWatch, partial(LoopWatch, job.launch.runtime))
    code = watch.begin(start)
    try:
        return await start()
    except Exception as error:
        strange = _other_loops_error(error)
        if strange is None:
            raise
        raise RuntimeError(
            f"an `async def` on the runtime's loop must not use a client of another loop (got, in {job.launch.name}: "
            f"{text_of(strange)}); pass loop='caller' to run it on the loop that launches it, or make the client in "
            "the function"
        ) from error
    finally:
        watch.end(code)


def _other_loops_error(error: BaseException) -> BaseException | None:
    """Return the error, among the causes of `error`, of a lock or a connection that belongs to another loop."""
    for cause in chain(error, contexts=True):
        text = text_of(cause)
        if isinstance(cause, RuntimeError) and (
            "a different event loop" in text or "a different loop" in text
        ):
            return cause
    return None


# A callable that blocks the loop


# Seconds for which one step of an `async def` may keep the runtime's loop from anything else without a
# warning.
BLOCKED: Final = 0.5
# Seconds between two checks of the loop.
_LOOK: Final = 0.125


@final
class LoopWatch:
    """Warns once of each `async def` that blocks the runtime's loop, while it does.

    A blocking call in one callable, such as `time.sleep`, a synchronous client or a computation, stops every call of
    the process. The loop can't notice that itself, so a thread checks: it posts to the loop, and while the loop doesn't
    answer, it compares the task that the loop is in. One that is the same for half a second blocks. Many that are each
    quick don't, even if they all start in one turn of the loop, and neither does one that waits for a processor on a
    busy machine. The thread exists only while callables run, and for a moment longer.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running: dict[CodeType, int] = {}
        self._warned: set[CodeType] = set()
        self._thread: threading.Thread | None = None
        self._loop = running_loop()
        self._loop_thread, self._native_id = threading.get_ident(), threading.get_native_id()
        self._stop = threading.Event()

    def begin(self, start: Callable[..., Any]) -> CodeType | None:
        """Watch the loop until `end`, while it runs the callable `start`. Returns the argument of `end`."""
        code = _code_of(start)
        if code is not None:
            self._running[code] = self._running.get(code, 0) + 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="afnio-loop-watch", daemon=True)
                self._thread.start()
        return code

    def end(self, code: CodeType | None) -> None:
        if code is not None:
            left = self._running[code] = self._running[code] - 1
            if not left:
                del self._running[code]

    async def aclose(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        answered = True
        task: Any = None
        since = late = 0.0

        def answer() -> None:
            nonlocal answered
            answered = True
            if not self._running:
                self._thread = None  # here, on the loop's thread, so that no callable starts in between

        while not self._stop.is_set() and self._thread is threading.current_thread():
            # A task that is current at two looks without an answer in between is in the same step at both.
            before, task = task, None if answered else current_task(self._loop)
            now = time.monotonic() - late - _starved(self._native_id)
            if task is None or task is not before:
                since = now
            elif now - since >= BLOCKED:
                self._warn(now - since)
            if answered:
                answered = False
                try:
                    self._runtime.post(answer)
                except RuntimeClosedError:
                    return
            asleep = time.monotonic()
            self._stop.wait(_LOOK)
            # A busy machine lets this thread wait for a processor or the GIL, too, and the loop's thread wait for it.
            late += time.monotonic() - asleep - _LOOK

    def _warn(self, seconds: float) -> None:
        """Warn of the callable that the loop's thread is in, or of the user's outermost function in a task of it."""
        frame = sys._current_frames().get(self._loop_thread)
        inner = outer = None
        while frame is not None:
            is_callable = frame.f_code in self._running
            if is_callable or is_users(frame.f_code.co_filename):
                inner, outer = inner or frame, frame
            frame = None if is_callable else frame.f_back
        if inner is None or outer is None or outer.f_code in self._warned:
            return
        self._warned.add(outer.f_code)
        logging.getLogger("afnio").warning(
            "%s (%s:%d) has blocked the runtime's loop for %.1f s in one go, now at %s:%d, and every call of the "
            "process waits; make it a `def`, which runs in a worker thread, or await what blocks",
            outer.f_code.co_qualname,
            outer.f_code.co_filename,
            outer.f_code.co_firstlineno,
            seconds,
            inner.f_code.co_filename,
            inner.f_lineno,
        )


def _starved(thread: int) -> float:
    """Return the seconds for which a thread has waited for a processor so far; 0 where the system doesn't say."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _code_of(function: Any) -> CodeType | None:
    """Return the code of a callable, to find it in a stack; None for one that isn't written in Python."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)  # a method has that of its function
    if isinstance(code, CodeType) and not hasattr(function, "__wrapped__"):
        return code
    function = inspect.unwrap(getattr(function, "__func__", function))
    if not hasattr(function, "__code__"):
        function = getattr(type(function), "__call__", None)  # noqa: B004 - it is looked up, not tested for
    own = getattr(function, "__code__", None)
    return own if isinstance(own, CodeType) else None


# Threads for functions that read


def to_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Pending[T]:
    """Run `function` in a worker thread, where it may read pending values. Await the result.

    A cancelled thread can't be stopped: it runs to its end, and its launches raise.

    >>> import afnio
    >>> async def main():
    ...     return await afnio.to_thread(lambda: (afnio.Variable(1) + afnio.Variable(1)).data)
    >>> afnio.run(main())
    2
    """
    launch = Launch(f"to_thread({getattr(function, '__name__', function)!s})")
    slot = Slot(launch)

    async def body(job: Job, values: list[Any]) -> list[Any]:
        token = inside_node.set(False)
        try:
            result = await anyio.to_thread.run_sync(
                partial(function, *args, **kwargs),
                limiter=_threads(launch.runtime).steps,
                abandon_on_cancel=True,
            )
        finally:
            inside_node.reset(token)
        return [(result,)]

    launch.add(body, [], [slot])
    launch.start()
    return Pending(slot, lambda outcome: cast("T", outcome[0]))


@folding
def run(awaitable: Awaitable[T]) -> T:
    """Run an awaitable to its end in code without an event loop, and return its result.

    Raises:
        RuntimeError: on a running event loop; write `await` there.

    >>> async def double(x):
    ...     return 2 * x
    >>> run(double(4))
    8
    """
    library = running_library()
    if library is not None:
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise RuntimeError(f"afnio.run() was called on a running {library} loop; write `await` instead")

    async def main() -> T:
        return await awaitable

    return anyio.run(main)


# Tolerance


# The largest rounding error of `quorum * present`.
_ROUNDING: Final = 1e-9
# The most different errors that one message lists.
MAX_REASONS: Final = 3

_quorum: Final[Setting[float | None]] = Setting("quorum", None)


class tolerate(AbstractContextManager[None], AbstractAsyncContextManager[None]):  # noqa: N801
    """Let samples fail in the block if at least `quorum` of a node's non-missing samples succeed.

    Failed samples read as None, are left out of scores and gradients, and are listed in `Variable.errors`. Below the
    quorum the whole batch fails with a `BatchError`.

    Args:
        quorum: the fraction that must succeed, above 0 and at most 1.

    Raises:
        ValueError: for a quorum outside of that range.

    >>> with tolerate(quorum=0.9):
    ...     pass
    """

    def __init__(self, quorum: float = 0.9) -> None:
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum must be above 0 and at most 1 (got {quorum}); 0.9 lets a tenth fail")
        self._value = quorum
        self._entered: list[AbstractContextManager[float | None]] = []

    def __enter__(self) -> None:
        override = _quorum.override(self._value)
        override.__enter__()
        self._entered.append(override)

    def __exit__(self, *exc: object) -> None:
        self._entered.pop().__exit__(None, None, None)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()


def current_quorum() -> float | None:
    """Return the quorum of this context, or None if no sample may fail."""
    return _quorum.get()


def quorum_holds(succeeded: int, present: int, quorum: float) -> bool:
    """Return True if `succeeded` is at least the fraction `quorum` of `present`.

    >>> quorum_holds(55, 100, 0.55)  # where 0.55 * 100 is 55.00000000000001
    True
    """
    return succeeded >= quorum * present - _ROUNDING


def may_fail(samples: int, quorum: float) -> int:
    """Return how many of `samples` may fail. Below a quorum of 1, one of several always may.

    >>> may_fail(100, 0.9), may_fail(4, 0.9), may_fail(1, 0.9), may_fail(4, 1.0)
    (10, 1, 0, 0)
    """
    if quorum_holds(0, samples, quorum):
        return samples
    spare = 1 if quorum < 1 and samples > 1 else 0
    return max(spare, samples - math.ceil(quorum * samples - 1e-9))


def batch_failure(
    outcomes: Sequence[Any], name: str, quorum: float | None, lanes: Sequence[int] | None = None
) -> BatchError | ScoreError | None:
    """Return the error of a node with too many failed samples, or None if the quorum holds.

    If it holds, the failures count as read. A `ScoreError` is returned regardless of the quorum: the evaluator's
    arguments are wrong for every sample.

    Args:
        outcomes: one for each lane.
        name: the node's name in the message, if the samples failed in this node.
        quorum: the fraction of the non-missing lanes that must succeed. None means all.
        lanes: the lanes' sample indices. The default is 0, 1, 2, ….
    """
    numbers = range(len(outcomes)) if lanes is None else lanes
    failed = {
        number: outcome
        for number, outcome in zip(numbers, outcomes, strict=True)
        if isinstance(outcome, Failure)
    }
    if not failed:
        return None
    errors = [failure.error for failure in failed.values()]
    present = sum(outcome is not None for outcome in outcomes)
    masked = quorum is not None and quorum_holds(present - len(failed), present, quorum)
    whole = _of_all(errors, masked=masked)
    if whole is not None or masked:
        for failure in failed.values():
            failure.mark_read()
        return whole
    places = {failure.place or name for failure in failed.values()}
    place = places.pop() if len(places) == 1 else name
    need = "" if quorum is None else f", and quorum={quorum} allows fewer"
    error = BatchError(
        f"{len(failed)} of {present} samples of {place} failed{_reasons(failed, place, need)}",
        [_exception(error) for error in errors],
        list(failed),
    )
    if len(failed) < present and quorum is None:
        error.add_note("`with afnio.tolerate(quorum=…):` leaves failed samples out")
    error.failures = tuple(failed.values())
    return error


def _of_all(errors: Sequence[BaseException], *, masked: bool) -> BatchError | ScoreError | None:
    """Return an error of the whole batch: a `ScoreError`, or a `BatchError` that all samples share."""
    for error in errors:
        if isinstance(error, ScoreError):
            return error
    first = errors[0]
    if isinstance(first, BatchError) and not masked and all(error is first for error in errors):
        return first
    return None


def _reasons(failed: Mapping[int, Failure], place: str, need: str) -> str:
    """Return the reasons with their samples, as a part of a message. The most frequent ones come first."""
    alike: dict[object, list[int]] = {}
    for number, failure in failed.items():
        alike.setdefault((failure.place or place, likeness(failure.error)), []).append(number)
    listed_reasons = []
    for samples in sorted(alike.values(), key=len, reverse=True)[:MAX_REASONS]:
        failure = failed[samples[0]]
        elsewhere = "" if failure.place in (None, place) else f" of {failure.place}"
        listed = ", ".join(map(str, samples[:10])) + (", …" if len(samples) > 10 else "")
        if len(alike) == 1:
            return f" (sample {listed}){need}: {reason(failure.error)}"
        listed_reasons.append(f"{reason(failure.error)} (sample {listed}{elsewhere})")
    if len(alike) > MAX_REASONS:
        listed_reasons.append(f"{len(alike) - MAX_REASONS} other errors")
    return f"{need}: {'; '.join(listed_reasons)}"


def _exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
