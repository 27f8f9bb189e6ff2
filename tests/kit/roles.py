"""Scripts for a ScriptedClient that plays student, critic, judge and optimizer by what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from afnio.models import ChatRequest
from kit.blocks import Block, read_blocks, read_section

_KINDS = {
    "afnio_feedback": "critic",
    "afnio_reduction": "reducer",
    "afnio_value": "optimizer",
    "afnio_edits": "editor",
    "afnio_judgement": "judge",
}


def kind(request: ChatRequest) -> str:
    form = request.params.get("response_format") or {}
    return _KINDS.get(form.get("json_schema", {}).get("name"), "student")


def prompt(request: ChatRequest) -> str:
    return str(request.messages[-1]["content"])


def shown(request: ChatRequest, tag: str) -> list[str]:
    """Return the texts of the blocks `tag` that the request's last message shows."""
    return [block.text for block in read_blocks(prompt(request), tag)]


def variables(request: ChatRequest) -> list[Block]:
    return read_blocks(read_section(prompt(request), "variables"), "variable")


def comment(text: str | Callable[[Block], str]) -> Callable[[ChatRequest], dict[str, Any]]:
    """Return a critic that says `text`, or what `text` makes of each variable."""

    def reply(request: ChatRequest) -> dict[str, Any]:
        return {
            "feedback": [
                {"variable": v.attributes["id"], "text": text if isinstance(text, str) else text(v)}
                for v in variables(request)
            ]
        }

    return reply


def play(**parts: Any) -> Callable[[ChatRequest], Any]:
    """Return a script that answers each kind of request by its part: a reply or a function of the request."""

    def script(request: ChatRequest) -> Any:
        part = parts[kind(request)]
        return part(request) if callable(part) else part

    return script
