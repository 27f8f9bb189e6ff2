"""The provider as a process of its own, seen from its parent."""

from __future__ import annotations

import json
import subprocess
import sys
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType


class ProviderProcess:
    """Runs `python -m afnio.testing.provider` while its `with` block lasts.

    >>> with ProviderProcess(reply="ok") as provider:
    ...     provider.stats()["requests"]
    0
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        api_key: str | None = None,
        reply: str | None = None,
        port: int = 0,
    ) -> None:
        self._command = [sys.executable, "-m", "afnio.testing.provider"]
        self._command += ["--port", str(port), "--latency", str(latency)]
        if api_key is not None:
            self._command.append(f"--api-key={api_key}")
        if reply is not None:
            self._command.append(f"--reply={reply}")
        self._process: subprocess.Popen[bytes] | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._stop()
            raise RuntimeError(f"The provider ended with code [{code}] before it served; see stderr.")
        self.base_url = json.loads(line)["base_url"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The id of the process, for those who measure its CPU time."""
        if self._process is None:
            raise RuntimeError("The provider is not running; enter its `with` block first.")
        return self._process.pid

    def stats(self) -> dict[str, Any]:
        """Return the counts of the process, as `Provider.stats` does."""
        # Not urllib: it would ask a proxy from the environment.
        connection = HTTPConnection(urlsplit(self.base_url).netloc, timeout=30)
        try:
            connection.request("GET", "/stats")
            counts: dict[str, Any] = json.load(connection.getresponse())
        finally:
            connection.close()
        return counts

    def _stop(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # the process ends with its standard input
        try:
            return process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            process.stdout.close()
