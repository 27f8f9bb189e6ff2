"""Serve a provider: `python -m afnio.testing.provider`."""

from __future__ import annotations

from afnio.testing.provider._provider import main

main()
