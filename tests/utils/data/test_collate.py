"""Collation: what a batch looks like for each kind of sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from afnio.autodiff import Variable
from afnio.utils.data import collate


class Pair(NamedTuple):
    """A sample with named fields."""

    text: Variable
    label: str


def variable(data: Any, role: str = "text", requires_grad: bool = False) -> Variable:
    """A Variable with a short spelling."""
    return Variable(data=data, role=role, requires_grad=requires_grad)


def test_variables_become_one_batch_with_the_face_of_the_first() -> None:
    """Role and requires_grad come from the first sample."""
    batch = collate([variable("a", "first", True), variable("b", "second")])
    assert (batch.data, batch.role, batch.requires_grad) == (["a", "b"], "first", True)


def test_a_batch_of_one_stays_a_list() -> None:
    """One sample is one lane, not a scalar."""
    assert collate([variable("a")]).data == ["a"]


def test_a_missing_value_stays_missing() -> None:
    """None in a sample is None in its lane."""
    assert collate([variable("a"), variable(None)]).data == ["a", None]


def test_tuples_transpose_at_any_depth() -> None:
    """The batch has the structure of a sample."""
    samples = [
        (variable("m0"), (variable("low"), 0, ("x",))),
        (variable("m1"), (variable("high"), 1, ("y",))),
    ]
    message, (urgency, number, (letter,)) = collate(samples)
    assert message.data == ["m0", "m1"]
    assert urgency.data == ["low", "high"]
    assert (number, letter) == ([0, 1], ["x", "y"])


def test_named_tuples_keep_their_names() -> None:
    """The fields of the batch are those of the sample."""
    batch = collate([Pair(variable("a"), "x"), Pair(variable("b"), "y")])
    assert batch.text.data == ["a", "b"]
    assert batch.label == ["x", "y"]


def test_dicts_become_a_dict_of_batches() -> None:
    """Variables inside are merged too."""
    samples = [{"text": variable("a"), "id": 1}, {"id": 2, "text": variable("b")}]
    batch = collate(samples)
    assert batch["text"].data == ["a", "b"]
    assert batch["id"] == [1, 2]


@pytest.mark.parametrize("samples", [["a", "b"], [1, None], [], [["a"], ["b"]]])
def test_everything_else_is_a_list(samples: list[Any]) -> None:
    """Plain values are not touched, and the list is a new one."""
    batch = collate(samples)
    assert batch == samples
    assert batch is not samples


def test_a_mixed_position_is_a_list() -> None:
    """Variables next to other values aren't merged."""
    first = variable("a")
    assert collate([(first, 1), ("b", 2)]) == ([first, "b"], [1, 2])


def test_a_sample_that_is_a_list_stays_one_lane() -> None:
    """The lanes are the outer list, what is inside is data."""
    assert collate([variable(["a", "b"]), variable(["c"])]).data == [["a", "b"], ["c"]]


def test_single_values_and_lists_do_not_mix() -> None:
    """The error names the role and the ways out."""
    with pytest.raises(TypeError, match=r"got both for the role 'text'.*collate_fn"):
        collate([variable("a"), variable(["b"])])


def test_tuples_of_different_lengths_are_refused() -> None:
    """No element is dropped in silence."""
    with pytest.raises(ValueError, match=r"one length \(got \[1, 2\]\)"):
        collate([("a", "b"), ("c",)])


def test_dicts_with_different_keys_are_refused() -> None:
    """No key is dropped in silence."""
    with pytest.raises(ValueError, match=r"same keys \(got \['a'\] and \['a', 'b'\]\)"):
        collate([{"a": 1}, {"a": 1, "b": 2}])
