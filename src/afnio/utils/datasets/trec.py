"""Questions with the kind of answer that they ask for."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from afnio.utils.data._dataset import Dataset
from afnio.utils.datasets.cache import cache_folder, read_data_folder
from afnio.utils.datasets.download import Source, fetch, read_url


class File(NamedTuple):
    """One of the two published files, and the md5 of its bytes."""

    name: str
    md5: str


URL: Final = "https://cogcomp.seas.upenn.edu/Data/QA/QC/"
FILES: Final = {
    "train": File("train_5500.label", "073462e3fcefaae31e00edb1f18d2d02"),
    "test": File("TREC_10.label", "323a3554401d86e650717e2d2f942589"),
}
SPLITS: Final = ("train", "val", "test")
SEED: Final = 42

Item: TypeAlias = tuple[str, tuple[str, str]]


class TREC(Dataset[Item]):
    """5,382 different questions for training and validation, 500 for the test; 6 coarse and 50 fine labels.

    An item is `(question, (fine, coarse))`, plain strings, such as `("Who was Galileo ?", ("HUM:desc",
    "HUM"))`. No licence is stated for the two files, so they are not shipped: they are kept under `root`,
    by default the user's cache folder, and fetched when they aren't there, from the folder named by
    AFNIO_DATA or from their public address.

    Args:
        task: whose labels the validation split keeps the shares of, "coarse" or "fine".
        split: "train", "val" or "test".
        validation_split: share of each label that goes to "val", from 0 to 1; the same every time.

    Raises:
        ValueError: for other choices, and for a share that leaves a part without one of the labels.
        DownloadError: if no source has the files as they were published.

    Source: Li and Roth, "Learning Question Classifiers", COLING 2002.

    >>> data = TREC("coarse", "train", validation_split=0.2)  # doctest: +SKIP
    >>> question, (fine, coarse) = data[0]  # doctest: +SKIP
    """

    def __init__(
        self,
        task: Literal["coarse", "fine"],
        split: Literal["train", "val", "test"],
        validation_split: float = 0.0,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        _check(task, split, validation_split)
        self.task = task
        self.split = split
        self.root = cache_folder() if root is None else Path(root)
        items = _items(self.root, FILES["test" if split == "test" else "train"])
        if split != "test":
            label = {"fine": 0, "coarse": 1}[task]
            train, val = _divided(list(dict.fromkeys(items)), label, validation_split)
            items = val if split == "val" else train
        self._items = items

    def __getitem__(self, index: int) -> Item:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


def _check(task: str, split: str, validation_split: float) -> None:
    if task not in ("coarse", "fine"):
        raise ValueError(f"The task is [{task!r}], but has to be one of ['coarse', 'fine'].")
    if split not in SPLITS:
        raise ValueError(f"The split is [{split!r}], but has to be one of {list(SPLITS)}.")
    is_number = isinstance(validation_split, int | float) and not isinstance(validation_split, bool)
    if not is_number or not math.isfinite(validation_split) or not 0 <= validation_split <= 1:
        raise ValueError(f"validation_split is [{validation_split!r}], but has to be a number from 0 to 1.")
    if split == "val" and validation_split == 0:
        raise ValueError("The split is ['val'], but validation_split is [0.0]; pass a share, such as 0.2.")


def _items(root: Path, file: File) -> list[Item]:
    sources = [
        Source("folder AFNIO_DATA", lambda: read_data_folder(file.name)),
        Source(URL + file.name, lambda: read_url(URL + file.name)),
    ]
    content = fetch(root / "TREC" / "raw" / file.name, file.md5, sources)
    # One byte of the training file is no text in any encoding.
    lines = content.replace(b"\xf0", b" ").decode("ascii").splitlines()
    return [_item(line) for line in lines if line.strip()]


def _item(line: str) -> Item:
    fine, _, question = line.strip().partition(" ")
    return question.strip(), (fine, fine.partition(":")[0])


def _divided(items: list[Item], label: int, share: float) -> tuple[list[Item], list[Item]]:
    """Divide every label's items by the share, in an order that is always the same; in the file's order."""
    by_label: dict[str, list[int]] = {}
    for number, (_, labels) in enumerate(items):
        by_label.setdefault(labels[label], []).append(number)
    if share == 0:
        return items, []
    generator = random.Random(SEED)
    train: list[int] = []
    val: list[int] = []
    for name, numbers in by_label.items():
        generator.shuffle(numbers)
        cut = int(len(numbers) * (1 - share))
        for part, chosen in (("training", numbers[:cut]), ("validation", numbers[cut:])):
            if not chosen:
                raise ValueError(
                    f"With validation_split [{share}] the label [{name}] is missing from the {part} set; "
                    "choose a share that leaves some of its samples in both."
                )
        train += numbers[:cut]
        val += numbers[cut:]
    return [items[number] for number in sorted(train)], [items[number] for number in sorted(val)]
