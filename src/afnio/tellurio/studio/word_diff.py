"""Word diff: what was taken out of a text and what was put in, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Final, Literal, NamedTuple

Kind = Literal["same", "gone", "new"]

MOST: Final = 3_000
"""Words on each side that are compared one by one; difflib's time grows with their product."""

_WORDS: Final = re.compile(r"\w+|[^\S\n]+|\n|[^\w\s]")


class Piece(NamedTuple):
    """A run of characters and what happened to it."""

    kind: Kind
    text: str


def word_diff(before: str, after: str) -> list[Piece]:
    """Return both texts as one: joined without `new` it is `before`, joined without `gone` it is `after`.

    Long texts are compared by lines first; where too many words are left between two common lines,
    the whole block counts as changed.

    >>> word_diff("Be brief.", "Be very brief.")
    [Piece(kind='same', text='Be'), Piece(kind='new', text=' very'), Piece(kind='same', text=' brief.')]
    """
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    pieces = _compare(old, new) if max(len(old), len(new)) <= MOST else _by_lines(before, after)
    return _joined(pieces)


def _by_lines(before: str, after: str) -> list[Piece]:
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    if max(len(old), len(new)) > MOST:
        return _blocks("".join(old), "".join(new))
    pieces: list[Piece] = []
    for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, added = "".join(old[a:b]), "".join(new[c:d])
        if tag == "equal":
            pieces.append(Piece("same", gone))
        else:
            pieces += _blocks(gone, added)
    return pieces


def _blocks(gone: str, added: str) -> list[Piece]:
    """Compare two blocks: what they share at their ends is the same, between them words if few enough."""
    old, new = _WORDS.findall(gone), _WORDS.findall(added)
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    middle = old[head : len(old) - tail], new[head : len(new) - tail]
    pieces = [Piece("same", "".join(old[:head]))]
    if max(map(len, middle)) <= MOST:
        pieces += _compare(*middle)
    else:
        pieces += (Piece("gone", "".join(middle[0])), Piece("new", "".join(middle[1])))
    return [*pieces, Piece("same", "".join(old[len(old) - tail :]))]


def _compare(old: Sequence[str], new: Sequence[str]) -> list[Piece]:
    pieces: list[Piece] = []
    for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            pieces.append(Piece("same", "".join(old[a:b])))
        else:
            pieces += (Piece("gone", "".join(old[a:b])), Piece("new", "".join(new[c:d])))
    return pieces


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Join changes that only a space or less keeps apart: "two changed words" reads better than two changes."""
    joined: list[Piece] = []
    gone = new = ""
    for number, piece in enumerate(pieces):
        bridge = piece.kind == "same" and piece.text.isspace() and (gone or new)
        follows = bridge and any(later.text for later in pieces[number + 1 : number + 3])
        if piece.kind == "gone":
            gone += piece.text
        elif piece.kind == "new":
            new += piece.text
        elif follows and "\n" not in piece.text:
            gone, new = gone + piece.text, new + piece.text
        elif piece.text:
            joined += _flushed(gone, new)
            gone = new = ""
            joined.append(piece)
    return [*joined, *_flushed(gone, new)]


def _flushed(gone: str, new: str) -> list[Piece]:
    if gone == new:
        return [Piece("same", gone)] if gone else []
    return [piece for piece in (Piece("gone", gone), Piece("new", new)) if piece.text]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    for number, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return number
    return min(len(one), len(other))
