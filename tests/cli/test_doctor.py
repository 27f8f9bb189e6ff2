"""`afnio prompts`, `afnio doctor` and `afnio login`, as a user runs them, `login` in a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from afnio.testing import Provider, Quota

AFNIO = str(Path(sys.executable).parent / "afnio")
KEY = "sk-doctor-0123456789"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment without keys, with a keyring that is a file."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "AFNIO_"))}
    paths = [str(Path(__file__).parent), *filter(None, [kept.get("PYTHONPATH")])]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHON_KEYRING_BACKEND": "keyring_file.Keyring",
        "KEYRING_FILE": str(tmp_path / "keyring.json"),
        "AFNIO_HOME": str(tmp_path / "runs"),
    }


def run(*arguments: str, env: dict[str, str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [AFNIO, *arguments], capture_output=True, text=True, timeout=60, env=env, input=text
    )


def kept_in(env: dict[str, str]) -> dict[str, str]:
    path = Path(env["KEYRING_FILE"])
    return json.loads(path.read_text()) if path.exists() else {}


def in_terminal(arguments: list[str], env: dict[str, str], typed: str) -> tuple[int, str]:
    """Run in a terminal, type a line once it asks, and return the exit code with all that was shown."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [AFNIO, *arguments], stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
    )
    os.close(slave)
    shown, asked, until = "", False, time.monotonic() + 60
    while time.monotonic() < until:
        if select.select([master], [], [], 0.2)[0]:
            try:
                shown += os.read(master, 4096).decode()
            except OSError:  # the terminal has gone with the process
                break
        if not asked and ": " in shown:
            os.write(master, f"{typed}\n".encode())
            asked = True
    os.close(master)
    return process.wait(60), shown


# prompts


def test_all_prompts_are_printed_by_name_with_their_version(env: dict[str, str]) -> None:
    """Under the names that can be replaced; the texts are those that are sent; a name that isn't there is an error."""
    rows = json.loads(run("prompts", "--json", env=env).stdout)
    found = {row["name"]: row for row in rows}
    assert {row["package"] for row in rows} == {"afnio.cognitive", "afnio.optim"}
    assert all(row["text"].strip() and row["version"] >= 1 for row in rows)
    assert json.loads(found["tgd_schema"]["text"])["json_schema"]["name"] == "afnio_value"
    one = run("prompts", "tgd.system", env=env)
    assert found["tgd.system"]["text"].strip() in one.stdout
    assert found["critic.system"]["text"].strip() not in one.stdout
    assert len(rows) == len(run("prompts", "--list", env=env).stdout.splitlines())
    unknown = run("prompts", "tdg", env=env)
    assert unknown.returncode == 2
    assert "'tdg'" in unknown.stderr
    assert "tgd.system" in unknown.stderr


# doctor


def replying(request: dict[str, Any]) -> Any:
    return {"answer": "yes"} if "response_format" in request else "hello"


