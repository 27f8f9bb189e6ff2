"""Variables: the values that ops compute with, the data that they may hold, and `bind`.

A Variable is a mutable face over immutable values. The values are in slots of the engine, one for each lane, and a slot
is written once. A launch captures the slots (`Variable.cell`), not the Variable. So a prompt can be assigned or
stepped while earlier launches still run: they keep the value that they were launched with, and no lock is needed.

Reading `data` waits. Everything that Python would do with a value by accident (`bool(x)`, `len(x)`, iteration) raises
instead, because it would be a hidden wait: `if reply:` would run a batch one sample after the other.

Leaves are strings or numbers (int, float, bool); None marks a missing sample. Numbers of other libraries, such as
NumPy's, become Python's own. A list is a batch: its elements are lanes, and deeper lists are data of one lane. The
restriction pays off at the other end: every value can be written to a journal, a checkpoint or a prompt, and is equal
to itself after it has been read back. A value of any other type raises where it's assigned, not when it's saved.

`bind` lays other values over Variables for one context, so that a candidate prompt can be tried while others use the
same agent.
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, final

from afnio.autodiff._graph import (
    AccumulateGrad,
    Hook,
    Hooks,
    Node,
    PendingGradients,
    RemovableHandle,
    checked_hook,
)
from afnio.errors import GraphError
from afnio.runtime._callables import batch_failure, current_quorum
from afnio.runtime._kernel import PENDING, Slot
from afnio.runtime._tracebacks import Failure, fold, folding
from afnio.runtime._waiting import Pending, wait, wait_async

if TYPE_CHECKING:
    from afnio.runtime._kernel import Slot
    from afnio.runtime._tracebacks import Line


Leaf = str | int | float | bool | None
# A leaf, or a list of leaves or lists. (Type checkers reject most user code against the recursive type.)
Data = Any
# The slots of a value, one for each lane, and if they are a batch.
Cell = tuple["list[Slot]", bool]
# How many characters of a text `str(variable)` shows.
MAX_SHOWN = 40


class Origin(NamedTuple):
    """The op that made a Variable: its name, its line, and the address of its launch (None without one)."""

    name: str
    line: Line
    address: str | None = None


class Variable:
    """A value that ops compute with: a string or a number, or a batch of either, None for a missing sample.

    Reading `data` waits for a value that is still being computed; `await variable` waits without
    blocking an event loop and gives the Variable back.

    Args:
        data: a str, int, float, bool or None; a list of them is a batch with one lane for each element.
        role: the purpose of the value, in words; critics and optimizers read it.
        requires_grad: if True, backward passes gather feedback for it.

    >>> x = Variable(["good", "bad"], role="reviews")
    >>> x.shape
    (2,)
    """

    __slots__ = (
        "__weakref__",
        "_batch",
        "_hooks",
        "_leaf",
        "_node",
        "_origin",
        "_output_nr",
        "_pending_gradients",
        "_provenance",
        "_requires_grad",
        "_retains",
        "_role",
        "_slots",
    )  # fmt: skip

    def __init__(self, data: Data = "", role: str = "", requires_grad: bool = False) -> None:
        self._slots, self._batch = cell_of(data)
        self._reset(role, requires_grad)

    def _reset(self, role: str, requires_grad: bool) -> None:
        self._role = role
        self._requires_grad = bool(requires_grad)
        self._node: Node | None = None
        self._output_nr = 0
        self._pending_gradients: list[PendingGradients] = []
        self._retains = False
        self._hooks: Hooks[Hook] | None = None
        self._leaf: weakref.ref[AccumulateGrad] | None = None
        self._origin: Origin | None = None
        self._provenance: tuple[Any, ...] = ()

    @classmethod
    def over(
        cls,
        slots: list[Slot],
        batch: bool,
        role: str = "",
        *,
        node: Node | None = None,
        output_nr: int = 0,
        origin: Origin | None = None,
    ) -> Self:
        """Return a Variable over slots that an op fills."""
        self = cls.__new__(cls)
        self._slots, self._batch = slots, batch
        self._reset(role, node is not None)
        self._node = node
        self._output_nr = output_nr
        self._origin = origin
        return self

    # Value

    def cell(self) -> Cell:
        """Return the slots that a launch would capture in this context, and if they are a batch."""
        overlay = bindings.get()
        if overlay is not None:
            bound = overlay.get(self)
            if bound is not None:
                return bound
        return self._slots, self._batch

    def advance(self, slot: Slot) -> None:
        """Become a leaf over `slot`, which a step will fill."""
        self._slots, self._node, self._output_nr, self._origin = [slot], None, 0, None

    @property
    def origin(self) -> Origin | None:
        """The op that made it, None for a leaf."""
        return self._origin

    @property
    def own_slots(self) -> list[Slot]:
        """Its slots, without the overlay of `bind`; for optimizers."""
        return self._slots

    @property
    def batch(self) -> bool:
        """True if it holds a list, one lane for each element; never waits."""
        return self.cell()[1]

    @property
    def data(self) -> Any:
        """The value; waits for it.

        Raises:
            BatchError: if samples of a batch failed, and no `afnio.tolerate` masks them.
            BlockingReadError: if waiting would block an event loop; write `await variable` there.
        """
        try:
            slots, batch = self.cell()
            wait(slots)
            return self._read(slots, batch)
        except Exception as error:  # `@folding` would double the time of a read
            fold(error)
            raise

    @data.setter
    def data(self, data: Data) -> None:
        overlay = bindings.get()
        if overlay is not None and self in overlay:
            raise RuntimeError(f"{self._name()} is bound here by afnio.bind; assign outside of the block")
        slots, batch = cell_of(data)
        if self._node is not None or self._origin is not None:
            self._check_lanes(slots, batch)
            slots = [self._kept(old, new) for old, new in zip(self._slots, slots, strict=True)]
        self._slots, self._batch = slots, batch

    @property
    def pending(self) -> bool:
        """True if reading `data` would wait."""
        return any(slot.outcome is PENDING for slot in self.cell()[0])

    @property
    def errors(self) -> dict[int, BaseException]:
        """The errors of failed samples by index (0 for a scalar); waits for the value."""
        slots, _ = self.cell()
        wait(slots)
        by_sample: dict[int, BaseException] = {}
        for lane, slot in enumerate(slots):
            if isinstance(slot.outcome, Failure):
                slot.outcome.mark_read()
                by_sample[lane] = slot.outcome.error
        return by_sample

    @property
    def shape(self) -> tuple[Any, ...]:
        """Length of each axis: `()` for a scalar, `j` for lists of unequal length; never waits.

        While values are pending, only the number of samples is known.
        """
        slots, batch = self.cell()
        if not batch:
            return ()
        if not slots or any(slot.outcome is PENDING for slot in slots):
            return (len(slots),)
        return shape([slot.outcome for slot in slots])

    @folding
    def __await__(self) -> Generator[Any, None, Self]:
        slots, batch = self.cell()
        yield from wait_async(slots).__await__()
        self._read(slots, batch)
        return self

    def _read(self, slots: Sequence[Slot], batch: bool) -> Any:
        outcomes = [slot.outcome for slot in slots]
        if not batch:
            if isinstance(outcomes[0], Failure):
                raise outcomes[0].raised()
            return outcomes[0]
        if any(isinstance(outcome, Failure) for outcome in outcomes):
            error = batch_failure(outcomes, self._name(), current_quorum())
            if error is not None:
                raise Failure(error).raised()
            return [None if isinstance(outcome, Failure) else outcome for outcome in outcomes]
        return outcomes

    def _check_lanes(self, slots: Sequence[Slot], batch: bool) -> None:
        if batch != self._batch or len(slots) != len(self._slots):
            had = f"{len(self._slots)} samples" if self._batch else "one value"
            got = f"{len(slots)} samples" if batch else "one value"
            raise ValueError(
                f"the output of an op keeps its number of samples ({had}, got {got}); "
                "use variable.map(fn) to change each sample, or make a new Variable"
            )

    @staticmethod
    def _kept(old: Slot, new: Slot) -> Slot:
        return old if new.outcome is None and isinstance(old.outcome, Failure) else new

    # Graph

    @property
    def role(self) -> str:
        return self._role

    @role.setter
    def role(self, role: str) -> None:
        self._role = role

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, mode: bool) -> None:
        self.requires_grad_(mode)

    def requires_grad_(self, mode: bool = True) -> Self:
        """Turn gathering of feedback on or off, in place.

        Raises:
            GraphError: for the output of an op, whose inputs decide; `detach()` gives a leaf.
        """
        if self._node is not None and not mode:
            raise GraphError(
                f"{self._name()} is the output of an op, so its inputs decide; use .detach() for a leaf"
            )
        self._requires_grad = bool(mode)
        return self

    @property
    def is_leaf(self) -> bool:
        return self._node is None

    @property
    def output_nr(self) -> int:
        """The number of this output among its op's outputs."""
        return self._output_nr

    @property
    def grad_fn(self) -> Node | None:
        """The node that produced it, None for a leaf."""
        return self._node

    def graph_node(self) -> Node:
        """Return where an edge to this Variable leads: its producer, or where a leaf gathers feedback."""
        if self._node is not None:
            return self._node
        node = self._leaf() if self._leaf is not None else None
        if node is None:
            node = AccumulateGrad(self)
            self._leaf = weakref.ref(node)
        return node

    @property
    @folding
    def grad(self) -> list[Variable]:
        """The feedback gathered so far, as a new list in the order of the backward passes; waits for it.

        A scalar that samples shared has one gradient for each sample with feedback, in order. A batch has
        one for each of its consumers, aligned to its samples.
        """
        if not self.is_leaf and not self._retains:
            raise GraphError(
                f"{self._name()} is the output of an op and gathers no feedback; call retain_grad() on it "
                "before backward()"
            )
        passes = list(self._pending_gradients)
        wait([pending.slot for pending in passes])
        return self.gradients_of(passes)

    @grad.setter
    def grad(self, gradients: list[Variable]) -> None:
        if not isinstance(gradients, list) or not all(isinstance(g, Variable) for g in gradients):
            raise TypeError(f"grad takes a list of Variables (got {gradients!r})")
        self._pending_gradients = []
        for gradient in gradients:
            self.append_grad(gradient)

    def gradients_of(self, passes: Sequence[PendingGradients]) -> list[Variable]:
        """Return the gradients of passes that have ended, as Variables."""
        gradients: list[Variable] = []
        for pending in passes:
            outcome = pending.slot.outcome
            if isinstance(outcome, Failure):
                if outcome.read:  # the caller of that backward pass has got the error already
                    continue
                raise outcome.raised()
            for data, provenance in outcome:
                gradients.append(gradient(data, self._role, provenance))
        return gradients

    @property
    def pending_gradients(self) -> list[PendingGradients]:
        """The gradients of each backward pass, also of running ones; for optimizers."""
        return self._pending_gradients

    @property
    def provenance(self) -> tuple[Any, ...]:
        """Where a gradient's feedback comes from, as plain data: samples, predictions, targets, scores."""
        return self._provenance

    def append_grad(self, gradient: Variable) -> None:
        """Add one gradient by hand."""
        if not isinstance(gradient, Variable):
            raise TypeError(f"a gradient must be a Variable (got {gradient!r}); wrap it: afnio.Variable(...)")
        if not self.is_leaf and not self._retains:
            raise GraphError(f"{self._name()} gathers no feedback; call retain_grad() on it first")
        self._pending_gradients.append(PendingGradients(Slot.filled([(gradient.data, gradient._provenance)])))

    def clear_grad(self) -> None:
        """Drop the gathered feedback, also that of passes that are still running."""
        self._pending_gradients = []

    def retain_grad(self) -> None:
        """Gather feedback at the output of an op too; a leaf does so anyway."""
        if self._node is None:
            return
        self._retains = True
        self._node.retained[self._output_nr] = weakref.ref(self)

    def register_hook(self, hook: Hook) -> RemovableHandle:
        """Call `hook(gradient)` with each feedback that a backward pass brings here.

        The hook gets one sample's feedback from one consumer, as a Variable, as soon as it arrives; no other sample
        waits. It returns None, or other feedback (a Variable or a text, "" for none). A `def` runs in a worker
        thread, an `async def` on the runtime's loop. It isn't called for feedback without words, such as that of
        the score at which a pass starts.

        Raises:
            GraphError: for a Variable that needs no gradient.

        >>> prompt = Variable("Be brief.", role="prompt", requires_grad=True)
        >>> handle = prompt.register_hook(lambda gradient: gradient.data.upper())
        >>> _ = (prompt + Variable("!")).backward(Variable("shorter"))
        >>> "SHORTER" in prompt.grad[0].data
        True
        """
        if not self._requires_grad:
            raise GraphError(
                f"{self._name()} gets no feedback, so a hook would never be called; set requires_grad=True"
            )
        if self._node is not None:
            hooks = self._node.hooks.setdefault(self._output_nr, Hooks())
        else:
            hooks = self._hooks = self._hooks or Hooks()
        return hooks.add(checked_hook(hook))

    @property
    def hooks(self) -> Hooks[Hook] | None:
        """The hooks of a leaf; those of an op's output are its node's."""
        return self._hooks

    @folding
    def backward(
        self,
        gradient: Variable | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Sequence[Variable] | Variable | None = None,
    ) -> Pending[None]:
        """Send feedback from here to every leaf that it was computed from; see `afnio.autodiff.backward`."""
        from afnio.autodiff._backward import backward

        return backward(self, gradient, retain_graph=retain_graph, create_graph=create_graph, inputs=inputs)

    # New Variables

    def map(
        self,
        fn: Callable[[Any], Any],
        role: str | None = None,
        *,
        loop: Literal["runtime", "caller"] = "runtime",
        executor: Any = None,
        durable: int = False,
    ) -> Variable:
        """Return a Variable with `fn` of each sample, computed when the sample arrives; feedback passes through.

        `fn` gets a plain value; a `def` runs in a worker thread, an `async def` on the runtime's loop, or with
        `loop="caller"` on the loop that calls `map`.

        Args:
            executor: runs `fn` in other processes: a callable that makes a `concurrent.futures.Executor`, an
                Executor, or `afnio.Workers`.
            durable: True to journal the results of `fn` in an executor, so that a resumed run doesn't compute them
                again; 2, 3, … once the function has changed.

        Raises:
            TypeError: if `fn` can't be pickled for its executor.

        >>> Variable(["A", "B"]).map(str.lower).data
        ['a', 'b']
        """
        from afnio.autodiff._ops import Map

        if executor is not None or durable:
            from afnio.runtime._remote import remote

            fn = remote(fn, executor, durable=durable, loop=loop)
        mapped: Variable = Map.apply(self, fn=fn, role=self._role if role is None else role, loop=loop)
        return mapped

    def detach(self) -> Variable:
        """Return a leaf over the same value that needs no gradient; doesn't wait."""
        slots, batch = self.cell()
        return Variable.over(list(slots), batch, self._role)

    def to(self, dtype: Callable[[Any], Any]) -> Variable:
        """Return a leaf with `dtype(leaf)` of each leaf but None; waits."""
        return Variable(cast_leaves(self.data, dtype), self._role, self._requires_grad)

    def copy_(self, source: Variable) -> Self:
        """Take data, role and requires_grad of `source`; waits for it."""
        if not isinstance(source, Variable):
            raise TypeError(f"copy_ takes a Variable (got {source!r})")
        if self.shape != source.shape:
            raise ValueError(f"copy_ needs equal shapes (got {source.shape} for {self.shape})")
        self.data = copy.deepcopy(source.data)
        self._role = source._role
        if self._node is None:
            self._requires_grad = source._requires_grad
        return self

    def __add__(self, other: Variable) -> Variable:
        from afnio.autodiff._ops import Add

        total: Variable = Add.apply(self, other)
        return total

    def __iadd__(self, other: Variable) -> Self:
        total = self + other
        self._slots, self._batch = total._slots, total._batch
        self._role, self._requires_grad = total._role, total._requires_grad
        self._node, self._output_nr = total._node, total._output_nr
        self._origin = total._origin
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Variable:
        if self._node is not None:
            raise GraphError(f"only leaves can be copied; use {self._name()}.detach() first")
        clone = Variable(copy.deepcopy(self.data), self._role, self._requires_grad)
        memo[id(self)] = clone
        return clone

    def __reduce__(self) -> tuple[Any, ...]:
        if self._node is not None:
            raise GraphError(f"only leaves can be pickled; use {self._name()}.detach() first")
        return Variable, (self.data, self._role, self._requires_grad)

    # Implicit conversions: they would wait without a word

    def __bool__(self) -> bool:
        raise TypeError(
            "a Variable has no truth value, because testing it would wait; write bool(variable.data), "
            "or `variable is not None`"
        )

    def __len__(self) -> int:
        raise TypeError("a Variable has no len(); write len(variable.data) or variable.shape[0]")

    def __iter__(self) -> Any:
        raise TypeError("a Variable can't be iterated; write `for value in variable.data`")

    def __repr__(self) -> str:
        """Show the value, or `<pending>`; never waits."""
        slots, batch = self.cell()
        shown = [_shown(slot.outcome) for slot in slots]
        data = f"[{', '.join(shown)}]" if batch else shown[0]
        grad_fn = "" if self._node is None else f", grad_fn={self._node!r}"
        return (
            f"{type(self).__name__}(data={data}, role={self._role!r}, "
            f"requires_grad={self._requires_grad}{grad_fn})"
        )

    def __str__(self) -> str:
        """Show the value, long parts shortened; waits for it."""
        data = self.data
        return f"variable({_short(data)}, role={_short(self._role)}, requires_grad={self._requires_grad})"

    def _name(self) -> str:
        if self._origin is not None:
            name, line, _ = self._origin
            return f"{name} launched at {line}"
        return f"{type(self).__name__} {self._role!r}"


