"""How samples become one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afnio.autodiff._variable import Variable


def collate(samples: Sequence[Any]) -> Any:
    """Merge samples of the same structure into a batch of that structure.

    Tuples (named ones too) and dicts are taken apart, at any depth. Where all samples hold a
    `Variable`, the batch holds one `Variable` with a lane per sample; its role and
    `requires_grad` are those of the first sample. A sample whose data is itself a list stays one
    lane, with the list as its data. Everything else becomes a plain list.

    >>> from afnio import Variable
    >>> batch = collate([(Variable("a", role="text"), 1), (Variable("b", role="text"), 2)])
    >>> batch[0].data, batch[1]
    (['a', 'b'], [1, 2])
    """
    if _all(samples, Variable):
        return _merge(samples)
    if _all(samples, tuple):
        columns = [collate(column) for column in _columns(samples)]
        kind = type(samples[0])
        return kind(*columns) if hasattr(kind, "_fields") else tuple(columns)
    if _all(samples, Mapping):
        keys = _shared_keys(samples)
        return {key: collate([sample[key] for sample in samples]) for key in keys}
    return list(samples)


def _all(samples: Sequence[Any], kind: type) -> bool:
    return len(samples) > 0 and all(isinstance(sample, kind) for sample in samples)


def _merge(samples: Sequence[Variable]) -> Variable:
    first = samples[0]
    data = [sample.data for sample in samples]
    given = [value for value in data if value is not None]
    if len({isinstance(value, list) for value in given}) > 1:
        raise TypeError(
            f"The samples with the role [{first.role}] mix single values and lists; give every "
            "sample one value, or every sample a list, or pass your own collate_fn."
        )
    return Variable(data=data, role=first.role, requires_grad=first.requires_grad)


def _columns(samples: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    lengths = sorted({len(sample) for sample in samples})
    if len(lengths) > 1:
        raise ValueError(
            f"The samples are tuples of different lengths {lengths}; return tuples of one length "
            "from the dataset, or pass your own collate_fn."
        )
    return list(zip(*samples, strict=True))


def _shared_keys(samples: Sequence[Mapping[Any, Any]]) -> list[Any]:
    keys = list(samples[0])
    for sample in samples:
        if sample.keys() != samples[0].keys():
            raise ValueError(
                f"The samples are dicts with different keys, {keys} and {list(sample)}; return "
                "the same keys for every sample, or pass your own collate_fn."
            )
    return keys
