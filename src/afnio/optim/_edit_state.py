"""The state of a search by chains between two steps: its place in the data, the records of blocks, and what lost.

`SearchState` is all that is saved. A step works on it only where it has a result, so a step that fails leaves it alone.

Guards are samples that a text must go on getting right; a candidate that breaks one gets a veto. Answers differ between
draws, so one wrong answer says little. A guard is firm if the start texts get it right in `DRAWS` draws; the others
guard nothing. A candidate breaks a firm guard if it is wrong, and wrong again in one of two more draws. A sample that
is wrong by chance in 5 % of its draws is so broken in 0.5 % of all tests; with 20 of them, a test refuses a harmless
candidate in 8 of 100. One draw would refuse it in 58. A candidate is asked about in its race, before it may go on. So a
training loses a candidate, not its result.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, final

from afnio.optim._blocks import Edit, blocks_of
from afnio.optim._edits import LostEdit, Mistake
from afnio.optim._holdout import Evaluate, Holdout, digest, raise_end, scores_of
from afnio.optim._optimizer import Lineage, StepInputs, side_by_side
from afnio.optim._sizes import RowStream, SampleCost, Sizes
from afnio.runtime._settings import Priority
from afnio.runtime._waiting import scope


@dataclass(slots=True)
class BlockScore:
    """The record of one block; users see it as `Lineage`."""

    step: int = 0
    samples: tuple[int, ...] = ()
    replaces: str | None = None
    races: int = 0
    wins: int = 0
    losses: int = 0
    ties: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, differences: Sequence[float]) -> None:
        """Add one race's differences, with minus without the block."""
        self.races += 1
        self.wins += sum(d > 0 for d in differences)
        self.losses += sum(d < 0 for d in differences)
        self.ties += sum(d == 0 for d in differences)
        self.total += math.fsum(differences)
        self.squares += math.fsum(d * d for d in differences)

    def lineage(self, text: str) -> Lineage:
        """Return it as plain data, with a 95 % interval by the normal approximation."""
        count = self.wins + self.losses + self.ties
        effect = low = high = None
        if count:
            effect = self.total / count
        if effect is not None and count > 1:
            spread = max(0.0, (self.squares - count * effect * effect) / (count - 1))
            half = 1.96 * math.sqrt(spread / count)
            low, high = effect - half, effect + half
        return Lineage(
            text, self.step, self.samples, self.replaces,
            self.races, self.wins, self.losses, self.ties, effect, low, high,
        )  # fmt: skip


RECORDS: Final = 400
"""Blocks of one parameter that records are kept of, those that aren't in its value among them."""
LOST: Final = 16
"""Lost edits of one parameter that are refused."""
LOST_SHOWN: Final = 6
"""Lost edits that a prompt shows."""
CLEAR: Final = 2.0
"""The sum of scores by which a candidate must be behind for its edits to count as lost."""


