"""Reads the tagged blocks of the prompts that the critic and the optimizer are sent."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Final, NamedTuple

_TAGS: Final = (
    "variables|variable|conversation|message|reply|edited_reply|reply_format|feedback|value|history"
    "|step|constraints|constraint|feedbacks|failures|failure|rejected|tried"
)
_ESCAPED: Final = re.compile(rf"&lt;(?=/?(?:{_TAGS})\b)")
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_ATTRIBUTE: Final = re.compile(rf"(\w+)=({_QUOTED})")


class Block(NamedTuple):
    """One `<tag name="…">` block: its attributes and its text, un-escaped."""

    attributes: dict[str, str]
    text: str


def read_blocks(text: str, tag: str) -> list[Block]:
    r"""Return the blocks of `tag` in their order; what is cut off before its end is not there.

    >>> read_blocks('<feedback source="judge">\nshorter\n</feedback>', "feedback")
    [Block(attributes={'source': 'judge'}, text='shorter')]
    """
    return [
        Block(
            {name: unescape(json.loads(value)) for name, value in _ATTRIBUTE.findall(head)},
            unescape(body),
        )
        for head, body in _pattern(tag).findall(text)
    ]


def read_section(text: str, tag: str) -> str:
    """Return what stands inside the section `tag`, blocks unread, or nothing if it is not there."""
    found = _pattern(tag).search(text)
    return found.group(2) if found else ""


def samples_of(block: Block) -> int:
    """Return from how many inputs a block says that it comes; from one if it doesn't say.

    >>> samples_of(Block({"samples": "12"}, "shorter")), samples_of(Block({}, "shorter"))
    (12, 1)
    """
    given = block.attributes.get("samples", "1")
    return int(given) if given.isdecimal() else 1


def unescape(text: str) -> str:
    """Return `text` with the openings of tags that prompts made harmless restored."""
    return _ESCAPED.sub("<", text)


@cache
def _pattern(tag: str) -> re.Pattern[str]:
    return re.compile(rf"<{tag}((?: \w+={_QUOTED})*)>\n(.*?)\n</{tag}>", re.DOTALL)
