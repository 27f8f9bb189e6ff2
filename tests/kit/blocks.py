"""Reads back the tagged blocks of a prompt."""

from __future__ import annotations

import json
import re
from typing import NamedTuple


class Block(NamedTuple):
    attributes: dict[str, str]
    text: str


def read_blocks(text: str, tag: str) -> list[Block]:
    """Return the blocks of `tag` in order, with escaped tags unescaped."""
    return [
        Block(
            {
                name: _plain(json.loads(value))
                for name, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)*")', head)
            },
            _plain(body),
        )
        for head, body in _found(text, tag)
    ]


def read_section(text: str, tag: str) -> str:
    """Return the text inside the section `tag`, "" if there is none."""
    found = _found(text, tag)
    return found[0][1] if found else ""


def _found(text: str, tag: str) -> list[tuple[str, str]]:
    return re.findall(rf"<{tag}((?:\s[^\n]*)?)>\n(.*?)\n?</{tag}>", text, re.DOTALL)


def _plain(text: str) -> str:
    return text.replace("&lt;", "<")
