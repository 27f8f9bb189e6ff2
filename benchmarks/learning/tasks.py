"""Tasks: items in three splits, the agent that starts untrained, and how a reply is scored."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from afnio import cognitive as cog
from afnio.autodiff import Variable
from afnio.errors import ReplyError
from afnio.utils.datasets import FacilitySupport
from benchmarks.learning.agents import Answerer, Clerk, Hopper
from benchmarks.learning.desks import DESKS, make_desks
from benchmarks.learning.faults import FAULTS, faulty
from benchmarks.learning.hops import START, make_hops
from benchmarks.learning.notes import PROMPTS, UNTOLD, make_notes
from benchmarks.learning.public import HASTY, Pairs, bbh, intents, sums

_FACILITY = "**Message:**\n\n{}\n\n"
_FENCE = re.compile(r"^```(?:json)?\n|\n```$")


@dataclass(frozen=True, slots=True)
class Item:
    """One sample: the agent's inputs and the expected answer."""

    inputs: Mapping[str, str]
    target: str


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be learnt.

    Attributes:
        agent: makes the untrained agent.
        read: the answer in a reply.
        score: from 0 to 1, of an answer and its target.
        train, val, test: the splits; the test decides nothing, it is only looked at last.
        at_fault: the name of the one parameter that is at fault, where there are several.
        reading: how `read` works, for scripts that can't have it: the kind, and the name of a field.
        flags: the categories, where the score is a share of them.
    """

    name: str
    agent: Callable[[], cog.Module]
    read: Callable[[str], str]
    score: Callable[[str, str], float]
    train: Sequence[Item]
    val: Sequence[Item]
    test: Sequence[Item]
    prompt: str = ""
    response_format: Mapping[str, Any] | None = None
    at_fault: str | None = None
    reading: tuple[str, str] = ("text", "")
    flags: Sequence[str] | None = None

    def evaluate(self, reply: Variable, targets: Sequence[str]) -> cog.Judgement:
        """Return scores and feedback of a batch of replies."""
        answers = reply.map(self.read)
        if self.score is exact:
            return cog.ExactMatchEvaluator()(answers, list(targets))
        return cog.DeterministicEvaluator()(
            answers, list(targets), self.score, "share of right categories", success_fn=lambda s: s[0] >= 1
        )

    def subset(self, sizes: Sequence[int] | None) -> Task:
        """Return the task with at most so many items of the three splits; one number is for each of them."""
        if sizes is None:
            return self
        train, val, test = sizes if len(sizes) == 3 else sizes * 3
        return replace(self, train=self.train[:train], val=self.val[:val], test=self.test[:test])


def exact(answer: str, target: str) -> float:
    """Return 1 for the expected answer, else 0."""
    return float(answer == target)


def load(name: str) -> Task:
    """Return the task of that name, or of `module:name`: a `Task`, or a function that returns one.

    Raises:
        ValueError: for a name that is none.
        DownloadError: if its data can't be had.
    """
    if ":" in name:
        task = named(name)
        task = task if isinstance(task, Task) else task()
        if not isinstance(task, Task):
            raise ValueError(f"{name} must be a benchmarks.learning.tasks.Task or return one (got {task!r})")
        return replace(task, name=name)
    if name in LABELS:
        return _facility(name)
    if name in FAULTY:
        return _faulty(*name.split("/"))
    if name in _DESKS:
        return _desks(name)
    if name == HOPS:
        return _hops()
    if name in _BBH:
        return _bbh(name)
    if name == "sums":
        return _sums()
    if name == "intents":
        return _intents()
    if name.startswith("notes-") and name[6:] in PROMPTS:
        return _notes(name[6:])
    raise ValueError(f"there is no task {name!r}; take some of {', '.join(NAMES)}")


def named(name: str) -> Any:
    """Return what `module:name` is.

    Raises:
        ValueError: if there is no such thing.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name} must be module:name, importable from here (got {error})") from None


# FacilitySupport ---------------------------------------------------------------------------------

LABELS = {
    "sentiment": ("positive", "neutral", "negative"),
    "urgency": ("low", "medium", "high"),
    "categories": (),
}


def _facility(name: str) -> Task:
    splits = {}
    for split in ("train", "val", "test"):
        data = FacilitySupport(split)  # type: ignore[arg-type]
        splits[split] = [
            Item({"message": _FACILITY.format(message.data)}, _target(name, *answers))
            for message, answers in (data[number] for number in range(len(data)))
        ]
    prompts = {
        "sentiment": "Read the provided message and determine the sentiment.",
        "urgency": "Read the provided message and determine the urgency.",
        "categories": "Read the provided message and determine the categories.",
    }
    names = sorted(json.loads(FacilitySupport("train")[0][1][2].data)) if name == "categories" else []
    form = _form(name, list(LABELS[name]), names)
    return Task(
        name,
        lambda: Answerer(prompts[name], form),
        _read_categories if names else lambda reply: str(_object(reply).get(name)).lower(),
        _share_right(names) if names else exact,
        prompt=prompts[name],
        response_format=form,
        reading=("flags", "") if names else ("field", name),
        flags=names or None,
        **splits,
    )


def _target(name: str, urgency: Variable, sentiment: Variable, categories: Variable) -> str:
    if name == "categories":
        return _listed(json.loads(categories.data))
    return str((sentiment if name == "sentiment" else urgency).data)


def _form(name: str, labels: list[str], flags: list[str]) -> dict[str, Any]:
    field: dict[str, Any] = {"type": "string", "enum": labels}
    properties = {flag: {"type": "boolean"} for flag in flags} if flags else {name: field}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": f"{name}_answer", "strict": True, "schema": schema},
    }


