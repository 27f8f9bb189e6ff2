"""Random graphs, with delays, failures and missing samples, equal eager evaluation, forward and backward."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import afnio
from afnio.autodiff import Function

LANES = 3
Value = str | None
Row = list[Value]


class Boom(Exception):
    """What a sample raises."""


class Join(Function):
    """Joins texts after some turns of the loop; records each backward call."""

    calls: list[tuple[str, int, str]]

    @staticmethod
    async def forward(ctx, name, delay, fails, calls, parts):
        for _ in range(delay[ctx.lane or 0]):
            await anyio.lowlevel.checkpoint()
        ctx.name, ctx.calls = name, calls
        if fails[ctx.lane or 0]:
            raise Boom(f"{name}[{ctx.lane}]")
        return f"{name}({','.join(parts)})"

    @staticmethod
    async def backward(ctx, feedback):
        ctx.calls.append((ctx.name, ctx.lane or 0, feedback))
        return None, None, None, None, f"{ctx.name}<{feedback}"


@st.composite
def graphs(draw):
    """Draw leaves (batch or scalar, some samples missing) and nodes over any values before them."""
    leaves = draw(
        st.lists(
            st.one_of(
                st.just("p"), st.lists(st.sampled_from(["x", "y", None]), min_size=LANES, max_size=LANES)
            ),
            min_size=1,
            max_size=3,
        )
    )
    nodes = []
    for index in range(draw(st.integers(1, 6))):
        parents = draw(st.lists(st.integers(0, len(leaves) + index - 1), min_size=1, max_size=3))
        delay = draw(st.lists(st.integers(0, 3), min_size=LANES, max_size=LANES))
        fails = draw(st.lists(st.booleans(), min_size=LANES, max_size=LANES)) if draw(st.booleans()) else []
        nodes.append((parents, delay, fails or [False] * LANES))
    return leaves, nodes


def eager(leaves, nodes):
    """Evaluate the graph one value at a time: each is a scalar or a list; a failure is a Boom."""
    values = [leaf if isinstance(leaf, str) else list(leaf) for leaf in leaves]

    def one(name, parts, fails):
        for part in parts:
            if isinstance(part, Boom):
                return part
        if any(part is None for part in parts):
            return None
        return Boom(name) if fails else f"{name}({','.join(parts)})"

    for number, (parents, _, fails) in enumerate(nodes):
        name = f"n{number}"
        # The op sees each distinct input once per place, as given.
        inputs = [values[parent] for parent in parents]
        if any(isinstance(value, list) for value in inputs):
            values.append(
                [
                    one(name, [v[lane] if isinstance(v, list) else v for v in inputs], fails[lane])
                    for lane in range(LANES)
                ]
            )
        else:
            values.append(one(name, inputs, fails[0]))
    return values


def launched(leaves, nodes, calls):
    variables = [
        afnio.Variable(leaf, role=f"leaf{number}", requires_grad=True) for number, leaf in enumerate(leaves)
    ]
    for number, (parents, delay, fails) in enumerate(nodes):
        parts = [variables[parent] for parent in parents]
        variables.append(Join.apply(f"n{number}", delay, fails, calls, parts))
    return variables


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_forward_equals_eager(graph):
    """Values, missing samples and failures are those of an evaluation one after the other."""
    leaves, nodes = graph
    variables = launched(leaves, nodes, [])
    for variable, expected in zip(variables, eager(leaves, nodes), strict=True):
        errors = variable.errors
        if isinstance(expected, list):
            with afnio.tolerate(quorum=0.001):
                try:
                    data = variable.data
                except afnio.errors.BatchError:
                    data = [None] * LANES  # every sample failed
            assert [None if isinstance(v, Boom) else v for v in expected] == data
            assert [n for n, v in enumerate(expected) if isinstance(v, Boom)] == sorted(errors)
        elif isinstance(expected, Boom):
            with pytest.raises(Boom):
                variable.data
        else:
            assert variable.data == expected


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_each_backward_once_after_its_consumers(graph):
    """Each (node, lane) that has feedback runs its backward once, when all of its consumers have spoken."""
    leaves, nodes = graph
    nodes = [(parents, delay, [False] * LANES) for parents, delay, _ in nodes]
    calls: list[tuple[str, int, str]] = []
    variables = launched(leaves, nodes, calls)
    variables[-1].backward(afnio.Variable("seed"))
    values = eager(leaves, nodes)
    keys = [(name, lane) for name, lane, _ in calls]
    assert len(keys) == len(set(keys))
    order = {key: position for position, key in enumerate(keys)}
    spoken: set[tuple[str, int]] = set()
    for index in range(len(variables) - 1, len(leaves) - 1, -1):
        name, value = f"n{index - len(leaves)}", values[index]
        consumers = [c for c, (parents, _, _) in enumerate(nodes) if index in parents]
        for lane in range(LANES if isinstance(value, list) else 1):
            # A lane's consumers are its own lane of each; a scalar hears every lane of a batch.
            heard = [
                (f"n{c}", own)
                for c in consumers
                for own in ([lane] if isinstance(value, list) else range(LANES))
                if (f"n{c}", own) in spoken
            ]
            alive = (value[lane] if isinstance(value, list) else value) is not None
            if alive and (heard or index == len(variables) - 1):
                spoken.add((name, lane))
                assert all(order[consumer] < order[name, lane] for consumer in heard)
    assert spoken == set(order)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_failed_backward_appends_nothing(graph):
    """If a lane's forward failed, no leaf gets half of the feedback."""
    leaves, nodes = graph
    variables = launched(leaves, nodes, [])
    expected = eager(leaves, nodes)
    last = expected[-1] if isinstance(expected[-1], list) else [expected[-1]]
    try:
        variables[-1].backward(afnio.Variable("seed"))
    except (Boom, ExceptionGroup):
        assert any(isinstance(v, Boom) for row in expected for v in (row if isinstance(row, list) else [row]))
        assert all(leaf.grad == [] for leaf in variables[: len(leaves)])
    else:
        assert not any(isinstance(value, Boom) for value in last)
    for variable in variables:
        variable.errors
