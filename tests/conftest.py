"""What every test gets: no event loop left behind by a plugin, nothing pending in the runtime afterwards."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# Imported here, as it looks for referrers then, and sees none that are frozen.
from hypothesis import HealthCheck, settings

import afnio
from afnio.errors import DownloadError
from afnio.runtime import current_runtime
from afnio.utils.datasets import FacilitySupport, cache_folder

# How fast a busy machine draws and runs examples says nothing about what they test.
settings.register_profile("afnio", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("afnio")


def pytest_configure(config: pytest.Config) -> None:
    # A shell ignores Ctrl-C for what runs in the background, and programs that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput") and not os.environ.get("AFNIO_DATA"):
        with suppress(DownloadError):
            os.environ["AFNIO_DATA"] = str(fetched_data())
    # Programs that a test starts import what the tests import.
    path = filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    # pytest-asyncio and looptime make an event loop in synchronous tests that nobody closes; where
    # warnings are errors, its collection would fail some later test at random.
    asyncio.set_event_loop(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "AFNIO_NIGHTLY" not in os.environ:
        for item in items:
            if item.get_closest_marker("nightly") is not None:
                item.add_marker(pytest.mark.skip(reason="make nightly"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if seeds := os.environ.get("AFNIO_KILL_SEEDS"):
        terminalreporter.write_line(f"the tutorial was killed with {seeds} seeds")
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and "make nightly" not in report.longrepr[2]
    )
    if reasons:
        needs = "; ".join(f"{count} need: {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"{reasons.total()} tests can't run here: {needs}")


def fetched_data() -> Path:
    """Return a folder with the e-mails, which come from where a program gets them: a cache, or a download.

    Raises:
        DownloadError: if no source has them.
    """
    FacilitySupport("train")
    folder = cache_folder() / "tests"
    folder.mkdir(exist_ok=True)
    copied = cache_folder() / "FacilitySupport" / "raw" / "dataset.json"
    (folder / "facility_support.json").write_bytes(copied.read_bytes())
    return folder


def pytest_sessionfinish() -> None:
    # pytest collects once more when all is over: then what died after it was frozen has its warnings told.
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quiet_runtime(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that a test leaves no launch, no call and no backward model behind."""
    yield
    afnio.set_backward_model_client(None)
    runtime = current_runtime()
    settle(runtime)
    assert list(runtime.launches) == []
    assert runtime.calls_open == 0


@pytest.fixture(scope="session")
def facility() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The messages of FacilitySupport with their sentiments: 66 to train on, and 68 that are held out."""
    folder = os.environ.get("AFNIO_DATA")
    if folder is None:
        pytest.skip("e-mails: a network, or facility_support.json in AFNIO_DATA")
    items = json.loads((Path(folder) / "facility_support.json").read_text())
    random.Random(0).shuffle(items)
    pairs = [(item["fields"]["input"], json.loads(item["answer"])["sentiment"]) for item in items]
    return pairs[:66], pairs[132:]


def settle(runtime: Any) -> None:
    """Wait until the runtime's thread has done all that was posted to it."""
    import threading

    done = threading.Event()

    def when_idle(rounds: int) -> None:
        # Cancelled tasks need some turns of the loop until they have ended.
        if rounds and runtime.launches:
            runtime._loop._loop.call_later(0.01, when_idle, rounds - 1)
        else:
            done.set()

    gc.collect()
    runtime.post(when_idle, 100)
    assert done.wait(60), "the runtime's thread is stuck"
    # What ended only now goes too, with its warnings.
    gc.collect()
    # What has survived is not looked through again: with all that the tests import, each collection took 0.3 s.
    gc.freeze()
