"""Prompts of a run, and the forms in which they leave: files, JSON, Prompty, Python.

A run has three kinds of prompts. The *kept* ones are what it ended with: `result.prompts` of `afnio.optimize`, the last
values of a training. The *found* ones are what the training led to, before a gate or a test could restore the old ones.
And there are those after each step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from afnio.cognitive._archive import replace
from afnio.studies._rows import check_text
from afnio.tellurio._card import kept_card
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import ParameterRecord, RunRecord
from afnio.tellurio.studio._report import find


@final
@dataclass(frozen=True, slots=True)
class RunPrompts:
    """Prompts of a run.

    Attributes:
        texts: the prompts by name.
        title: the run and which of its prompts these are, in words.
        verdict: the result's; "" if the run has none.
    """

    texts: Mapping[str, str]
    title: str
    verdict: str = ""

    @classmethod
    def read(cls, home: Path, address: str) -> RunPrompts:
        """Return the prompts at `NAME`, `NAME@kept`, `NAME@found` or `NAME@N`, the last for those after step N.

        Raises:
            ChoiceError: if the name means no run, or several.
            LookupError: if the run has no such prompts.
            StoreProblemError: if its store can't be read.
        """
        name, at, which = address.rpartition("@")
        if not at:
            name, which = address, "kept"
        if which not in ("kept", "found") and not (which.isdecimal() and which.isascii()):
            raise ValueError(
                f"which prompts of a run must be @kept, @found or the number of a step (got @{which})"
            )
        run = find(home, name)
        with StoreReader(run.store) as reader, reader.moment():
            card = kept_card(reader, run.id)
            if card is not None and card.prompts and which == "kept":
                return cls(card.prompts, f"{run.path}@{which}", card.verdict)
            texts = _at(reader, run, which, {} if card is None else card.start)
        return cls(texts, f"{run.path}@{which}")


def _at(reader: StoreReader, run: RunRecord, which: str, start: Mapping[str, str]) -> dict[str, str]:
    """Return the prompts of a run as they were at a step. `start` are the first ones, if a study has said."""
    config = run.config if isinstance(run.config, dict) else {}
    if which == "kept" and "identity" in config:
        raise LookupError(
            f"{run.path} must have a result (got status {run.status}); @found has what it led to so far, and the same "
            "call again continues it"
        )
    last = reader.step_count(run.id)
    if which == "found":
        # A gate is a step, too. Before it the parameters had what the training led to.
        gates = [step.number for step in reader.steps(run.id) if step.optimizer == "Gate"]
        last = gates[-1] - 1 if gates else last
    elif which != "kept":
        if int(which) > last:
            raise LookupError(f"{run.path} must have a step {which} (got {last} steps)")
        last = int(which)
    records = reader.parameters(run.id)
    names = _names(records, start, str(config.get("agent")))
    texts = dict(start) | {names[one.number]: one.value for one in records if one.step <= last}
    if not texts:
        raise LookupError(f"{run.path} must have prompts (got none); a run has them after the first step")
    return texts


def _names(records: Sequence[ParameterRecord], start: Mapping[str, str], agent: str) -> dict[int, str]:
    """Return the name of each parameter, which a run knows by its number and role.

    Args:
        start: the first texts by name, if a study has said.
        agent: the name of the function, which is part of its prompts' roles.
    """
    first = [one for one in records if one.step == 0]
    roles = [one.role for one in first]
    names: dict[int, str] = {}
    for one in first:
        name = one.role.removesuffix(f" prompt of {agent}")
        if roles.count(one.role) > 1:
            name = f"{one.role} {one.number + 1}"
        left = [other for other in start if other not in names.values()]
        same = next((other for other in left if start[other] == one.value), name)
        names[one.number] = name if name in left else same
    return names


def write_files(folder: Path, files: Mapping[str, str], suffix: str) -> None:
    """Write each text to `folder/<name><suffix>`, exactly as it is, all or none of them checked.

    A file of the same name is replaced as a whole, so that a program which reads it meanwhile gets the old text or the
    new one. Only the current user can read it.

    Raises:
        ValueError: if two names are the same as names of files, or UTF-8 can't express a text.
    """
    paths = {name: folder / (re.sub(r"[^\w.-]", "_", name) + suffix) for name in files}
    if len({str(path).lower() for path in paths.values()}) < len(paths):
        raise ValueError(f"names must differ as names of files (got {', '.join(files)}); rename one")
    for name, text in files.items():
        check_text(f"prompt {name!r}", text)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(paths[name], text)


def write_text(path: Path, text: str) -> None:
    """Write a file for the current user only, as a whole or not at all."""
    check_text(str(path), text)
    replace(path, text.encode())


# Forms


def as_json(prompts: RunPrompts) -> str:
    """Return one JSON object, of texts by name."""
    return json.dumps(dict(prompts.texts), indent=1) + "\n"


def as_python(prompts: RunPrompts) -> str:
    """Return a module with the dict PROMPTS.

    >>> print(as_python(RunPrompts({"system": "Be brief.\\nBe kind."}, "me/app/calm-heron@kept", "Better.")))
    # Prompts of me/app/calm-heron@kept. Better.
    PROMPTS = {
        "system": (
            "Be brief.\\n"
            "Be kind."
        ),
    }
    <BLANKLINE>
    """
    lines = [f"# {' '.join(f'Prompts of {prompts.title}. {prompts.verdict}'.split())}", "PROMPTS = {"]
    for name, text in prompts.texts.items():
        pieces = [f"        {_quoted(piece)}" for piece in text.splitlines(keepends=True)]
        lines += [f"    {_quoted(name)}: (", *(pieces or ['        ""']), "    ),"]
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    # JSON's escapes are Python's, but for the pairs of surrogates that stand for one character.
    return json.dumps(text, ensure_ascii=False)


def as_prompty(prompts: RunPrompts) -> dict[str, str]:
    """Return a Prompty file for each prompt, with the prompt as the system message.

    Raises:
        ValueError: for a text with a line such as "user:", which would begin a message there.
    """
    return {name: _prompty(prompts, name) for name in prompts.texts}


# A line that begins a message in a Prompty file.
_ROLE: Final = re.compile(r"(?im)^\s*#?\s*(system|user|assistant|developer|tool)\s*(\[.*\])?\s*:\s*$")


def _prompty(prompts: RunPrompts, name: str) -> str:
    text = prompts.texts[name]
    if found := _ROLE.search(text) or re.search(r"\{%-?\s*endraw", text):
        raise ValueError(
            f"a prompt of a Prompty file must have no line that begins a message or ends a block there (got "
            f"{found[0].strip()!r} in {name!r}); choose another form"
        )
    if re.search(r"\{[{%#]", text):
        text = f"{{% raw %}}{text}{{% endraw %}}"
    about = re.sub("-{3,}", "--", " ".join(f"Prompts of {prompts.title}. {prompts.verdict}".split()))
    return (
        f"---\nname: {json.dumps(re.sub('-{3,}', '--', name))}\ndescription: {json.dumps(about)}\ntemplate:\n"
        f"  format:\n    kind: jinja2\n  parser:\n    kind: prompty\n---\nsystem:\n{text}\n"
    )


# The forms by name. A form is one file, or a file for each prompt.
FORMS: Final[Mapping[str, Callable[[RunPrompts], str | Mapping[str, str]]]] = {
    "text": lambda prompts: prompts.texts,
    "json": as_json,
    "prompty": as_prompty,
    "python": as_python,
}
