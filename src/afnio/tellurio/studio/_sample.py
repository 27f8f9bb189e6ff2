"""The pages of samples, calls and long texts.

The list has each sample once, by its last evaluation, with how it did before. It can be searched, filtered and taken as
CSV. A sample's page answers "why did it go wrong?": what it was given, what it answered each time, the launches that it
went through with the calls that each made, the calls that wrote feedback on the way back, and the steps that were shown
this feedback. A call's page shows the call's messages and reply in full.

Lists show the newest rows first. The link to the next page has the id of the last row of this one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from afnio.tellurio._queries import FATES, StoreReader
from afnio.tellurio._records import NodeRecord, PastScore, RunRecord, SampleHistory, SampleRecord
from afnio.tellurio.studio._text import query_number

# Samples or calls of one page.
PER_PAGE: Final = 50
# Words of a search that are used.
MOST_WORDS: Final = 5
# The most launches of a sample's way that are shown.
NODES: Final = 200
# The most evaluations of one sample that are shown.
OTHERS: Final = 50
OUTCOMES: Final = ("ok", "failed", "cancelled", "retried", "replayed")

_PART: Final = re.compile(r"node (\d+)")


def samples_page(reader: StoreReader, run: RunRecord, asked: dict[str, str]) -> dict[str, Any]:
    """Return a page of samples: each once, by its last evaluation, or all evaluations."""
    phase = asked.get("phase") or None
    counts = reader.fates(run.id, phase)
    # Samples without inputs of their own can't be told apart.
    show = asked.get("show", "") if counts["all"] else "every"
    rows = histories(reader, run, asked, show, PER_PAGE + 1, past=PAST)
    steps, cells = heat_map([one.past for one in rows[:PER_PAGE]])
    is_few = show not in EVERY and counts["all"] <= CONFUSED
    return {
        "run": run,
        "samples": list(zip(rows, cells, strict=False)),
        "steps": steps,
        "next": rows[PER_PAGE - 1].place if len(rows) > PER_PAGE else None,
        "counts": counts,
        "choices": [(name, title, counts.get(name or "all")) for name, title in SHOWN.items()],
        "confusion": confusion_table(reader.confusion(run.id, phase)) if is_few else None,
        "query": urlencode([(name, asked[name]) for name in ("q", "phase", "show") if asked.get(name)]),
        "unphased": urlencode([(name, asked[name]) for name in ("q", "show") if asked.get(name)]),
        "asked": {**{name: asked.get(name, "") for name in ("q", "phase", "before")}, "show": show},
    }


# The subjects of a list of samples, and their names on the page.
SHOWN: Final = {
    "": "each sample",
    "wrong": "wrong now",
    "gained": "wrong, then right",
    "lost": "right, then wrong",
    "never": "never right",
    "unstable": "there and back",
    "every": "every evaluation",
    "failed": "every wrong evaluation",
}
EVERY: Final = ("every", "failed")
# Samples up to which answers are counted by target: more would slow the page down.
CONFUSED: Final = 20_000
# Outcomes of a sample that are read for a list, and steps that it shows.
PAST: Final = 24


def histories(
    reader: StoreReader, run: RunRecord, asked: dict[str, str], show: str, limit: int, *, past: int = 0
) -> list[SampleHistory]:
    """Return the samples that a query asks for, the last evaluated first."""
    words, phase = asked.get("q", "").split()[:MOST_WORDS], asked.get("phase") or None
    if show not in EVERY:
        fate = show if show in FATES else None
        return reader.histories(
            run.id, fate=fate, phase=phase, words=words, before=_before(asked), limit=limit, past=past
        )
    success = False if show == "failed" else None
    records = reader.samples(
        run.id, before=_before(asked), limit=limit, newest=True, phase=phase, success=success, words=words
    )
    return [SampleHistory(one, 1, int(one.success), (), one.id) for one in records]


class Cell(NamedTuple):
    """How a sample did in one step: a circle that is as full as its score, and the score or None if not evaluated."""

    circle: str
    right: bool
    score: float | None


_BATCH: Final = re.compile(r"/batch \d+$")


def heat_map(pasts: Sequence[Sequence[PastScore]]) -> tuple[list[str], list[list[Cell]]]:
    """Return the last steps in which samples were evaluated, and for each sample a cell for each step.

    The draws of a step are one cell: their mean.

    >>> steps, cells = heat_map([(PastScore("step 1", False, 0.5, 1), PastScore("held", True, 1.0, 3)), ()])
    >>> steps, ["".join(cell.circle for cell in row) for row in cells]
    (['step 1', 'held'], ['◑●', '··'])
    """
    places: dict[str, int] = {}
    by_step: list[dict[str, list[PastScore]]] = []
    for past in pasts:
        steps: dict[str, list[PastScore]] = {}
        for one in past:
            step = _BATCH.sub("", one.phase)
            places[step] = max(one.place, places.get(step, 0))
            steps.setdefault(step, []).append(one)
        by_step.append(steps)
    columns = sorted(places, key=places.__getitem__)[-PAST:]
    return columns, [[_cell_of(row.get(step, [])) for step in columns] for row in by_step]


def _cell_of(outcomes: Sequence[PastScore]) -> Cell:
    if not outcomes:
        return Cell("·", False, None)
    scores = [float(one.right) if one.score is None else one.score for one in outcomes]
    score, right = sum(scores) / len(scores), all(one.right for one in outcomes)
    # A full circle is for right alone: scores needn't be between 0 and 1.
    circle = "●" if right else "○◔◑◕"[round(3.49 * min(max(score, 0.0), 1.0))]
    return Cell(circle, right, score)


class Confusion(NamedTuple):
    """Answers counted by target: the answers, and for each target its counts in their order."""

    answers: list[str]
    targets: list[tuple[str, list[int]]]


def confusion_table(counts: dict[tuple[str, str], int]) -> Confusion | None:
    """Return counts by target and answer as a table; None without any.

    >>> confusion_table({("a", "a"): 3, ("b", "a"): 1})
    Confusion(answers=['a', 'b'], targets=[('a', [3, 0]), ('b', [1, 0])])
    """
    targets = sorted({target for target, _ in counts})
    answers = targets + sorted({answer for _, answer in counts} - set(targets))
    table = [(target, [counts.get((target, answer), 0) for answer in answers]) for target in targets]
    return Confusion(answers, table) if counts else None


CSV_PAGE: Final = 20_000
COLUMNS: Final = (
    "sample",
    "phase",
    "input",
    "expected",
    "answer",
    "score",
    "feedback",
    "evaluations",
    "right",
)


def samples_table(reader: StoreReader, run: RunRecord, asked: dict[str, str]) -> Iterator[str]:
    """Yield the lines of a list of samples as CSV, all that its filters let through."""
    show = asked.get("show", "") if reader.fates(run.id, asked.get("phase") or None)["all"] else "every"
    yield _line(COLUMNS)
    before: dict[str, str] = {}
    while batch := histories(reader, run, asked | before, show, CSV_PAGE):
        for one in batch:
            last = one.last
            score = last.note if last.score is None else last.score
            texts = last.inputs, last.target, last.prediction
            yield _line((last.id, last.phase, *texts, score, last.explanation, one.times, one.right))
        before = {"before": str(batch[-1].place)}


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow([_cell(value) for value in values])
    return text.getvalue()


def _cell(value: Any) -> Any:
    # A spreadsheet would run a model's reply that begins like a formula.
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )


def _before(asked: dict[str, str]) -> int | None:
    return query_number(asked, "before") if asked.get("before", "").isdecimal() else None


def sample_page(reader: StoreReader, run: RunRecord, number: int) -> dict[str, Any] | None:
    """Return the page of a sample; None if the run has no such sample."""
    sample = reader.sample(run.id, number)
    if sample is None:
        return None
    nodes = path_to(reader, run.id, sample.node)
    forward = [{"node": node, "calls": reader.calls_of_sample(run.id, node, sample.lane)} for node in nodes]
    others = [] if sample.key is None else reader.samples(run.id, key=sample.key, limit=OTHERS)
    return {
        "run": run,
        "sample": sample,
        "forward": forward,
        "backward": backward(reader, run.id, nodes, sample),
        "others": others,
        "became": reader.feedback_uses(run.id, sample),
    }


def path_to(reader: StoreReader, run: str, address: str) -> list[NodeRecord]:
    """Return a launch and those that its inputs came from, directly or not, in the order of launching."""
    nodes: dict[str, NodeRecord] = {}
    waiting = [address]
    while waiting and len(nodes) < NODES:
        one = waiting.pop()
        if one in nodes:
            continue
        node = reader.node(run, one)
        if node is not None:
            nodes[one] = node
            waiting += [parent for parent in node.parents if isinstance(parent, str)]
    # A node is launched after the nodes that it reads, so this is a topological order.
    return sorted(nodes.values(), key=lambda node: node.id)


def backward(
    reader: StoreReader, run: str, nodes: list[NodeRecord], sample: SampleRecord
) -> list[dict[str, Any]]:
    """Return the calls that wrote a sample's feedback and the node each belongs to, from the loss to the leaves."""
    if not nodes:
        return []
    places = {node.address: place for place, node in enumerate(reversed(nodes))}
    by_address = {node.address: node for node in nodes}
    passes: list[tuple[int, dict[str, Any]]] = []
    for one in reader.backward_passes(run, nodes[-1]):
        for call in reader.calls_of_sample(run, one, sample.lane):
            # A pass names its parts "node 0", "node 1", … in the order of its parents.
            part = _PART.search(call.address[len(one.address) :])
            number = int(part.group(1)) if part else len(one.parents)
            node = by_address.get(one.parents[number]) if number < len(one.parents) else None
            passes.append((places[node.address] if node else NODES, {"node": node, "call": call}))
    return [one for _, one in sorted(passes, key=lambda pair: pair[0])]


