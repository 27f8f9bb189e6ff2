"""What a user wants kept out, and that no key gets in anyway."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.tiny_training import reply, train
from studio.visitor import Studio, started

import afnio.tellurio as te
from afnio.cli import main
from afnio.runtime.events import MetricLogged, SampleScored
from afnio.testing import Provider, ScriptedClient

if TYPE_CHECKING:
    from conftest import Read

FOLDER = Path(".afnio")
FILE = FOLDER / "me" / "emails.db"
KEY = "sk-proj-hunter2-0123456789"
GIVEN = "sk-given-correcthorse-135792468"
IN_URL = "sk-url-swordfish-987654321"
SECRETS = (KEY, GIVEN, IN_URL)


def contents(folder: Path) -> bytes:
    """All bytes below a folder, what is compressed in its databases decompressed."""
    import sqlite3

    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        found.append(path.read_bytes())
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found += [archive.read(name) for name in archive.namelist()]
        if not found[-1].startswith(b"SQLite format 3"):
            continue
        with closing(sqlite3.connect(path)) as db:
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in db.execute(f"SELECT * FROM {table}"):
                    found += [plain(value) for value in row]
    return b"\n".join(found)


def plain(value: Any) -> bytes:
    if isinstance(value, bytes):
        try:
            return zlib.decompress(value)
        except zlib.error:
            return value
    return str(value).encode("utf-8", "replace")


PROGRAM = """
import logging, sys
logging.basicConfig(filename="program.log", level="DEBUG")
import afnio, afnio.cognitive as cog, afnio.tellurio as te
from afnio.models.openai import AsyncOpenAI
from afnio.optim import TGD
from afnio.trainer import Trainer
from afnio.utils.data import DataLoader

url, user, key = sys.argv[1], *sys.stdin.read().split()
secret_url = url.replace("http://", f"http://user:{user}@")
environment, given = AsyncOpenAI(base_url=url), AsyncOpenAI(base_url=url, api_key=key)
in_url = AsyncOpenAI(base_url=secret_url)

class Agent(cog.Module):
    def __init__(self):
        super().__init__()
        self.reader, self.critic = environment, in_url
        self.prompt = cog.Parameter("Say the sentiment: positive, neutral or negative.", role="prompt")
        self.chat, self.loss = cog.ChatCompletion(), cog.ExactMatchEvaluator()

    async def training_step(self, batch, batch_idx):
        texts, golds = batch
        messages = [{"role": "system", "content": [self.prompt]}, {"role": "user", "content": [afnio.Variable("{t}")]}]
        return self.loss(self.chat(self.reader, messages, inputs={"t": texts}, model="m"), golds)

    validation_step = training_step

    def configure_optimizers(self):
        return TGD(self.parameters(), given, model="m", momentum=2)

# Whatever the answer is, it is wrong for one of them, so there is feedback and a step.
mixed = "The heating is broken again: I am frustrated, but delighted with the excellent help."
mails = [(mixed, "negative"), (mixed, "positive")]
with te.init("me", "emails", name="trained", config={"base_url": url, "client": repr(in_url)}) as run:
    agent = Agent()
    with afnio.set_backward_model_client(in_url, completion_args={"model": "m"}):
        trainer = Trainer(max_epochs=2, enable_progress_bar=False)
        trainer.fit(agent, DataLoader(mails, batch_size=2), DataLoader(mails, batch_size=2))
    nowhere = AsyncOpenAI(base_url=secret_url + "/nowhere", api_key=key)
    try:
        nowhere.chat(messages=[{"role": "user", "content": "?"}], model="m")
    except Exception as error:
        logging.getLogger("afnio").warning("%r", error)
        run.log_text("error", repr(error))
    print(agent.state_dict(), environment, given, in_url, nowhere)
