"""demo.json: all figures of a run."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import afnio
from afnio.demo.endpoint import Endpoint
from afnio.demo.error import RefusedError
from afnio.demo.job import Epoch, Result
from afnio.demo.options import Options
from afnio.demo.splits import Splits
from afnio.demo.tally import Phase, Tally
from afnio.trainer._options import Accuracy

FILE: Final = Path("demo.json")


def figures(
    endpoint: Endpoint, options: Options, splits: Splits, result: Result, tally: Tally, seconds: float
) -> dict[str, Any]:
    """Return everything that the report shows, and what it takes to repeat the run, as plain data."""
    return {
        "afnio": afnio.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "lm": endpoint.kind,
        "simulated": endpoint.kind == "simulated",
        "base_url": endpoint.base_url,
        "models": endpoint.models,
        "data": {"name": "FacilitySupport", **splits.sizes},
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "baseline": _accuracy(result.baseline),
        "final": _accuracy(result.final),
        "chosen_epoch": result.chosen.number,
        "history": [_epoch(epoch) for epoch in result.epochs],
        "prompt": {"before": result.epochs[0].prompt, "after": result.chosen.prompt},
        "feedback": {"wrong_answers": result.wrong, "gradients": tally.gradients},
        "phases": {name: _phase(phase) for name, phase in tally.phases.items()},
        "total": _phase(tally.total),
        # There is no price table; a cost that nobody knows is not 0.
        "cost": None,
        "wall_seconds": round(seconds, 2),
    }


def check_folder() -> None:
    """Raise if demo.json can't be written here; asked before the work and the calls, not after."""
    folder = Path.cwd()
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RefusedError(f"{FILE} can't be written here ({folder}); start the demo in a folder of yours")


def write(data: dict[str, Any], path: Path = FILE) -> None:
    """Write `data` as JSON; a reader sees the whole file or the one before."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=2, ensure_ascii=False)
            file.write("\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _accuracy(accuracy: Accuracy) -> dict[str, Any]:
    low, high = accuracy.interval
    return {
        "correct": accuracy.correct,
        "total": accuracy.total,
        "failed": accuracy.failed,
        "accuracy": accuracy.share,
        "interval_95": [low, high],
    }


def _epoch(epoch: Epoch) -> dict[str, Any]:
    return {
        "epoch": epoch.number,
        "training": None if epoch.training is None else _accuracy(epoch.training),
        "validation": _accuracy(epoch.validation),
        "skipped_steps": list(epoch.skipped),
        "prompt": epoch.prompt,
    }


def _phase(phase: Phase) -> dict[str, Any]:
    return {**asdict(phase), "seconds": round(phase.seconds, 2)}