# Calls.


class Message(NamedTuple):
    """A message or a reply as a page shows it; `rest` is its other fields as JSON."""

    role: str
    text: str
    rest: str


def calls_page(reader: StoreReader, run: RunRecord, asked: dict[str, str]) -> dict[str, Any]:
    """Return a page of calls."""
    status = asked.get("status")
    calls = reader.calls(
        run.id,
        before=_before(asked),
        limit=PER_PAGE + 1,
        newest=True,
        purpose=asked.get("purpose") or None,
        phase=asked.get("phase") or None,
        status=status if status in OUTCOMES else None,
        words=asked.get("q", "").split()[:MOST_WORDS],
    )
    return {
        "run": run,
        "calls": calls[:PER_PAGE],
        "next": calls[PER_PAGE - 1].id if len(calls) > PER_PAGE else None,
        "purposes": reader.purposes(run.id),
        "outcomes": OUTCOMES,
        "asked": {name: asked.get(name, "") for name in ("q", "purpose", "status", "phase", "before")},
    }


def call_page(reader: StoreReader, run: RunRecord, number: int) -> dict[str, Any] | None:
    """Return the page of a call; None if the run has no such call."""
    call = reader.call(run.id, number)
    if call is None:
        return None
    texts = reader.call_texts(number)
    return {
        "run": run,
        "call": call,
        "messages": [message(value) for value in texts.messages],
        "reply": None if texts.reply is None else message(texts.reply),
        "params": texts.params,
        "retries": reader.retries(run.id, call.address),
        "sample": reader.sample_of_call(run.id, call),
    }


