"""Fault: what a request gets in place of its reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from afnio.testing.connection import Connection


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """An error, a broken reply, a reset connection, or nothing ever.

    Args:
        status, body, headers: what is sent.
        close: reset the connection instead.
        hang: send nothing instead, until the client goes.
        missing: how many bytes more than the body the reply announces before it ends.
        drip: seconds over which the body goes out in small pieces.
        name: under which the ledger counts it.

    >>> Fault(status=429, headers={"retry-after": "1"}).status
    429
    """

    status: int = 500
    body: str = '{"error": {"message": "A simulated fault.", "type": "server_error", "code": null}}'
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False
    hang: bool = False
    missing: int = 0
    drip: float = 0.0
    name: str = "custom"

    def apply(self, connection: Connection, headers: Mapping[str, str] | None = None) -> None:
        """Do it to the request in hand; the fault's own headers win over `headers`."""
        if self.close:
            connection.reset()
        elif not self.hang:
            fields = {**(headers or {}), **self.headers}
            connection.send(self.status, self.body.encode(), fields, missing=self.missing, drip=self.drip)