def _object(reply: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(_FENCE.sub("", reply))
    except ValueError as error:
        raise ReplyError(f"the reply is no JSON object (it starts {reply[:60]!r})") from error
    return answer


def _read_categories(reply: str) -> str:
    return _listed(_object(reply))


def _listed(flags: Mapping[str, bool]) -> str:
    return ", ".join(sorted(name for name, value in flags.items() if value))


def _share_right(names: Sequence[str]) -> Callable[[str, str], float]:
    def share(answer: str, target: str) -> float:
        said, wanted = set(answer.split(", ")), set(target.split(", "))
        return sum((name in said) == (name in wanted) for name in names) / len(names)

    return share


# Published data ----------------------------------------------------------------------------------

_BBH = {
    "counting": ("object_counting", "Answer the question. End with the number.", r"-?\d+"),
    "sorting": ("word_sorting", "Answer with the sorted words, separated by spaces.", None),
}
_SIZES = (100, 50, 100)


def _bbh(name: str) -> Task:
    file, prompt, pattern = _BBH[name]
    items = [Item({"message": question}, answer) for question, answer in bbh(file)]
    train, val, test = _SIZES

    def read(reply: str) -> str:
        if pattern is None:
            return " ".join(reply.replace(",", " ").split())
        return _number(reply)

    return Task(
        name,
        lambda: Answerer(prompt),
        read,
        exact,
        items[:train],
        items[train : train + val],
        items[train + val : train + val + test],
        prompt=prompt,
        reading=("words", "") if pattern is None else ("number", ""),
    )


def _number(reply: str) -> str:
    """Return the last whole number of a reply, without commas, or the reply."""
    found = re.findall(r"-?\d+", re.sub(r"(?<=\d),(?=\d)", "", reply))
    return str(found[-1]) if found else reply.strip()


def _sums() -> Task:
    train, test = sums(150, 100)
    return _public("sums", HASTY, train, test, _number, reading=("number", ""))


def _intents() -> Task:
    train, test = intents(250, 200)
    form = _form("intent", sorted({intent for _, intent in (*train, *test)}), [])
    return _public(
        "intents", "Read the message of a bank's customer and name its intent.", train, test,
        lambda reply: str(_object(reply).get("intent")).lower(), response_format=form, reading=("field", "intent"),
    )  # fmt: skip


def _public(
    name: str, prompt: str, train: Pairs, test: Pairs, read: Callable[[str], str], **options: Any
) -> Task:
    items = [Item({"message": question}, answer) for question, answer in train]
    form = options.get("response_format")
    return Task(
        name, lambda: Answerer(prompt, form), read, exact, items[:-50], items[-50:],
        [Item({"message": question}, answer) for question, answer in test], prompt=prompt, **options,
    )  # fmt: skip


# Notes -------------------------------------------------------------------------------------------


def _notes(at_fault: str) -> Task:
    items = [
        Item({"question": question, "notes": notes}, answer)
        for question, notes, answer in make_notes(count=260, seed=0)
    ]
    prompts = {**PROMPTS, at_fault: UNTOLD[at_fault]}
    return Task(
        f"notes-{at_fault}",
        lambda: Clerk(prompts),
        str.strip,
        exact,
        items[:100],
        items[100:160],
        items[160:],
        at_fault=at_fault,
    )


# Harder ones, and faulty start prompts -----------------------------------------------------------

_DESKS: dict[str, dict[str, Any]] = {
    "many-labels": {"desks": 16, "names": 5},
    "conflict": {"desks": 4, "names": 8, "wrong": 0.3, "right_from": 160},
}


def _desks(name: str) -> Task:
    form = _form("desk", list(DESKS[: _DESKS[name]["desks"]]), [])
    items = [Item({"message": message}, desk) for message, desk in make_desks(260, 0, **_DESKS[name])]
    prompt = "Read the message and name the desk that it is for."
    return Task(
        name,
        lambda: Answerer(prompt, form),
        lambda reply: str(_object(reply).get("desk")).lower(),
        exact,
        items[:100],
        items[100:160],
        items[160:],
        prompt=prompt,
        response_format=form,
        reading=("field", "desk"),
    )


def _hops() -> Task:
    items = [
        Item({"question": question, "facts": facts}, answer)
        for question, facts, answer in make_hops(count=260, seed=0)
    ]
    return Task(
        HOPS,
        lambda: Hopper(START),
        lambda reply: reply.strip().rstrip("."),
        exact,
        items[:100],
        items[100:160],
        items[160:],
        reading=("sentence", ""),
    )


def _faulty(name: str, fault: str) -> Task:
    task = _facility(name)
    prompt = faulty(task.prompt, name, fault)
    form = None if fault == "wrong-format" else task.response_format
    task = replace(task, name=f"{name}/{fault}", agent=lambda: Answerer(prompt, form), prompt=prompt)
    if form is None:
        return replace(task, response_format=None, read=str.strip, reading=("text", ""))
    return task


FAULTY = tuple(
    f"{name}/{fault}"
    for name in ("sentiment", "urgency")
    for fault in FAULTS
    if (name, fault) != ("urgency", "wrong-format")
)
"""Without a schema the simulated student knows sentiments only."""
HARD = tuple(_DESKS)
HOPS = "hops"
LIVE = (*LABELS, "sums", "intents", *_BBH, HOPS)
"""For a real model."""
NAMES = (*LABELS, *_BBH, *(f"notes-{name}" for name in PROMPTS))