async def doctor(env: dict[str, str], base_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    import anyio

    return await anyio.to_thread.run_sync(lambda: run("doctor", "--base-url", base_url, *arguments, env=env))


async def test_a_healthy_endpoint(env: dict[str, str]) -> None:
    """Model, key's source, latency, json_schema and limits, as text and as JSON; the key is nowhere."""
    env["OPENAI_API_KEY"] = KEY
    quota = Quota(requests=6000, tokens=900_000)
    async with Provider(
        lm=replying, api_key=KEY, latency=0.05, quota=quota, models=["other", "gpt-4.1-nano"]
    ) as p:
        done = await doctor(env, p.base_url, "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, done.stderr, found["healthy"]) == (0, "", True)
        checks = found["checks"]
        assert (checks["endpoint"]["model"], checks["endpoint"]["key"]) == ("gpt-4.1-nano", "OPENAI_API_KEY")
        assert 0.05 <= checks["latency"]["median"] < 2
        assert checks["latency"]["calls"] == 3
        assert checks["json_schema"]["supported"]
        assert (checks["limits"]["requests"], checks["limits"]["tokens"]) == (6000, 900_000)
        assert p.stats()["requests"] == 4
        text = await doctor(env, p.base_url, "--model", "other", "--calls", "1")
        assert text.returncode == 0
        assert "answers as other, key from OPENAI_API_KEY" in text.stdout
        assert KEY not in done.stdout + text.stdout
        env["OPENAI_API_KEY"] = "sk-another"
        own = await doctor(env, p.base_url, "--calls", "1", "--api-key", KEY)
        assert own.returncode == 0
        assert "key from --api-key" in own.stdout


async def test_what_an_endpoint_lacks_is_a_note(env: dict[str, str]) -> None:
    """No json_schema and no limits: Afnio can work, and the notes say how."""
    env["OPENAI_API_KEY"] = KEY
    async with Provider(lm=lambda request: "hello") as provider:
        done = await doctor(env, provider.base_url, "--calls", "1")
        assert done.returncode == 0
        assert "note    json_schema  is not supported: the reply isn't a JSON object" in done.stdout
        assert "note    limits       the endpoint reports none" in done.stdout


async def test_an_endpoint_that_fails(env: dict[str, str]) -> None:
    """No key, a wrong one, nobody there, a model that fails: one sentence each, code 1, no second try."""
    async with Provider(api_key=KEY, lm=lambda request: 1 / 0) as provider:
        for key, expected in (
            (None, "no API key was given"),
            ("sk-wrong-0123456789", "The API key is wrong"),
        ):
            env |= {} if key is None else {"OPENAI_API_KEY": key}
            done = await doctor(env, provider.base_url)
            assert done.returncode == 1
            assert expected in done.stdout
            assert "sk-wrong" not in done.stdout + done.stderr
        env["OPENAI_API_KEY"] = KEY
        broken = await doctor(env, provider.base_url, "--json")
        assert (broken.returncode, json.loads(broken.stdout)["healthy"]) == (1, False)
        assert provider.stats()["requests"] == 1
    gone = await doctor(env, provider.base_url)
    assert gone.returncode == 1
    assert "can't reach" in gone.stdout


# login


async def test_a_key_is_checked_kept_found_and_taken_out(env: dict[str, str]) -> None:
    """Typed into a terminal, where it isn't shown; clients without another key then use it."""
    import anyio

    async with Provider(lm=replying, api_key=KEY) as provider:
        url = provider.base_url
        code, shown = await anyio.to_thread.run_sync(in_terminal, ["login", "--base-url", url], env, KEY)
        assert code == 0, shown
        assert f"API key for {url}: " in shown
        assert f"{url} accepts the key (1 models)" in shown
        assert KEY not in shown
        assert kept_in(env) == {f"afnio {url}": KEY}
        found = await doctor(env, url, "--calls", "1")
        assert "key from the keyring" in found.stdout
        env["OPENAI_API_KEY"] = "sk-other-0123456789"
        assert (await doctor(env, url)).returncode == 1
        del env["OPENAI_API_KEY"]
        gone = await anyio.to_thread.run_sync(lambda: run("login", "--base-url", url, "--remove", env=env))
        assert (0, f"the key for {url} was removed\n") == (gone.returncode, gone.stdout)
        assert (await doctor(env, url)).returncode == 1


async def test_a_key_that_is_refused_is_not_kept(env: dict[str, str]) -> None:
    """And neither is it shown; an empty line keeps nothing either."""
    import anyio

    async with Provider(api_key="other") as provider:
        for typed, expected in ((f"{KEY}\n", "The API key is wrong"), ("\n", "no key was given")):
            done = await anyio.to_thread.run_sync(
                lambda text=typed: run("login", "--base-url", provider.base_url, env=env, text=text)
            )
            assert (done.returncode, done.stdout) == (1, "")
            assert expected in done.stderr
            assert KEY not in done.stderr
            assert len(done.stderr.splitlines()) == 1
    assert kept_in(env) == {}


def test_where_there_is_no_keyring(env: dict[str, str]) -> None:
    """It says so before anybody types a key, and what to do instead; clients don't mind."""
    env["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"
    done = run("login", env=env, text=f"{KEY}\n")
    assert done.returncode == 1
    assert "this machine has no keyring" in done.stderr
    assert "set OPENAI_API_KEY" in done.stderr
    code = "from afnio.models.openai import AsyncOpenAI; AsyncOpenAI(base_url='http://127.0.0.1:9/v1')"
    client = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "no API key was given" in client.stderr


def test_without_the_package(env: dict[str, str], tmp_path: Path) -> None:
    """The sentence names the extra."""
    (tmp_path / "keyring.py").write_text("raise ImportError('no module named keyring')")
    env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"
    done = run("login", env=env)
    assert done.returncode == 1
    assert "pip install 'afnio[keyring]'" in done.stderr


async def test_replicas(env: dict[str, str]) -> None:
    """Each by itself: one that is dead is named, with what to do, and so are different models."""
    env["OPENAI_API_KEY"] = KEY
    dead = "http://127.0.0.1:9/v1"
    async with (
        Provider(lm=replying, models=["m", "n"]) as one,
        Provider(lm=replying, models=["m"]) as two,
        Provider(lm=replying, models=["other"]) as third,
    ):

        async def check(*urls: str) -> tuple[int, dict[str, Any]]:
            others = [word for url in urls[1:] for word in ("--base-url", url)]
            done = await doctor(env, urls[0], *others, "--calls", "1", "--json")
            assert done.stderr == ""
            return done.returncode, json.loads(done.stdout)["checks"]

        code, found = await check(one.base_url, dead, two.base_url)
        assert (code, found["replica 2"]["verdict"], found["replicas"]["verdict"]) == (1, "failed", "failed")
        assert f"can't reach {dead}" in found["replica 2"]["text"]
        assert "check base_url and that the server runs" in found["replica 2"]["text"]
        assert (found["replica 3"]["verdict"], found["replicas"]["text"]) == ("ok", "2 of 3 answer as m")
        assert found["replica 3"]["text"].startswith(f"{two.base_url} answers as m, median 0.")
        assert abs(found["replica 1"]["clock_ahead"]) < 5

        code, found = await check(one.base_url, third.base_url)
        assert code == 1
        assert (
            f"replicas must serve the same models (got m, n from {one.base_url}, other from {third.base_url})"
            in found["replicas"]["text"]
        )


@pytest.mark.nightly
async def test_a_replica_without_the_model_that_was_asked_for(env: dict[str, str]) -> None:
    """It is named, with what it has."""
    env["OPENAI_API_KEY"] = KEY
    async with Provider(lm=replying, models=["m", "n"]) as one, Provider(lm=replying, models=["n"]) as two:
        done = await doctor(env, one.base_url, "--base-url", two.base_url, "--model", "m", "--calls", "1")
        assert done.returncode == 1
        assert (
            f"failed  replica 2    {two.base_url} must serve m (got n); start it with that model"
            in done.stdout
        )
        assert "1 of 2 answer as m" in done.stdout
        healthy = await doctor(env, one.base_url, "--base-url", two.base_url, "--model", "n", "--calls", "1")
        assert healthy.returncode == 0
        assert "ok      replicas     2 of 2 answer as n" in healthy.stdout
        twice = await doctor(env, one.base_url, "--base-url", one.base_url)
        assert "--base-url must have each replica once; leave one out" in twice.stdout
