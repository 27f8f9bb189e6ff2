"""Wording: the prompts as they are sent here, which may be others than those that come with the package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from afnio.runtime._settings import Assignment, Setting

replaced: Final[Setting[Mapping[str, str]]] = Setting("prompts", {})
"""Texts by the name of the prompt that they replace; see `afnio.optim.prompts.replace_prompts`."""
_PLACEHOLDER: Final = re.compile(r"\{[a-z_]+\}")


class Prompt(NamedTuple):
    """A text that is sent to a model, and the version of the file that it is from; 0 for one of the user's own."""

    text: str
    version: int


def worded(name: str, text: str) -> str:
    """Return what is sent for the prompt `name` whose own text is `text`."""
    return replaced.get().get(name, text)


def prompts_of(texts: Mapping[str, str], version: int) -> dict[str, Prompt]:
    """Return the prompts of one file as they are sent here.

    >>> prompts_of({"critic.system": "Judge."}, 3)["critic.system"]
    Prompt(text='Judge.', version=3)
    """
    own = replaced.get()
    return {name: Prompt(own.get(name, text), 0 if name in own else version) for name, text in texts.items()}


def check_wording(given: Any, known: Mapping[str, str]) -> None:
    """Raise for replacements that replace nothing, or that have lost a placeholder.

    >>> check_wording({"tgd.objection": "No."}, {"tgd.objection": "Not so: {reasons}."})
    Traceback (most recent call last):
    ValueError: the text for 'tgd.objection' must hold {reasons} (got 'No.')
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"prompts are replaced by a dict of names and texts (got {given!r})")
    for name, text in given.items():
        if name not in known:
            raise ValueError(f"there is no prompt {name!r}; the prompts are {', '.join(sorted(known))}")
        if not isinstance(text, str):
            raise TypeError(f"a prompt is a text (got {text!r} for {name!r})")
        for placeholder in dict.fromkeys(_PLACEHOLDER.findall(known[name])):
            if placeholder not in text and not placeholder.startswith("{placeholder"):
                raise ValueError(f"the text for {name!r} must hold {placeholder} (got {text!r:.80})")


class Replacement(Assignment[Mapping[str, str]]):
    """Replaces prompts; as a `with` block for its context, as a plain call for the process."""

    def __init__(self, texts: Mapping[str, str], known: Mapping[str, str]) -> None:
        check_wording(texts, known)
        super().__init__(replaced, {**replaced.get(), **texts})
