"""Prompts leave a result for a store and come back exactly: all of one set, or none."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kit.environments import interpreter
from kit.results import RESULT

import afnio
from afnio.errors import BlockingReadError

TEXTS = {"system": "a\r\n\t{x} {{y}} é end  \n", "Train": "x " * 2_000, "look_up__no": "Number."}
RESULT = replace(RESULT, prompts=TEXTS, start={"system": "s", "Train": "t", "look_up__no": "n"})


class Recorded:
    """A server that answers from what was pushed.

    It does so as MLflow 3.17 and Phoenix 20.26 were seen to, and as the description of Langfuse's API says.
    """

    def __init__(self) -> None:
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.instead: Callable[[Any], None] | None = None
        self.left: int | None = None  # the requests that are answered before `instead` answers
        self.conflicts = 0
        self.lock = threading.Lock()

    def answer(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        match path.strip("/").split("/"):
            case [*_, "registered-models", "create"]:
                if body["name"] in self.versions:
                    return 400, {"error_code": "RESOURCE_ALREADY_EXISTS"}
                self.versions[body["name"]] = []
                return 200, {"registered_model": {"name": body["name"]}}
            case [*_, "model-versions", "create"]:
                self.versions[body["name"]].append(body)
                return 200, {"model_version": {"version": str(len(self.versions[body["name"]]))}}
            case [*_, "registered-models", "alias"] if method == "POST" and self.conflicts:
                self.conflicts -= 1
                return 400, {
                    "error_code": "BAD_REQUEST",
                    "message": "(sqlite3.IntegrityError) UNIQUE constraint failed",
                }
            case [*_, "registered-models", "alias"] if method == "POST":
                self.aliases[body["name"], body["alias"]] = int(body["version"])
                return 200, {}
            case [*_, "registered-models", "alias"]:
                number = self.aliases.get((query["name"], query["alias"]))
                if number is None:
                    return 400, {
                        "error_code": "INVALID_PARAMETER_VALUE",
                        "message": "Registered model alias not found",
                    }
                return 200, {"model_version": self.versions[query["name"]][number - 1]}
            case ["v1", "prompts"]:
                kept = self.versions.setdefault(body["prompt"]["name"], [])
                kept.append(body["version"])
                return 200, {"data": {"id": f"{body['prompt']['name']}:{len(kept)}"}}
            case ["v1", "prompt_versions", version, "tags"]:
                name, _, number = version.replace("%3A", ":").rpartition(":")
                self.aliases[name, body["name"]] = int(number)
                return 204, None
            case ["v1", "prompts", name, "tags", tag]:
                number = self.aliases.get((name, tag))
                if number is None:
                    return 404, {"detail": "Prompt not found"}
                return 200, {"data": self.versions[name][number - 1]}
            case ["api", "public", "v2", "prompts"]:
                kept = self.versions.setdefault(body["name"], [])
                kept.append(body)
                return 201, {**body, "version": len(kept), "labels": ["latest"]}
            case ["api", "public", "v2", "prompts", name, "versions", number]:
                for label in body["newLabels"]:
                    self.aliases[name, label] = int(number)
                return 200, {}
            case ["api", "public", "v2", "prompts", name]:
                number = self.aliases.get((name, query["label"]))
                if number is None:
                    return 404, {"error": "LangfuseNotFoundError", "message": "Prompt not found"}
                return 200, {**self.versions[name][number - 1], "version": number}
        return 404, {}


@pytest.fixture(scope="module")
def recorded() -> Iterator[Recorded]:
    record = Recorded()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            parts = urlsplit(self.path)
            record.asked.append((self.command, self.path, self.headers.get("Authorization")))
            with record.lock:
                answered = bool(record.left)
                record.left = record.left and record.left - 1
            if record.instead is not None and not answered:
                record.instead(self)
                return
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            with record.lock:
                status, reply = record.answer(self.command, parts.path, query, body)
            content = b"" if reply is None else json.dumps(reply).encode()
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = handle_any

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    record.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield record
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["folder", "mlflow", "phoenix", "langfuse"])
def store(
    request: pytest.FixtureRequest, recorded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    recorded.instead = recorded.left = None
    recorded.asked.clear()
    recorded.versions.clear()
    recorded.aliases.clear()
    return f"folder:{tmp_path}" if request.param == "folder" else f"{request.param}:{recorded.url}"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.text(st.characters(codec="utf-8")), min_size=1))
@example({"a": "\x00\r\n {x} {{y}} \t"})
def test_texts_come_back_exactly(store: str, prompts: dict[str, str]) -> None:
    """Any that UTF-8 can express."""
    replace(RESULT, prompts=prompts).push(store, "any")
    assert afnio.load_prompts(store, "any", prompts=list(prompts)) == prompts


def test_a_result_is_pushed_and_loaded(store: str) -> None:
    """By an app that knows the names, or that has the texts that it began from, or those that came of them."""
    RESULT.push(store, "Router")
    assert afnio.load_prompts(store, "Router", prompts=[*TEXTS]) == TEXTS
    assert afnio.load_prompts(store, "Router", prompts=RESULT.start) == TEXTS
    assert afnio.load_prompts(store, "Router", prompts=TEXTS, alias="candidate") == TEXTS
    with pytest.raises(
        ValueError, match="prompt 'Train' of the app must be the text that the version came from"
    ):
        afnio.load_prompts(store, "Router", prompts={**RESULT.start, "Train": "A tool that changed."})
    with pytest.raises(LookupError, match="outer.* must have the alias 'champion'"):
        afnio.load_prompts(store, "Router", prompts=[*TEXTS], alias="champion")
    with pytest.raises(LookupError):
        afnio.load_prompts(store, "other", prompts=["system"])


@pytest.mark.parametrize("store", ["mlflow", "phoenix", "langfuse"], indirect=True)
def test_a_mixture_of_sets_is_refused(store: str) -> None:
    """A second push that ended halfway, for instance. Neither is a part of a set one that was tested."""
    RESULT.push(store, "mixed")
    with pytest.raises(ValueError, match="the prompts of 'mixed' must be the whole set as it was pushed"):
        afnio.load_prompts(store, "mixed", prompts=["system", "Train"])
    replace(RESULT, prompts={"system": "new"}).push(store, "mixed")
    with pytest.raises(ValueError, match="the prompts of 'mixed' must be of one set, tested together"):
        afnio.load_prompts(store, "mixed", prompts=[*TEXTS])


@pytest.mark.parametrize("store", ["mlflow", "phoenix", "langfuse"], indirect=True)
def test_a_push_may_end_anywhere(store: str, recorded: Any) -> None:
    """No alias moves before all versions are there; after that one set or none is loaded, never a mixture."""
    after = replace(RESULT, prompts={name: f"{text}!" for name, text in TEXTS.items()})
    seen = []
    for requests in range(15):
        RESULT.push(store, "router")
        recorded.instead, recorded.left = refused, requests
        with suppress(ConnectionError):
            after.push(store, "router")
        recorded.instead = None
        try:
            loaded = afnio.load_prompts(store, "router", prompts=[*TEXTS])
        except ValueError as error:
            seen.append(re.sub(r".*(must be of one set).*", r"\1", str(error)))
        else:
            seen.append({str(TEXTS): "old", str(after.prompts): "new"}[str(loaded)])
    assert [word for word, _ in itertools.groupby(seen)] == ["old", "must be of one set", "new"]


def test_an_app_keeps_its_own_prompts_through_a_second_round(store: str) -> None:
    """What the live prompts were tuned into came from the app's texts, too."""
    RESULT.push(store, "rounds")
    live = afnio.load_prompts(store, "rounds", prompts=RESULT.start)
    better = {name: f"{text}!" for name, text in live.items()}
    replace(RESULT, start=live, prompts=better).push(store, "rounds")
    assert afnio.load_prompts(store, "rounds", prompts=RESULT.start) == better
    replace(RESULT, start=dict.fromkeys(live, "else"), prompts=better).push(store, "rounds")
    with pytest.raises(ValueError, match="must be the text that the version came from"):
        afnio.load_prompts(store, "rounds", prompts=RESULT.start)


