"""Rendering: templates, the formats of figures, and what makes strangers' text safe to show.

Prompts, replies and names come from models and from users' data, and may try to deceive or attack whoever reads them.
Jinja escapes every value. In addition, characters that are invisible or reorder text are shown by their numbers: in
element text by the filter `visible`, and everywhere else (attributes, titles) by the environment's `finalize`.

Long texts are cut to excerpts, and diffs fall back from words to lines, so that no page takes long to make.
"""

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

from afnio.tellurio._queries import LARGEST

FOLDER: Final = Path(__file__).parent
DASH: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"


@cache
def environment() -> Environment:
    """Return the environment of the templates. It has no state, so one is enough."""
    found = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        # For every value in a template, also in attributes, where the filters may have been forgotten.
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "visible": lambda value: visible(str(value)),
        "plain": lambda value: plain(str(value)),
        "excerpt": excerpt,
        "feedback": feedback,
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
    """Render a template."""
    return environment().get_template(template).render(**context)


def number(value: float | None) -> str:
    """Format a count, with commas between thousands; None is a dash.

    >>> number(100000)
    '100,000'
    """
    return DASH if value is None else f"{value:,.0f}"


def score(value: float | None) -> str:
    """Format a score or a metric: three decimals, or none for a whole or a large number.

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
    """Format a share as a percentage.

    >>> percent(0.3676)
    '36.8 %'
    """
    return DASH if value is None else f"{100 * value:.1f} %"


def signed(value: float | None) -> str:
    """Format a difference with its sign.

    >>> signed(0.25), signed(0)
    ('+0.250', '±0')
    """
    if value is None:
        return DASH
    if value == 0:
        return "±0"
    return ("+" if value > 0 else MINUS) + score(abs(value))


def dollars(value: float | None) -> str:
    """Format a cost. An unknown one isn't 0, so it is written out.

    >>> dollars(None), dollars(0.0123), dollars(12.5)
    ('unpriced', '$0.0123', '$12.50')
    """
    if value is None:
        return "unpriced"
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def seconds(value: float | None) -> str:
    """Format a duration in a suitable unit.

    >>> seconds(0.0421), seconds(12.34), seconds(3725)
    ('42 ms', '12.3 s', '1 h 2 min')
    """
    if value is None:
        return DASH
    # Rounding must not give "1000 ms" or "60.0 s", so the bounds are a little lower than a second and a minute.
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(value: float | None) -> str:
    """Format a time (seconds since 1970 UTC) in the local time zone."""
    if value is None:
        return DASH
    return f"{datetime.fromtimestamp(value, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def ago(value: float | None, now: float | None = None) -> str:
    """Format how long ago a time was, roughly.

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
    """Shorten a line of code, "path:number", to the last folder and the file.

    >>> place("/home/me/project/agents/mail.py:12")
    'agents/mail.py:12'
    """
    return "/".join(line.split("/")[-2:])


def _harmless(value: Any) -> Any:
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


# Strangers' text.

# Characters that reorder text, are invisible, or can't be encoded. Joiners are allowed: emoji and Persian need them.
INVISIBLE: Final = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f"  # control characters but tab and newline
    "\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff"  # bidi marks and such
    "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"  # half pairs, annotations, tags
)

# Characters of a text that a page shows at first, and that each "Show more" adds.
EXCERPT: Final = 20_000


class Excerpt(NamedTuple):
    """A part of a text that begins at character `start`; `total` is the length of the whole text."""

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
    """Return `size` characters of a text from `start` on.

    >>> excerpt("abcdef", 2, 3).rest
    1
    """
    start = min(max(start, 0), len(text))
    return Excerpt(text[start : start + size], start, len(text))


class SaidFeedback(NamedTuple):
    """A piece of feedback, and the calls that it is about if it came with them."""

    said: str
    trace: str


_TRACED: Final = re.compile(r"<trace>\n(.*)\n</trace>\n.*<feedback>\n(.*)\n</feedback>\s*\Z", re.DOTALL)


