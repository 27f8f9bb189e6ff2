"""`afnio runs`, as a user runs it."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kit.tiny_training import SECOND, reply, train

import afnio.tellurio as te
from afnio.cli import main
from afnio.testing import ScriptedClient

AFNIO = [str(Path(sys.executable).parent / "afnio")]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFNIO_HOME", raising=False)


def trained(name: str, project: str = "emails") -> te.Run:
    with te.init("me", project, name=name, config={"lr": 0.5}) as run:
        train(ScriptedClient(reply), ScriptedClient(reply))
        run.log("score", 3.0)
        run.log("nothing", math.nan)
    return run


def runs(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    try:
        done = main(["runs", *arguments])
    except SystemExit as error:
        done = int(error.code or 0)
    out, err = capsys.readouterr()
    assert (code, "") == (done, err if code == 0 else "")
    return out if code == 0 else err


def test_list_is_one_json_array(capsys: pytest.CaptureFixture[str]) -> None:
    """Newest first, over all projects; without a run it is empty."""
    assert json.loads(runs(capsys, "list", "--json")) == []
    assert "No runs in .afnio" in runs(capsys, "list")
    first, second = trained("first"), trained("second", "other")
    found = json.loads(runs(capsys, "list", "--json"))
    assert [run["id"] for run in found] == [second.id, first.id]
    run = found[1]
    assert (run["status"], run["calls"], run["metrics"]) == ("COMPLETED", 11, {"score": 3.0, "nothing": None})
    assert (run["cost"], run["unpriced"], run["config"]) == (None, 11, {"lr": 0.5})
    only = json.loads(runs(capsys, "list", "--json", "--project", "me/emails", "--status", "completed"))
    assert [run["id"] for run in only] == [first.id]
    text = runs(capsys, "list").splitlines()
    assert len(text) == 3
    assert "me/other/second" in text[1]
    assert "score 3" in text[1]


@pytest.mark.parametrize("width", [80, 140, None])
def test_a_list_fits_the_width_it_is_given(
    width: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe gets whole lines, one for each run."""
    with te.init("me", "a-project-with-quite-a-long-name", name="first") as run:
        for number in range(3):
            run.log(f"a_metric_with_a_long_name_{number}", 0.5)
    monkeypatch.delenv("COLUMNS", raising=False)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    head, line = runs(capsys, "list").splitlines()
    assert head.split() == ["RUN", "STATUS", "STARTED", "CALLS", "COST", "RESULT"]
    assert ("…" in line) is (width == 80)
    assert len(line) <= (width or 1000)


def test_show_tells_of_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    """By name, id, the id's beginning, or the whole path."""
    run = trained("first")
    for word in ("first", run.id, run.id[:8], "me/emails/first"):
        found = json.loads(runs(capsys, "show", word, "--json"))
        assert run.id == found["id"]
    assert (
        found["phases"], found["steps"][0]["changed"],
    ) == ({"val": 3, "epoch 1/step 1": 3, "val#2": 3}, ["system prompt"])  # fmt: skip
    text = runs(capsys, "show", "first")
    assert SECOND in text
    assert "step 1 (TGD) changed system prompt" in text
    assert "backward" in text


def test_a_run_that_is_not_there_or_not_one_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """And exit code 1."""
    assert "there is no run 'nobody'" in runs(capsys, "show", "nobody", code=1)
    trained("same"), trained("same", "other")
    assert "'same' must mean one run (got 2: me/emails/same, me/other/same)" in runs(
        capsys, "show", "same", code=1
    )


def test_the_beginning_of_a_name_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    """If no other run begins so; a whole name goes first. What deletes wants the whole name."""
    first, second = trained("calm"), trained("calm-heron")
    third = trained("keen-lynx")
    for word, run in (("calm", first), ("calm-", second), ("k", third), ("me/emails/k", third)):
        assert run.id == json.loads(runs(capsys, "show", word, "--json"))["id"]
    assert "'ca' must mean one run (got 2: me/emails/calm-heron, me/emails/calm)" in runs(
        capsys, "show", "ca", code=1
    )
    assert "there is no run 'alm'" in runs(capsys, "show", "alm", code=1)
    assert "there is no run ''" in runs(capsys, "show", "", code=1)
    assert "there is no run 'keen'" in runs(capsys, "rm", "keen", "--yes", code=1)
    assert len(json.loads(runs(capsys, "list", "--json"))) == 3


def test_compare_pairs_the_samples(capsys: pytest.CaptureFixture[str]) -> None:
    """With an interval."""
    first, _ = trained("first"), trained("second")
    with closing(sqlite3.connect(".afnio/me/emails.db")) as db:
        db.execute("UPDATE samples SET score = 0 WHERE run_id = ? AND phase = 'val#2'", (first.id,))
        db.commit()
    found = json.loads(runs(capsys, "compare", "first", "second", "--json"))
    (phase,) = [one for one in found["phases"] if one["kind"] == "val"]
    paired = phase["paired"]
    assert (paired["samples"], paired["won"], paired["lost"], paired["difference"]) == (3, 3, 0, 1.0)
    assert paired["low"] < 1.0 <= paired["high"]
    text = runs(capsys, "compare", "first", "second")
    assert "3 samples in both: 3 won, 0 lost, +1.000" in text


