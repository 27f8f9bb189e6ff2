"""A checkpoint's file: what is written comes back, whole or not at all, and opening one runs nothing."""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer.archive import packed

import afnio
import afnio.cognitive as cog
from afnio import __version__
from afnio.errors import CheckpointError
from afnio.optim import TGD
from afnio.testing import ScriptedClient
from afnio.trainer import Checkpoint

OLD = Path(__file__).parent / "data" / "checkpoint-format-1"

texts = st.text() | st.text(st.characters(codec=None))  # half surrogate pairs among them
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: (
        st.lists(inner) | st.dictionaries(texts | st.integers(), inner) | st.lists(inner).map(tuple)
    ),
    max_leaves=8,
)
dicts = st.dictionaries(texts, plain, max_size=3)
checkpoints = st.builds(
    Checkpoint,
    agent=dicts,
    optimizers=st.lists(dicts, max_size=2),
    sampler=st.none() | dicts,
    rng=dicts,
    counters=dicts,
    metrics=dicts,
    history=st.lists(dicts, max_size=2),
    ledger=dicts,
    callbacks=dicts,
)


@settings(max_examples=40)
@given(checkpoints)
def test_every_field_comes_back(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> None:
    """Plain values of all kinds, and equal checkpoints have equal bytes."""
    path = tmp_path_factory.getbasetemp() / "any"
    checkpoint.write(path)
    found = Checkpoint.read(path)
    assert checkpoint == found
    assert path.read_bytes() == found.to_bytes()


def test_an_agent_and_its_optimizer_go_on_from_a_file(tmp_path: Path) -> None:
    """Texts, momentum and where its feedback came from; keys stay out of the file."""
    module = cog.Module()
    module.task = cog.Parameter("old", role="task")
    optimizer = TGD(module.parameters(), ScriptedClient({"value": "new"}), momentum=2, model="m")
    gradient = afnio.Variable("be kind")
    gradient._provenance = ({"sample": 3, "score": 0.0},)
    module.task.append_grad(gradient)
    optimizer.step()
    Checkpoint(agent=module.state_dict(), optimizers=[optimizer.state_dict()]).write(tmp_path / "c")
    module.task.data = "lost"
    optimizer.state.clear()
    found = Checkpoint.read(tmp_path / "c")
    module.load_state_dict(found.agent)
    optimizer.load_state_dict(found.optimizers[0])
    ((value, (kept,)),) = optimizer.state[module.task]["momentum_buffer"]
    assert (module.task.data, value.data, kept.data) == ("new", "old", "be kind")
    assert gradient.provenance == kept.provenance


def test_people_can_read_it(tmp_path: Path) -> None:
    """A zip of JSON documents; the texts are in parameters.json as they are."""
    path = tmp_path / "c"
    Checkpoint(agent={"task": afnio.Variable("Be brief, é.")}, counters={"epoch": 3}).write(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        documents = {name: json.loads(archive.read(name)) for name in names}
        text = archive.read("parameters.json").decode()
    assert sorted(names) == [
        "callbacks.json", "ledger.json", "loop.json", "optimizer.json", "parameters.json", "rng.json",
        "versions.json",
    ]  # fmt: skip
    assert '"data": "Be brief, é."' in text
    assert documents["loop.json"]["counters"]["epoch"] == 3
    expected = {
        "kind": "afnio checkpoint",
        "format": 1,
        "afnio": __version__,
        "python": platform.python_version(),
    }
    assert expected.items() <= documents["versions.json"].items()


def test_afnio_load_gives_it_as_a_dict(tmp_path: Path) -> None:
    """Under the names that programs know."""
    agent, state = {"task": afnio.Variable("a")}, {"state": {}, "param_groups": []}
    Checkpoint(agent=agent, optimizers=[state], counters={"epoch": 3, "batch": 1}).write(tmp_path / "c")
    found = afnio.load(tmp_path / "c")
    assert ("a", state, 3, 1) == (
        found["agent_state_dict"]["task"].data, found["optimizer_state_dict"], found["epoch"], found["batch"],
    )  # fmt: skip
    Checkpoint(agent=agent, optimizers=[state, state]).write(tmp_path / "c")
    assert afnio.load(tmp_path / "c")["optimizer_state_dict"] == [state, state]


def test_a_snapshot_stands_still() -> None:
    """What is assigned or appended later is not in it, and nothing is waited for."""
    task, history = cog.Parameter("before", role="task", requires_grad=False), [{"epoch": 1}]
    pending = afnio.Variable("p").map(str.upper)
    snapshot = Checkpoint(agent={"task": task, "p": pending}, history=history).snapshot()
    task.data = "after"
    history[0]["epoch"] = 2
    history.append({})
    assert ("before", "task", cog.Parameter, False) == (
        snapshot.agent["task"].data, snapshot.agent["task"].role, type(snapshot.agent["task"]),
        snapshot.agent["task"].requires_grad,
    )  # fmt: skip
    assert (snapshot.history, snapshot.agent["p"].data) == ([{"epoch": 1}], "P")


def test_a_file_of_format_1_loads() -> None:
    """As it was written by the first Afnio that had checkpoints."""
    found = Checkpoint.read(OLD)
    ((value, (gradient,)),) = found.optimizers[0]["state"][0]["momentum_buffer"]
    assert found.agent["task"].data == "Be brief.\nAlways: é {x}"
    assert found.agent["_extra_state"] == {"steps": 2}
    assert (value.data, gradient.data, gradient.provenance[0]["sample"]) == ("old", "say it shorter", 3)
    assert found.counters == {"epoch": 2, "step": 3, "batch": 1, "samples": 99}
    assert len(found.rng["python"][1]) == 625
    assert found.versions == {"afnio": "0.4.0", "python": "3.11.7"}


class Bomb:
    def __reduce__(self) -> Any:
        return os.abort, ()


def with_versions(**documents: Any) -> bytes:
    return packed({"versions": {"kind": "afnio checkpoint", "format": 1}, **documents})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        pickle.dumps(Bomb()),
        OLD.read_bytes()[:-30],
        OLD.read_bytes()[200:],
        packed({"state": {"format": 1, "state": {}}}),
        with_versions(parameters=[]),
        with_versions(parameters={"agent": "text"}),
        with_versions(parameters={"agent": {"a": {"__variable__": "Variable"}}}),
        with_versions(parameters={"agent": {}}, loop={"history": {}}),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_not_run(tmp_path: Path, content: bytes) -> None:
    """A sentence names the file."""
    path = tmp_path / "last"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"last must be an undamaged checkpoint .*; pickles are not opened"
    ):
        Checkpoint.read(path)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    """With what the system says."""
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(CheckpointError, match=f"must be readable .*{reason}"):
            Checkpoint.read(path)


def test_a_newer_file_says_what_to_do(tmp_path: Path) -> None:
    """Update Afnio; `afnio.load` says the same."""
    path = tmp_path / "last"
    path.write_bytes(packed({"versions": {"kind": "afnio checkpoint", "format": 2, "afnio": "9.1"}}))
    for read in (Checkpoint.read, afnio.load):
        with pytest.raises(CheckpointError, match=r"format 1 or older \(got 2 of Afnio 9.1\); update Afnio"):
            read(path)


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path: Path) -> None:
    """Nothing is written before everything is known to fit."""
    path = tmp_path / "last"
    Checkpoint(agent={}, counters={"step": 1}).write(path)
    with pytest.raises(TypeError, match="saved values must be Variables or plain values"):
        Checkpoint(agent={}, callbacks={"mine": object()}).write(path)
    assert Checkpoint.read(path).counters == {"step": 1}
    assert os.listdir(tmp_path) == ["last"]


