"""Several hosts on one machine: network namespaces, each with a name, an address and a link of its own."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process

TESTS = Path(__file__).parent.parent
SOURCES = TESTS.parent / "src"
_numbers = itertools.count()


def is_possible() -> bool:
    """Return True if this user may make network namespaces."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    name = f"afnio-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return False
    return not subprocess.run(["ip", "netns", "del", name], capture_output=True).returncode


class Host:
    """One host. Its processes see only its own interfaces, and its name as that of the machine.

    Attributes:
        address: its IP address.
    """

    def __init__(self, network: str, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.namespace = f"{network}-{name}"
        self.link = f"{network}{address.rpartition('.')[2]}"
        self._processes: list[Process] = []

    def command(self, *arguments: str) -> list[str]:
        inside = ["sh", "-c", 'hostname "$0"; exec "$@"', self.name, *arguments]
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", *inside]

    async def start(self, *arguments: str, ready: str, **environment: str) -> list[str]:
        """Start a process, and return its lines of output up to the one with `ready` in it."""
        process = await anyio.open_process(
            self.command(*arguments), env=_environment(environment), stderr=subprocess.STDOUT
        )
        self._processes.append(process)
        assert process.stdout is not None
        text = ""
        with anyio.move_on_after(120) as waiting:
            while not any(ready in line for line in text.splitlines(keepends=True) if line.endswith("\n")):
                try:
                    text += (await process.stdout.receive()).decode()
                except anyio.EndOfStream:
                    raise AssertionError(f"{arguments} ended: {text}") from None
        assert not waiting.cancelled_caught, f"{arguments} aren't ready: {text}"
        return text.splitlines()

    async def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Run a command to its end. Returns its exit code, output and errors."""
        done = await anyio.run_process(self.command(*arguments), env=_environment(environment), check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def disconnect(self) -> None:
        """Pull its plug: its packets are lost, and nobody is told."""
        _ip("link", "set", self.link, "nomaster")

    def connect(self) -> None:
        _ip("link", "set", self.link, "master", self.namespace.partition("-")[0])

    async def end(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()
            await process.aclose()


@contextmanager
def network(*names: str) -> Iterator[list[Host]]:
    """Make hosts on one bridge, with the addresses 10.77.n.1, 10.77.n.2, …."""
    number = (os.getpid() + next(_numbers)) % 250
    bridge = f"af{number}"
    hosts = [Host(bridge, name, f"10.77.{number}.{place}") for place, name in enumerate(names, 1)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for host in hosts:
            _ip("netns", "add", host.namespace)
            _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("link", "set", host.link, "master", bridge, "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            listed = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True)
            for pid in listed.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", host.namespace)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", bridge)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "AFNIO_"))}
    path = os.pathsep.join([str(SOURCES), str(TESTS)])
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OPENAI_API_KEY": "any-key-0123", **more}


def python(module: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name(module))]


def last_line(text: str) -> Any:
    return json.loads(text.splitlines()[-1])
