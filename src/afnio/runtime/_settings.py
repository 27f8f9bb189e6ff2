"""Settings and open blocks: what holds for calls that are made here.

Every `set_…` function and `with` block of Afnio that changes how calls are made is a `Setting`. A plain call changes
the default for the whole process, threads included. A `with` block changes a context variable, so it applies to the
block's context and to what is launched in it, and not to other tasks or threads.

A plain call and a block look the same until `with` enters the object. So `Assignment` sets the process default when
it is made and takes that back when it is entered.

Two settings that are used all over the engine are also here: where seeds come from, and the priority of calls.

An `OpenBlock` is a budget, a journal or a bridge that is open in the process. A context variable says which block a
task is in, but a thread that was started without a context knows nothing of them. `innermost` returns the context that
its calls belong to: that of the innermost open block, if they all nest.
"""

from __future__ import annotations

import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import Context, ContextVar, Token, copy_context
from enum import IntEnum
from typing import Any, Final, Generic, Literal, TypeVar, cast, final

T = TypeVar("T")

_UNSET: Final = object()


class Setting(Generic[T]):
    """A value that plain calls set for the process and `with` blocks set for their context.

    >>> colour = Setting("colour", "red")
    >>> with colour.override("blue"):
    ...     colour.get()
    'blue'
    >>> colour.get()
    'red'
    """

    def __init__(self, name: str, default: T) -> None:
        self._first = default
        # Newest last. It needs no lock: `append` and `remove` are atomic, and nothing else changes it.
        self._assigned: list[_Entry[T]] = []
        self._local: ContextVar[Any] = ContextVar(f"afnio_{name}")

    @property
    def default(self) -> T:
        """The process default."""
        try:
            return self._assigned[-1].value
        except IndexError:
            return self._first

    @default.setter
    def default(self, value: T) -> None:
        self._first = value
        self._assigned = []

    def get(self) -> T:
        value = self._local.get(_UNSET)
        if value is not _UNSET:
            return cast("T", value)
        # A hot path, taken several times for each call: don't let an empty list raise.
        return self.default if self._assigned else self._first

    @contextmanager
    def override(self, value: T) -> Iterator[T]:
        token = self._local.set(value)
        try:
            yield value
        finally:
            self._local.reset(token)

    def assign(self, assignment: Assignment[T], value: T) -> None:
        """Make `value` the process default, until `retract` or the next assignment."""
        # An older entry without its assignment can't be retracted any more, so it can't matter again.
        self._remove([entry for entry in self._assigned[:-1] if entry.assignment() is None])
        self._assigned.append(_Entry(weakref.ref(assignment), value))

    def retract(self, assignment: Assignment[T]) -> None:
        self._remove([entry for entry in self._assigned if entry.assignment() is assignment])

    def _remove(self, entries: list[_Entry[T]]) -> None:
        for entry in entries:
            with suppress(ValueError):  # another thread removed it first
                self._assigned.remove(entry)


class _Entry(Generic[T]):
    __slots__ = ("assignment", "value")

    def __init__(self, assignment: weakref.ref[Assignment[T]], value: T) -> None:
        self.assignment = assignment
        self.value = value


class Assignment(AbstractContextManager[T], Generic[T]):
    """A `set_…` call. It sets the process default or, entered as a `with` block, the block's context instead.

    >>> colour = Setting("colour", "red")
    >>> with Assignment(colour, "blue"):
    ...     colour.get(), colour.default
    ('blue', 'red')
    """

    def __init__(self, setting: Setting[T], value: T) -> None:
        self._setting = setting
        self._value = value
        self._tokens: list[Token[T]] = []
        setting.assign(self, value)

    def __enter__(self) -> T:
        self._setting.retract(self)
        self._tokens.append(self._setting._local.set(self._value))
        return self._value

    def __exit__(self, *exc: object) -> None:
        self._setting._local.reset(self._tokens.pop())


# Seeds


