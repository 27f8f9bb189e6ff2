"""Visitor: starts a studio and asks it for pages by HTTP alone, with the headers that it is given."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Studio:
    """A running studio, by the address that it printed.

    Attributes:
        seconds: from its start to its first line.
    """

    address: str
    seconds: float
    cookie: str | None = field(default=None)

    @property
    def port(self) -> int:
        port = urlsplit(self.address).port
        assert port is not None
        return port

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.address).query)["token"][0]

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, name: str) -> str:
        """Return the address of a run by its name."""
        for path, found in re.findall(
            r'<a class="row-link[^"]*" href="(/runs/[^"]+)">([^<]*)', self.page("/").text
        ):
            if found == name:
                return path
        raise AssertionError(f"no run {name} in the list")

    def get(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Answer:
        """Ask without any cookie but one in `headers`; underscores in their names become hyphens."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, text)

    def page(self, path: str) -> Answer:
        """Ask as the user's browser does, with the cookie."""
        if self.cookie is None:
            self.cookie = self.get(f"/?token={self.token}").headers["set-cookie"].partition(";")[0]
        return self.get(path, Cookie=self.cookie)


@contextmanager
def started(home: Path, *arguments: str, warning: str = "") -> Iterator[Studio]:
    """Run `afnio studio` on a folder while the block lasts; on standard error it says `warning` and nothing else."""
    command = [sys.executable, "-m", "afnio.cli", "studio", "--dir", str(home), *arguments]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline().strip()
        try:
            yield Studio(line, time.monotonic() - began)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                _, errors = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert warning == errors
    assert process.returncode == 130