@final
@dataclass(slots=True)
class SearchState:
    """The state of one `EditTGD`. Lists by parameter are in the optimizer's order.

    Attributes:
        count: the number of training samples.
        seed: of all draws.
        steps: steps that ended with a race, or without a mistake.
        next: the number of the next candidate.
        incumbent: the number of the candidate that the parameters hold. 0 is the start.
        digest: of the values that the parameters hold.
        texts: these values.
        starts: the lengths of the first values.
        firm: the guards that the first values got right in each draw. None before they were asked.
        opened: True once the sentences of the start texts have been left out.
        sample: what one sample costs. None if nothing depends on it yet.
        sizes: those of the last step.
        step_cost: the calls of a step of these sizes.
        stream: the order of the training samples.
        records: the record of each known block.
        tested: the step in which each block was left out last.
        lost: edits that didn't help, the newest last.
        carried: mistakes of the last race, for the next step.
        raced: the samples of that race.
        kept: the score of each sample that the values have been raced on.
        lessons: what these samples say about each parameter.
        warned: True once a race had too few samples. Not saved.
    """

    count: int
    seed: int | None = None
    steps: int = 0
    next: int = 1
    incumbent: int = 0
    digest: str | None = None
    texts: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    firm: list[int] | None = None
    opened: bool = False
    sample: SampleCost | None = None
    sizes: Sizes | None = None
    step_cost: int | None = None
    stream: RowStream | None = None
    records: list[dict[str, BlockScore]] = field(default_factory=list)
    tested: list[dict[str, int]] = field(default_factory=list)
    lost: list[list[LostEdit]] = field(default_factory=list)
    carried: list[list[Mistake]] = field(default_factory=list)
    raced: list[int] = field(default_factory=list)
    kept: dict[int, float] = field(default_factory=dict)
    lessons: list[list[Mistake]] = field(default_factory=list)
    warned: bool = False

    def begin(self, texts: Sequence[str]) -> None:
        """Prepare for a step that begins with these values."""
        assert self.seed is not None
        if self.stream is None:
            self.stream = RowStream(self.count, self.seed)
        if not self.starts:
            self.starts = [len(text) for text in texts]
            self.records, self.tested = [{} for _ in texts], [{} for _ in texts]
            self.lost = [[] for _ in texts]
        if self.digest is not None and self.digest != digest(texts):
            # Assigned from outside, so the mistakes of the last race are another text's.
            self.incumbent, self.next = self.next, self.next + 1
            self.carried, self.raced = [], []
            self.keep({}, [])
        self.hold(texts)
        for records, text in zip(self.records, texts, strict=True):
            for block in blocks_of(text):
                records.setdefault(block.text, BlockScore())

    def hold(self, texts: Sequence[str]) -> None:
        """Note the values that the parameters hold now."""
        self.texts, self.digest = list(texts), digest(texts)

    def keep(self, scores: Mapping[int, float], mistakes: Sequence[Sequence[Mistake]]) -> None:
        """Note what the values that the parameters hold now got in races."""
        self.kept, self.lessons = dict(scores), [list(some) for some in mistakes]

    def lineage(self, position: int, text: str) -> list[Lineage]:
        """Return the record of each block of a parameter's text, in order."""
        records = self.records[position] if position < len(self.records) else {}
        return [records.get(block.text, _NEW).lineage(block.text) for block in blocks_of(text)]

    def forget(self) -> None:
        """Bound the records: keep those of the values' blocks, and the newest of the others."""
        for records, tested, text in zip(self.records, self.tested, self.texts, strict=True):
            mine = {block.text for block in blocks_of(text)}
            others = [known for known in records if known not in mine]
            for known in others[: max(0, len(records) - max(RECORDS, len(mine)))]:
                del records[known]
            for known in [known for known in tested if known not in records]:
                del tested[known]

    # Results of races

    def remember(self, entry: Entry, values: Sequence[str]) -> None:
        """Note where the blocks of a candidate come from, which was made from `values`."""
        number = self.steps + 1
        for position, edits in enumerate(entry.edits):
            before = [b.text for b in blocks_of(values[position])]
            records = self.records[position]
            for edit in edits:
                replaced = before[edit.block - 1] if edit.op == "replace" else None
                for block in blocks_of(edit.text):
                    record = records.get(block.text)
                    if record is None:
                        records[block.text] = BlockScore(number, edit.samples, replaced)
                    elif record.step == number:
                        record.samples = tuple(dict.fromkeys((*record.samples, *edit.samples)))

    def record_race(self, result: RacedEntries) -> None:
        """Note how candidates with each block did against those without it."""
        number = self.steps + 1
        raced = [entry for entry in result.entries if entry.scores]
        if len(raced) < 2:
            return
        for position, records in enumerate(self.records):
            texts = [{b.text for b in blocks_of(entry.values[position])} for entry in raced]
            for text in dict.fromkeys(b.text for e in raced for b in blocks_of(e.values[position])):
                owners = [text in blocks for blocks in texts]
                if all(owners):
                    continue
                differences: list[float] = []
                for sample in range(len(result.units)):
                    groups: tuple[list[float], list[float]] = ([], [])
                    for entry, owner in zip(raced, owners, strict=True):
                        score = entry.scores[sample] if sample < len(entry.scores) else None
                        if score is not None:
                            groups[not owner].append(score)
                    if groups[0] and groups[1]:
                        differences.append(
                            math.fsum(groups[0]) / len(groups[0]) - math.fsum(groups[1]) / len(groups[1])
                        )
                if differences:
                    records.setdefault(text, BlockScore(number)).add(differences)

    def lose(self, result: RacedEntries, values: Sequence[str]) -> None:
        """Remember the edits whose candidates all scored clearly less than the current text, or broke a guard.

        One sample less is a matter of luck, and what a proposer is told not to write again it can't correct either.
        """
        incumbent = next((e for e in result.entries if e.name == "incumbent"), None)
        if incumbent is None or not incumbent.scores:
            return
        for position, text in enumerate(values):
            blocks = [b.text for b in blocks_of(text)]
            losses: dict[tuple[str, str], list[tuple[bool, float, float]]] = {}
            for entry in result.entries:
                if not entry.scores or not entry.edits:
                    continue
                pairs = [
                    (a, b)
                    for a, b in zip(entry.scores, incumbent.scores, strict=False)
                    if a is not None and b is not None
                ]
                if not pairs:
                    continue
                mine, theirs = (math.fsum(column) for column in zip(*pairs, strict=True))
                # Of a candidate with several edits, nobody knows which one broke the guard.
                clear = theirs - mine >= CLEAR or (entry.vetoed and sum(map(len, entry.edits)) == 1)
                score, against = mine / len(pairs), theirs / len(pairs)
                for edit in entry.edits[position]:
                    what = blocks[edit.block - 1] if edit.op == "delete" else edit.text
                    losses.setdefault((edit.op, what), []).append((clear, score, against))
            memory = self.lost[position]
            for (op, what), trials in losses.items():
                if all(clear for clear, _, _ in trials):
                    _, score, against = max(trials)
                    lost = LostEdit(op, what, score, against)
                    memory[:] = [*(past for past in memory if past.key != lost.key), lost][-LOST:]

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        stream = self.stream
        plain = (
            "seed",
            "steps",
            "next",
            "incumbent",
            "digest",
            "texts",
            "starts",
            "firm",
            "opened",
            "step_cost",
        )
        return {
            **_fields(self, plain),
            "sample": None if self.sample is None else list(self.sample),
            "sizes": None if self.sizes is None else list(self.sizes),
            "rows": None if stream is None else {"epoch": stream.epoch, "waiting": list(stream.waiting)},
            "records": [
                {text: _fields(record, _RECORD) for text, record in records.items()}
                for records in self.records
            ],
            "tested": [dict(tested) for tested in self.tested],
            "lost": [[_fields(edit, _LOST) for edit in edits] for edits in self.lost],
            "count": self.count,
            "raced": list(self.raced),
            "carried": _saved(self.carried),
            "kept": [list(entry) for entry in self.kept.items()],
            "lessons": _saved(self.lessons),
        }

    @classmethod
    def from_dict(cls, count: int, state: Mapping[str, Any]) -> SearchState:
        """Return the state that `state_dict` returned.

        Raises:
            ValueError: if it is of another number of training samples.
        """
        if state["count"] != count:
            raise ValueError(
                f"the state must be of {count} training samples (got {state['count']}); load it with the same data"
            )
        rows, sample, sizes = state["rows"], state["sample"], state["sizes"]
        seed = state["seed"]
        return cls(
            count,
            seed,
            state["steps"],
            state["next"],
            state["incumbent"],
            state["digest"],
            list(state["texts"]),
            list(state["starts"]),
            state["firm"],
            state["opened"],
            None if sample is None else SampleCost(*sample),
            None if sizes is None else Sizes(*sizes),
            state["step_cost"],
            None if rows is None else RowStream(count, seed, rows["epoch"], rows["waiting"]),
            [
                {
                    text: BlockScore(**{**entry, "samples": tuple(entry["samples"])})
                    for text, entry in records.items()
                }
                for records in state["records"]
            ],
            [dict(tested) for tested in state["tested"]],
            [[LostEdit(**edit) for edit in edits] for edits in state["lost"]],
            _restored(state["carried"]),
            list(state["raced"]),
            dict(state["kept"]),
            _restored(state["lessons"]),
        )


