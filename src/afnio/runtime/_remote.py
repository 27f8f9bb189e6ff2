"""Functions that run in the workers of an executor: how they get there, and how their results come back.

`remote` makes a `Remote` of a function that is given with `executor=`: an asynchronous callable, which nodes call like
any other. The function is pickled when it is made, on the line of the launch and once for all lanes. So what can't be
pickled is an error on that line, and the error names it. What leaves is bytes: the function and a lane's plain values.

With `durable=` a result is journaled, and a resumed run doesn't compute it again. Unlike a reply it comes from the
user's code, so it has a version, to be raised when that code changes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path, PurePath
from types import FunctionType, MethodType
from typing import Any, Final, Protocol, final
from uuid import UUID

import anyio
import anyio.to_thread

from afnio.errors import RemoteError, RuntimeClosedError, WorkerTraceback, reason
from afnio.runtime._executors import Workers
from afnio.runtime._journal_file import Record
from afnio.runtime._kernel import Job, Runtime, current_scope
from afnio.runtime._loop import Signal
from afnio.runtime._waiting import active_journal
from afnio.runtime._worker import Ended, check_importing, found_cloudpickle, pickled

# Bytes of a result that is unpickled in a thread, so that the loop isn't blocked.
LARGE: Final = 1 << 20


class LaneCalls(Protocol):
    """The language model calls that a lane makes in a worker. `afnio.models` brings it."""

    async def attempt(self) -> Callable[[], Any]:
        """Return what makes the context manager around the function, in the worker; for the next attempt."""

    def end(self) -> None:
        """The lane has ended."""


@final
class Remote:
    """A function that runs in the workers of an executor: an asynchronous callable for `call_in_node`.

    Args:
        function: a `def` or an `async def`.
        workers: where.
        durable: 0, or the version of the function under which its results are journaled.
        name: in errors, instead of the function's own.

    Raises:
        TypeError: if it can't be pickled.
    """

    def __init__(
        self, function: Callable[..., Any], workers: Workers, *, durable: int = 0, name: str | None = None
    ) -> None:
        check_importing()
        self.name = name or _name_of(function)
        self._function = _packed(function, self.name)
        self._workers = workers
        self._lane_calls: Callable[[tuple[str, int] | None], LaneCalls] = Runtime.lane_calls()
        self._durable = durable
        self._bound = _bound(function)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        job = current_scope().job
        assert job is not None, "call_in_node has set the lane's scope"
        try:
            arguments = pickled((args, kwargs))
        except Exception as error:
            raise TypeError(
                f"what {self.name} gets must be picklable (got {_culprit(args, kwargs)}: {reason(error)}); pass plain "
                "values"
            ) from None
        if self._durable and active_journal.get() is not None:
            return await self._recorded(job, arguments, args, kwargs)
        return await self._run(job, arguments)

    async def _run(self, job: Job, arguments: bytes) -> Any:
        runtime = job.launch.runtime
        calls = self._lane_calls(self._workers.listens_on)

        async def task() -> tuple[Any, ...]:
            return os.getpid(), self._function, arguments, pickle.dumps(await calls.attempt())

        try:
            ended = await self._workers.pool(runtime).run(self.name, task, most=self._workers.max_in_flight)
        finally:
            calls.end()
        if len(ended.data) > LARGE:
            return await anyio.to_thread.run_sync(self._outcome, ended)
        return self._outcome(ended)

    def _outcome(self, ended: Ended) -> Any:
        """Return the value, or raise the error that ended the function."""
        if ended.ending == "value":
            try:
                return pickle.loads(ended.data)
            except Exception as error:
                raise TypeError(
                    f"{self.name} must return what can be unpickled here (got {reason(error)}); return plain values"
                ) from None
        if ended.ending == "unread":
            raise TypeError(f"{self.name} {ended.text}; use what can be imported, and plain values")
        raised: Any = None
        with suppress(Exception):
            raised = pickle.loads(ended.data)
        if not isinstance(raised, BaseException):
            raised = RemoteError(
                f"{self.name} raised {ended.name} in a worker, which can't be unpickled here ({ended.text})"
            )
        raise raised from WorkerTraceback(ended.trace)

    # Results in the journal

    async def _recorded(self, job: Job, arguments: bytes, args: Any, kwargs: Any) -> Any:
        """Return the journal's result, or run the function and record what it returned."""
        journal = active_journal.get()
        assert journal is not None
        address, scope = job.call_address("result"), job.launch.scope.matched_in
        key = self._key(args, kwargs)
        record = journal.take_result(address, key, scope)
        if record is not None:
            return _from_json(record.payload)
        if journal.broken is not None:
            raise journal.broken
        value = await self._run(job, arguments)
        payload = _to_json(value)
        if payload is None:
            raise TypeError(
                f"a durable function must return what JSON can hold (got {value!r:.200} from {self.name}); return "
                "texts, numbers, and lists or dicts of them"
            )
        written = Signal()

        def done(error: BaseException | None) -> None:
            # As for replies: on a full disk this lane gets its result, and the next one raises.
            with suppress(RuntimeClosedError):
                job.launch.runtime.post(written.set, None if error is journal.broken else error)

        journal.append(
            Record(
                address=address, scope=scope, key=key, model="", purpose="result", payload=payload, kind="result"
            ),
            done,
        )  # fmt: skip
        await written.wait()
        return _from_json(payload)  # what a resumed run gets

    def _key(self, args: Any, kwargs: Any) -> str:
        """Return the digest of everything that a result depends on, but the code.

        It isn't that of the pickle, which shows which of the arguments are one object.
        """
        asked = [self.name, self._durable, args, kwargs, *self._bound]
        try:
            data = json.dumps(asked, sort_keys=True, default=_stable)
        except Exception as error:
            raise TypeError(
                f"what the durable function {self.name} gets must be equal in the next run (got {reason(error)}); pass "
                "texts, numbers, dataclasses, and lists or dicts of them"
            ) from None
        return hashlib.sha256(data.encode()).hexdigest()


