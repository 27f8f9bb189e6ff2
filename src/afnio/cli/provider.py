"""`afnio provider`: serve a provider for tests."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Serve until the input ends, and return the process's exit code."""
    from afnio.testing.provider._provider import main as serve

    serve(argv, prog="afnio provider")
    return 0
