"""Texts: what every caller sends, byte for byte the same work."""

from __future__ import annotations

from typing import Any

MODEL = "simulated"
REPLY = "ok"
SYSTEM = "You sort messages for a facility. " + "Say how urgent the message is and what it is about. " * 40
"""A system prompt of 2 kB, as they are."""


def message(number: int) -> str:
    return f"Message {number}: the lift in building {number % 7} has stopped again, please send somebody."


def body(number: int) -> dict[str, Any]:
    """Return the arguments of one chat completion."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": message(number)}]
    return {"model": MODEL, "messages": messages}
