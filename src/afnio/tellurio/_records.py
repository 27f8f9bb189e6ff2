"""The records that a store's reader returns: plain, typed, immutable.

Pages, reports and commands never see a row of SQL. They get these from `StoreReader` and only lay them out, so a figure
is the same wherever it is shown. Times are seconds since 1970 UTC, and costs are US dollars.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run. `status` is worked out when it is read: if the process was killed, it's CRASHED."""

    store: Path
    id: str
    name: str
    description: str | None
    namespace: str
    project: str
    status: str
    config: Any
    identity: Any
    seed: int
    host: str
    pid: int
    date_created: float
    date_updated: float
    seconds_dead: float
    git_commit: str | None
    versions: Mapping[str, str]
    platform: Mapping[str, Any]
    in_flight: int
    waiting: int
    dropped: int
    places: Any = None

    @property
    def path(self) -> str:
        """The run as users write it: namespace/project/name."""
        return f"{self.namespace}/{self.project}/{self.name}"

    @property
    def key(self) -> str:
        """The run as the studio writes it: its file and its id. Unlike the name, it never changes."""
        return f"{self.store.parent.name}/{self.store.stem}/{self.id}"

    @property
    def url(self) -> str:
        """The path of the run's page in the studio."""
        parts = (self.store.parent.name, self.store.stem, self.id)
        return "/runs/" + "/".join(quote(part, safe="") for part in parts)

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last write, without those in which the run waited to be continued."""
        return max(0.0, self.date_updated - self.date_created - self.seconds_dead)

    @property
    def is_running(self) -> bool:
        """Return True if the run's process is alive and still recording."""
        return self.status == "RUNNING"


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """One value of a metric."""

    name: str
    step: int
    value: Any
    time: float


@dataclass(frozen=True, slots=True)
class Headline:
    """The metric that sums a run up.

    Attributes:
        value: the last value.
        mode: "max" or "min"; None if the run doesn't declare which is better, and then there is no best.
        best: the best value; of equal ones, the first.
        step: the step of the best value.
        unit: what the metric's steps count, "step" or "epoch".
    """

    metric: str
    value: float
    mode: str | None = None
    best: float | None = None
    step: int | None = None
    unit: str = "step"


@dataclass(frozen=True, slots=True)
class Spending:
    """Totals of a group of calls. Add two to get the totals of both.

    >>> (Spending(calls=1, cost=0.5) + Spending(calls=2, unpriced=2)).cost
    0.5

    Attributes:
        cancelled: calls that the program gave up, for example because a candidate can't win any more. They are not
            failures.
        replayed: calls that the journal answered at least once.
        attempts: requests sent, `retries` those after the first of a call.
        cost: None if no call has a price.
        unpriced: successful calls without a price.
        seconds: time on the wire.
        waited: time in the queue and between attempts.
    """

    calls: int = 0
    failed: int = 0
    cancelled: int = 0
    replayed: int = 0
    attempts: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = None
    unpriced: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        totals = {name: getattr(self, name) + getattr(other, name) for name in _ADDED}
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        return Spending(**totals, cost=sum(costs) if costs else None)


_ADDED: Final = [field.name for field in fields(Spending) if field.name != "cost"]


class SecondOfCalls(NamedTuple):
    """The calls of one purpose, account and model that ended in one second of the clock.

    Attributes:
        second: seconds since 1970 UTC.
        last: the highest of their ids.
        times: the milliseconds of each on the wire, with commas.
    """

    second: int
    purpose: str
    account: str
    model: str
    last: int
    times: str
    spent: Spending


class StepCalls(NamedTuple):
    """The calls of one phase, purpose and model in a step, and when the first began and the last ended."""

    phase: str
    purpose: str
    model: str
    calls: int
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call without its texts. Lists are paged by `id`."""

    id: int
    address: str
    node: str
    lane: int | None
    phase: str
    purpose: str
    account: str
    model: str
    status: str
    replayed: int
    attempts: int
    seconds: float
    waited: float
    started: float
    ended: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class CallTexts:
    """The messages, parameters and reply of a call as JSON values; None for one that isn't in the store."""

    messages: list[Any]
    params: Any
    reply: Any


