"""Reduction: sums up feedback when there is more of it than one prompt should show.

An optimizer that reads the feedback of 100 samples one after the other gets worse than one that reads 3: published runs
lose 14 points that way (ComBEE, arXiv:2604.04247). So `reduce_feedback` bounds the tokens that one prompt shows:

1. Feedback that fits is passed on unchanged, without a call.
2. Otherwise similar feedback is brought together without a model (`clustered`): first by the same mistake
   (predicted this, expected that), then by common words. Neighbours then say similar things and merge well.
3. The texts are filled into groups of `max_tokens`. One call sums up each group into points, and each point names
   the samples behind it. Many groups' points are summed up again (`ReductionTree`).

A group whose call fails is left out of the step with a warning, as long as a quorum of the texts has been read.
"""

from __future__ import annotations

import heapq
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, final

from afnio.cognitive._prompts import ask, reduce_messages, reduce_schema, wording
from afnio.errors import BatchError, ModelError, ReplyError, reason
from afnio.models._client import ChatModel
from afnio.runtime._callables import call_in_node, quorum_holds
from afnio.runtime._kernel import Body, Job, Launch, Outcomes, Slot, within
from afnio.runtime._tracebacks import Failure
from afnio.runtime._waiting import wait_async

# Tokens of feedback that one prompt shows by default: about a hundred gradients of one sentence.
BUDGET: Final = 4_000
# The fraction of the texts that must have been read if calls fail.
QUORUM: Final = 0.5


@final
@dataclass(frozen=True, slots=True)
class Reduction:
    """Feedback as an optimizer's prompt shows it.

    Attributes:
        points: the changes that the feedback asks for; the feedback itself, if it fitted.
        mistakes: clusters of two or more similar mistakes, the largest first; empty if all feedback fitted.
        failed: numbers of the texts that are left out because the call that should sum them up failed.
        capped: numbers of the texts that are left out because enough of their cluster is shown.
        calls: how many groups were summed up.
    """

    points: tuple[Point, ...]
    mistakes: tuple[Cluster, ...] = ()
    failed: tuple[int, ...] = ()
    capped: tuple[int, ...] = ()
    calls: int = 0


async def reduce_feedback(
    job: Job,
    texts: Sequence[str],
    provenances: Sequence[Sequence[Mapping[str, Any]]],
    model: ChatModel,
    *,
    role: str,
    value: str,
    max_tokens: int | None = BUDGET,
    per_failure: int | None = None,
    quorum: float = QUORUM,
) -> Reduction:
    """Return `texts` summed up to fit in `max_tokens`; without a call if they fit already.

    Args:
        job: the calls get its address and priority, and the purpose "reduce".
        provenances: where each text comes from, as in `Variable.provenance`.
        role, value: of the text that the feedback is on.
        max_tokens: tokens of feedback that one prompt may show; None never reduces.
        per_failure: at most this many texts of a cluster are taken; None takes all.
        quorum: the fraction of the texts that must have been read if calls fail.

    Raises:
        BatchError: if calls failed and fewer texts than the quorum are left.
    """
    everything = range(len(texts))
    sizes = [model.count_tokens(text) for text in texts]
    fits = max_tokens is None or sum(sizes) <= max_tokens
    if fits and (per_failure is None or len(texts) <= per_failure):
        return Reduction(tuple(Point(text, (number,)) for number, text in enumerate(texts)))
    clusters = await call_in_node(job, clustered, list(texts), list(provenances))
    taken = [cluster.members[:per_failure] for cluster in clusters]
    capped = tuple(sorted(set(everything).difference(*taken)))
    points = merged([Point(texts[number], (number,)) for members in taken for number in members])
    mistakes = tuple(cluster for cluster in clusters if cluster.name)
    if max_tokens is None or sum(sizes[point.sources[0]] for point in points) <= max_tokens:
        return Reduction(points, mistakes, capped=capped)
    tree = ReductionTree(job, model, role, value, max_tokens, mistakes)
    parts = await tree.run(points)
    failed = tuple(sorted({number for part in parts for number in part.failed}))
    shown = len(texts) - len(capped)
    if failed:
        _check_quorum(failed, shown, quorum, [error for part in parts for error in part.errors], role)
    united = merged([point for part in parts for point in part.points])
    ordered = tuple(sorted(united, key=lambda point: -len(point.sources)))
    return Reduction(ordered, mistakes, failed, capped, sum(part.calls for part in parts))