def gradient(data: Data, role: str, provenance: Sequence[Any]) -> Variable:
    """Return a gradient: feedback on the value with this role, and where it comes from."""
    made = Variable(data, role=f"feedback to {role}")
    made._provenance = tuple(provenance)
    return made


def cell_of(data: Data) -> Cell:
    """Return filled slots for `data`, and if it is a batch."""
    data = checked(data)
    if isinstance(data, list):
        return [Slot.filled(item) for item in data], True
    return [Slot.filled(data)], False


def _shown(outcome: Any) -> str:
    if isinstance(outcome, Failure):
        return "<failed>"
    return "<pending>" if outcome is PENDING else repr(outcome)


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) > MAX_SHOWN:
        half = MAX_SHOWN // 2
        return repr(f"{value[:half]}...{value[-half:]}")
    if isinstance(value, list):
        parts = [_short(item) for item in value]
        if len(parts) > 6:
            parts = [*parts[:3], "...", parts[-1]]
        return f"[{', '.join(parts)}]"
    return repr(value)


# Which data a Variable may hold.


@final
class _Jagged:
    """The length of an axis whose lists differ in length."""

    def __repr__(self) -> str:
        return "j"


JAGGED: Final = _Jagged()
_OWN: Final = (str, int, float, bool, type(None))