@dataclass(frozen=True, slots=True)
class RetryRecord:
    """A failed attempt that was followed by another one after `wait` seconds."""

    attempt: int
    error: str
    wait: float


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """An op's launch in a graph. `parents` has the address of the node behind each input, or None for a leaf."""

    id: int
    address: str
    name: str
    line: str
    kind: str
    lanes: int | None
    parents: list[Any]
    phase: str


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """An evaluator's verdict on one sample.

    Attributes:
        note: a score that isn't a number, as JSON.
        inputs: what the sample was given, in words; None if that isn't recorded.
    """

    id: int
    node: str
    lane: int | None
    phase: str
    key: str | None
    prediction: str | None
    target: str | None
    score: float | None
    note: str | None
    explanation: str | None
    success: bool
    inputs: str | None = None


class PastScore(NamedTuple):
    """How a sample did in one evaluation; `place` orders the evaluations of a run."""

    phase: str
    right: bool
    score: float | None
    place: int


class SampleHistory(NamedTuple):
    """A sample by its last evaluation, and how it did in all of them.

    Attributes:
        times: how often it was evaluated, and `right` how often it was right.
        past: the outcomes of its last evaluations in order.
        place: by which a list goes on.
    """

    last: SampleRecord
    times: int
    right: int
    past: tuple[PastScore, ...]
    place: int


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """The samples of a phase added up.

    Attributes:
        samples: how many were evaluated.
        scored: how many of them have a score that is a number.
        binary: how many of the scores are 0 or 1.
        total: the sum of the scores.
    """

    phase: str
    samples: int
    scored: int
    binary: int
    total: float


class ScoredSample(NamedTuple):
    """One evaluation of a sample: its row, its score, and when its evaluator was launched."""

    key: str
    id: int
    score: float
    time: float


@dataclass(frozen=True, slots=True)
class ChangeRecord:
    """A step's effect on one parameter.

    Attributes:
        rejected: why its proposal wasn't taken, or None.
        dropped: why edits were left out.
    """

    id: int
    step_id: int
    parameter: int
    role: str
    before: str
    after: str
    gradients: int
    rejected: str | None
    dropped: list[str]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step of an optimizer."""

    id: int
    number: int
    address: str
    optimizer: str
    error: str | None
    time: float
    changes: list[ChangeRecord]

    @property
    def changed(self) -> list[str]:
        """The roles of the parameters that have another value after the step."""
        return [change.role for change in self.changes if change.before != change.after]

    @property
    def kept(self) -> list[tuple[list[str], str]]:
        """Why parameters kept their values: each reason once, with the roles that it applies to."""
        reasons: dict[str, list[str]] = {}
        for change in self.changes:
            if change.rejected:
                reasons.setdefault(change.rejected, []).append(change.role)
        return [(roles, reason) for reason, roles in reasons.items()]


@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """A piece of feedback that a proposer was shown, and the samples behind it."""

    number: int
    text: str
    samples: list[Any]


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """A block of a changed text: where it comes from, and how candidates with it did against those without it.

    Attributes:
        step: the step that wrote it, as its optimizer counts steps; 0 for a block of the start text.
        samples: numbers of the training samples that it was made from.
        replaces: the block that it replaced, or None.
        races: how many races had candidates with it and without it; wins, losses and ties count their samples.
        effect: the mean difference in score, with minus without; None if it was in no race.
        low, high: the ends of its 95 % interval; None with fewer than two samples.
    """

    number: int
    text: str
    step: int
    samples: list[Any]
    replaces: str | None
    races: int
    wins: int
    losses: int
    ties: int
    effect: float | None
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Return True if the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class FeedbackUse(NamedTuple):
    """A sample's feedback, and the number of the step that it was shown to."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """Values that a step weighed against others, with one score for each held-out sample.

    Attributes:
        name: such as "incumbent" or "union"; "" if its optimizer names no candidates.
        samples: the numbers of the samples behind `scores`; empty if unknown.
    """

    step: int
    number: int
    parents: list[int]
    values: list[Any]
    scores: list[float | None]
    verdict: str
    name: str
    samples: list[Any]

    @property
    def accepted(self) -> bool:
        """Return True if the parameters took these values."""
        return self.verdict.startswith("accepted")

    @property
    def texts(self) -> tuple[str, ...]:
        """The values as changes have them: texts, or JSON for anything else."""
        return tuple(value if isinstance(value, str) else json.dumps(value) for value in self.values)


class Choice(NamedTuple):
    """The candidates that the parameters held before and after a step. They are equal if it kept its values."""

    before: CandidateRecord
    after: CandidateRecord

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Both scores of each sample that both candidates were scored on."""
        # The held-out samples come in one order. A candidate accepted early was scored on the first of them only.
        both = zip(self.before.scores, self.after.scores, strict=False)
        return [(one, other) for one, other in both if one is not None and other is not None]


