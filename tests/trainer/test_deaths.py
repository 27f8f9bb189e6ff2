"""Deaths: a training that dies at any hook, with any loader, goes on to the end that it would have had."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from trainer import deaths
from trainer.deaths import HOOKS, LOADERS, Death, Dying, fitted

NIGHTLY: Final = "AFNIO_NIGHTLY" in os.environ
OPTIONS: Final[tuple[dict[str, Any], ...]] = (
    {}, {"limit_train_batches": 2}, {"limit_train_batches": 1}, {"limit_train_batches": 3},
    {"accumulate_grad_batches": 2}, {"val_check_interval": 1}, {"max_steps": 5}, {"limit_val_batches": 1},
)  # fmt: skip


@cache
def left_alone(loader: str, validates: bool, options: str) -> list[Any]:
    """Return the end of a training that nothing happened to."""
    with TemporaryDirectory() as folder:
        return fitted(Path(folder), loader, validates, **json.loads(options))


def dies(
    folder: Path, loader: str, hook: str, nth: int, validates: bool = True, **options: Any
) -> list[Any] | None:
    """Return the end of a training that dies once and is taken up again; None if it never got to the hook."""

    def die() -> None:
        raise Death

    try:
        fitted(folder, loader, validates, Dying(hook, nth, die), **options)
    except Death:
        return fitted(folder, loader, validates, **options)
    return None


def settles(loader: str, options: dict[str, Any]) -> bool:
    """Whether a training with this loader has one end, whoever is quick.

    What goes on where it stands, and is no iterator, has to be read to the end of each epoch.
    """
    shortened = options.get("limit_train_batches", 3) < 3 or "limit_val_batches" in options
    return "rewinding" not in loader or not shortened


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("loader", ["shuffled", "rest"])
def test_every_hook(tmp_path: Path, loader: str, hook: str) -> None:
    """The same prompt, metrics and history, so the same batches in the same order."""
    nth = 1 if hook.startswith("on_fit") else 2
    expected = left_alone(loader, True, "{}")
    assert dies(tmp_path, loader, hook, nth) == expected


@pytest.mark.parametrize("loader", LOADERS)
def test_the_end_of_an_epoch_with_every_loader(tmp_path: Path, loader: str) -> None:
    """Between an epoch's last step and its own checkpoint, which a limit ended if the loader has one end then."""
    options = {"limit_train_batches": 2}
    if not settles(loader, options):
        options = {}
    expected = left_alone(loader, True, json.dumps(options))
    assert dies(tmp_path, loader, "on_train_epoch_end", 1, **options) == expected


MATRIX: Final = [case for case in itertools.product(LOADERS, HOOKS, OPTIONS) if settles(case[0], case[2])]


@pytest.mark.longer
@pytest.mark.parametrize(("loader", "hook", "options"), MATRIX if NIGHTLY else [], ids=str)
def test_every_hook_with_every_loader_and_option(
    tmp_path: Path, loader: str, hook: str, options: dict[str, Any]
) -> None:
    """At different times, with validation and without."""
    for nth, validates in ((1, True), (2, True), (2, False)):
        expected = left_alone(loader, validates, json.dumps(options))
        # None: it never gets there, as to a validation that it hasn't.
        ends = (expected, None)
        assert dies(tmp_path / f"{nth}{validates}", loader, hook, nth, validates, **options) in ends


REAL: Final = [
    ("shuffled", "on_train_epoch_end", {"limit_train_batches": 2}, "killed"),
    ("batch sampler", "on_validation_end", {}, "interrupted"),
]
if NIGHTLY:
    REAL = [(*case, how) for case in MATRIX if case[2] in OPTIONS[:2] for how in ("killed", "interrupted")]


@pytest.mark.longer
@pytest.mark.parametrize(("loader", "hook", "options", "how"), REAL, ids=str)
def test_a_process_that_is_killed_or_interrupted(
    tmp_path: Path, loader: str, hook: str, options: dict[str, Any], how: str
) -> None:
    """kill -9 and Ctrl-C, twice in a row."""
    command = [sys.executable, "-W", "error", deaths.__file__, str(tmp_path), loader]
    ends = {"killed": (-signal.SIGKILL,), "interrupted": (130, 1, -signal.SIGINT)}[how]
    for _ in range(2):
        died = _run([*command, hook, "1", how, json.dumps(options)])
        assert died.returncode in ends, died.stderr
    ended = _run([*command, "", "0", "", json.dumps(options)])
    assert ended.returncode == 0, ended.stderr
    assert left_alone(loader, True, json.dumps(options)) == json.loads(ended.stdout)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