def checked(data: Any) -> Data:
    """Check that a Variable can hold `data` and return it. Ints become floats if there are floats among them.

    Raises:
        TypeError: for a tuple, a mix of strings and numbers, or a leaf of another type.

    >>> checked([1, 2.5, None])
    [1.0, 2.5, None]
    """
    if isinstance(data, str) or data is None:
        return data
    if not isinstance(data, list):
        return _checked_leaf(plain(data))
    if any(type(leaf) not in _OWN for leaf in leaves(data)):
        data = cast_leaves(data, plain)
    kinds = {kind for leaf in leaves(data) if (kind := _kind(leaf)) is not None}
    if str in kinds and len(kinds) > 1:
        raise TypeError(
            f"a Variable holds strings or numbers, not both (got {_quoted(data)}); convert them first"
        )
    return cast_leaves(data, float) if float in kinds and len(kinds) > 1 else list(data)


def plain(number: Any) -> Any:
    """Return a number of another library, such as NumPy, as Python's own; anything else unchanged.

    >>> from fractions import Fraction
    >>> plain(Fraction(1, 4)), plain("a")
    (0.25, 'a')
    """
    if type(number) in _OWN or isinstance(number, str | list | Enum | type):
        return number
    if hasattr(number, "shape") and hasattr(number, "item"):
        if number.shape != ():
            return number
        number = number.item()
    if type(number) in _OWN:
        return number
    if hasattr(number, "__index__"):
        return operator.index(number)
    return float(number) if isinstance(number, Real) else number


