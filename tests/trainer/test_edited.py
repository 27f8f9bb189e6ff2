"""Edited: from a checkpoint that somebody has changed a training goes on, or a sentence says that it can't."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainer.archive import packed, unpacked
from trainer.deaths import fitted

from afnio.errors import CheckpointError
from afnio.trainer import EarlyStopping

EXAMPLES: Final = 1000 if "AFNIO_NIGHTLY" in os.environ else 40
JUNK: Final = (
    None,
    -1,
    0,
    3,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    "x" * 50,
    "",
    [],
    [1],
    {},
    {"a": 1},
    True,
)


def train(folder: Path) -> list[Any]:
    return fitted(folder, "shuffled", True, extra=[EarlyStopping(patience=9)])


@pytest.fixture(scope="module")
def trained() -> Iterator[Path]:
    """Return the folder of a training, and have `last` be a checkpoint in the middle of it."""
    with TemporaryDirectory() as folder:
        train(Path(folder))
        checkpoints = Path(folder) / "checkpoints"
        shutil.copy(checkpoints / "epoch-2", checkpoints / "last")
        yield Path(folder)


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything in a document."""
    if at:
        yield at
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield from places(node[key], (*at, key))


def edited(documents: Any, at: tuple[Any, ...], value: Any) -> Any:
    changed = node = copy.deepcopy(documents)
    for key in at[:-1]:
        node = node[key]
    if value is ...:
        del node[at[-1]]
    else:
        node[at[-1]] = value
    return changed


def goes_on(trained: Path, content: bytes) -> str | None:
    """Go on from `last` with this content; return what was said, None if it went on."""
    with TemporaryDirectory() as folder:
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        (Path(folder) / "checkpoints" / "last").write_bytes(content)
        try:
            train(Path(folder))
        except CheckpointError as error:
            return str(error)
    return None


@pytest.mark.timeout(1800)
@pytest.mark.longer
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_edit_goes_on_or_is_refused_in_a_sentence(trained: Path, data: st.DataObject) -> None:
    """A document's value is exchanged for junk or taken out, at any depth."""
    documents = unpacked((trained / "checkpoints" / "last").read_bytes())
    document = data.draw(st.sampled_from(sorted(documents)))
    at = (document, *data.draw(st.sampled_from([(), *places(documents[document])])))
    said = goes_on(trained, packed(edited(documents, at, data.draw(st.sampled_from([*JUNK, ...])))))
    assert said is None or ("checkpoint" in said and "\n" not in said and "; " in said)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (("loop", "counters", "epoch"), "x", "counter epoch must be a whole number"),
        (("loop", "counters", "batch"), -1, "counter batch must be a whole number"),
        (("loop", "counters", "scope"), 3, "counter scope must be a text"),
        (("loop", "counters", "validating"), 3, "counter validating must be true or false"),
        (("loop", "history", 0), {}, "entry 0 of its history"),
        (("loop", "history", 0, "metrics", "score", 0), 1e308, "entry 0 of its history"),
        (("loop", "metrics", "val_score"), "x", "metric val_score must be a number"),
        (("loop", "sampler"), {"train": 3}, "training loader"),
        (("loop", "sampler", "train", "position"), 10**30, "position"),
        (("rng", "rng", "python"), [1], "rng.json was edited"),
        (("optimizer", "optimizers"), [], "optimizer.json was edited"),
        (("optimizer", "optimizers", 0, "param_groups", 0, "momentum"), "x", "optimizer.json was edited"),
        (("callbacks", "callbacks", "0 EarlyStopping"), {}, "callbacks.json was edited"),
        (("parameters", "agent"), {}, "prompt"),
        (("versions", "format"), True, "format"),
    ],
    ids=str,
)
def test_what_an_edit_broke_is_named(trained: Path, at: tuple[Any, ...], value: Any, words: str) -> None:
    """So that it can be put right."""
    documents = unpacked((trained / "checkpoints" / "last").read_bytes())
    said = goes_on(trained, packed(edited(documents, at, value)))
    assert said is not None
    assert words in said
    assert "\n" not in said