"""


def train_with_keys() -> None:
    """Run the program with three keys: of the environment, of a client, of a base URL."""
    with Provider.process(latency=0.0) as provider:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, provider.base_url],
            env={**os.environ, "OPENAI_API_KEY": KEY},
            input=f"{IN_URL} {GIVEN}",
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert [secret for secret in SECRETS if secret in done.stdout + done.stderr] == []


def test_no_key_is_in_any_file_or_page(monkeypatch: pytest.MonkeyPatch, read: Read) -> None:
    """Not in the store, the journal, a Trainer's checkpoint, the log, the report or any page of the studio."""
    train_with_keys()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    report = Path("report.html")
    assert main(["report", "trained", "-o", str(report)]) == 0
    with started(FOLDER) as studio:
        pages = visited(studio)
    everything = contents(Path.cwd())
    names = {path.name for path in Path.cwd().rglob("*")}
    assert {"program.log", "emails.db", "last", "best", report.name} <= names
    purposes = {purpose for (purpose,) in read(FILE, "SELECT DISTINCT purpose FROM calls")}
    assert {"forward", "backward", "step"} <= purposes
    assert read(FILE, "SELECT id FROM calls WHERE status = 'failed'") != []
    assert read(FILE, "SELECT id FROM changes WHERE before != after") != []
    kinds = {re.sub(r"[0-9a-f]{8}-[-0-9a-f]{27}|\d+", "N", path.partition("?")[0]) for path in pages}
    of_run = "/runs/me/emails/N"
    wanted = {of_run + rest for rest in ("", "/steps/N", "/samples", "/samples/N", "/calls", "/calls/N")}
    assert wanted <= kinds, kinds
    shown = "\n".join(pages.values()).encode()
    assert b"heating is broken" in everything
    assert b"heating is broken" in shown
    assert b"Say the sentiment" in report.read_bytes()
    for secret in SECRETS:
        # As it is, and as the header has it that a user and a password of an address become.
        for form in (secret, base64.b64encode(f"user:{secret}".encode()).decode().rstrip("=")):
            assert form.encode() not in everything
            assert form.encode() not in shown


def visited(studio: Studio) -> dict[str, str]:
    """Every page that can be reached by links, each once."""
    found: dict[str, str] = {}
    waiting = ["/"]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        answer = studio.page(path)
        assert answer.status == 200, path
        found[path] = answer.text
        for link in re.findall(r'(?:href|hx-get|data-all)="([^"#]+)', answer.text):
            target = urljoin(path, link.replace("&amp;", "&"))
            if target.startswith(("/runs/", "/compare", "/?")):
                waiting.append(target)
    return found


WITH_ARGUMENTS = """
import os, signal
import afnio.tellurio as te
from afnio.testing import ScriptedClient

client = ScriptedClient("x")
with te.init("me", "emails", redact=["Ann"]) as run:
    client.chat(messages=[{"role": "user", "content": "hello"}], model="m")
    if "KILLED" in os.environ:
        run.flush()
        os.kill(os.getpid(), signal.SIGKILL)
print(len(client.requests))
"""


def test_keys_among_the_arguments_are_in_no_file_and_still_tell_programs_apart() -> None:
    """A killed run is continued by the program with the same keys alone, and what `redact` masks counts too."""

    def start(*arguments: str, **environment: str) -> str:
        command = [sys.executable, "program.py", "--epochs", "3", *arguments]
        return subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True
        ).stdout

    Path("program.py").write_text(WITH_ARGUMENTS)
    secret = ("--user", "Ann", "--password", "hush-hush", f"--header=Authorization: Bearer {GIVEN}", KEY)
    assert start(*secret, KILLED="yes") == ""
    for place, other in ((1, "Bob"), (3, "hush"), (4, f"--header=Authorization: Bearer {KEY}"), (5, GIVEN)):
        assert start(*secret[:place], other, *secret[place + 1 :]) == "1\n"
    assert start(*secret) == "0\n"
    everything = contents(Path.cwd())
    assert b'"--epochs", "3", "--user", "[redacted]", "--password", "<api key>"' in everything
    for hidden in (KEY, GIVEN, "hush", "Ann"):
        assert hidden.encode() not in everything.replace(WITH_ARGUMENTS.encode(), b"")