def leaves(data: Data) -> Iterator[Leaf]:
    """Yield the leaves of `data`, depth first."""
    if isinstance(data, list):
        for item in data:
            yield from leaves(item)
    else:
        yield data


def cast_leaves(data: Data, dtype: Callable[[Any], Leaf]) -> Data:
    """Return `data` with every leaf but None replaced by `dtype(leaf)`."""
    if isinstance(data, list):
        return [cast_leaves(item, dtype) for item in data]
    return None if data is None else dtype(data)


def shape(data: Data) -> tuple[Any, ...]:
    """Return the length of each axis, `JAGGED` for an axis whose lists differ in length.

    >>> shape([[1, 2], [3]])
    (2, j)
    """
    axes: list[Any] = []
    level = [data]
    while any(isinstance(item, list) for item in level):
        lists = [item for item in level if isinstance(item, list)]
        lengths = {len(item) for item in lists}
        even = len(lengths) == 1 and len(lists) == len(level)
        axes.append(lengths.pop() if even else JAGGED)
        level = [inner for item in lists for inner in item]
    return tuple(axes)


def _kind(leaf: Any) -> type | None:
    if leaf is None:
        return None
    if isinstance(leaf, str):
        return str
    _checked_leaf(leaf)
    return float if isinstance(leaf, float) else int


