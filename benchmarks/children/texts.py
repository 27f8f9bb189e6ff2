"""Texts: what every caller sends, byte for byte the same work."""

from __future__ import annotations

from typing import Any

MODEL = "simulated"
REPLY = "ok"
SYSTEM = "You sort messages for a facility. " + "Say how urgent the message is and what it is about. " * 40
"""A system prompt of 2 kB, as they are."""


DETAIL = (
    "The caller says that it stood still between two floors, that the light was on and the alarm was not. "
)


def message(number: int, size: int = 0) -> str:
    """Return one user's message, of at least `size` characters."""
    text = f"Message {number}: the lift in building {number % 7} has stopped again, please send somebody."
    return (
        text if len(text) >= size else text + " " + (DETAIL * (size // len(DETAIL) + 1))[: size - len(text)]
    )


def body(number: int) -> dict[str, Any]:
    """Return the arguments of one chat completion."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": message(number)}]
    return {"model": MODEL, "messages": messages}
