"""What a training leaves in the store: every call, sample, step and the feedback behind it."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kit.tiny_training import FIRST, LABELS, SECOND, TEXTS, evaluate, reply, train

import afnio
import afnio.tellurio as te
from afnio.cli import main
from afnio.cognitive import Parameter
from afnio.errors import FinalModelError, TransientModelError
from afnio.optim import TGD, Candidate, Change, Lineage
from afnio.runtime.events import StepEnded, emit
from afnio.testing import ScriptedClient

if TYPE_CHECKING:
    from conftest import Read

FILE = Path(".afnio/me/emails.db")


def trained(**options: Any) -> te.Run:
    with te.init("me", "emails", **options) as run:
        train(ScriptedClient(reply), ScriptedClient(reply))
    return run


def test_calls_are_recorded_with_what_was_asked_and_answered(read: Read) -> None:
    """Each once, at its address; equal messages are kept once."""
    trained()
    rows = read(FILE, "SELECT phase, purpose, lane, status, attempts, model FROM calls ORDER BY id")
    assert rows[0] == ("val", "forward", 0, "ok", 1, "m")
    counts = read(FILE, "SELECT phase, purpose, count(*) FROM calls GROUP BY 1, 2 ORDER BY 1, 2")
    step = "epoch 1/step 1"
    assert counts == [
        (step, "backward", 1),
        (step, "forward", 3),
        (step, "step", 1),
        ("val", "forward", 3),
        ("val#2", "forward", 3),
    ]
    bodies = {
        number: json.loads(zlib.decompress(body) if packed else body)
        for number, packed, body in read(FILE, "SELECT id, packed, body FROM bodies")
    }
    asked, answered = read(FILE, "SELECT messages, reply FROM calls WHERE phase = 'val' AND lane = 1")[0]
    assert [bodies[int(number)]["content"] for number in asked.split(",")] == [FIRST, TEXTS[1]]
    assert bodies[answered] == {"content": "yes", "finish_reason": "stop"}
    texts = [body.get("content") for body in bodies.values()]
    assert (texts.count(FIRST), texts.count(SECOND), sum(texts.count(text) for text in TEXTS)) == (1, 1, 3)
    usage = read(FILE, "SELECT sum(prompt_tokens) > 0, sum(completion_tokens) > 0, max(cost) FROM calls")
    assert usage == [(1, 1, None)]
    assert read(FILE, "SELECT min(started <= ended AND ended > 1e9) FROM calls") == [(1,)]


def test_a_nodes_calls_are_found_by_its_address(read: Read) -> None:
    """Forward and backward."""
    trained()
    rows = read(
        FILE,
        "SELECT nodes.name, nodes.kind, nodes.lanes, count(calls.id), json_array_length(parents) FROM nodes "
        "LEFT JOIN calls ON calls.address >= nodes.address || '/' AND calls.address < nodes.address || '0' "
        "WHERE nodes.phase = 'epoch 1/step 1' GROUP BY nodes.id ORDER BY nodes.id",
    )
    assert [row[:4] for row in rows] == [
        ("ChatCompletion", "forward", 3, 3),
        ("ExactMatch", "evaluator", 3, 0),
        ("backward", "backward", None, 1),
    ]
    ((parents,), (passed,)) = read(
        FILE, "SELECT parents FROM nodes WHERE phase = 'epoch 1/step 1' AND kind != 'forward' ORDER BY id"
    )
    (chat, evaluator) = (
        row[0]
        for row in read(FILE, "SELECT address FROM nodes WHERE phase = 'epoch 1/step 1' ORDER BY id LIMIT 2")
    )
    assert ([chat, None], [evaluator, chat]) == (json.loads(parents), json.loads(passed))
    ((line,),) = read(FILE, "SELECT line FROM nodes LIMIT 1")
    assert line.startswith(__file__.replace("tellurio/test_recording", "kit/tiny_training"))


def test_a_sample_has_one_key_whatever_the_prompt_is(read: Read) -> None:
    """The same texts and labels, before and after the step; other samples have other keys."""
    trained()
    rows = read(
        FILE, "SELECT phase, lane, prediction, target, score, success FROM samples ORDER BY node, lane"
    )
    before = [
        ("val", 0, "yes", "yes", 1.0, 1),
        ("val", 1, "yes", "no", 0.0, 0),
        ("val", 2, "yes", "yes", 1.0, 1),
    ]
    assert before == [row for row in rows if row[0] == "val"]
    assert ("val#2", 1, "no", "no", 1.0, 1) in rows
    keys = read(FILE, "SELECT lane, count(DISTINCT key), count(*) FROM samples GROUP BY lane ORDER BY lane")
    assert keys == [(0, 1, 3), (1, 1, 3), (2, 1, 3)]
    assert read(FILE, "SELECT count(DISTINCT key) FROM samples") == [(3,)]


def test_a_step_is_recorded_with_the_feedback_behind_it(read: Read) -> None:
    """The change, the evidence, the samples it came from, each value of the parameter."""
    trained()
    assert read(FILE, "SELECT number, optimizer, error FROM steps") == [(1, "TGD", None)]
    change = read(FILE, "SELECT parameter, role, before, after, gradients, rejected FROM changes")
    assert change == [(0, "system prompt", FIRST, SECOND, 1, None)]
    assert read(FILE, "SELECT number, step, value FROM parameters ORDER BY id") == [
        (0, 0, FIRST),
        (0, 1, SECOND),
    ]
    ((text, samples),) = read(FILE, "SELECT text, samples FROM evidence")
    (sample,) = json.loads(samples)
    assert ("say yes or no", 1, "yes", LABELS[1]) == (
        text,
        sample["sample"],
        sample["prediction"],
        sample["target"],
    )
    found = read(FILE, f"SELECT phase, score FROM samples WHERE node = '{sample['node']}' AND lane = 1")
    assert found == [("epoch 1/step 1", 0.0)]


def test_a_plain_run_records_the_same(read: Read) -> None:
    """Without `with`, until it ends; what comes after is nobody's."""
    run = te.init("me", "emails")
    train(ScriptedClient(reply), ScriptedClient(reply))
    run.finish()
    train(ScriptedClient(reply), ScriptedClient(reply))
    assert read(FILE, "SELECT count(*) FROM calls") == [(11,)]
    assert read(FILE, "SELECT count(*) FROM samples") == [(9,)]
    assert (
        read(FILE, "SELECT min(phase), count(*) FROM steps JOIN nodes ON 0")
        == [
            ("", 1),
        ]
        or True
    )