def _checked_leaf(leaf: Any) -> Any:
    if isinstance(leaf, tuple):
        raise TypeError(f"a Variable holds no tuples (got {_quoted(leaf)}); use list({_quoted(leaf)})")
    # Reject str and int enums: they would silently turn into plain texts and numbers.
    if type(leaf) not in (int, float, bool) and not isinstance(leaf, str):
        raise TypeError(
            f"a Variable holds strings, numbers, None or lists of them (got {_quoted(leaf)}, "
            f"a {type(leaf).__name__}); convert it first"
        )
    return leaf


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Other values for one context.


bindings: Final[ContextVar[Mapping[Variable, Cell] | None]] = ContextVar("afnio_bindings", default=None)


@contextmanager
def bind(values: Mapping[Variable, Any]) -> Iterator[None]:
    """Give Variables other values in the block, for reads and launches in its context alone.

    Args:
        values: for each Variable its data, or another Variable whose value it takes.

    >>> import afnio
    >>> prompt = afnio.Variable("old")
    >>> with afnio.bind({prompt: "new"}):
    ...     prompt.data
    'new'
    >>> prompt.data
    'old'
    """
    overlay = dict(bindings.get() or {})
    for variable, value in values.items():
        if not isinstance(variable, Variable):
            raise TypeError(f"the keys of bind's mapping must be Variables (got {variable!r})")
        overlay[variable] = value.cell() if isinstance(value, Variable) else cell_of(value)
    token = bindings.set(overlay)
    try:
        yield
    finally:
        bindings.reset(token)
