"""Reduction: more feedback than one prompt should show, summed up.

Concatenation is no option: published runs lose 14 points between batches of 3 and of 100 (ComBEE,
arXiv:2604.04247). What fits is left alone. Otherwise similar feedback is put together (`cluster`), filled into
groups by a budget of tokens, and each group is summed up by one call; where there are many groups, their
summaries are summed up again (`reduction_tree`).
"""

from __future__ import annotations

import heapq
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeVar, final

from afnio.cognitive._prompts import reduce_messages, reduce_schema, wording
from afnio.errors import BatchError, FinalModelError, ModelError, ReplyError, reason
from afnio.models._client import ChatModel
from afnio.models._messages import ChatResponse, Message
from afnio.runtime._callables import call_in_node, quorum_holds
from afnio.runtime._kernel import Body, Failure, Job, Launch, Outcomes, Slot, within
from afnio.runtime._waiting import wait_async

BUDGET: Final = 4_000
"""Tokens of feedback that one prompt shows by default: some hundred gradients of one sentence."""
QUORUM: Final = 0.5


@final
@dataclass(frozen=True, slots=True)
class Reduction:
    """What a proposer is to be shown.

    Attributes:
        points: what should change; the feedback itself, where it fitted.
        failures: clusters of two or more similar failures, the largest first; none where nothing was left out
            or summed up.
        failed: feedback that is left out, as the call that was to sum it up failed.
        capped: feedback that is left out, as enough of its cluster is shown.
        calls: how many groups were summed up.
    """

    points: tuple[Point, ...]
    failures: tuple[Cluster, ...] = ()
    failed: tuple[int, ...] = ()
    capped: tuple[int, ...] = ()
    calls: int = 0


async def reduce_feedback(
    job: Job,
    texts: Sequence[str],
    trails: Sequence[Sequence[Mapping[str, Any]]],
    model: ChatModel,
    *,
    role: str,
    value: str,
    budget: int | None = BUDGET,
    per_failure: int | None = None,
    quorum: float = QUORUM,
) -> Reduction:
    """Return `texts` so that they fit `budget`; without a call if they do.

    Args:
        job: whose address and priority its calls get, for the purpose "reduce".
        trails: where each text comes from, as in `Variable.provenance`.
        role, value: the text that the feedback is on.
        budget: tokens of feedback that one prompt may show; None never reduces.
        per_failure: how many of a cluster of similar failures are taken, at most; None takes all.
        quorum: the fraction of the texts that must have been read where calls fail.

    Raises:
        BatchError: if calls failed and less than the quorum is left.
    """
    everything = range(len(texts))
    sizes = [model.count_tokens(text) for text in texts]
    fits = budget is None or sum(sizes) <= budget
    if fits and (per_failure is None or len(texts) <= per_failure):
        return Reduction(tuple(Point(text, (number,)) for number, text in enumerate(texts)))
    clusters = await call_in_node(job, clustered, list(texts), list(trails))
    taken = [cluster.members[:per_failure] for cluster in clusters]
    capped = tuple(sorted(set(everything).difference(*taken)))
    points = merged([Point(texts[number], (number,)) for members in taken for number in members])
    failures = tuple(cluster for cluster in clusters if cluster.name)
    if budget is None or sum(sizes[point.sources[0]] for point in points) <= budget:
        return Reduction(points, failures, capped=capped)
    tree = ReductionTree(job, model, role, value, budget, failures)
    parts = await tree.run(points)
    failed = tuple(sorted({number for part in parts for number in part.failed}))
    shown = len(texts) - len(capped)
    if failed:
        _check_quorum(failed, shown, quorum, [error for part in parts for error in part.errors], role)
    united = merged([point for part in parts for point in part.points])
    ordered = tuple(sorted(united, key=lambda point: -len(point.sources)))
    return Reduction(ordered, failures, failed, capped, sum(part.calls for part in parts))


def _check_quorum(
    failed: Sequence[int], shown: int, quorum: float, errors: Sequence[Exception], role: str
) -> None:
    """Tell what a failed call leaves out; raise if that is too much."""
    if not quorum_holds(shown - len(failed), shown, quorum):
        raise BatchError(
            f"{len(failed)} of {shown} feedback texts on {role!r} could not be summed up, and quorum={quorum} "
            f"allows fewer: {reason(errors[0])}",
            list(errors),
            failed,
        )
    logging.getLogger("afnio").warning(
        "%d of %d feedback texts on %r are left out of the step, as the call that was to sum them up failed (%s)",
        len(failed),
        shown,
        role,
        errors[0],
    )


