"""What a user wants kept out, and that no key gets in anyway."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import reply, train

import afnio.tellurio as te
from afnio.tellurio.redaction import MASK, Redaction
from afnio.testing import Provider, ScriptedClient

FOLDER = Path(".afnio")
KEY = "sk-proj-hunter2-0123456789"
OTHER = "sk-url-swordfish-987654321"


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
import logging, os, sys
logging.basicConfig(filename="program.log", level="DEBUG")
import afnio, afnio.tellurio as te
from afnio.cognitive import Parameter, chat_completion
from afnio.models.openai import AsyncOpenAI

url = sys.argv[1]
in_url = url.replace("http://", "http://user:" + os.environ["OTHER"] + "@")
prompt = Parameter("Answer.", role="prompt", requires_grad=True)
with te.init("me", "emails", config={"base_url": url}) as run:
    for client in (AsyncOpenAI(base_url=url, api_key=os.environ["OPENAI_API_KEY"]), AsyncOpenAI(base_url=in_url)):
        messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [afnio.Variable("{t}")]}]
        assert chat_completion(client, messages, {"t": afnio.Variable(["a", "b"])}, model="m").data
    try:
        AsyncOpenAI(base_url="http://127.0.0.1:9/" + "v1", max_retries=0).chat(messages=messages, model="missing")
    except Exception as error:
        logging.getLogger("afnio").warning("%r", error)
    agent_state = {"prompt": prompt}
    afnio.save(agent_state, "checkpoint.zip")
os.environ.clear()
"""


def test_no_key_is_in_any_file() -> None:
    """Of the environment, of the client, of the base URL: not in the store, journal, checkpoint or log."""
    with Provider.process(latency=0.0, reply="yes") as provider:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, provider.base_url],
            env={**os.environ, "OPENAI_API_KEY": KEY, "OTHER": OTHER},
            capture_output=True,
            text=True,
        )
    assert 0 == done.returncode, done.stderr
    everything = contents(Path.cwd())
    assert b"Answer." in everything
    names = {path.name for path in Path.cwd().rglob("*")}
    assert {"checkpoint.zip", "program.log", "emails.db"} <= names
    for secret in (KEY, OTHER):
        assert secret.encode() not in everything
        assert secret not in done.stdout + done.stderr


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
    assert "word here" == run.description


def test_a_redaction_that_fails_lets_nothing_through(caplog: pytest.LogCaptureFixture) -> None:
    """The whole text is masked, and it is said once."""

    def fail(text: str) -> str:
        raise ValueError(text)

    redaction = Redaction(fail)
    assert {"a": MASK, "b": [MASK, 3]} == redaction.value({"a": "secret", "b": ["secret", 3]})
    assert 1 == len(caplog.records)
    assert "secret" not in caplog.text
    assert MASK == Redaction(lambda text: None).text("secret")  # type: ignore[arg-type, return-value]


def test_patterns_come_in_a_list() -> None:
    """One text alone would be taken letter by letter."""
    with pytest.raises(TypeError, match="put it in a list"):
        te.init("me", "emails", redact="secret")


@given(
    st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_a_value_keeps_its_shape(value: Any) -> None:
    """Only texts change, wherever they are; without a redaction nothing does."""

    def shape(one: Any) -> Any:
        if isinstance(one, str):
            return "text"
        if isinstance(one, dict):
            return {key: shape(item) for key, item in one.items()}
        return [shape(item) for item in one] if isinstance(one, list) else one

    assert shape(value) == shape(Redaction(lambda text: text + "!").value(value))
    assert value is Redaction(None).value(value)
