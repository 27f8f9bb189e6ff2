"""Text that others wrote, made safe to look at: escaped, with what is invisible made visible, and cut."""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

from markupsafe import Markup, escape

# What reorders text, hides in it or can't be encoded. Joiners of emoji and Persian words stay as they are.
INVISIBLE: Final = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f"  # control characters but tab and newline
    "\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff"  # bidi marks and such
    "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"  # half pairs, annotations, tags
)

PAGE: Final = 20_000
"""Characters of one text that a page shows at first, and the most that one "show more" adds."""


class Excerpt(NamedTuple):
    """A part of a text, from character `start` on; `total` is the length of the whole."""

    text: str
    start: int
    total: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def rest(self) -> int:
        return self.total - self.end


def excerpt(text: str, start: int = 0, size: int = PAGE) -> Excerpt:
    """Return `size` characters of `text` from `start` on.

    >>> excerpt("abcdef", 2, 3).rest
    1
    """
    start = min(max(start, 0), len(text))
    return Excerpt(text[start : start + size], start, len(text))


def visible(text: str) -> Markup:
    """Return `text` escaped, each character that would hide or reorder something shown by its number.

    >>> print(visible("<b>\u202egnp"))
    &lt;b&gt;<span class="control" title="RIGHT-TO-LEFT OVERRIDE">U+202E</span>gnp
    """
    text = text.replace("\r\n", "\n")
    parts: list[Markup] = []
    at = 0
    for found in INVISIBLE.finditer(text):
        parts += (escape(text[at : found.start()]), _mark(found.group()))
        at = found.end()
    return Markup("").join([*parts, escape(text[at:])])


def plain(text: str) -> str:
    """Return `text` for places without markup, such as attributes and titles: the same, without spans.

    >>> plain("a\u202eb")
    'a[U+202E]b'
    """
    return INVISIBLE.sub(lambda found: f"[U+{ord(found.group()):04X}]", text)


def _mark(character: str) -> Markup:
    number = f"U+{ord(character):04X}"
    name = unicodedata.name(character, "control character")
    return Markup('<span class="control" title="{}">{}</span>').format(name, number)
