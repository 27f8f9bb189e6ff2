"""The newcomer's path: the page on own data, endpoint and optimizer, walked in an empty folder.

Its installation takes as long as all the rest: `make nightly` walks it too, `make test` has the commands already.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own-data.md").read_text()
INSTALLATION = re.compile(r"^python3 -m venv .*?^pip install .*?\n", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# Packages are those of this environment, found by PYTHONPATH, and pip neither fetches nor builds apart: the rest is
# as a reader has it, a virtual environment with the checkout and the command in it.
OFFLINE = {
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",
    "PIP_NO_INDEX": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def new_shell(bin: Path) -> dict[str, str]:
    """Return the environment of a new shell, but for where commands, packages and data are."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "AFNIO_DATA") if name in os.environ}
    path = os.pathsep.join([str(bin), os.environ["PATH"]])
    packages = sysconfig.get_path("purelib")
    return {**kept, **OFFLINE, "PATH": path, "PYTHONPATH": packages, "AFNIO": str(ROOT)}


def script(blocks: list[tuple[str, str]]) -> str:
    """Return what a reader types: shell blocks as they are, Python blocks into the files that they name."""
    lines = []
    for kind, code in blocks:
        if kind == "python":
            (name,) = re.findall(r"\A# (\w+\.py)\n", code)
            code = f"cat > {name} <<'AFNIO_END'\n{code}AFNIO_END\n"
        lines.append(code)
    return "".join(lines)


@pytest.mark.skipif(
    "AFNIO_DATA" not in os.environ,
    reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
)
@pytest.mark.parametrize("installs", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_path(tmp_path: Path, installs: bool) -> None:
    """Every step works as written: install, data, endpoint, optimizer, a look at the runs."""
    text = PAGE.replace("8000", str(free_port()))  # somebody else may have it
    bin = tmp_path / ".venv" / "bin"
    if not installs:
        text, removed = INSTALLATION.subn("", text)
        assert removed == 1
        bin = Path(sys.executable).parent
    env = new_shell(bin)
    *blocks, (_, studio) = BLOCK.findall(text)
    walk = subprocess.Popen(
        ["bash", "-e", "-c", script(blocks) + "echo DONE"],
        cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = walk.communicate(timeout=100)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(walk.pid, signal.SIGKILL)  # the provider that it left in the background
    assert said.rstrip().endswith("DONE"), said
    right = [int(number) for number in re.findall(r"first, epoch \d: (\d)", said)]
    assert right[-1] > right[0], said
    assert re.search(r"^.*\bmine\b.*COMPLETED", said, re.MULTILINE), said
    assert "<html" in (tmp_path / "first.html").read_text()[:200]
    look_at_the_studio(bin, studio.strip(), tmp_path, env)


def look_at_the_studio(bin: Path, command: str, folder: Path, env: dict[str, str]) -> None:
    """Open the address that it prints, see both runs' project, and end it by Ctrl-C."""
    name, *arguments = command.split()
    server = subprocess.Popen(
        [str(bin / name), *arguments],
        cwd=folder, env=env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        page = opener.open(server.stdout.readline().strip(), timeout=60).read().decode()
        assert "sorter" in page
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 130
    finally:
        server.kill()
        server.communicate()
