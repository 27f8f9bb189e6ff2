"""Rendering: the templates, with every text escaped and made visible on its way into them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

FOLDER: Final = Path(__file__).parent
DASH: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"


@cache
def environment() -> Environment:
    """Return the templates' environment; one is enough, as it changes nothing."""
    found = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        # Whatever a template writes, in an attribute as in text, hides and reorders nothing.
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "visible": lambda value: visible(str(value)),
        "plain": lambda value: plain(str(value)),
        "excerpt": excerpt,
        "sparkline": sparkline,
        "number": number,
        "score": score,
        "percent": percent,
        "signed": signed,
        "dollars": dollars,
        "seconds": seconds,
        "ago": ago,
        "moment": moment,
        "place": place,
    }
    return found


def render(template: str, **context: Any) -> str:
    """Return a template filled in."""
    return environment().get_template(template).render(**context)


def number(value: float | None) -> str:
    """Return a count with thousands apart, or a dash.

    >>> number(100000)
    '100,000'
    """
    return DASH if value is None else f"{value:,.0f}"


def score(value: float | None) -> str:
    """Return a score or a metric, with three digits behind the point where it has any.

    >>> score(0.72058), score(3.0), score(123456.7)
    ('0.721', '3', '123,457')
    """
    if value is None:
        return DASH
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return (
        f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.2g}"
    )


def percent(value: float | None) -> str:
    """Return a share in percent.

    >>> percent(0.3676)
    '36.8 %'
    """
    return DASH if value is None else f"{100 * value:.1f} %"


def signed(value: float | None) -> str:
    """Return a difference with its sign.

    >>> signed(0.25), signed(0)
    ('+0.250', '±0')
    """
    if value is None:
        return DASH
    if value == 0:
        return "±0"
    return ("+" if value > 0 else MINUS) + score(abs(value))


def dollars(value: float | None) -> str:
    """Return a cost; one that nobody knows is not 0.

    >>> dollars(None), dollars(0.0123), dollars(12.5)
    ('unpriced', '$0.0123', '$12.50')
    """
    if value is None:
        return "unpriced"
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def seconds(value: float | None) -> str:
    """Return a duration in the unit that suits it.

    >>> seconds(0.0421), seconds(12.34), seconds(3725)
    ('42 ms', '12.3 s', '1 h 2 min')
    """
    if value is None:
        return DASH
    # The bounds are where the shorter form would round up to one of the longer.
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(value: float | None) -> str:
    """Return a time (seconds since 1970 UTC) as this machine's clock shows it."""
    if value is None:
        return DASH
    return f"{datetime.fromtimestamp(value, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def ago(value: float | None, now: float | None = None) -> str:
    """Return how long ago a time was, roughly.

    >>> ago(0, now=7300)
    '2 h ago'
    """
    if value is None:
        return DASH
    passed = (datetime.now(UTC).timestamp() if now is None else now) - value
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= length:
            return f"{passed // length:.0f} {unit} ago"
    return "just now"


def place(line: str) -> str:
    """Return a place in code with the end of its path only; the folders before say little and are long.

    >>> place("/home/me/project/agents/mail.py:12")
    'agents/mail.py:12'
    """
    return "/".join(line.split("/")[-2:])


def _harmless(value: Any) -> Any:
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


# Text that others wrote, made safe to look at: escaped, with what is invisible made visible, and cut.


# What reorders text, hides in it or can't be encoded. Joiners of emoji and Persian words stay as they are.
INVISIBLE: Final = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f"  # control characters but tab and newline
    "\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff"  # bidi marks and such
    "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"  # half pairs, annotations, tags
)

EXCERPT: Final = 20_000
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


def excerpt(text: str, start: int = 0, size: int = EXCERPT) -> Excerpt:
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


# Word diff: what was taken out of a text and what was put in, word by word.


Kind = Literal["same", "gone", "new"]

MOST_WORDS: Final = 3_000
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
    pieces = _compare(old, new) if max(len(old), len(new)) <= MOST_WORDS else _by_lines(before, after)
    return _joined(pieces)


def _by_lines(before: str, after: str) -> list[Piece]:
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    if max(len(old), len(new)) > MOST_WORDS:
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
    if max(map(len, middle)) <= MOST_WORDS:
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


# Query number: a whole number that an address asks for.


LARGEST: Final = 2**63 - 1
"""SQLite's numbers have 64 bits; larger ones in an address are nobody's."""


def query_number(asked: Mapping[str, str], name: str) -> int:
    """Return the number that a query has by this name; 0 where it has none.

    >>> query_number({"from": "20"}, "from"), query_number({"from": "-1"}, "from"), query_number({}, "from")
    (20, 0, 0)
    """
    text = asked.get(name, "")
    if not text.isdecimal():
        return 0
    # Python refuses to read thousands of digits.
    return min(int(text), LARGEST) if len(text) < 20 else LARGEST


# Sparkline: a metric's course as the points of one small line.


WIDTH: Final = 96
HEIGHT: Final = 22
MARGIN: Final = 2
MOST_POINTS: Final = 48
"""Points of one line; more of them would be closer than a pixel's half."""


def sparkline(values: Sequence[float]) -> str:
    """Return an SVG polyline's points; empty where there are fewer than two numbers to join.

    >>> sparkline([0, 1])
    '2.0,20.0 94.0,2.0'
    """
    numbers = thinned([value for value in values if math.isfinite(value)], MOST_POINTS)
    if len(numbers) < 2:
        return ""
    low, high = min(numbers), max(numbers)
    span = (high - low) or 1.0
    # A course that never moves is a line in the middle.
    floor = low if high > low else low - 0.5
    across = (WIDTH - 2 * MARGIN) / (len(numbers) - 1)
    down = HEIGHT - 2 * MARGIN
    return " ".join(
        f"{MARGIN + index * across:.1f},{MARGIN + down * (1 - (value - floor) / span):.1f}"
        for index, value in enumerate(numbers)
    )


def thinned(values: Sequence[float], most: int) -> list[float]:
    """Return at most `most` of the values, evenly spread, the first and the last among them.

    >>> thinned(list(range(10)), 4)
    [0, 3, 6, 9]
    """
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / (most - 1)
    return [values[round(index * step)] for index in range(most)]