# ReductionTree: the groups of one reduction, as the jobs of one launch.
#
# The groups of all levels are fixed before the first call, by number: which summaries meet doesn't depend on which
# arrives first, so the journal answers a repeated run. A group is a job that waits for its own parts alone, so it
# starts as soon as it is full; no level waits for the one before. Each part of a full group may take 1/FAN_IN of
# the budget, hence 1,024 groups need three levels: 1,024, 64, 4.


FAN_IN: Final = 16
MAX_ENTRIES: Final = 256
"""Feedback texts in one group at most, however short they are; models lose count of more."""
TOKENS_PER_POINT: Final = 40
WORDS_PER_TOKEN: Final = 0.75


@final
@dataclass(frozen=True, slots=True)
class Point:
    """One thing that feedback says, and the numbers of the feedback texts that stand behind it."""

    text: str
    sources: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class Part:
    """What a group has come to: its points, what is lost, and what that took."""

    points: tuple[Point, ...]
    failed: tuple[int, ...] = ()
    errors: tuple[Exception, ...] = ()
    calls: int = 0


@final
class ReductionTree:
    """The tree of one reduction; `run` it once."""

    def __init__(
        self,
        job: Job,
        model: ChatModel,
        role: str,
        value: str,
        budget: int,
        failures: Sequence[Cluster],
    ) -> None:
        self._job = job
        self._model = model
        self._role = role
        self._value = value
        self._budget = budget
        self._failures = failures
        self._failure_of = {n: i for i, cluster in enumerate(failures) for n in cluster.members}

    async def run(self, points: Sequence[Point]) -> list[Part]:
        groups = self._filled(points)
        with within(self._job.scope):
            launch = Launch("reduce")
        launch.depth, launch.line = self._job.launch.depth, self._job.launch.line
        slots: list[Slot] = []
        level = 0
        while True:
            last = len(groups) <= FAN_IN
            # What one of few groups may say is more than a part of a full one, but never nearly all it read.
            share = min(self._budget // len(groups), self._budget // 4) if last else self._budget // FAN_IN
            outputs = [Slot(launch) for _ in groups]
            for number, group in enumerate(groups):
                inputs = [slots[part] for part in group] if level else []
                given = () if level else tuple(points[part] for part in group)
                body = self._summing(given, max(share, 1))
                launch.add(body, inputs, [outputs[number]], lane=number, part=f"level {level}", gather=True)
            slots, level = outputs, level + 1
            if last:
                break
            groups = _dealt(len(groups), -(-len(groups) // FAN_IN))
        launch.start()
        await wait_async(slots)
        return _parts(slots)

    def _filled(self, points: Sequence[Point]) -> list[list[int]]:
        """Return groups of neighbours within the budget, about equally full."""
        sizes = [self._model.count_tokens(point.text) for point in points]
        total = sum(sizes)
        enough = -(-total // -(-total // self._budget))
        groups: list[list[int]] = [[]]
        filled = 0
        for number, size in enumerate(sizes):
            full = filled >= enough or filled + size > self._budget or len(groups[-1]) == MAX_ENTRIES
            if groups[-1] and full:
                groups.append([])
                filled = 0
            groups[-1].append(number)
            filled += size
        return groups

    def _summing(self, given: Sequence[Point], share: int) -> Body:
        async def body(job: Job, outcomes: list[Any]) -> Outcomes:
            broken = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
            if broken:
                return [broken[0]]
            before = Part(
                merged([*given, *(point for part in outcomes for point in part.points)]),
                tuple(number for part in outcomes for number in part.failed),
                tuple(error for part in outcomes for error in part.errors),
                sum(part.calls for part in outcomes),
            )
            if sum(self._model.count_tokens(point.text) for point in before.points) <= share:
                return [before]
            try:
                points = await self._summed(job, before.points, share)
            except (ModelError, ReplyError) as error:
                lost = tuple(number for point in before.points for number in point.sources)
                return [Part((), (*before.failed, *lost), (*before.errors, error), before.calls + 1)]
            return [Part(points, before.failed, before.errors, before.calls + 1)]

        return body

    async def _summed(self, job: Job, points: Sequence[Point], share: int) -> tuple[Point, ...]:
        """Return what one call makes of `points`, within `share` tokens."""
        failures, entries = self._shown(points)
        most = max(share // TOKENS_PER_POINT, 1)
        said: tuple[Point, ...] = await ask(
            self._model,
            job,
            reduce_messages(
                role=self._role,
                value=self._value,
                failures=failures,
                entries=entries,
                points=most,
                words=max(int(share * WORDS_PER_TOKEN), 10),
            ),
            # Few different schemas, as some endpoints compile each one.
            schema=reduce_schema(most, 1 << (len(points) - 1).bit_length()),
            parse=lambda answer: _read(answer, points),
            repair=wording("reduce.repair"),
            purpose="reduce",
        )
        return self._within(said, share)

    def _shown(
        self, points: Sequence[Point]
    ) -> tuple[list[tuple[str, int]], list[tuple[str, int, int | None]]]:
        """Return the failures that `points` are about, and the points as entries that refer to them."""
        numbers: dict[int, int] = {}
        entries: list[tuple[str, int, int | None]] = []
        for point in points:
            found = {self._failure_of.get(source) for source in point.sources}
            failure = found.pop() if len(found) == 1 else None
            number = None if failure is None else numbers.setdefault(failure, len(numbers) + 1)
            entries.append((point.text, len(point.sources), number))
        named = [self._failures[failure] for failure in numbers]
        return [(cluster.name, len(cluster.members)) for cluster in named], entries

    def _within(self, points: Sequence[Point], share: int) -> tuple[Point, ...]:
        """Return the points with most samples behind them that fit, in their order: or no tree would end."""
        left = share
        kept: set[int] = set()
        for number in sorted(range(len(points)), key=lambda number: -len(points[number].sources)):
            size = self._model.count_tokens(points[number].text)
            if size <= left:
                kept.add(number)
                left -= size
        if kept:
            return tuple(point for number, point in enumerate(points) if number in kept)
        first = max(points, key=lambda point: len(point.sources))
        words = first.text.split()
        while len(words) > 1 and self._model.count_tokens(" ".join(words)) > share:
            del words[max(len(words) // 2, 1) :]
        return (Point(f"{' '.join(words)} …", first.sources),)


def _read(answer: Mapping[str, Any], given: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points of a reply, each with the sources of what it names; one that names nothing is dropped."""
    entries = answer["points"]
    if not isinstance(entries, list):
        raise ValueError('"points" must be a list of objects')  # noqa: TRY004 - said of a reply
    points: list[Point] = []
    for entry in entries:
        text, named = (
            (entry.get("point"), entry.get("sources")) if isinstance(entry, Mapping) else (None, None)
        )
        if not isinstance(text, str) or not isinstance(named, list):
            raise ValueError(  # noqa: TRY004 - said of a reply
                'every point must have a text as its "point" and a list of ids as its "sources"'
            )
        ids = [int(name) for name in named if str(name).isdecimal() and 1 <= int(name) <= len(given)]
        sources = tuple(sorted({source for number in ids for source in given[number - 1].sources}))
        if text.strip() and sources:
            points.append(Point(text.strip(), sources))
    if not points:
        raise ValueError(f'no point has a text and an id from 1 to {len(given)} among its "sources"')
    return merged(points)


def merged(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return each text once, with all that stands behind it."""
    found: dict[str, tuple[str, list[int]]] = {}
    for point in points:
        _, sources = found.setdefault(" ".join(point.text.split()).casefold(), (point.text, []))
        sources += point.sources
    return tuple(Point(text, tuple(sorted(set(sources)))) for text, sources in found.values())


def _dealt(parts: int, groups: int) -> list[list[int]]:
    """Return `parts` neighbours in `groups` of about equal size.

    >>> _dealt(5, 2)
    [[0, 1, 2], [3, 4]]
    """
    bounds = [-(-parts * number // groups) for number in range(groups + 1)]
    return [list(range(start, end)) for start, end in pairwise(bounds)]


def _parts(slots: Sequence[Slot]) -> list[Part]:
    failures = [slot.outcome for slot in slots if isinstance(slot.outcome, Failure)]
    for failure in failures:
        failure.mark_read()
    if failures:
        raise failures[0].raised()
    return [slot.outcome for slot in slots]


# Cluster: similar failures found without a model, so that feedback on them can be read together.
#
# Feedback on the same confusion (predicted this, expected that) belongs together. Where predictions are texts of
# their own, the words of the feedback decide: each text is reduced to a bottom-k sketch of its words, and joins
# the first text that it is similar enough to (leader clustering). Both are deterministic: the hash is CRC-32,
# which no process salts, and ties go to what came first.
#
# Source of the sketch: A. Broder, "On the resemblance and containment of documents", SEQUENCES 1997.


SKETCH: Final = 32
"""Hashes that are kept of a text; the estimate of a similarity of 0.5 is then off by 0.09, typically."""
SIMILAR: Final = 0.4
"""Share of common words from which two texts count as saying the same of different samples."""
MAX_LABEL: Final = 60
"""Characters up to which a prediction or a target is taken for a label."""
_WORD: Final = re.compile(r"[^\W\d_]{4,}")
_QUOTED: Final = re.compile(r"\"[^\"\n]{0,200}\"|“[^”\n]{0,200}”|`[^`\n]{0,200}`")


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """Feedback on similar failures.

    Attributes:
        name: what they have in common; empty for one that is like no other.
        members: which ones, by number, ascending.
    """

    name: str
    members: tuple[int, ...]


def clustered(texts: Sequence[str], trails: Sequence[Sequence[Mapping[str, Any]]]) -> list[Cluster]:
    """Return every text in one cluster, the largest clusters first.

    Args:
        texts: the feedback.
        trails: for each of them where it comes from, as in `Variable.provenance`.

    >>> clustered(["a", "b", "c"], [({"prediction": p, "target": "no"},) for p in ("yes", "maybe", "yes")])[0]
    Cluster(name='predicted "yes", expected "no"', members=(0, 2))
    """
    confusions = [_confusion(trail) for trail in trails]
    counts = Counter(confusion for confusion in confusions if confusion)
    groups: dict[str, list[int]] = {}
    rest: list[int] = []
    for number, confusion in enumerate(confusions):
        if confusion and counts[confusion] > 1:
            groups.setdefault(confusion, []).append(number)
        else:
            rest.append(number)
    found = [Cluster(name, tuple(members)) for name, members in groups.items()]
    found += [Cluster(_name(texts, members), tuple(members)) for members in _alike(texts, rest)]
    return sorted(found, key=lambda cluster: (-len(cluster.members), cluster.members[0]))


def _confusion(trail: Sequence[Mapping[str, Any]]) -> str:
    """Return what was predicted for what, if it is one confusion of labels."""
    found: dict[str, None] = {}
    for entry in trail:
        if "prediction" not in entry or entry.get("target") is None:
            return ""
        said, wanted = (_quoted(entry[key]) for key in ("prediction", "target"))
        if max(len(said), len(wanted)) > MAX_LABEL:
            return ""
        found[f"predicted {said}, expected {wanted}"] = None
    return next(iter(found)) if len(found) == 1 else ""


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _alike(texts: Sequence[str], numbers: Sequence[int]) -> list[list[int]]:
    sketches: list[frozenset[int]] = []
    members: list[list[int]] = []
    leaders: dict[int, list[int]] = {}
    for number in numbers:
        mine = sketch(texts[number])
        shared: Counter[int] = Counter()
        for element in mine:
            shared.update(leaders.get(element, ()))
        best = min(shared, key=lambda leader: (-shared[leader], leader), default=None)
        if best is not None and similarity(sketches[best], mine) >= SIMILAR:
            members[best].append(number)
            continue
        for element in mine:
            leaders.setdefault(element, []).append(len(members))
        sketches.append(mine)
        members.append([number])
    return members


def sketch(text: str) -> frozenset[int]:
    """Return the bottom-k sketch of a text's words."""
    # What is quoted belongs to one sample, and endings of words to its grammar.
    words = {word[:6] for word in _WORD.findall(_QUOTED.sub(" ", text).lower())}
    return frozenset(heapq.nsmallest(SKETCH, [zlib.crc32(word.encode()) for word in words]))


def similarity(one: frozenset[int], other: frozenset[int]) -> float:
    """Return the share of words that two sketched texts have in common, estimated, from 0 to 1.

    >>> similarity(sketch("Heating broken again"), sketch("heating BROKEN again"))
    1.0
    >>> similarity(sketch("Heating broken"), sketch("Thank you!"))
    0.0
    """
    smallest = heapq.nsmallest(SKETCH, one | other)
    common = one & other
    return sum(element in common for element in smallest) / len(smallest) if smallest else 0.0


def _name(texts: Sequence[str], members: Sequence[int]) -> str:
    """Return the words that most of a cluster's texts have, in the order of the first one."""
    if len(members) < 2:
        return ""
    counts: Counter[str] = Counter()
    for member in members:
        counts.update(list(dict.fromkeys(_WORD.findall(_QUOTED.sub(" ", texts[member]).lower()))))
    common = [word for word, count in counts.items() if 2 * count > len(members)][:8]
    return f"feedback about: {', '.join(common)}" if common else "similar feedback"


# Structured: ask a model for a JSON object, and make the best of endpoints that can't promise one.


T = TypeVar("T")

REFUSALS: Final = (400, 422)
"""Statuses with which endpoints refuse a parameter that they don't know."""
_FENCE: Final = re.compile(r"^\s*```[a-zA-Z]*\s*\n(.*)\n\s*```\s*$", re.DOTALL)


async def complete_json(
    model: ChatModel,
    job: Job,
    messages: Sequence[Message],
    schema: Mapping[str, Any],
    purpose: str,
) -> ChatResponse:
    """Ask for a reply in `schema`; an endpoint that refuses schemas is asked in words, from then on."""
    if not model.client.json_schema:
        return await model.complete(messages, purpose, job=job)
    try:
        return await model.complete(messages, purpose, job=job, response_format=schema)
    except FinalModelError as error:
        if error.status not in REFUSALS or "response_format" in model.completion_args:
            raise
    reply = await model.complete(messages, purpose, job=job)
    # The same request without a schema went through: it was the schema that was refused.
    model.client.json_schema = False
    return reply


async def ask(
    model: ChatModel,
    job: Job,
    messages: Sequence[Message],
    *,
    schema: Mapping[str, Any],
    parse: Callable[[Mapping[str, Any]], T],
    repair: str,
    purpose: str,
) -> T:
    """Return `parse` of the JSON object that the model replies; one repair, then it fails.

    Args:
        parse: turns the object into a result, or raises ValueError or KeyError with what is wrong.
        repair: what to say about a reply that can't be read; `{error}` is filled.

    Raises:
        ReplyError: if the repaired reply can't be read either.
    """
    reply = await complete_json(model, job, messages, schema, purpose)
    try:
        return parse(json_object(str(reply)))
    except (ValueError, KeyError, TypeError) as error:
        complaint = repair.replace("{error}", _said(error))
    again = [
        *messages,
        {"role": "assistant", "content": str(reply)},
        {"role": "user", "content": complaint},
    ]
    fixed = await complete_json(model, job, again, schema, f"{purpose}-repair")
    try:
        return parse(json_object(str(fixed)))
    except (ValueError, KeyError, TypeError) as error:
        raise ReplyError(
            f"the {purpose} model's reply could not be read, nor its repair: {_said(error)} "
            f"(it starts {str(fixed)[:80]!r})"
        ) from error


def json_object(text: str) -> Mapping[str, Any]:
    """Return the JSON object that `text` is, in a code fence or between other words if need be.

    >>> json_object('Sure: {"a": 1}')
    {'a': 1}
    """
    body = unfenced(text)
    try:
        value = json.loads(body)
    except ValueError:
        start, end = body.find("{"), body.rfind("}")
        if start < 0 or end < start:
            raise ValueError("it holds no JSON object") from None
        value = json.loads(body[start : end + 1])
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__}, not an object")  # noqa: TRY004 - said of a text
    return value


def unfenced(text: str) -> str:
    """Return `text` without the code fence around it, if there is one, and without blanks at its ends."""
    fenced = _FENCE.match(text)
    return (fenced[1] if fenced else text).strip()


def _said(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
