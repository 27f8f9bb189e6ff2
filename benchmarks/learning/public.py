"""Public: data that others published, fetched once and checked by its MD5: sums, banking questions, BIG-Bench Hard.

A file is looked for in the folder AFNIO_DATA, then at its public address.
"""

from __future__ import annotations

import csv
import io
import json
import random
from typing import Any

from afnio.utils.datasets import Source, cache_folder, fetch, read_data_folder, read_url

GITHUB = "https://raw.githubusercontent.com"
FILES = {
    "gsm8k_train.jsonl": (
        "openai/grade-school-math/master/grade_school_math/data/train.jsonl",
        "a3a079b998bb13fa3aa9fc479e1e6dd0",
    ),
    "gsm8k_test.jsonl": (
        "openai/grade-school-math/master/grade_school_math/data/test.jsonl",
        "6493e22fc90d491ae8da0b88ffcfebae",
    ),
    "banking77_train.csv": (
        "PolyAI-LDN/task-specific-datasets/master/banking_data/train.csv",
        "cec64185f4197906aabce0781ef9a19b",
    ),
    "banking77_test.csv": (
        "PolyAI-LDN/task-specific-datasets/master/banking_data/test.csv",
        "8dcd9dc31b686c75ec1f24bf23c140cb",
    ),
    "bbh_object_counting.json": (
        "suzgunmirac/BIG-Bench-Hard/main/bbh/object_counting.json",
        "4458619b16aa368f790e5b8b446e3007",
    ),
    "bbh_word_sorting.json": (
        "suzgunmirac/BIG-Bench-Hard/main/bbh/word_sorting.json",
        "31da36c6d01a70bbcf3bb360dc2b49d7",
    ),
}
"""The path on GitHub and the MD5 of each file."""
HASTY = "Answer the question with the number alone, at once and without any steps."
"""A defective start prompt for sums: it forbids what makes them right."""

Pairs = list[tuple[str, str]]


def published(name: str) -> bytes:
    """Return the content of one of `FILES`.

    Raises:
        DownloadError: if it can't be had, with the reasons.
    """
    path, md5 = FILES[name]
    url = f"{GITHUB}/{path}"
    sources = [
        Source("folder AFNIO_DATA", lambda: read_data_folder(name)),
        Source(url, lambda: read_url(url)),
    ]
    return fetch(cache_folder() / "benchmarks-data" / name, md5, sources)


def bbh(name: str) -> Pairs:
    """Return questions and answers of a BIG-Bench Hard task, in an order drawn once."""
    rows: list[dict[str, str]] = json.loads(published(f"bbh_{name}.json"))["examples"]
    random.Random(0).shuffle(rows)
    return [(row["input"], row["target"]) for row in rows]


def sums(train: int, test: int) -> tuple[Pairs, Pairs]:
    """Return so many questions of GSM8K's training and test files, each with its number."""
    return _drawn(_sums("gsm8k_train.jsonl"), train), _drawn(_sums("gsm8k_test.jsonl"), test)


def _sums(name: str) -> Pairs:
    rows: list[Any] = [json.loads(line) for line in published(name).decode().splitlines()]
    return [(row["question"], row["answer"].rpartition("#### ")[2].replace(",", "")) for row in rows]


def intents(train: int, test: int) -> tuple[Pairs, Pairs]:
    """Return so many questions of BANKING77's training and test files, each with one of 77 intents."""
    return _drawn(_intents("banking77_train.csv"), train), _drawn(_intents("banking77_test.csv"), test)


def _intents(name: str) -> Pairs:
    return [(row["text"], row["category"]) for row in csv.DictReader(io.StringIO(published(name).decode()))]


def _drawn(pairs: Pairs, count: int) -> Pairs:
    return random.Random(0).sample(pairs, count)
