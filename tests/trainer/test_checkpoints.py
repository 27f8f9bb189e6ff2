"""The folder of checkpoints: ordered writes beside the training, and nothing damaged whatever happens."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

from afnio.errors import CheckpointError
from afnio.trainer import Checkpoint
from afnio.trainer import _checkpoints as module
from afnio.trainer._checkpoints import Checkpoints

BACKENDS = ["asyncio", "trio"]


def at(step: int, **metrics: Any) -> Checkpoint:
    return Checkpoint(agent={}, counters={"step": step, "epoch": step}, metrics=metrics)


def steps(folder: Path) -> dict[str, int]:
    """The step in each checkpoint of a folder, which holds nothing else."""
    return {path.name: Checkpoint.read(path).counters["step"] for path in sorted(folder.iterdir())}


def run(body: Callable[[], Awaitable[None]], backend: str = "asyncio") -> None:
    anyio.run(body, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_last_best_and_epochs(tmp_path: Path, backend: str) -> None:
    """Every save is `last`; an epoch's has its number; the best one has that name."""
    folder = tmp_path / "a" / "b"

    async def train() -> None:
        async with Checkpoints(folder, monitor="val_score", mode="min") as checkpoints:
            for epoch, loss in enumerate([0.5, 0.2, 0.2, 0.4], 1):
                await checkpoints.save(at(epoch, val_score=loss), epoch=epoch)
            await checkpoints.save(at(5))
            await checkpoints.flush()
            assert checkpoints.best_score == 0.2
            assert Checkpoint.read(checkpoints.path_of("last")).counters["step"] == 5

    run(train, backend)
    assert steps(folder) == {"best": 2, "epoch-1": 1, "epoch-2": 2, "epoch-3": 3, "epoch-4": 4, "last": 5}


@pytest.mark.parametrize(
    ("monitor", "top", "kept"),
    [("acc", 2, [2, 4]), ("acc", 0, []), ("acc", -1, [1, 2, 3, 4, 5]), (None, 2, [4, 5]), (None, 0, [])],
)
def test_top_k(tmp_path: Path, monitor: str | None, top: int, kept: list[int]) -> None:
    """The best epochs stay, of equal ones the earlier; without a metric the newest."""

    async def train() -> None:
        async with Checkpoints(tmp_path, monitor=monitor, save_top_k=top) as checkpoints:
            for epoch, score in enumerate([0.1, 0.7, 0.2, 0.9, 0.7], 1):
                await checkpoints.save(at(epoch, acc=score), epoch=epoch)

    run(train)
    best = {"best": 4} if monitor else {}
    assert steps(tmp_path) == {**best, **{f"epoch-{epoch}": epoch for epoch in kept}, "last": 5}


