"""Files: what is saved comes back, whole or not at all, and opening one runs nothing."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import afnio
import afnio.cognitive as cog
from afnio.testing import ScriptedClient
from afnio.utils.agents import SentimentAnalyzer

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
        | st.lists(inner).map(tuple)
    ),
    max_leaves=20,
)


def through_a_file(value):
    file = io.BytesIO()
    afnio.save(value, file)  # and it is read from wherever that leaves the position
    return afnio.load(file)


@given(plain)
def test_plain_structures_come_back(value):
    """Dicts with any keys, lists, tuples and leaves, with their types."""
    back = through_a_file(value)
    assert value == back
    assert repr(value) == repr(back)


def test_variables_come_back_with_their_class():
    """Value, role and whether they need a gradient."""
    state = {
        "prompt": cog.Parameter("é {x}", role="r", requires_grad=False),
        "batch": afnio.Variable(["a", None], role="b", requires_grad=True),
        "nested": [(afnio.Variable(1.5), {3: afnio.Variable([[1], [2, 3]])})],
    }
    back = through_a_file(state)
    assert (cog.Parameter, "é {x}", "r", False) == (
        type(back["prompt"]), back["prompt"].data, back["prompt"].role, back["prompt"].requires_grad,
    )  # fmt: skip
    assert (afnio.Variable, ["a", None], True) == (
        type(back["batch"]), back["batch"].data, back["batch"].requires_grad,
    )  # fmt: skip
    assert (back["nested"][0][0].data, back["nested"][0][1][3].data) == (1.5, [[1], [2, 3]])


def test_saving_waits_for_what_is_pending():
    """A file holds values."""
    assert through_a_file({"x": afnio.Variable("a").map(str.upper)})["x"].data == "A"


def test_keys_that_look_like_marks_come_back():
    """A state may use any name."""
    tricky = {"__variable__": "Variable", "__tuple__": [1], "__pairs__": [], "data": "x"}
    assert tricky == through_a_file(tricky)


def test_a_file_of_format_1_loads():
    """As the first Afnio wrote it."""
    found = afnio.load(Path(__file__).parent / "data" / "state-format-1.afnio")
    assert ("Be brief.\nAlways: é {x}", "system prompt", cog.Parameter) == (
        found["prompt"].data, found["prompt"].role, type(found["prompt"]),
    )  # fmt: skip
    ((batch, numbers),) = found["nested"]
    assert (batch.data, batch.requires_grad, numbers, found["steps"]) == (["a", None], True, {3: 1.5}, 7)


def test_half_a_surrogate_pair_comes_back():
    """Broken replies hold such; it has no UTF-8."""
    assert through_a_file({"x": afnio.Variable("\ud83d")})["x"].data == "\ud83d"


def test_where_feedback_came_from_comes_back():
    """An optimizer's momentum needs it."""
    gradient = afnio.Variable("shorter")
    gradient._provenance = ({"sample": 1},)
    assert through_a_file([gradient])[0].provenance == ({"sample": 1},)


