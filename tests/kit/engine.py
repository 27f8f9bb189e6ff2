"""The engine's own objects, for tests outside of tests/runtime."""

from __future__ import annotations

from afnio.runtime._kernel import Launch, Slot

__all__ = ["Launch", "Slot"]
