"""Rendering: the templates, with every text escaped and made visible on its way into them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from afnio.tellurio.studio.hostile_text import excerpt, plain, visible
from afnio.tellurio.studio.sparkline import sparkline

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
