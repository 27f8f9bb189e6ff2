"""Which samples make up each batch."""

from __future__ import annotations

from collections.abc import Sized
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from afnio.utils.data.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

T = TypeVar("T")


class BatchSampler:
    """Yields the indices of one batch after the other, in the order of `sampler`.

    Any iterable of lists of indices can stand in its place, for batches of another kind: of one label,
    of similar lengths. The last batch may be smaller, unless `drop_last`.

    >>> list(BatchSampler([3, 1, 2], batch_size=2))
    [[3, 1], [2]]
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool = False) -> None:
        check_batch_size(batch_size)
        check_flag("drop_last", drop_last)
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        return grouped(iter(self.sampler), self.batch_size, drop_last=self.drop_last)

    def __len__(self) -> int:
        """The number of batches in one epoch."""
        return batch_count(self.sampler, "sampler", self.batch_size, drop_last=self.drop_last)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on in the same order: the sampler's state."""
        return self.sampler.state_dict() if isinstance(self.sampler, Sampler) else {}

    def since(self, begun: Mapping[str, Any]) -> dict[str, Any]:
        """The sampler's state that an epoch can be repeated from which began at `begun`, with what it learned since."""
        return self.sampler.since(begun) if isinstance(self.sampler, Sampler) else dict(begun)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        if isinstance(self.sampler, Sampler):
            self.sampler.load_state_dict(state)


def grouped(items: Iterator[T], size: int, *, drop_last: bool) -> Iterator[list[T]]:
    """Yield lists of `size` items; a smaller one at the end, unless `drop_last`.

    >>> list(grouped(iter("abc"), 2, drop_last=True))
    [['a', 'b']]
    """
    while group := list(islice(items, size)):
        if drop_last and len(group) < size:
            break
        yield group


def batch_count(source: object, name: str, batch_size: int, *, drop_last: bool) -> int:
    """The number of batches that `source` makes; TypeError where it has no length."""
    if not isinstance(source, Sized):
        raise TypeError(f"The {name} [{type(source).__name__}] has no length; give it a __len__.")
    return len(source) // batch_size if drop_last else -(-len(source) // batch_size)


def check_batch_size(batch_size: int) -> None:
    """Raise for what is no size of a batch."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise TypeError(
            f"batch_size is [{batch_size!r}], but has to be a whole number; pass 1 for batches of one sample."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is [{batch_size}], but has to be at least 1.")


def check_flag(name: str, value: bool) -> None:
    """Raise for what is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(  # noqa: TRY004 (callers know it as a ValueError)
            f"{name} is [{value!r}], but has to be True or False."
        )