def feedback(text: str) -> SaidFeedback:
    """Return what is said about a run of an agent apart from the run's calls, which have the whole prompt.

    >>> feedback("<trace>\\nHi.\\n</trace>\\n<feedback>\\nToo short.\\n</feedback>")
    SaidFeedback(said='Too short.', trace='Hi.')
    """
    match = _TRACED.search(text)
    return SaidFeedback(text, "") if match is None else SaidFeedback(match.group(2), match.group(1))


def visible(text: str) -> Markup:
    """Escape a text for HTML, with invisible and reordering characters shown by their numbers.

    >>> print(visible("<b>\u202egnp"))
    &lt;b&gt;<span class="control" title="RIGHT-TO-LEFT OVERRIDE">U+202E</span>gnp
    """
    text = text.replace("\r\n", "\n")
    parts: list[Markup] = []
    at = 0
    for match in INVISIBLE.finditer(text):
        parts += (escape(text[at : match.start()]), _mark(match.group()))
        at = match.end()
    return Markup("").join([*parts, escape(text[at:])])


def plain(text: str) -> str:
    """Return a text with such characters shown by their numbers, for attributes and titles, where no markup can be.

    >>> plain("a\u202eb")
    'a[U+202E]b'
    """
    return INVISIBLE.sub(lambda match: f"[U+{ord(match.group()):04X}]", text)


def _mark(character: str) -> Markup:
    number = f"U+{ord(character):04X}"
    name = unicodedata.name(character, "control character")
    return Markup('<span class="control" title="{}">{}</span>').format(name, number)


# Word diffs.

Kind = Literal["same", "gone", "new"]

# The most words on each side that are compared one by one. The time grows with the product of both numbers.
MOST_WORDS: Final = 3_000

_WORDS: Final = re.compile(r"\w+|[^\S\n]+|\n|[^\w\s]")


class Piece(NamedTuple):
    """A part of a diff: characters that both texts have, or only the old (gone), or only the new."""

    kind: Kind
    text: str


def word_diff(before: str, after: str) -> list[Piece]:
    """Return the differences between two texts, word by word.

    The pieces without the new ones make `before`, and without the gone ones `after`. Long texts are compared by lines
    first. If there are too many words between two common lines, the whole block counts as changed.

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
    """Compare two blocks: first their common beginning and end, then the words in between if there aren't too many."""
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
    """Join changes with nothing but spaces between them: one change of two words is easier to read than two of one."""
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


def query_number(asked: Mapping[str, str], name: str) -> int:
    """Return a number from an address's query; 0 if it isn't there or isn't a whole number.

    >>> query_number({"from": "20"}, "from"), query_number({"from": "-1"}, "from"), query_number({}, "from")
    (20, 0, 0)
    """
    text = asked.get(name, "")
    if not text.isdecimal():
        return 0
    # int() refuses texts with thousands of digits.
    return min(int(text), LARGEST) if len(text) < 20 else LARGEST


# Sparklines: a metric as one small line.

WIDTH: Final = 96
HEIGHT: Final = 22
MARGIN: Final = 2
# Points of a line. More would be less than two pixels apart.
MOST_POINTS: Final = 48


def sparkline(values: Sequence[float]) -> str:
    """Return the points of an SVG polyline; "" if there are fewer than two numbers.

    >>> sparkline([0, 1])
    '2.0,20.0 94.0,2.0'
    """
    numbers = thinned([value for value in values if math.isfinite(value)], MOST_POINTS)
    if len(numbers) < 2:
        return ""
    low, high = min(numbers), max(numbers)
    span = (high - low) or 1.0
    # Draw a constant metric in the middle.
    floor = low if high > low else low - 0.5
    across = (WIDTH - 2 * MARGIN) / (len(numbers) - 1)
    down = HEIGHT - 2 * MARGIN
    return " ".join(
        f"{MARGIN + index * across:.1f},{MARGIN + down * (1 - (value - floor) / span):.1f}"
        for index, value in enumerate(numbers)
    )


def thinned(values: Sequence[float], most: int) -> list[float]:
    """Return at most `most` of the values, evenly spaced, including the first and the last.

    >>> thinned(list(range(10)), 4)
    [0, 3, 6, 9]
    """
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / (most - 1)
    return [values[round(index * step)] for index in range(most)]