def test_rm_deletes_a_run_with_its_journal(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of its texts is left in the file; others stay; without --yes nothing happens."""
    first, second = trained("first"), trained("second")
    with te.init("me", "emails", name="secret") as run:
        run.log_text("t", "unmistakable-text")
    folder = Path(".afnio/me/emails")
    assert "add --yes" in runs(capsys, "rm", "secret", code=2)
    runs(capsys, "rm", "secret", "first", "--yes")
    assert [run["id"] for run in json.loads(runs(capsys, "list", "--json"))] == [second.id]
    assert [path.name for path in folder.iterdir()] == [f"{second.id}.journal"]
    assert not any(
        b"unmistakable-text" in path.read_bytes() for path in Path(".afnio").rglob("*") if path.is_file()
    )
    with closing(sqlite3.connect(".afnio/me/emails.db")) as db:
        assert db.execute("SELECT count(*) FROM calls").fetchall() == [(11,)]
        assert db.execute("SELECT count(*) FROM bodies WHERE run_id = ?", (first.id,)).fetchall() == [(0,)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_rm_leaves_a_run_alone_that_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Whose program would go on writing."""
    with te.init("me", "emails", name="going"):
        assert "is still running" in runs(capsys, "rm", "going", "--yes", code=1)


def test_export_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object on each line, calls with their texts; to a file that only the user may read."""
    run = trained("first")
    lines = [json.loads(line) for line in runs(capsys, "export", "first").splitlines()]
    assert ("runs", run.id) == (lines[0]["table"], lines[0]["id"])
    tables: dict[str, list[Any]] = {}
    for line in lines:
        tables.setdefault(line["table"], []).append(line)
    counts = {table: len(rows) for table, rows in tables.items()}
    assert tuple(counts[name] for name in ("calls", "samples", "steps", "evidence", "parameters")) == (
        11,
        9,
        1,
        1,
        2,
    )
    assert [message["role"] for message in tables["calls"][0]["messages"]] == ["system", "user"]
    assert tables["calls"][0]["reply"]["content"] == "yes"
    runs(capsys, "export", "first", "--out", "run.jsonl")
    assert len(lines) == len(Path("run.jsonl").read_text().splitlines())
    assert os.stat("run.jsonl").st_mode & 0o777 == 0o600


def test_a_store_that_cannot_be_read_costs_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The others are listed; the exit code says that something is missing."""
    trained("first")
    Path(".afnio/me/broken.db").write_text("no database at all" * 100)
    assert main(["runs", "list", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [run["name"] for run in json.loads(out)] == ["first"]
    assert len(err.splitlines()) == 1
    assert "broken.db" in err


def test_hostile_texts_do_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control and direction characters are shown, not obeyed."""
    with te.init("me", "emails", name="evil\x1b[2J\u202e") as run:
        run.log("m\x07etric", "\x1b]0;title\x07")
    for arguments in (("list",), ("show", run.id), ("list", "--json"), ("export", run.id)):
        text = runs(capsys, *arguments)
        assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_a_project_has_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    """However it is written: its runs are in one file, which is named in small letters and hyphens."""
    with te.init("Me", "My Project", name="first"):
        pass
    with te.init("me", "my-project", name="second"):
        pass
    for project in ("Me/My Project", "me/my-project"):
        found = json.loads(runs(capsys, "list", "--json", "--project", project))
        assert [(one["namespace"], one["project"], one["name"]) for one in found] == [
            ("me", "my-project", "second"), ("me", "my-project", "first"),
        ]  # fmt: skip
    assert runs(capsys, "show", "Me/My Project/first").startswith("me/my-project/first")


HEAVY = (
    "aiohttp",
    "aiolimiter",
    "jinja2",
    "openai",
    "pydantic",
    "rich",
    "starlette",
    "structlog",
    "tenacity",
)
LISTS = """
import sys
from afnio.cli import main
main(["runs", "list"])
libraries = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
print("libraries", *sorted(libraries))
"""


def test_a_list_loads_no_library() -> None:
    """What a command loads is what its start costs: 0.1 s here, and a second with OpenAI's SDK, aiohttp and rich."""
    trained("first")
    done = subprocess.run([sys.executable, "-c", LISTS], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    libraries = set(done.stdout.splitlines()[-1].split()[1:])
    assert libraries & set(HEAVY) == set()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """And a wrong call is exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(["runs", "--help"])
    assert caught.value.code == 0
    assert "afnio runs compare calm-heron keen-lynx" in capsys.readouterr().out
    assert "usage" in runs(capsys, "show", code=2)


def test_a_config_that_redaction_broke_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """It isn't JSON any more, so what is left is shown as a text."""
    with te.init("me", "emails", name="first"):
        pass
    with closing(sqlite3.connect(".afnio/me/emails.db", isolation_level=None)) as db:
        db.execute("UPDATE runs SET config = '{lr: ***'")
    assert "{lr: ***" in runs(capsys, "show", "first")
    assert json.loads(runs(capsys, "show", "first", "--json"))["config"] == "{lr: ***"
