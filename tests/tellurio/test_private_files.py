"""Nobody else may read what holds prompts, replies or feedback, whatever the umask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.tiny_training import reply, train

import afnio
import afnio.tellurio as te
from afnio.cli import main
from afnio.tellurio.sinks import JsonlSink
from afnio.testing import ScriptedClient


@pytest.fixture(params=[0, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Files that others may read or write, folders that they may enter, with their modes."""
    return {
        str(path): oct(mode) for path in folder.rglob("*") if (mode := path.stat().st_mode & 0o777) & 0o077
    }


def test_all_that_a_run_leaves_is_private(umask: None, tmp_path: Path) -> None:
    """The store, its journal and lease, a sink's file; then a report and an export, over files that were there."""
    with te.init("me", "emails", name="first", dir="runs/deep", sinks=[JsonlSink("log/deep/a.jsonl")]) as run:
        train(ScriptedClient(reply), ScriptedClient(reply))
        run.flush()
        assert modes(tmp_path) == {}
    with afnio.journal("journals/deep/calls.journal"):
        ScriptedClient("x").chat(messages=[{"role": "user", "content": "hello"}], model="m")
        assert modes(tmp_path) == {}
    for command, out in (("runs export", "--out"), ("report", "-o")):
        for there in (False, True):
            file = tmp_path / f"{command} {there}"
            if there:
                file.write_text("something longer " * 100_000)
                file.chmod(0o666)
            assert main([*command.split(), "first", out, str(file), "--dir", "runs/deep"]) == 0
            assert 0 < file.stat().st_size < 1_000_000
    assert modes(tmp_path) == {}
    assert {"runs", "log", "journals"} <= {path.name for path in tmp_path.iterdir()}


def test_an_export_goes_to_a_device_too() -> None:
    """Which has no mode to change."""
    with te.init("me", "emails", name="first"):
        pass
    assert main(["runs", "export", "first", "--out", os.devnull]) == 0