KILLS = """
import itertools, os, random, signal, sys, time
from pathlib import Path
from afnio.trainer import Checkpoint

path = Path(sys.argv[1])
agent = {"task": "x" * 300_000, "noise": random.Random(0).randbytes(300_000).hex()}
old, new = (Checkpoint(agent=agent, counters={"step": step}) for step in (0, 1))

def killed(die):
    old.write(path)
    child = os.fork()
    if not child:
        die()
        new.write(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = Checkpoint.read(path)
    assert found in (old, new)
    left = list(path.parent.glob(".last.*.tmp"))
    assert sorted(path.parent.iterdir()) == sorted([path, *left])
    for temporary in left:
        temporary.unlink()
    return os.WIFSIGNALED(status), found == new, len(left)

def at(event):
    # Where the interpreter says that it opens, renames, ….
    events = itertools.count(1)
    def hook(name, arguments):
        if name.startswith(("open", "os.")) and next(events) == event:
            os.kill(os.getpid(), signal.SIGKILL)
    return lambda: sys.addaudithook(hook)

def soon():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.04))

found = []
for event in itertools.count(1):
    found.append(killed(at(event)))
    if not found[-1][0]:
        break
assert [new for _, new, _ in found] == sorted(new for _, new, _ in found)
print(len(found), sum(left for _, _, left in found), sum(new for _, new, _ in found))
for _ in range(10):
    killed(soon)
"""


def test_killed_at_any_point_it_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    """At each operation on files, one after the other, and ten times at random."""
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "last")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    kills, halves, news = map(int, done.stdout.split())
    # Before and after the file is begun; after it has got its name; and the one that was left alone.
    assert kills >= 4
    assert halves >= 1
    assert news >= 2