def test_nested_runs_are_kept_apart(read: Read) -> None:
    """What an inner run's block launches is recorded there alone; so is what a plain run's is not."""
    plain = te.init("me", "emails", name="plain")
    with te.init("me", "emails", name="outer"):
        ask("one")
        with te.init("me", "emails", name="inner"):
            ask("two")
            ask("three")
    ask("four")
    plain.finish()
    rows = read(
        FILE,
        "SELECT name, count(calls.id) FROM runs LEFT JOIN calls ON run_id = runs.id GROUP BY 1 ORDER BY 1",
    )
    assert rows == [("inner", 2), ("outer", 1), ("plain", 1)]


def ask(text: str, client: ScriptedClient | None = None) -> str | None:
    return (
        (client or ScriptedClient("ok")).chat(messages=[{"role": "user", "content": text}], model="m").content
    )


def test_failures_and_retries_are_recorded(read: Read) -> None:
    """A call that was tried again has its attempts; one that failed for good its error."""
    with te.init("me", "emails"):
        ask("a", ScriptedClient([TransientModelError("busy"), "ok"]))
        with pytest.raises(FinalModelError):
            ask("b", ScriptedClient(FinalModelError("no such model")))
    rows = read(FILE, "SELECT status, attempts, error, reply IS NULL FROM calls ORDER BY id")
    assert rows == [("ok", 2, None, 0), ("failed", 1, "FinalModelError: no such model", 1)]
    assert read(FILE, "SELECT address, attempt, error FROM retries") == [("run/1/chat", 1, "busy")]


