"""ReductionTree: the groups of one reduction, as the jobs of one launch.

The groups of all levels are fixed before the first call, by number: which summaries meet doesn't depend on which
arrives first, so the journal answers a repeated run. A group is a job that waits for its own parts alone, so it
starts as soon as it is full; no level waits for the one before. Each part of a full group may take 1/FAN_IN of
the budget, hence 1,024 groups need three levels: 1,024, 64, 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, final

from afnio.cognitive.cluster import Cluster
from afnio.cognitive.prompts import reduce_messages, reduce_schema, wording
from afnio.cognitive.structured import ask
from afnio.errors import ModelError, ReplyError
from afnio.models._client import ChatModel
from afnio.runtime._kernel import Body, Failure, Job, Launch, Outcomes, Slot, within
from afnio.runtime._waiting import wait_async

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