@dataclass(frozen=True, slots=True)
class ParameterRecord:
    """A value that a parameter had from step `step` on; step 0 is the value it started from.

    Attributes:
        made: the step that made it: a lower one than `step` if the value was restored.
    """

    number: int
    step: int
    role: str
    value: str
    made: int = 0

    @property
    def since(self) -> str:
        """From when on it had the value, such as "step 3" or "step 9, made in step 3"."""
        return f"step {self.step}" + (f", made in step {self.made}" if self.made < self.step else "")


class ParameterLength(NamedTuple):
    """The length of a parameter's value in characters, from step `step` on."""

    number: int
    role: str
    step: int
    length: int


@dataclass(frozen=True, slots=True)
class TextRecord:
    """The last text that a program logged under a name."""

    id: int
    name: str
    step: int
    text: str


@dataclass(frozen=True, slots=True)
class TableRecord:
    """The last table that a program logged under a name."""

    name: str
    step: int
    columns: list[Any]
    rows: list[Any]


class RunPulse(NamedTuple):
    """How a live run does.

    Attributes:
        last_reply: when the last reply came, or None.
        down: accounts that don't answer, with the error.
        retried: attempts that failed in the last while and are made again; `error` is one of theirs.
    """

    last_reply: float | None
    down: dict[str, str]
    retried: int
    error: str | None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event without a table of its own; `payload` is JSON."""

    kind: str
    payload: str
    time: float


def columns_of(record: type) -> list[str]:
    """The names of a record's fields, which are those of its table's columns."""
    return [field.name for field in fields(record)]


def loaded(text: str | None) -> Any:
    """Parse JSON. Text that isn't JSON is returned unchanged, because redaction may have broken it.

    >>> loaded('[1, 2]'), loaded('[1, ***'), loaded(None)
    ([1, 2], '[1, ***', None)
    """
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def loaded_list(text: str | None) -> list[Any]:
    """Parse a JSON list; anything else is an empty list."""
    value = loaded(text)
    return value if isinstance(value, list) else []


# Which metrics to show, and in which order.

# Parts of metric names, most telling first.
FAVOURITES: Final = ("validation", "val_", "test", "score", "accuracy", "final", "reward", "loss")

_COMPANION: Final = re.compile(r"(?:^|_)(?:failed|sum|low|high)(?:_step)?$")


def is_companion(name: str) -> bool:
    """Return True if a metric only accompanies another: a count of failures, a sum, or a bound of an interval.

    >>> [name for name in ("val_score", "val_score_low", "train_failed_step", "score_sum") if is_companion(name)]
    ['val_score_low', 'train_failed_step', 'score_sum']
    """
    return _COMPANION.search(name) is not None


def ranked(names: Iterable[str], monitored: str | None = None) -> list[str]:
    """Return the metrics worth showing: the monitored one first, then by how much they tell about the run.

    >>> ranked(["val_failed", "train_score", "val_score", "val_score_sum"])
    ['val_score', 'train_score']
    """

    def rank(name: str) -> tuple[bool, int, str]:
        places = [place for place, part in enumerate(FAVOURITES) if part in name.lower()]
        return name != monitored, min(places, default=len(FAVOURITES)), name

    return sorted((name for name in names if name == monitored or not is_companion(name)), key=rank)


def as_number(text: str) -> float | None:
    """Return the number in a JSON text, or None if it's anything else, including NaN and infinities.

    >>> as_number("0.5"), as_number('"good"'), as_number("NaN")
    (0.5, None, None)
    """
    value = loaded(text)
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None