def _check_quorum(
    failed: Sequence[int], shown: int, quorum: float, errors: Sequence[Exception], role: str
) -> None:
    """Warn about the texts that failed calls leave out; raise if they are too many."""
    if not quorum_holds(shown - len(failed), shown, quorum):
        raise BatchError(
            f"{len(failed)} of {shown} feedback texts on {role!r} could not be summed up, and quorum={quorum} "
            f"allows fewer: {reason(errors[0])}",
            list(errors),
            failed,
        )
    logging.getLogger("afnio").warning(
        "%d of %d feedback texts on %r are left out of the step, because the call that sums them up failed (%s)",
        len(failed),
        shown,
        role,
        errors[0],
    )


# The tree of groups.


FAN_IN: Final = 16
# At most this many feedback texts are in one group, even if they are short: models lose count of more.
MAX_ENTRIES: Final = 256
TOKENS_PER_POINT: Final = 40
WORDS_PER_TOKEN: Final = 0.75


@final
@dataclass(frozen=True, slots=True)
class Point:
    """One change that feedback asks for, and the numbers of the feedback texts that ask for it."""

    text: str
    sources: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class Part:
    """The result of a group: its points, the texts that are lost with their errors, and the number of calls."""

    points: tuple[Point, ...]
    failed: tuple[int, ...] = ()
    errors: tuple[Exception, ...] = ()
    calls: int = 0


