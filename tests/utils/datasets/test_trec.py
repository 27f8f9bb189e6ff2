"""TREC: its items, its splits and where its files come from; on small files of the same form."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from afnio.errors import DownloadError
from afnio.utils import datasets
from afnio.utils.data import DataLoader
from afnio.utils.datasets import TREC

LABELS = {"DESC:manner": 10, "DESC:def": 4, "HUM:ind": 6, "NUM:ord": 2}
PUBLISHED = dict(datasets.FILES)
TRAIN = b"".join(
    f"{label} What is number {number} of {label.lower()} ?\n".encode()
    for label, count in LABELS.items()
    for number in range(count)
)
TRAIN += b"HUM:ind What is number 0 of hum:ind ?\n" + b"HUM:ind What is Ansel\xf0Adams ' middle name ?\n"
TEST = b"NUM:dist How far is it from Denver to Aspen ?\nLOC:city What county is Modesto , California in ?\n"


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Small files stand for the published ones, in a folder; the network is out of reach."""

    def refuse(url: str) -> bytes:
        raise OSError(f"no network in this test ({url})")

    folder = tmp_path / "data"
    folder.mkdir()
    files = {}
    for part, name, content in (("train", "train_5500.label", TRAIN), ("test", "TREC_10.label", TEST)):
        (folder / name).write_bytes(content)
        files[part] = datasets.File(name, hashlib.md5(content).hexdigest())
    monkeypatch.setattr(datasets, "FILES", files)
    monkeypatch.setattr(datasets, "read_url", refuse)
    monkeypatch.setenv("AFNIO_DATA", str(folder))
    return folder


def labels(data: TREC, which: int) -> Counter[str]:
    return Counter(item[1][which] for item in data)


def test_the_published_files_are_known_by_their_md5() -> None:
    """As the authors' page has them; a reader may compare."""
    assert datasets.TREC_URL == "https://cogcomp.seas.upenn.edu/Data/QA/QC/"
    assert {file.name: file.md5 for file in PUBLISHED.values()} == {
        "train_5500.label": "073462e3fcefaae31e00edb1f18d2d02", "TREC_10.label": "323a3554401d86e650717e2d2f942589",
    }  # fmt: skip


def test_an_item_is_a_question_with_two_labels(tmp_path: Path) -> None:
    """Plain strings; a batch of them is lists."""
    data = TREC("coarse", "test", root=tmp_path)
    assert data[0] == ("How far is it from Denver to Aspen ?", ("NUM:dist", "NUM"))
    assert len(data) == 2
    ((questions, (fine, coarse)),) = DataLoader(data, batch_size=2)
    assert (fine, coarse) == (["NUM:dist", "LOC:city"], ["NUM", "LOC"])
    assert all(isinstance(question, str) for question in questions)


def test_repeated_questions_are_left_out_and_the_one_odd_byte_is_a_space(tmp_path: Path) -> None:
    """Of the training file."""
    data = TREC("fine", "train", root=tmp_path)
    assert labels(data, 0) == {**LABELS, "HUM:ind": 7}
    assert data[len(data) - 1] == ("What is Ansel Adams ' middle name ?", ("HUM:ind", "HUM"))


@pytest.mark.parametrize(("task", "which"), [("fine", 0), ("coarse", 1)])
def test_the_validation_split_keeps_the_shares_of_the_labels(task: Any, which: int, tmp_path: Path) -> None:
    """The same every time, with nothing in both parts, and without touching the global generator."""
    before = random.getstate()
    train, val = (TREC(task, split, 0.5, tmp_path) for split in ("train", "val"))
    assert before == random.getstate()
    whole = labels(TREC(task, "train", root=tmp_path), which)
    assert {name: int(count * 0.5) for name, count in whole.items()} == labels(train, which)
    assert whole == labels(train, which) + labels(val, which)
    assert set(train) & set(val) == set()
    assert list(val) == list(TREC(task, "val", 0.5, tmp_path))


def test_a_label_that_a_part_would_not_have_is_an_error(tmp_path: Path) -> None:
    """It is named, and which part lacks it."""
    with pytest.raises(ValueError, match=r"DESC:def is missing from the training set"):
        TREC("fine", "train", 0.8, tmp_path)
    assert labels(TREC("coarse", "val", 0.34, tmp_path), 1)["NUM"] == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("x", "train"), r"task must be .*got 'x'"),
        (("fine", "x"), r"split must be .*got 'x'"),
        (("fine", "train", 1.5), r"validation_split must .*got 1.5"),
        (("fine", "train", True), r"validation_split must .*got True"),
        (("fine", "val"), "pass a share"),
    ],
)
def test_choices(arguments: Any, match: str, tmp_path: Path) -> None:
    """Others are refused with the value."""
    with pytest.raises(ValueError, match=match):
        TREC(*arguments, root=tmp_path)


def test_files_are_kept_and_checked(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once fetched they need no source; other bytes are refused, each source with its reason."""
    TREC("fine", "test", root=tmp_path)
    (published / "TREC_10.label").write_bytes(b"something else")
    TREC("fine", "test", root=tmp_path)
    with pytest.raises(DownloadError) as caught:
        TREC("fine", "test", root=tmp_path / "other")
    assert "its md5 is" in str(caught.value)
    assert "no network in this test (https://cogcomp.seas.upenn.edu/Data/QA/QC/TREC_10.label)" in str(
        caught.value
    )
    monkeypatch.setattr(datasets, "read_url", lambda url: TEST)
    assert len(TREC("fine", "test", root=tmp_path / "other")) == 2