class Seeds:
    """Draws seeds by name: the n-th of a name is always the same, whatever else was drawn in between.

    A resumed program has the seeds of some of its parts from a checkpoint, and draws only those of the others.

    >>> one, other = Seeds(3), Seeds(3)
    >>> one("shuffle"), one("search") == other("search")
    (5093864225766400342, True)
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._drawn: Counter[str] = Counter()

    def __call__(self, name: str) -> int:
        self._drawn[name] += 1
        number = self._drawn[name] - 1
        text = f"{self.seed}/{name}/{number}" if name else f"{self.seed}/{number}"
        return random.Random(text).getrandbits(63)  # 63 bits fit in an SQLite integer


# The function that draws seeds. A run sets it, so that it can be repeated. None means the operating system.
seed_source: Final[Setting[Callable[[str], int] | None]] = Setting("seed_source", None)


def draw_seed(name: str = "") -> int:
    """Return a seed of 63 bits, from `seed_source` or the operating system.

    Args:
        name: what it is for, and where, if others may be drawn before it in one session and not in the next.

    >>> with seed_source.override(lambda name: 7):
    ...     draw_seed()
    7
    """
    source = seed_source.get()
    return source(name) if source is not None else random.SystemRandom().getrandbits(63)


# Priorities


class Priority(IntEnum):
    """The priorities of calls, most urgent first. `CallQueue` orders the calls within one."""

    SERVING = 0
    VALIDATION = 1
    TRAINING = 2


_priority: Final[Setting[Priority]] = Setting("priority", Priority.TRAINING)

PriorityName = Literal["serving", "validation", "training"]


class priority(Assignment[Priority]):  # noqa: N801
    """Set the priority of calls among those of their account. The default is "training".

    A plain call sets the process default, a `with` block the priority in its context.

    Args:
        name: "serving", "validation" or "training", most urgent first.

    Raises:
        ValueError: for any other name.

    >>> from afnio.runtime._settings import current_priority
    >>> with priority("serving"):
    ...     current_priority().name
    'SERVING'
    """

    def __init__(self, name: PriorityName | Priority) -> None:
        levels = {level.name.lower(): level for level in Priority}
        level = name if isinstance(name, Priority) else levels.get(name)
        if level is None:
            raise ValueError(f"priority must be one of {', '.join(levels)} (got {name!r})")
        super().__init__(_priority, level)


def prioritised(level: Priority) -> AbstractContextManager[Priority]:
    """Set the priority in the block. Unlike `priority`, it never touches the process default, not even briefly."""
    return _priority.override(level)


def current_priority() -> Priority:
    """Return the priority of calls that are launched here."""
    return _priority.get()


# Open blocks


# Called whenever a block is opened. What watches for calls outside of the engine begins there.
on_open: Final[list[Callable[[], None]]] = []


@final
class OpenBlock:
    """A block that is open.

    Attributes:
        path: the blocks around it and itself, outermost first.
        context: the context in the block.
    """

    def __init__(self) -> None:
        self.path: tuple[OpenBlock, ...] = (*_path.get(), self)
        _path.set(self.path)
        self.context: Context = copy_context()
        _open[self] = None
        for hear in on_open:
            hear()

    def close(self) -> None:
        _open.pop(self, None)
        if _path.get()[-1:] == (self,):  # or it is left in another context
            _path.set(self.path[:-1])


class UnnestedError(Exception):
    """Blocks are open of which none is in the other."""


def is_inside() -> bool:
    """Return True in the context of an open block."""
    return any(block in _open for block in _path.get())


def innermost() -> Context | None:
    """Return a copy of the innermost open block's context, or None if none is open.

    Raises:
        UnnestedError: if open blocks don't nest.
    """
    blocks = list(_open)
    if not blocks:
        return None
    deepest = max(blocks, key=lambda block: len(block.path))
    if any(block not in deepest.path for block in blocks):
        raise UnnestedError
    return deepest.context.copy()


_path: Final[ContextVar[tuple[OpenBlock, ...]]] = ContextVar("afnio_blocks", default=())
# Needs no lock: each operation on it is atomic.
_open: Final[dict[OpenBlock, None]] = {}