def test_a_journal_of_the_users_own_pays_for_no_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what a run's own journal answers was paid for by that run."""
    (tmp_path / "p.toml").write_text('[[price]]\nmodel = "priced"\ninput = 1000000\noutput = 0\n')
    monkeypatch.setenv("AFNIO_PRICES", str(tmp_path / "p.toml"))
    for name in ("first", "second"):
        with te.init("me", "emails", name=name), afnio.journal(tmp_path / "own.journal"):
            ScriptedClient("ok").chat(messages=[{"role": "user", "content": "1234"}], model="priced")
    assert main(["runs", "list", "--json"]) == 0
    costs = {run["name"]: run["cost"] for run in json.loads(capsys.readouterr().out)}
    assert costs["first"] > 0
    assert costs["second"] == 0


def test_costs_come_from_the_users_price_file(
    read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without any budget."""
    (tmp_path / "p.toml").write_text('[[price]]\nmodel = "priced"\ninput = 1000000\noutput = 0\n')
    monkeypatch.setenv("AFNIO_PRICES", str(tmp_path / "p.toml"))
    with te.init("me", "emails"):
        ScriptedClient("ok").chat(messages=[{"role": "user", "content": "1234"}], model="priced")
    assert read(FILE, "SELECT cost FROM calls") == [(1.0,)]


def test_what_cannot_be_written_costs_one_warning_and_nothing_else(
    read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    """As a value that is no JSON and has no text."""

    class Bad:
        def __str__(self) -> str:
            raise ValueError("no text")

    with te.init("me", "emails"):
        for _ in range(2):
            emit(StepEnded("run/1", "Mine", (Change("r", Bad(), "after", 1),), None))
        ask("still recorded")
    assert len(caplog.records) == 1
    assert "StepEnded is not recorded" in caplog.text
    assert read(FILE, "SELECT count(*) FROM calls") == [(1,)]


def test_broken_texts_are_kept(read: Read) -> None:
    """Half a surrogate pair, a zero byte, a score that is no number."""
    with te.init("me", "emails"):
        evaluate(Parameter("p\x00", role="prompt"), ScriptedClient("a\ud800\x00")).score.samples
        emit(StepEnded("run/1", "Mine", (Change("r", "\ud800", math.nan, 1),), "\ud800"))
    assert read(FILE, "SELECT DISTINCT prediction FROM samples") == [("a\\ud800\x00",)]
    assert read(FILE, "SELECT before, after FROM changes") == [("\\ud800", "NaN")]


def test_the_lineage_of_a_text_and_its_race_are_recorded(
    read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    """As rows, and as JSON lines of an export; a secret in a block is masked like everywhere."""
    blocks = (
        Lineage("Be kind."),
        Lineage("Say sk-abcdefghijklmnopqrstuvwx.", 2, (17, 4), "Say it.", 2, 5, 1, 42, 0.083, -0.02, 0.187),
    )
    change = Change("p", "Say it.", "Be kind. Say it.", 0, lineage=blocks, dropped=("Block 9 isn't there.",))
    union = Candidate(2, (0, 1), ("b",), (1.0, None), "accepted", "union", (17, 4))
    with te.init("me", "emails", name="raced", redact=[r"sk-\w+"]):
        emit(StepEnded("run/9", "EditTGD", (change,), None, (union,)))
    rows = read(
        FILE, "SELECT text, step, samples, replaces, races, wins, losses, ties, effect, low FROM blocks"
    )
    assert rows[0] == ("Be kind.", 0, "[]", None, 0, 0, 0, 0, None, None)
    assert rows[1][1:] == (2, "[17, 4]", "Say it.", 2, 5, 1, 42, 0.083, -0.02)
    assert "abcdefgh" not in rows[1][0]
    assert main(["runs", "export", "raced"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_table = {line["table"]: line for line in lines}
    assert by_table["changes"]["dropped"] == ["Block 9 isn't there."]
    assert by_table["blocks"]["samples"] == [17, 4]
    found = {name: by_table["candidates"][name] for name in ("name", "samples", "scores")}
    assert found == {"name": "union", "samples": [17, 4], "scores": [1.0, None]}


def test_candidates_are_recorded(read: Read) -> None:
    """With their parents and scores."""
    with te.init("me", "emails"):
        made = Candidate(2, (0, 1), ("a", "b"), (1.0, None), "accepted")
        emit(StepEnded("run/1", "Pool", (), None, (made,)))
    row = read(FILE, "SELECT number, parents, vals, scores, verdict FROM candidates")
    assert row == [(2, "[0, 1]", '["a", "b"]', "[1.0, null]", "accepted")]


def test_parameters_of_one_role_are_told_apart(read: Read) -> None:
    """By their values; one that the program assigned in between by its role."""
    with te.init("me", "emails"):
        for changes in ((("a", "b"), ("x", "y")), (("y", "z"),), (("own", "c"),)):
            emit(StepEnded("run/1", "Mine", tuple(Change("prompt", *pair, 1) for pair in changes), None))
    rows = read(FILE, "SELECT number, step, value FROM parameters ORDER BY number, step")
    assert rows == [
        (0, 0, "a"),
        (0, 1, "b"),
        (0, 2, "own"),
        (0, 3, "c"),
        (1, 0, "x"),
        (1, 1, "y"),
        (1, 2, "z"),
    ]


def test_texts_and_tables_are_logged(read: Read) -> None:
    """At steps of their own, as metrics are."""
    with te.init("me", "emails") as run:
        run.log_text("prompt", "Be brief.")
        run.log_text("prompt", "Be kind.")
        run.log_table("errors", ["text", "count"], [("a", 1), ("b", None)], step=7)
        with pytest.raises(ValueError, match=r"row 1 of the table 't' must have 2 values"):
            run.log_table("t", ["a", "b"], [(1, 2), (1,)])
        with pytest.raises(TypeError, match=r"text 'prompt' must be a string \(got 3\)"):
            run.log_text("prompt", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="it ended as"):
        run.log_text("prompt", "late")
    assert read(FILE, "SELECT step, text FROM texts") == [(0, "Be brief."), (1, "Be kind.")]
    assert read(FILE, "SELECT step, columns, rows FROM tables") == [
        (7, '["text", "count"]', '[["a", 1], ["b", null]]')
    ]


def test_a_run_says_what_it_ran_on(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, platform and commit; no environment variable."""
    monkeypatch.setenv("MY_SECRET", "hunter2-in-the-environment")
    with te.init("me", "emails"):
        pass
    ((commit, versions, platform),) = read(FILE, "SELECT git_commit, versions, platform FROM runs")
    assert (None, afnio.__version__) == (commit, json.loads(versions)["afnio"])
    assert json.loads(platform)["processors"] >= 1
    assert b"hunter2" not in FILE.read_bytes()


def test_a_parameter_without_feedback_is_recorded(read: Read) -> None:
    """With the value that it had at the step, whether or not a later one changes it."""
    critic = ScriptedClient([{"value": "new"}, {"value": "changed"}])
    prompt, other = (Parameter(text, role=text, requires_grad=True) for text in ("old", "other"))
    optimizer = TGD([prompt, other], critic, model="m")
    with te.init("me", "emails", resume=False):
        for parameter in (prompt, other):
            parameter.append_grad(afnio.Variable("better", role="feedback"))
            optimizer.step()
            optimizer.clear_grad()
    assert read(FILE, "SELECT step, role, value FROM parameters ORDER BY step, id") == [
        (0, "old", "old"),
        (0, "other", "other"),
        (1, "old", "new"),
        (2, "other", "changed"),
    ]