def test_what_is_redacted_is_in_no_table() -> None:
    """Prompts, replies, predictions, feedback, values, metrics, texts, config: wherever it may appear."""
    with te.init(
        "me", "emails", description="word here", config={"a": ["word"]}, redact=[r"\bword\b", "yes or no"]
    ) as run:
        run.log("note", {"deep": ["a word"]})
        run.log_text("text", "word")
        run.log_table("table", ["column"], [["word"]])
        run.record("mine", {"said": "word"})
        train(ScriptedClient(reply), ScriptedClient(reply))
        run.flush()
        (journal,) = FOLDER.rglob("*.journal")
        journal.unlink()
        everything = contents(FOLDER)
    assert b"say [redacted]" in everything
    assert b"yes or no" not in everything
    assert not re.search(rb"\bword\b", everything)
    assert run.description == "word here"


def test_a_redaction_that_fails_lets_nothing_through(caplog: pytest.LogCaptureFixture, read: Read) -> None:
    """The whole text is masked, and it is said once."""

    def fail(text: str) -> str:
        raise ValueError(text)

    def nothing(text: str) -> str:
        return None  # type: ignore[return-value]

    for broken in (fail, nothing):
        caplog.clear()
        with te.init("me", "emails", redact=broken) as run:
            run.log("x", {"a": "secret", "b": ["secret", 3]})
            run.log_text("note", "secret")
        assert len(caplog.records) == 1
        assert "secret" not in caplog.text
    masked = '{"a": "[redacted]", "b": ["[redacted]", 3]}'
    assert read(FILE, "SELECT value FROM metrics") == [(masked,)] * 2
    assert read(FILE, "SELECT text FROM texts") == [("[redacted]",)] * 2


def test_what_json_cannot_express_is_redacted_too() -> None:
    """A set, or an object that is written by its text, in an event, a prediction or a call's parameters."""

    @dataclass(frozen=True)
    class Seen:
        words: Any

    with te.init("me", "emails", redact=["hush"]) as run:
        for words in ({"hush"}, Path("hush"), [frozenset({"hush"})]):
            run.observe(Seen(words))
            run.observe(SampleScored("node", 0, words, None, 1.0, "", True))
    written = contents(FOLDER)
    assert b"[redacted]" in written
    assert b"hush" not in written


def test_patterns_come_in_a_list() -> None:
    """One text alone would be taken letter by letter."""
    with pytest.raises(TypeError, match="put it in a list"):
        te.init("me", "emails", redact="secret")


def test_a_value_keeps_its_shape() -> None:
    """Only texts change, wherever they are; without a redaction nothing does."""

    def shape(one: Any) -> Any:
        if isinstance(one, str):
            return "text"
        if isinstance(one, dict):
            return {key: shape(item) for key, item in one.items()}
        return [shape(item) for item in one] if isinstance(one, list) else one

    logged, redacted, plain = [], [], []
    values = st.recursive(
        st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
    with (
        te.init("me", "emails", sinks=[redacted.append], redact=lambda text: text + "!") as changing,
        te.init("me", "emails", sinks=[plain.append]) as keeping,
    ):

        @given(values)
        def log(value: Any) -> None:
            changing.log("x", value)
            keeping.log("x", value)
            logged.append(value)

        log()
    seen = [event.value for event in redacted if isinstance(event, MetricLogged)]
    assert [shape(value) for value in logged] == [shape(value) for value in seen]
    assert all(text.endswith("!") for text in seen if isinstance(text, str))
    kept = [event.value for event in plain if isinstance(event, MetricLogged)]
    assert all(one is other for one, other in zip(logged, kept, strict=True))