def test_equal_states_have_equal_bytes(tmp_path):
    """No time is in them."""
    for name in "ab":
        afnio.save({"x": 1}, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_only_the_user_may_read_a_saved_file(tmp_path, umask):
    """Whatever the umask; one that others could read no longer is theirs to read, nor is what unzip takes out."""
    (tmp_path / "old").write_bytes(b"")
    (tmp_path / "old").chmod(0o644)
    before = os.umask(umask)
    try:
        for name in ("new", "old"):
            afnio.save({"prompt": afnio.Variable("Be brief.")}, tmp_path / name)
    finally:
        os.umask(before)
    for name in ("new", "old"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        with zipfile.ZipFile(tmp_path / name) as archive:
            assert {member.external_attr >> 16 for member in archive.infolist()} == {0o600}


def test_a_link_stays_a_link(tmp_path):
    """What it points to is replaced."""
    (tmp_path / "link").symlink_to(tmp_path / "real")
    afnio.save({"x": 1}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert afnio.load(tmp_path / "real") == {"x": 1}


def test_a_file_that_unpacks_to_terabytes_is_refused():
    """Before it is unpacked: the size in the zip's directory is enough."""
    file = io.BytesIO()
    afnio.save({"x": "a"}, file)
    content = bytearray(file.getvalue())
    entry = content.index(b"PK\x01\x02")  # the central directory; the uncompressed size is at byte 24
    content[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")
    with pytest.raises(ValueError, match="unpacks to more than 1,073,741,824 bytes"):
        afnio.load(io.BytesIO(bytes(content)))


def test_odd_numbers_come_back():
    """Infinity and not-a-number."""
    back = through_a_file([math.inf, math.nan])
    assert (math.inf, True) == (back[0], math.isnan(back[1]))


@pytest.mark.parametrize("kind", [str, os.fspath, lambda path: path])
def test_a_path_is_text_or_a_path(tmp_path, kind):
    """And the folder holds nothing else afterwards."""
    path = tmp_path / "state.afnio"
    afnio.save({"a": 1}, kind(path))
    afnio.save({"a": 2}, kind(path))
    assert afnio.load(kind(path)) == {"a": 2}
    assert os.listdir(tmp_path) == ["state.afnio"]


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    """Nothing is written before everything is known to fit."""
    path = tmp_path / "state.afnio"
    afnio.save({"a": 1}, path)
    for value, fix in (({1, 2}, "a set"), (object(), "object"), (cog.Module(), "save its state_dict()")):
        with pytest.raises(TypeError, match="saved values must be Variables or plain values") as caught:
            afnio.save({"x": value}, path)
        assert fix in str(caught.value)
    assert afnio.load(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["state.afnio"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    """The new one takes its place in one move."""
    path = tmp_path / "state.afnio"
    afnio.save({"a": 1}, path)

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        afnio.save({"a": 2}, path)
    assert afnio.load(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["state.afnio"]


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


class Bomb:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip",
        pickle.dumps(Bomb()),
        zipped("data.pkl", pickle.dumps(Bomb())),
        zipped("state.json", b"{not json"),
        zipped("state.json", json.dumps({"format": 1})),
        zipped("state.json", json.dumps({"format": 1, "state": {"__variable__": "Variable"}})),
        zipped("other.json", b"{}"),
        zipped("notes.txt", b"{}"),
        zipped("state.json", json.dumps({"format": 1, "state": {"a": "b" * 1000}}))[:-60],
    ],
    ids=range(10),  # a zip's bytes have the time in them
)
def test_what_is_no_state_is_refused_and_not_run(tmp_path, content):
    """The sentence names the file."""
    path = tmp_path / "x.afnio"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.afnio must be an undamaged file that afnio.save wrote .*pickles"):
        afnio.load(path)


def test_every_flipped_bit_is_noticed_or_harmless():
    """Damage is a ValueError, never another error."""
    file = io.BytesIO()
    afnio.save({"prompt": cog.Parameter("Be brief. " * 20)}, file)
    good = file.getvalue()
    for position in range(8 * len(good)):
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        try:
            found = afnio.load(io.BytesIO(bytes(bad)))
        except ValueError:
            continue
        assert found["prompt"].data == "Be brief. " * 20


@pytest.mark.parametrize(("document", "found"), [({"format": 2}, "2"), ([], "None"), ({}, "None")])
def test_a_newer_file_says_what_to_do(document, found):
    """Update Afnio."""
    with pytest.raises(ValueError, match=rf"must have format 1 \(got {found}\); update Afnio"):
        afnio.load(io.BytesIO(zipped("state.json", json.dumps(document))))


def test_a_file_that_is_not_there_is_pythons_error(tmp_path):
    """With its path."""
    with pytest.raises(FileNotFoundError):
        afnio.load(tmp_path / "none.afnio")


# Agents


def test_an_agent_comes_back_ready_to_answer(tmp_path):
    """In evaluation mode, with its texts, though nothing of the training is there; only the user can read the file."""
    agent = SentimentAnalyzer()
    agent.sentiment_task.data = "Be quick. \r\n é"
    agent.save(tmp_path / "agent.afnio")
    assert (tmp_path / "agent.afnio").stat().st_mode & 0o777 == 0o600
    loaded = afnio.load_agent(tmp_path / "agent.afnio")
    assert not loaded.training
    client = ScriptedClient(lambda request: request.messages[0]["content"])
    assert loaded(client, inputs={"message": "Hi"}, model="m").data == "Be quick. \r\n é"
    assert afnio.load(tmp_path / "agent.afnio").keys() == agent.state_dict().keys()


def test_another_process_answers_with_the_agents_module_alone(tmp_path):
    """The class is imported there, and made with the arguments that the program gives it."""
    (tmp_path / "mine.py").write_text(
        "import afnio.cognitive as cog\n"
        "class Suffixed(cog.Module):\n"
        "    def __init__(self, client, *, times=1):\n"
        "        super().__init__()\n"
        "        self.client, self.times = client, times\n"
        "        self.suffix = cog.Parameter('!', role='suffix')\n"
        "    def forward(self, text):\n"
        "        return text + self.suffix.data * self.times\n"
    )
    program = (
        "import afnio, mine; agent = mine.Suffixed(None); agent.suffix.data = '?'; agent.save('agent.afnio')",
        "import afnio; print(afnio.load_agent('agent.afnio', None, times=2)('What'))",
        "import afnio; afnio.load_agent('agent.afnio')",
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        for code in program
    ]
    assert (done[0].stderr, done[1].stdout) == ("", "What??\n")
    said = (
        "must get what Suffixed(client, *, times=1) takes (got missing a required argument: 'client'); write"
    )
    assert said in done[2].stderr


class Renamed(cog.Module):
    def __init__(self):
        super().__init__()
        self.prompt = cog.Parameter("one", role="prompt")


def test_an_agent_that_can_not_come_back_is_one_sentence(tmp_path, monkeypatch):
    class Local(cog.Module):
        pass

    with pytest.raises(TypeError, match="must be at the top of its module, .* .got .*Local."):
        Local().save(tmp_path / "local.afnio")
    afnio.save({"x": 1}, tmp_path / "state.afnio")
    with pytest.raises(
        ValueError, match="state.afnio must have an agent .got state.; write it by agent.save"
    ):
        afnio.load_agent(tmp_path / "state.afnio")
    (tmp_path / "pickle.afnio").write_bytes(pickle.dumps(Renamed))
    with pytest.raises(ValueError, match="pickles are not opened"):
        afnio.load_agent(tmp_path / "pickle.afnio")
    Renamed().save(tmp_path / "agent.afnio")
    monkeypatch.setattr(sys.modules[__name__], "Renamed", print)
    with pytest.raises(ImportError, match="must have the agent's class Renamed"):
        afnio.load_agent(tmp_path / "agent.afnio")
    monkeypatch.setattr(sys.modules[__name__], "Renamed", SentimentAnalyzer)
    with pytest.raises(RuntimeError, match="doesn't fit SentimentAnalyzer: missing: "):
        afnio.load_agent(tmp_path / "agent.afnio")
