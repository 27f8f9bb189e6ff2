"""Rules: what the new prompts must keep. Rows that must not break, sentences and checks, and a length.

`Rules.of` checks them at the caller's line, before a call is paid. A rule that the start prompts break could never be
kept, so that is an error, too; only guards can't be asked for free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

from afnio.runtime._callables import is_async
from afnio.studies._rows import Row, check_text, read_rows

# A prompt may grow to this, or to its first length if that is more. Longer ones didn't score better.
MOST_CHARACTERS: Final = 1_000

Check = Callable[[str, str], str | None]
"""Called with a prompt's name and its new text. Returns why it is refused, or None."""


@final
@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one optimization.

    Attributes:
        guards: rows that must not break. They train, too.
        told: sentences for the proposer.
        checks: functions that refuse a text.
        lengths: the most characters of each prompt. None sets no limit.
    """

    guards: Sequence[Row]
    told: Sequence[str]
    checks: Sequence[Check]
    lengths: Mapping[str, int | None]

    @classmethod
    def of(
        cls,
        texts: Mapping[str, str],
        guards: Sequence[Row] = (),
        constraints: Any = (),
        max_chars: Any = MOST_CHARACTERS,
    ) -> Rules:
        """Return the rules for prompts that start as `texts`.

        Raises:
            TypeError, ValueError: for rules that can't be kept, or that the start prompts break.
        """
        if isinstance(constraints, str) or not isinstance(constraints, Sequence):
            raise TypeError(
                f"constraints must be a list of texts and functions (got {constraints!r}); write [...]"
            )
        told: list[str] = []
        checks: list[Check] = []
        for rule in constraints:
            if isinstance(rule, str):
                check_text("a constraint", rule)
                told.append(rule)
            elif callable(rule) and not is_async(rule):
                checks.append(rule)
            else:
                raise TypeError(
                    f"a constraint must be a text or a def of a prompt's name and text (got {rule!r})"
                )
        rules = cls(guards, told, checks, _lengths(texts, max_chars))
        for name, text in texts.items():
            reasons = [reason for rule in rules.validators(name) if (reason := rule(text)) is not None]
            if reasons:
                raise ValueError(
                    f"constraints must hold for the start prompts (got {name!r}: {reasons[0]}); a text that breaks its "
                    "rule could never change, so mend the prompt first"
                )
        return rules

    def validators(self, name: str) -> list[Callable[[str], str | None]]:
        """Return the checks of one prompt, as a Parameter's `validators`."""
        most = self.lengths[name]
        lengths = [] if most is None else [partial(_not_longer, most)]
        return [*lengths, *(partial(_checked, check, name) for check in self.checks)]


def guards_of(given: Any, rows: Any, *, labelled: bool) -> tuple[list[Row], Any]:
    """Return the guards that a user gives, as rows or as a function that picks some of `rows`, and the other rows.

    Raises:
        TypeError, ValueError: for data that has no rows, or a function that picks none.
    """
    if given is None:
        return [], rows
    if not callable(given):
        return read_rows(given, "guards", labelled=labelled), rows
    picked = [bool(given(row)) for row in rows]
    guards = [row for row, mine in zip(rows, picked, strict=True) if mine]
    if not guards:
        raise ValueError(
            f"guards must pick rows that must not break (got none of {len(picked)}); leave it out"
        )
    others = [row for row, mine in zip(rows, picked, strict=True) if not mine]
    return read_rows(guards, "guards", labelled=labelled), others


def _lengths(texts: Mapping[str, str], limits: Any) -> dict[str, int | None]:
    named: Mapping[str, Any] = limits if isinstance(limits, Mapping) else dict.fromkeys(texts, limits)
    strange = [name for name in named if name not in texts]
    if strange:
        raise ValueError(f"max_chars must name prompts: {', '.join(texts)} (got {strange[0]!r})")
    for name, most in named.items():
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise ValueError(
                f"max_chars must be a number of characters, 1 or more, or None (got {most!r} for {name!r})"
            )
    lengths = {name: named.get(name, MOST_CHARACTERS) for name in texts}
    return {name: None if most is None else max(most, len(texts[name])) for name, most in lengths.items()}


def _not_longer(most: int, text: str) -> str | None:
    return None if len(text) <= most else f"it must have at most {most:,} characters (it has {len(text):,})"


def _checked(check: Check, name: str, text: str) -> str | None:
    reason = check(name, text)
    if reason is not None and not isinstance(reason, str):
        raise TypeError(
            f"a constraint must return None or the reason as a text (got {reason!r} for {name!r})"
        )
    return reason