@final
class ReductionTree:
    """The tree of one reduction, as the jobs of one launch; `run` it once.

    All groups of all levels are fixed, by number, before the first call. If summaries met in the order in which they
    arrive, a resumed run would ask other questions than the journal has answers for.

    A group is a job that waits for its own parts only, so no level waits for the one before. Each part of a full group
    may take 1/FAN_IN of the tokens, hence 1,024 groups need three levels: 1,024, 64, 4.
    """

    def __init__(
        self,
        job: Job,
        model: ChatModel,
        role: str,
        value: str,
        max_tokens: int,
        mistakes: Sequence[Cluster],
    ) -> None:
        self._job = job
        self._model = model
        self._role = role
        self._value = value
        self._max_tokens = max_tokens
        self._mistakes = mistakes
        self._mistake_of = {n: i for i, cluster in enumerate(mistakes) for n in cluster.members}

    async def run(self, points: Sequence[Point]) -> list[Part]:
        groups = self._filled(points)
        with within(self._job.scope):
            launch = Launch("reduce")
        launch.depth, launch.line = self._job.launch.depth, self._job.launch.line
        slots: list[Slot] = []
        level = 0
        while True:
            last = len(groups) <= FAN_IN
            # In the last level each of a few groups may take more than a part of a full group, but at most a quarter of
            # what it read: a summary as long as its sources would sum up nothing.
            share = (
                min(self._max_tokens // len(groups), self._max_tokens // 4)
                if last
                else self._max_tokens // FAN_IN
            )
            outputs = [Slot(launch) for _ in groups]
            for number, group in enumerate(groups):
                inputs = [slots[part] for part in group] if level else []
                earlier = () if level else tuple(points[part] for part in group)
                body = self._summing(earlier, max(share, 1))
                launch.add(body, inputs, [outputs[number]], lane=number, part=f"level {level}", gather=True)
            slots, level = outputs, level + 1
            if last:
                break
            groups = _dealt(len(groups), -(-len(groups) // FAN_IN))
        launch.start()
        await wait_async(slots)
        return _parts(slots)

    def _filled(self, points: Sequence[Point]) -> list[list[int]]:
        """Return groups of neighbours of at most `max_tokens`, about equally full."""
        sizes = [self._model.count_tokens(point.text) for point in points]
        total = sum(sizes)
        enough = -(-total // -(-total // self._max_tokens))
        groups: list[list[int]] = [[]]
        filled = 0
        for number, size in enumerate(sizes):
            full = filled >= enough or filled + size > self._max_tokens or len(groups[-1]) == MAX_ENTRIES
            if groups[-1] and full:
                groups.append([])
                filled = 0
            groups[-1].append(number)
            filled += size
        return groups

    def _summing(self, earlier: Sequence[Point], share: int) -> Body:
        async def body(job: Job, outcomes: list[Any]) -> Outcomes:
            broken = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
            if broken:
                return [broken[0]]
            before = Part(
                merged([*earlier, *(point for part in outcomes for point in part.points)]),
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
        """Ask for the summary of `points` in at most `share` tokens."""
        mistakes, entries = self._shown(points)
        most = max(share // TOKENS_PER_POINT, 1)
        summary: tuple[Point, ...] = await ask(
            self._model,
            job,
            reduce_messages(
                role=self._role,
                value=self._value,
                failures=mistakes,
                entries=entries,
                points=most,
                words=max(int(share * WORDS_PER_TOKEN), 10),
            ),
            # Round up to a power of two: some endpoints compile each schema, so send few different ones.
            schema=reduce_schema(most, 1 << (len(points) - 1).bit_length()),
            parse=lambda answer: _read(answer, points),
            repair=wording("reduce.repair"),
            purpose="reduce",
        )
        return self._within(summary, share)

    def _shown(
        self, points: Sequence[Point]
    ) -> tuple[list[tuple[str, int]], list[tuple[str, int, int | None]]]:
        """Return the mistakes that `points` are about, and the points as entries that refer to them by number."""
        numbers: dict[int, int] = {}
        entries: list[tuple[str, int, int | None]] = []
        for point in points:
            mistakes = {self._mistake_of.get(source) for source in point.sources}
            failure = mistakes.pop() if len(mistakes) == 1 else None
            number = None if failure is None else numbers.setdefault(failure, len(numbers) + 1)
            entries.append((point.text, len(point.sources), number))
        named = [self._mistakes[failure] for failure in numbers]
        return [(cluster.name, len(cluster.members)) for cluster in named], entries

    def _within(self, points: Sequence[Point], share: int) -> tuple[Point, ...]:
        """Return the points with most samples behind them that fit in `share`, in their order.

        A model that ignores its limit would otherwise make every level as long as the one before.
        """
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


def _read(answer: Mapping[str, Any], earlier: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points of a reply with the sources behind the ids that they name; a point without ids is dropped."""
    entries = answer["points"]
    if not isinstance(entries, list):
        raise ValueError('"points" must be a list of objects')  # noqa: TRY004 - about a reply
    points: list[Point] = []
    for entry in entries:
        text, named = (
            (entry.get("point"), entry.get("sources")) if isinstance(entry, Mapping) else (None, None)
        )
        if not isinstance(text, str) or not isinstance(named, list):
            raise ValueError(  # noqa: TRY004 - about a reply
                'every point must have a text as its "point" and a list of ids as its "sources"'
            )
        ids = [int(name) for name in named if str(name).isdecimal() and 1 <= int(name) <= len(earlier)]
        sources = tuple(sorted({source for number in ids for source in earlier[number - 1].sources}))
        if text.strip() and sources:
            points.append(Point(text.strip(), sources))
    if not points:
        raise ValueError(f'no point has a text and an id from 1 to {len(earlier)} among its "sources"')
    return merged(points)


def merged(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return each text once, with the sources of all its copies."""
    by_text: dict[str, tuple[str, list[int]]] = {}
    for point in points:
        _, sources = by_text.setdefault(" ".join(point.text.split()).casefold(), (point.text, []))
        sources += point.sources
    return tuple(Point(text, tuple(sorted(set(sources)))) for text, sources in by_text.values())


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


# Clusters of similar feedback.
#
# Feedback on the same confusion of labels (predicted this, expected that) belongs together. For predictions that are
# free text the words of the feedback decide: each text is reduced to a bottom-k sketch of its words (A. Broder, "On
# the resemblance and containment of documents", SEQUENCES 1997) and joins the most similar earlier text, if that is
# similar enough (leader clustering). A resumed run must find the same clusters, so the hash is CRC-32, which is the
# same in every process, and ties go to the earlier text.


# How many hashes of a text are kept. The standard error of a similarity of 0.5 is then 0.09.
SKETCH: Final = 32
# The share of common words from which two texts count as the same feedback on different samples.
SIMILAR: Final = 0.4
# A prediction or target of at most this many characters is taken for a label.
MAX_LABEL: Final = 60
_WORD: Final = re.compile(r"[^\W\d_]{4,}")
_QUOTED: Final = re.compile(r"\"[^\"\n]{0,200}\"|“[^”\n]{0,200}”|`[^`\n]{0,200}`")


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """Feedback texts on similar mistakes.

    Attributes:
        name: their common mistake or words; empty for a text that is similar to no other.
        members: the numbers of the texts, ascending.
    """

    name: str
    members: tuple[int, ...]


def clustered(texts: Sequence[str], provenances: Sequence[Sequence[Mapping[str, Any]]]) -> list[Cluster]:
    """Return every text in one cluster, the largest clusters first.

    Args:
        texts: the feedback.
        provenances: for each of them where it comes from, as in `Variable.provenance`.

    >>> clustered(["a", "b", "c"], [({"prediction": p, "target": "no"},) for p in ("yes", "maybe", "yes")])[0]
    Cluster(name='predicted "yes", expected "no"', members=(0, 2))
    """
    confusions = [_confusion(provenance) for provenance in provenances]
    counts = Counter(confusion for confusion in confusions if confusion)
    groups: dict[str, list[int]] = {}
    rest: list[int] = []
    for number, confusion in enumerate(confusions):
        if confusion and counts[confusion] > 1:
            groups.setdefault(confusion, []).append(number)
        else:
            rest.append(number)
    clusters = [Cluster(name, tuple(members)) for name, members in groups.items()]
    clusters += [Cluster(_name(texts, members), tuple(members)) for members in _alike(texts, rest)]
    return sorted(clusters, key=lambda cluster: (-len(cluster.members), cluster.members[0]))


def _confusion(provenance: Sequence[Mapping[str, Any]]) -> str:
    """Return the confusion of labels that the feedback is about; empty if there is none, or several."""
    pairs: dict[str, None] = {}
    for entry in provenance:
        if "prediction" not in entry or entry.get("target") is None:
            return ""
        predicted, wanted = (_quoted(entry[key]) for key in ("prediction", "target"))
        if max(len(predicted), len(wanted)) > MAX_LABEL:
            return ""
        pairs[f"predicted {predicted}, expected {wanted}"] = None
    return next(iter(pairs)) if len(pairs) == 1 else ""


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
    # Drop quotations, which belong to one sample, and cut words at six letters, so that inflected forms match.
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
    """Return a name for a cluster: the words that most of its texts have, in order of appearance."""
    if len(members) < 2:
        return ""
    counts: Counter[str] = Counter()
    for member in members:
        counts.update(list(dict.fromkeys(_WORD.findall(_QUOTED.sub(" ", texts[member]).lower()))))
    common = [word for word, count in counts.items() if 2 * count > len(members)][:8]
    return f"feedback about: {', '.join(common)}" if common else "similar feedback"