# Types whose repr shows all of a value. An array's leaves out its middle.
_WHOLE: Final = (bytes, complex, Decimal, date, time, timedelta, PurePath, UUID)


def _stable(value: Any) -> Any:
    """Return what stands for a value that JSON doesn't have: the same in each process, another for other values.

    Raises:
        Exception: if there is nothing that does.
    """
    kind = type(value)
    if isinstance(value, set | frozenset):
        return [
            kind.__qualname__,
            sorted(json.dumps(each, sort_keys=True, default=_stable) for each in value),
        ]
    if isinstance(value, Enum):
        return [kind.__qualname__, value.name]
    if is_dataclass(value) and not isinstance(value, type):
        return [kind.__qualname__, {each.name: getattr(value, each.name) for each in fields(value)}]
    if isinstance(value, MethodType):
        return [value.__qualname__, value.__self__]
    if isinstance(value, FunctionType | type) and "<" not in value.__qualname__:
        return [value.__module__, value.__qualname__]
    if isinstance(value, _WHOLE):
        return [kind.__qualname__, repr(value)]
    # Equal values may differ here. Then a result is computed again, and never a wrong one taken.
    return hashlib.sha256(pickled(value)).hexdigest()


def _to_json(value: Any) -> bytes | None:
    """Encode a result, or return None for one that would come back as something else. An evaluator's is a tuple."""
    held = {"value": value, "tuple": isinstance(value, tuple)}
    try:
        data = json.dumps(held, allow_nan=False).encode()
        return data if _from_json(data) == value else None
    except Exception:  # also of a strange `__eq__`
        return None


def _from_json(data: bytes) -> Any:
    held = json.loads(data)
    return tuple(held["value"]) if held["tuple"] else held["value"]


def _bound(function: Any) -> list[Any]:
    """Return the arguments that partials have bound."""
    bound: list[Any] = []
    while isinstance(function, partial):
        bound += [function.args, function.keywords]
        function = function.func
    return bound


