"""The endpoint of the TLS benchmark in its own process, with a certificate authority made for it.

The authority lives as long as the `with` block, in a folder of it; only the children that are measured trust it, by
SSL_CERT_FILE.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.child import ROOT

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint.

    Attributes:
        ports: of each scheme.
        trust: the environment with which a child trusts it.
    """

    ports: Mapping[str, int]
    trust: Mapping[str, str]

    def base_url(self, scheme: str, latency: float) -> str:
        return f"{scheme}://{HOST}:{self.ports[scheme]}/{latency:g}/v1"

    def counts(self) -> dict[str, int]:
        """Return how many connections with a call came so far, how many of them resumed, and the calls in flight."""
        return counts(self.ports["http"])


def counts(port: int) -> dict[str, int]:
    """Ask the endpoint whose plain port it is, also from another process."""
    connection = HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request("GET", "/counts")
        found: dict[str, int] = json.load(connection.getresponse())
    finally:
        connection.close()
    return found


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """Run an endpoint while the block lasts."""
    import trustme  # not for the children that import `counts`

    with TemporaryDirectory() as folder:
        authority = trustme.CA()
        issued, trusted = Path(folder) / "server.pem", Path(folder) / "authority.pem"
        authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(issued)
        authority.cert_pem.write_to_path(trusted)
        options = json.dumps({"certificate": str(issued)})
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.children.endpoint", options],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the endpoint must print its ports (it ended); see its errors above")
            yield Endpoint(json.loads(line), {"SSL_CERT_FILE": str(trusted)})
        finally:
            process.stdin.close()
            process.wait(timeout=30)
            process.stdout.close()