def test_only_a_clear_gain_gets_another_alias(store: str) -> None:
    """What isn't better is a candidate; nothing is pushed."""
    with pytest.raises(ValueError, match='alias must be "candidate" for prompts that aren\'t clearly better'):
        RESULT.push(store, "router", alias="champion")
    gain: Any = SimpleNamespace(is_clear=True)
    replace(RESULT, gain=gain).push(store, "router", alias="champion")
    assert afnio.load_prompts(store, "router", prompts=[*TEXTS], alias="champion") == TEXTS


def test_first_pushes_at_the_same_time(store: str, recorded: Any) -> None:
    """Each has a version of its own; what is loaded afterwards is of one of them, or refused.

    MLflow looks whether an alias is there, then inserts it: the second of two gets an error of its database.
    """
    recorded.conflicts = 3 if store.startswith("mlflow") else 0
    sets = [{"system": f"set {number}"} for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda prompts: replace(RESULT, prompts=prompts).push(store, "router"), sets))
    assert afnio.load_prompts(store, "router", prompts=["system"]) in sets
    assert recorded.conflicts == 0


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({"system": "\ud800"}, "prompt 'system' must have text that UTF-8 can express"),
        ({"a.b": "x", "a:b": "y"}, "names must differ in a store"),
        ({"系统": "x"}, "names must have letters of a-z or digits in a store"),
        ({}, "prompts must not be empty"),
    ],
)
def test_what_no_store_can_keep_is_refused_before_the_first_push(
    store: str, recorded: Any, prompts: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        replace(RESULT, prompts=prompts).push(store, "router")
    assert recorded.asked == []


def test_names_that_are_the_same_in_a_store_are_refused(store: str, recorded: Any) -> None:
    """Those of two sets, of which one would take the other's alias."""
    RESULT.push(store, "My Router")
    with pytest.raises(ValueError, match="name must differ from 'My Router'"):
        RESULT.push(store, "my-router")
    replace(RESULT, prompts={"2-system": "x"}).push(store, "any")
    replace(RESULT, prompts={"system": "y"}).push(store, "any-2")
    assert afnio.load_prompts(store, "any", prompts=["2-system"]) == {"2-system": "x"}


def test_a_folder_has_a_set_in_a_file(tmp_path: Path) -> None:
    """It needs no names, and is never a mixture; files are the user's alone."""
    RESULT.push(f"folder:{tmp_path}/store", "router")
    assert afnio.load_prompts(f"folder:{tmp_path}/store", "router") == TEXTS
    replace(RESULT, prompts={"system": "new"}).push(f"folder:{tmp_path}/store", "router")
    assert afnio.load_prompts(f"folder:{tmp_path}/store", "router") == {"system": "new"}
    with pytest.raises(LookupError, match="'router' in .* must have the prompt 'Train' .got system."):
        afnio.load_prompts(f"folder:{tmp_path}/store", "router", prompts=[*TEXTS])
    assert {path.stat().st_mode & 0o077 for path in tmp_path.rglob("*")} == {0}
    (tmp_path / "store" / "router" / "2.json").write_text("{")
    with pytest.raises(ValueError, match="candidate.alias must be a version that Result.push wrote"):
        afnio.load_prompts(f"folder:{tmp_path}/store", "router")


def test_files_of_a_result_are_loaded(tmp_path: Path) -> None:
    RESULT.save(tmp_path)
    assert afnio.load_prompts(tmp_path) == TEXTS
    assert afnio.load_prompts(tmp_path, prompts=["system"]) == {"system": TEXTS["system"]}
    with pytest.raises(LookupError, match="must have the prompt 'tool'"):
        afnio.load_prompts(tmp_path, prompts=["tool"])
    with pytest.raises(FileNotFoundError, match="must have prompts as <name>.txt"):
        afnio.load_prompts(tmp_path / "other")
    with pytest.raises(ValueError, match="names must differ as names of files"):
        replace(RESULT, prompts={"a b": "x", "a:b": "y"}).save(tmp_path)
    with pytest.raises(ValueError, match="prompt 'b' must have text that UTF-8 can express"):
        replace(RESULT, prompts={"a": "x", "b": "\ud800"}).save(tmp_path)
    assert not (tmp_path / "a.txt").exists()


def refused(handler: Any) -> None:
    handler.send_error(503, "busy")


def redirected(handler: Any) -> None:
    handler.send_response(307)
    handler.send_header("Location", "http://127.0.0.1:1/elsewhere")
    handler.end_headers()


def html(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"<html>")


def endless(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    with pytest.raises(OSError):  # the client hangs up
        while True:
            handler.wfile.write(b" " * 1_000_000)


def dripping(handler: Any) -> None:
    with pytest.raises(OSError):
        for number in range(1_000):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n" if number == 0 else b"X-Any: any\r\n")
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        (refused, "must accept the request .got 503"),
        (redirected, "must accept the request .got 307"),
        (dripping, "must answer within 1 s"),
        (html, "must answer with JSON"),
        (endless, "more than 8,000,000 bytes"),
    ],
)
@pytest.mark.parametrize("store", ["mlflow", "phoenix", "langfuse"], indirect=True)
def test_a_server_that_fails_is_one_sentence(
    store: str, recorded: Any, instead: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a redirect to another host, and without an end to a reply."""
    if instead is dripping:
        monkeypatch.setattr("afnio.studies._stores.SECONDS", 1.0)
    recorded.instead = instead
    with pytest.raises(ConnectionError, match=said) as raised:
        RESULT.push(store, "router")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "reply",
    [
        5,
        [],
        {
            "model_version": {"tags": 5},
            "data": {"template": {"messages": [{"content": 5}]}, "description": 3},
        },
        {"model_version": {"tags": [5, {"key": []}]}, "data": {"template": {"messages": [{"content": [5]}]}}},
        {"prompt": 5, "config": {"afnio": []}, "model_version": None, "data": [1]},
    ],
)
@pytest.mark.parametrize("store", ["mlflow", "phoenix", "langfuse"], indirect=True)
def test_a_server_that_answers_with_anything_is_one_sentence(store: str, recorded: Any, reply: Any) -> None:
    def anything(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(json.dumps(reply).encode())

    recorded.instead = anything
    with pytest.raises((ConnectionError, ValueError), match=" must "):
        afnio.load_prompts(store, "router", prompts=["system"])


def test_credentials_come_from_the_stores_variables(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never from an address, which logs would show."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    recorded.instead = None
    recorded.asked.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("PHOENIX_API_KEY", "key")
    monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", "public")
    monkeypatch.setenv("LANGFUSE_SECRET_KEY", "hidden")
    RESULT.push(f"mlflow:{recorded.url}", "credentials")
    RESULT.push(f"phoenix:{recorded.url}", "phoenix")
    RESULT.push(f"langfuse:{recorded.url}", "langfuse")
    sent = {header for _, _, header in recorded.asked}
    basic = [f"Basic {base64.b64encode(pair).decode()}" for pair in (b"ann:secret", b"public:hidden")]
    assert sent == {*basic, "Bearer key"}
    with pytest.raises(ValueError, match="must have no password in it") as raised:
        RESULT.push("mlflow:http://ann:secret@host", "router")
    assert "ann" not in str(raised.value)


async def test_a_server_is_not_waited_for_on_a_loop(recorded: Any) -> None:
    with pytest.raises(BlockingReadError, match="afnio.load_prompts would block the event loop"):
        afnio.load_prompts(f"mlflow:{recorded.url}", "router", prompts=["system"])
    recorded.instead = None
    with pytest.raises(LookupError):
        await asyncio.to_thread(afnio.load_prompts, f"mlflow:{recorded.url}", "none", prompts=["system"])


def test_a_store_that_is_down_or_unknown(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError, match="check its address, and that it runs"):
            RESULT.push(f"mlflow:http://127.0.0.1:{free.getsockname()[1]}", "router")
    with pytest.raises(
        ValueError, match="the store must be mlflow:<url>, .* or folder:<path> .got 'langsmith:http:'"
    ):
        RESULT.push("langsmith:http://host", "router")
    with pytest.raises(TypeError, match=r"write prompts=\['system'\]"):
        afnio.load_prompts(tmp_path, prompts="system")
    with pytest.raises(ValueError, match="the store must be mlflow:<url>"):
        afnio.load_prompts("langsmith:http://host", "router")
    with pytest.raises(ValueError, match="alias must be letters"):
        replace(RESULT, gain=SimpleNamespace(is_clear=True)).push(
            f"folder:{tmp_path}", "router", alias="../x"
        )  # type: ignore[arg-type]


@pytest.mark.parametrize("store", ["folder", "phoenix", "langfuse"], indirect=True)
def test_a_text_of_120_000_characters(store: str) -> None:
    """MLflow has a limit, which is said before anything is asked."""
    replace(RESULT, prompts={"a": "é" * 120_000}).push(store, "router")
    assert afnio.load_prompts(store, "router", prompts=["a"]) == {"a": "é" * 120_000}
    with pytest.raises(
        ValueError, match="MLflow keeps texts of up to 100,000 characters .got 120,000 for 'b'"
    ):
        replace(RESULT, prompts={"a": "x", "b": "x" * 120_000}).push("mlflow:http://127.0.0.1:1", "router")


# Real servers

SERVERS = {
    "mlflow": (
        ("mlflow==3.17.2",),
        ("mlflow", "server", "--backend-store-uri", "sqlite:///m.db", "--workers", "1", "--port"),
        "/health",
    ),
    "phoenix": (
        ("arize-phoenix==20.26.1", "opentelemetry-exporter-otlp-proto-http"),
        ("phoenix.server.main", "serve"),
        "/healthz",
    ),
}


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", SERVERS)
def test_a_real_server(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Push, load, a missing alias, first pushes side by side: as the recorded replies have it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    packages, command, health = SERVERS[kind]
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, grpc = (str(free.getsockname()[1]) for free in (one, other))
    arguments = [str(interpreter(kind, *packages)), "-m", *command, *([port] if kind == "mlflow" else [])]
    env = {
        **os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PHOENIX_WORKING_DIR": str(tmp_path / "phoenix"),
        "PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": port, "PHOENIX_GRPC_PORT": grpc,
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            arguments, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and server.poll() is None:
            try:
                if httpx.get(url + health, trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        else:
            pytest.fail((tmp_path / "log").read_text()[-2000:])
        store = f"{kind}:{url}"
        test_a_result_is_pushed_and_loaded(store)
        test_a_mixture_of_sets_is_refused(store)
        test_an_app_keeps_its_own_prompts_through_a_second_round(store)
        sets = [{"first": f"set {number}"} for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda prompts: replace(RESULT, prompts=prompts).push(store, "beside"), sets))
        assert afnio.load_prompts(store, "beside", prompts=["first"]) in sets
        if kind == "mlflow":  # its own client reads a text as it is, and the verdict
            code = (
                f"import mlflow; mlflow.set_tracking_uri({url!r}); "
                "found = mlflow.genai.load_prompt('prompts:/router--look_up__no@candidate'); "
                "print(found.template, found.commit_message)"
            )
            done = subprocess.run(
                [arguments[0], "-c", code], env=env, capture_output=True, text=True, check=False
            )
            assert done.stdout == "Number. Better: +40.0 points.\n", done.stderr
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
