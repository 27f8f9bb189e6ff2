"""Roots: where a backward pass starts, with which seed, and what it gathers for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afnio.autodiff.feedback import Feedback
from afnio.autodiff.graph import GradientEdge, Node
from afnio.autodiff.lane_backward import Arrival, seedless
from afnio.autodiff.variable import Variable
from afnio.errors import GraphError
from afnio.runtime._kernel import PENDING, Slot

Target = Variable | GradientEdge


def seed_arrival(root: Variable, seed: Variable | None) -> Arrival:
    """Return what starts the pass at `root`: the seed's text for its lane, or for every lane."""
    if seed is None:
        return Arrival(None, False, [Slot.filled(Feedback(""))])
    slots, batch = seed.cell()
    root_slots, root_batch = root.cell()
    if batch and (not root_batch or len(slots) != len(root_slots)):
        has = f"{len(root_slots)} samples" if root_batch else "one value"
        raise ValueError(
            f"the gradient has {len(slots)} samples and the output {has}; give one text, or one for each sample"
        )
    if not root_batch:
        return Arrival(None, False, [_about(slots[0], root_slots[0])])
    texts = slots if batch else slots * len(root_slots)
    return Arrival(None, True, [_about(text, value) for text, value in zip(texts, root_slots, strict=True)])


def _about(text: Slot, value: Slot) -> Slot:
    """Return a seed's text as feedback on what the root shows now, which may be an edited value."""
    if isinstance(text.outcome, str) and value.outcome is not PENDING:
        return Slot.filled(Feedback(text.outcome, value.outcome))
    return text


def check_root(root: Variable, seed: Variable | None, known: dict[Node, bool]) -> None:
    if root.grad_fn is None:
        raise GraphError(
            f"backward() starts at the output of an op, and {root!r} is a leaf; call it on what an evaluator "
            "returned, with a Variable that has requires_grad=True among the inputs"
        )
    if seed is None and not seedless(root.grad_fn, known):
        raise GraphError(
            f"backward() from {root.grad_fn.name()} needs a feedback to start from, as only evaluators have "
            'one of their own; write variable.backward(afnio.Variable("what should change"))'
        )
    if seed is not None and not isinstance(seed, Variable):
        raise TypeError(
            f"the gradient to start from is a Variable (got {seed!r}); wrap it: afnio.Variable(...)"
        )


def seeds_for(roots: Sequence[Variable], given: Any) -> Sequence[Variable | None]:
    if given is None:
        return [None] * len(roots)
    seeds = list(given) if isinstance(given, list | tuple) else [given]
    if len(seeds) != len(roots):
        raise ValueError(
            f"{len(roots)} variables need as many seeds (got {len(seeds)}); use None for no seed"
        )
    return seeds


def listed(inputs: Target | Sequence[Target]) -> list[Target]:
    if isinstance(inputs, Variable | GradientEdge):
        return [inputs]
    return list(inputs)


def edges_of(inputs: Target | Sequence[Target] | None) -> list[GradientEdge] | None:
    if inputs is None:
        return None
    targets = []
    for target in listed(inputs):
        if isinstance(target, GradientEdge):
            targets.append(target)
        elif isinstance(target, Variable) and target.requires_grad:
            targets.append(GradientEdge(target.graph_node(), target.output_nr))
        else:
            raise GraphError(f"inputs takes Variables that require a gradient (got {target!r})")
    return targets