def message(value: Any) -> Message:
    """Return a message or a reply for reading.

    >>> message({"role": "user", "content": "Hello"})
    Message(role='user', text='Hello', rest='')
    """
    if value is None:
        return Message("", "(this text is missing from the store)", "")
    if not isinstance(value, dict):
        return Message("", value if isinstance(value, str) else _pretty(value), "")
    content = value.get("content")
    rest = {
        name: part
        for name, part in value.items()
        if name not in ("role", "content", "usage", "model") and part not in (None, [], "", {})
    }
    text = content if isinstance(content, str) else "" if content is None else _pretty(content)
    return Message(str(value.get("role", "")), text, _pretty(rest) if rest else "")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


# Long texts, shown part by part.


def whole_text(reader: StoreReader, run: str, kind: str, number: int, part: str) -> str | None:
    """Return a text by its place in an address; None if there is no such text.

    Args:
        kind: "call", "change", "sample" or "logged".
        number: the id of its row.
        part: of a call "reply" or the position of a message, of the others the name of the column.
    """
    if kind != "call":
        return reader.long_text(run, kind, number, part)
    if reader.call(run, number) is None:
        return None
    texts = reader.call_texts(number)
    if part == "reply":
        text = texts.reply
    else:
        place = int(part) if part.isdecimal() else len(texts.messages)
        text = texts.messages[place] if place < len(texts.messages) else None
    return None if text is None else message(text).text
