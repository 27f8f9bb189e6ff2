"""A studio as a user starts it, a browser to look at it, and stores to be seen there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from studio.browser import Browser
from studio.made_store import make_hostile, make_large, make_pool, make_race, make_spread, make_training
from studio.visitor import Studio, started


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Studio]]:
    """Start studios that end with the module."""
    with ExitStack() as stack:

        def enter(home: Path, *arguments: str) -> Studio:
            return stack.enter_context(started(home, *arguments))

        yield enter


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests. Where there is none they skip, but fail in CI, which installs it."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        import playwright  # noqa: F401
    except ImportError:
        path = None
    if path is None:
        reason = "a browser: apt-get install chromium, and pip install playwright"
        if os.environ.get("AFNIO_CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with Browser(path) as found:
        yield found


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings and a pool in one store, a run that attacks, a very large one, and a damaged file."""
    made = tmp_path_factory.mktemp("home")
    make_training(made / "acme" / "mails.db")
    make_training(made / "acme" / "mails.db", "swift-tern", skill=0.65, status="FAILED")
    make_pool(made / "acme" / "mails.db")
    make_race(made / "acme" / "races.db")
    make_spread(made / "acme" / "spread.db")
    make_hostile(made / "evil" / "hostile.db")
    make_large(made / "acme" / "large.db")
    (made / "acme" / "broken.db").write_bytes(b"this is no database, whatever its name says " * 100)
    return made


@pytest.fixture(scope="session")
def studio(home: Path) -> Iterator[Studio]:
    """A studio of that folder."""
    with started(home) as found:
        yield found
