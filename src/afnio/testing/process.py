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

    from afnio.testing.options import Options


class ProviderProcess:
    """Runs `python -m afnio.testing.provider` while its `with` block lasts.

    >>> from afnio.testing.options import Options
    >>> with ProviderProcess(Options(reply="ok")) as provider:
    ...     provider.stats()["requests"]
    0
    """

    def __init__(self, options: Options) -> None:
        self._command = [sys.executable, "-m", "afnio.testing.provider", *options.arguments()]
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
        return self._ask("GET", "/stats")

    def scale_quota(self, factor: float) -> None:
        """Multiply the limits of all accounts by `factor` from now on."""
        self._ask("POST", "/admin/quota", json.dumps({"scale": factor}))

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        # Not urllib: it would ask a proxy from the environment.
        connection = HTTPConnection(urlsplit(self.base_url).netloc, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer: dict[str, Any] = json.load(response)
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(answer["error"]["message"])
        return answer

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