_NEW: Final = BlockScore()
_RECORD: Final = ("step", "samples", "replaces", "races", "wins", "losses", "ties", "total", "squares")
_LOST: Final = ("op", "text", "score", "against")
_MISTAKE: Final = ("unit", "text", "trail", "quoted")


def _fields(record: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return fields as JSON can hold them: tuples become lists."""
    values = {name: getattr(record, name) for name in names}
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in values.items()}


def _saved(mistakes: Sequence[Sequence[Mistake]]) -> list[list[dict[str, Any]]]:
    return [[_fields(mistake, _MISTAKE) for mistake in some] for some in mistakes]


def _restored(mistakes: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Mistake]]:
    return [[Mistake(**{**one, "trail": tuple(one["trail"])}) for one in some] for some in mistakes]


# Candidates.


@final
@dataclass(slots=True)
class Entry:
    """A candidate of a race.

    Attributes:
        values: one text for each parameter.
        edits: for each parameter its edits of the current text.
        mistakes: for each parameter the feedback that its edits were made from.
        note: why it isn't raced. Empty if it is.
        place: its number in the race.
        number: its number among all candidates.
        left_out: the position and the text of the block that it does without, if that is what it tries.
        vetoed: True if it breaks a guard.
    """

    name: str
    values: tuple[str, ...]
    edits: list[list[Edit]] = field(default_factory=list)
    mistakes: list[list[Mistake]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    note: str = ""
    place: int = 0
    number: int = 0
    left_out: tuple[int, str] | None = None
    vetoed: bool = False
    error: Exception | None = None
    scores: list[float | None] = field(default_factory=list)
    graphs: list[tuple[Any, list[int]]] = field(default_factory=list)
    verdict: str = ""


@final
class RacedEntries(NamedTuple):
    """A race's candidates, its samples, and the candidate that goes on; None if none could be judged."""

    entries: list[Entry]
    units: list[int]
    winner: Entry | None


# Guards


DRAWS: Final = 3
"""Draws in which the start texts must get a guard right, and in which a candidate gets it wrong or right."""


@final
class Guards:
    """The samples that candidates must not break.

    Args:
        evaluate: runs the agent on a batch, as `EditTGD` documents it.
        samples: the guards.
        perfect: the score that makes a sample right.
    """

    def __init__(self, evaluate: Evaluate, samples: Any, perfect: float) -> None:
        self._evaluate, self._samples, self._perfect = evaluate, Holdout(samples), perfect

    def __len__(self) -> int:
        return len(self._samples)

    async def firm(self, inputs: StepInputs) -> list[int]:
        """Return the numbers of the guards that the current texts get right in each draw.

        Raises:
            ValueError: if there is none.
        """
        everything = range(len(self))
        wrong: list[list[int]] = [[] for _ in range(DRAWS)]

        async def draw(number: int) -> None:
            wrong[number] = await self._wrong(inputs, inputs.values, everything, f"draw {number + 1}")

        async with scope(name="guards"):
            await side_by_side([partial(draw, number) for number in range(DRAWS)])
        soft = {unit for units in wrong for unit in units}
        firm = [unit for unit in everything if unit not in soft]
        if not firm:
            raise ValueError(
                f"guards must have a sample that the start texts get right {DRAWS} times of {DRAWS} (got none of "
                f"{len(self)}); choose samples that must not break, or leave guards out"
            )
        if soft:
            logging.getLogger("afnio").warning(
                "%d of %d guards guard nothing, because the start texts don't get them right %d times of %d (%s)",
                len(soft), len(self), DRAWS, DRAWS, ", ".join(str(unit + 1) for unit in sorted(soft)),
            )  # fmt: skip
        return firm

    async def broken(self, inputs: StepInputs, entry: Entry, firm: Sequence[int]) -> list[int]:
        """Return the firm guards that a candidate breaks."""
        async with scope(name=f"guards of candidate {entry.place}"):
            missed = await self._wrong(inputs, entry.values, firm, "draw 1")
            if not missed:
                return []
            again: list[list[int]] = [[] for _ in range(1, DRAWS)]

            async def draw(number: int) -> None:
                again[number] = await self._wrong(inputs, entry.values, missed, f"draw {number + 2}")

            await side_by_side([partial(draw, number) for number in range(len(again))])
        return [unit for unit in missed if any(unit in units for units in again)]

    async def _wrong(
        self, inputs: StepInputs, values: Sequence[Any], units: Sequence[int], name: str
    ) -> list[int]:
        """Return those of `units` that get less than a perfect score. One that fails isn't right."""
        try:
            scores = await scores_of(
                self._evaluate,
                self._samples.batch(units),
                inputs.bound(values),
                name=name,
                urgency=Priority.VALIDATION,
                quorum=_ANY,
            )
            self._samples.by_unit(units, scores)  # raises if there isn't one for each sample
        except Exception as error:
            raise_end(error)
            return list(units)
        return [
            unit for unit, score in zip(units, scores, strict=True) if score is None or score < self._perfect
        ]


_ANY: Final = 1e-6
"""The quorum of a look: samples that fail count as wrong, so they needn't end it."""