class Slow:
    """Holds the writer in its first write until it is let go, and notes what is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written: list[str] = []
        self.begun, self.go = threading.Event(), threading.Event()
        real = module.replace

        def replace(path: Path, content: bytes) -> None:
            self.begun.set()
            assert self.go.wait(60)
            real(path, content)
            self.written.append(f"{path.name}={Checkpoint.read(path).counters['step']}")

        monkeypatch.setattr(module, "replace", replace)


def test_a_slow_disk_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a write hangs the newest `last` waits alone, epochs all wait, and the order is kept."""
    slow = Slow(monkeypatch)

    async def train() -> None:
        async with Checkpoints(tmp_path) as checkpoints:
            await checkpoints.save(at(1))
            await anyio.to_thread.run_sync(slow.begun.wait)
            for step in (2, 3):
                await checkpoints.save(at(step))
            for epoch in (4, 5):
                await checkpoints.save(at(epoch), epoch=epoch)
            for step in (6, 7):
                await checkpoints.save(at(step))
            assert slow.written == []
            slow.go.set()
            await checkpoints.flush()
            assert slow.written[-1] == "last=7"

    run(train)
    assert slow.written == ["last=1", "epoch-4=4", "last=4", "epoch-5=5", "last=5", "last=7"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_saved_is_written_when_the_run_is_cancelled(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block ends once it is on disk, and the folder is free again."""
    slow = Slow(monkeypatch)

    async def train() -> None:
        with anyio.CancelScope() as scope:
            async with Checkpoints(tmp_path) as checkpoints:
                await checkpoints.save(at(1))
                await anyio.to_thread.run_sync(slow.begun.wait)
                await checkpoints.save(at(2), epoch=2)
                scope.cancel()
                try:
                    await anyio.sleep_forever()
                finally:  # the block ends while its first write still hangs
                    assert slow.written == []
                    slow.go.set()
        assert scope.cancelled_caught

    run(train, backend)
    assert steps(tmp_path) == {"epoch-2": 2, "last": 2}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cancellation_while_the_folder_is_opened_ends_the_block(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Ctrl-C at the start does on a slow disk: nothing hangs, and the folder is free again."""
    real = module.LockFile

    async def train() -> None:
        with anyio.CancelScope() as scope:

            def locked(path: Path) -> Any:
                anyio.from_thread.run_sync(scope.cancel)
                return real(path)

            monkeypatch.setattr(module, "LockFile", locked)
            async with Checkpoints(tmp_path):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        monkeypatch.undo()
        with anyio.fail_after(60):
            async with Checkpoints(tmp_path) as checkpoints:
                await checkpoints.save(at(1))

    run(train, backend)
    assert steps(tmp_path) == {"last": 1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_in_the_block_comes_out_as_it_is(tmp_path: Path, backend: str) -> None:
    """Not wrapped in a group."""

    async def train() -> None:
        async with Checkpoints(tmp_path) as checkpoints:
            await checkpoints.save(at(1))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(train, backend)
    assert steps(tmp_path) == {"last": 1}


def test_a_resumed_run_competes_with_its_own_past(tmp_path: Path) -> None:
    """Epochs up to the one that it goes on from count; later ones are of a course that is given up."""

    async def train(first: int, scores: list[float], resume: int | None) -> None:
        checkpoints = Checkpoints(tmp_path, monitor="acc", save_top_k=2)
        if resume is not None:
            checkpoints.take_up(Checkpoint.read(checkpoints.path_of(f"epoch-{resume}")))
        async with checkpoints:
            for epoch, score in enumerate(scores, first):
                await checkpoints.save(at(epoch, acc=score), epoch=epoch)

    anyio.run(train, 1, [0.8, 0.3], None)
    anyio.run(train, 3, [0.5], 2)
    assert steps(tmp_path) == {"best": 1, "epoch-1": 1, "epoch-3": 3, "last": 3}
    anyio.run(train, 2, [0.9], 1)
    assert steps(tmp_path) == {"best": 2, "epoch-1": 1, "epoch-2": 2, "epoch-3": 3, "last": 2}


def test_a_metric_that_is_not_there_is_told_once(tmp_path: Path) -> None:
    """With the names that are; not-a-number is never the best."""
    told: list[str] = []

    async def train() -> None:
        async with Checkpoints(tmp_path, monitor="val_acc", warn=told.append) as checkpoints:
            for epoch in (1, 2):
                await checkpoints.save(at(epoch, acc=0.5, loss=1.0), epoch=epoch)
            await checkpoints.save(at(3, val_acc=float("nan")), epoch=3)
            await checkpoints.save(at(4, val_acc=0.1), epoch=4)

    run(train)
    assert steps(tmp_path)["best"] == 4
    (text,) = told
    assert "epoch 1 can't become the best checkpoint: it has no number for the metric 'val_acc'" in text
    assert "(its metrics: acc, loss)" in text


def test_names_and_paths(tmp_path: Path) -> None:
    """A name of the folder, or any path; what isn't there is told with what is."""
    checkpoints = Checkpoints(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"a checkpoint in .*c \(got 'last'; there: none\)"):
        checkpoints.path_of("last")

    async def train() -> None:
        async with checkpoints:
            await checkpoints.save(at(12), epoch=12)

    run(train)
    other = tmp_path / "other"
    at(1).write(other)
    assert (tmp_path / "c" / "epoch-12", other) == (
        checkpoints.path_of("epoch-12"),
        checkpoints.path_of(other),
    )
    with pytest.raises(CheckpointError, match=r"\(got 'best'; there: epoch-12, last\)"):
        checkpoints.path_of("best")


@pytest.mark.parametrize("wrong", [{"mode": "up"}, {"save_top_k": -2}, {"save_top_k": True}])
def test_wrong_settings(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Told where they are given."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Checkpoints(tmp_path, **wrong)


def test_a_folder_that_is_removed_is_told_and_training_goes_on(tmp_path: Path) -> None:
    """Once, not for each checkpoint; made again, it is used again."""
    folder, told = tmp_path / "c", []

    async def train() -> None:
        async with Checkpoints(folder, warn=told.append) as checkpoints:
            await checkpoints.save(at(1))
            await checkpoints.flush()
            shutil.rmtree(folder)
            for step in (2, 3):
                await checkpoints.save(at(step))
                await checkpoints.flush()
            folder.mkdir()
            await checkpoints.save(at(4))

    run(train)
    assert steps(folder) == {"last": 4}
    (text,) = told
    assert f"no checkpoint was written to {folder} (the folder is gone); training goes on" in text


def test_what_cannot_be_encoded_is_told_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By default in the log."""

    async def train() -> None:
        async with Checkpoints(tmp_path) as checkpoints:
            await checkpoints.save(at(1))
            await checkpoints.flush()
            await checkpoints.save(Checkpoint(agent={}, callbacks={"mine": object()}))

    run(train)
    assert steps(tmp_path) == {"last": 1}
    assert [record.name for record in caplog.records] == ["afnio"]
    assert "saved values must be Variables or plain values" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_folder_is_an_error_at_the_start(tmp_path: Path) -> None:
    """Before anything is paid for."""
    tmp_path.chmod(0o500)

    async def train() -> None:
        async with Checkpoints(tmp_path / "c"):
            pass

    with pytest.raises(CheckpointError, match=r"must be writable .*Permission denied"):
        run(train)


def test_a_folder_that_is_a_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    """With what to do."""
    path = tmp_path / "c"
    path.write_text("mine")

    async def train() -> None:
        async with Checkpoints(path):
            pass

    with pytest.raises(CheckpointError, match=r"must be writable .*enable_checkpointing=False"):
        run(train)
    assert path.read_text() == "mine"


def test_two_trainers_in_one_folder(tmp_path: Path) -> None:
    """The second one is told who is there, and may come once the first has left."""

    async def train() -> None:
        async with Checkpoints(tmp_path) as checkpoints:
            with pytest.raises(CheckpointError, match="in use by this process"):
                async with Checkpoints(tmp_path):
                    pass
            code = (
                "import anyio, sys; from afnio.trainer._checkpoints import Checkpoints\n"
                "async def train():\n"
                "    async with Checkpoints(sys.argv[1]): pass\n"
                "anyio.run(train)"
            )
            done = await anyio.run_process([sys.executable, "-c", code, str(tmp_path)], check=False)
            assert f"in use by the process {os.getpid()})" in done.stderr.decode().splitlines()[-1]
            await checkpoints.save(at(1))
        async with Checkpoints(tmp_path) as checkpoints:
            await checkpoints.save(at(2))

    run(train)
    assert steps(tmp_path) == {"last": 2}


def test_outside_of_its_block_nothing_is_saved(tmp_path: Path) -> None:
    """The error says so."""

    async def train() -> None:
        await Checkpoints(tmp_path).save(at(1))

    with pytest.raises(RuntimeError, match="async with"):
        run(train)


FULL = """
import anyio, resource, sys
from pathlib import Path
from afnio.trainer import Checkpoint
from afnio.trainer._checkpoints import Checkpoints

folder, told = Path(sys.argv[1]), []
def at(step, size=0):
    import random
    return Checkpoint(agent={"text": random.Random(step).randbytes(size).hex()}, counters={"step": step})
def room(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
async def train():
    async with Checkpoints(folder, warn=told.append) as checkpoints:
        await checkpoints.save(at(1))
        await checkpoints.flush()
        room(10_000)
        for step in (2, 3):
            await checkpoints.save(at(step, 50_000), epoch=step)
            await checkpoints.flush()
        assert Checkpoint.read(folder / "last").counters["step"] == 1
        assert sorted(path.name for path in folder.iterdir()) == ["last", "trainer.lock"]
        room(resource.RLIM_INFINITY)
        await checkpoints.save(at(4, 50_000), epoch=4)
anyio.run(train)
print(len(told), told[0])
"""


def test_a_full_disk_is_told_and_never_damages_last(tmp_path: Path) -> None:
    """The system refuses at 10 kB; with room again, checkpoints go on."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"1 no checkpoint was written to {tmp_path} (File too large)")
    assert steps(tmp_path) == {"epoch-4": 4, "last": 4}


def test_leftovers_of_a_kill_are_cleared_away(tmp_path: Path) -> None:
    """When the next trainer takes the folder."""
    (tmp_path / ".last.0badcafe.tmp").write_text("half")

    async def train() -> None:
        async with Checkpoints(tmp_path) as checkpoints:
            await checkpoints.save(at(1))

    run(train)
    assert steps(tmp_path) == {"last": 1}