def checked_durable(durable: Any, executor: Any) -> int:
    """Return the version of `durable=`, 0 for False.

    Raises:
        ValueError: for anything but a bool or a version, and without an executor.
    """
    if not isinstance(durable, int) or durable < 0:
        raise ValueError(f"durable must be True or the version of the function, 1 or more (got {durable!r})")
    if durable and executor is None:
        raise ValueError(
            "durable=True needs an executor (got none); pass executor=, or wrap what the function pays for in calls"
        )
    return int(durable)


def remote(
    function: Callable[..., Any], executor: Any, *, durable: int = 0, loop: str = "runtime"
) -> Callable[..., Any]:
    """Return `function` as it is to be called in a node: itself, or in the workers of `executor` if there is one.

    Raises:
        TypeError: if it can't be pickled, or for something else than an executor.
        ValueError: for `loop="caller"` with an executor.
    """
    version = checked_durable(durable, executor)
    if executor is None or not callable(function):
        return function
    if loop == "caller":
        raise ValueError(
            "loop='caller' and executor= exclude each other (got both); leave loop out, because a worker has its own"
        )
    if isinstance(function, Remote):
        return function
    return Remote(function, Workers.of(executor), durable=version)


def _name_of(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    name = str(getattr(function, "__qualname__", None) or type(function).__qualname__)
    code = getattr(function, "__code__", None)
    if name.endswith("<lambda>") and code is not None:
        return f"the lambda at {Path(code.co_filename).name}:{code.co_firstlineno}"
    return name.replace(".<locals>", "")


def _packed(function: Callable[..., Any], name: str) -> bytes:
    """Pickle the function: by reference if a worker can import it, else by value."""
    cloudpickle = found_cloudpickle()
    if not _by_value(function, cloudpickle):
        with suppress(Exception):
            return pickle.dumps(function, pickle.HIGHEST_PROTOCOL)
    if cloudpickle is None:
        raise TypeError(
            f"a function with executor= must be importable (got {name}: a lambda, a function "
            "defined in another one, or one of a notebook); move it to a module, or install cloudpickle"
        )
    try:
        data: bytes = cloudpickle.dumps(function)
    except Exception as error:
        raise TypeError(
            f"a function with executor= must be picklable (got {name}, which refers to {_culprit(function)}: "
            f"{reason(error)}); make that in the function"
        ) from None
    return data


def _by_value(function: Any, cloudpickle: Any) -> bool:
    """Return True for a function of the program's main module: only some workers have imported that."""
    if isinstance(function, partial):
        inner = (function.func, *function.args, *function.keywords.values())
        return any(_by_value(each, cloudpickle) for each in inner if callable(each))
    if getattr(function, "__module__", None) != "__main__":
        return False
    # Without cloudpickle: a pool's workers import a script, but neither a notebook nor `python -c`.
    return cloudpickle is not None or getattr(sys.modules["__main__"], "__file__", None) is None


# How many levels the search for what can't be pickled goes down.
_DEEP: Final = 4


def _culprit(*values: Any) -> str:
    """Return the name of what can't be pickled among what `values` refer to."""
    name, value = "a value", values[0]
    parts: Any = list(enumerate(values))
    for _ in range(_DEEP):
        bad = next(((n, v) for n, v in parts if not _picklable(v)), None)
        if bad is None:
            break
        name, value = bad if isinstance(bad[0], str) else (name, bad[1])
        parts = list(_parts(value))
    return f"{name}, a {type(value).__name__}" if isinstance(name, str) else type(value).__name__


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a value refers to, each with its name."""
    if isinstance(value, partial):
        yield "", value.func
        yield from enumerate(value.args)
        yield from value.keywords.items()
    elif isinstance(value, MethodType):
        yield "self", value.__self__
    elif isinstance(value, FunctionType):
        with suppress(Exception):
            names = inspect.getclosurevars(value)
            yield from names.nonlocals.items()
            yield from names.globals.items()
    elif isinstance(value, dict):
        yield from ((str(name), item) for name, item in value.items())
    elif isinstance(value, list | tuple | set):
        yield from enumerate(value)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from ((f"{type(value).__name__}.{name}", item) for name, item in vars(value).items())


def _picklable(value: Any) -> bool:
    try:
        pickled(value)
    except Exception:
        return False
    return True
