"""One step of `EditTGD`: chains side by side, their union, a race on fresh samples, and what is learned from it.

`ChainStep.run` reads as its summary. Chains have scopes of their own, named by number, so the addresses of their calls
don't depend on which of them is first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

from afnio.autodiff._backward import launch_grad
from afnio.autodiff._graph import enable_grad
from afnio.autodiff._variable import Variable, bind
from afnio.models._backward_model import backward_by, backward_model
from afnio.models._client import ChatModel
from afnio.optim._blocks import Draft, Edit, blocks_of, is_editable, union, without_block
from afnio.optim._checks import check
from afnio.optim._edit_state import LOST_SHOWN, Entry, Guards, RacedEntries, SearchState
from afnio.optim._edits import Mistake, Proposal, Quoting, merge_edits, propose_edits
from afnio.optim._holdout import Evaluate, Holdout, called, raise_end, sample_scores
from afnio.optim._optimizer import Candidate, Change, Decision, Evidence, StepInputs, for_each, side_by_side
from afnio.optim._sizes import Rows, Sizes, rows_for
from afnio.runtime._callables import quorum_holds, tolerate
from afnio.runtime._kernel import current_scope
from afnio.runtime._settings import Priority, prioritised
from afnio.runtime._waiting import scope


@final
@dataclass(frozen=True, slots=True)
class ChainSetup:
    """The arguments of `EditTGD`, which documents them, that its steps read."""

    evaluate: Evaluate
    train: Holdout
    guards: Guards | None
    prune_every: int | None
    critics: bool | None
    quorum: float

    def direct(self, parameters: Sequence[Variable]) -> bool:
        """Return True if the proposer reads the mistakes without a critic."""
        if self.critics is not None:
            return not self.critics
        return sum(parameter.requires_grad for parameter in parameters) == 1


@final
class ChainStep:
    """One step of a search. It changes `state`, which must be a copy."""

    def __init__(self, setup: ChainSetup, state: SearchState, inputs: StepInputs, sizes: Sizes) -> None:
        self._setup, self._state, self._inputs, self._sizes = setup, state, inputs, sizes
        self._runner = Runner(setup, inputs)
        vetoed = self._vetoed if setup.guards else None
        self._race = EntryRace(self._runner, sizes, setup.quorum, vetoed, state)
        self._drafts: list[list[Draft]] = []
        self._values: tuple[str, ...] = tuple(inputs.values)
        self._candidates: list[Candidate] = []
        self._number = state.steps + 1

    async def run(self) -> Decision:
        state = self._state
        if self._setup.guards is not None and state.firm is None:
            state.firm = await self._setup.guards.firm(self._inputs)
        if not state.opened and self._setup.prune_every is not None:
            await self._open()
        state.opened = True
        assert state.stream is not None
        stream = state.stream.copy()
        given = self._given()
        known = any(mistakes for found in given for mistakes in found)
        rows = rows_for(stream, self._sizes, forwards=self._sizes.inner - known, raced=state.raced)
        self._warn_few(len(rows.race))
        try:
            chains = await self._chains(rows, given)
            entries = await self._composed(chains)
            result = await self._race.run(entries, rows.race)
        except Exception as error:
            return self._undone(error)
        state.stream = stream
        return await self._concluded(result, chains)

    def _undone(self, error: Exception) -> Decision:
        """End the step without its race. What the race before the first step found stays."""
        changes = self._changes(None, "the step ended early")
        return Decision(self._values, changes, tuple(self._candidates), (error,))

    # Leaving out

    async def _open(self) -> None:
        """Try the start texts without each of their sentences, before the first step."""
        state, sizes = self._state, self._sizes
        options = (await self._removable())[: self._most_left_out()]
        if not options:
            return
        assert state.stream is not None
        stream = state.stream.copy()
        units = stream.take(min(sizes.race, len(self._setup.train)))
        entries = [Entry("incumbent", self._values)]
        entries += [self._without(at, number) for at, number, _ in options]
        # The candidates differ by a whole sentence of the author's, so don't drop one on the first samples if the
        # budget pays for more.
        whole = state.sample is None or len(entries) * len(units) * state.sample.forward <= (
            state.step_cost or 0
        )
        async with scope(name="start"):
            result = await self._race.run(entries, units, staged=not whole)
        state.stream = stream
        self._state.record_race(result)
        winner = result.winner
        self._note(result, state.incumbent)
        if winner is not None and winner.name != "incumbent":
            self._adopt(winner)
        if winner is not None:
            state.raced, state.carried = units, await self._race.mistakes(winner, units, "start mistakes")

    def _most_left_out(self) -> int:
        """Return how many sentences may be left out: together they may cost as much as a step."""
        state, sizes = self._state, self._sizes
        if state.sample is None or state.step_cost is None:
            return MOST_LEFT_OUT
        first, keep = min(sizes.first, sizes.race), sizes.keep
        samples = state.step_cost // state.sample.forward - keep * (sizes.race - first)
        return max(0, min(MOST_LEFT_OUT, samples // first - 1))

    async def _removable(self) -> list[tuple[int, int, str]]:
        """Return (position, number, text) of each block that a text may lose, as its parameter's validators allow."""
        found: list[tuple[int, int, str]] = []
        for at, parameter in enumerate(self._inputs.parameters):
            blocks = [b.text for b in blocks_of(self._values[at])]
            if not parameter.requires_grad or len(blocks) < 2:
                continue
            options = self._inputs.options[at]
            model = ChatModel(options["model_client"], options["completion_args"])
            for number, text in enumerate(blocks, start=1):
                rest = without_block(self._values[at], number)
                if is_editable(text) and not await check(
                    parameter, self._values[at], rest, count_tokens=model.count_tokens
                ):
                    found.append((at, number, text))
        return found

    def _without(self, at: int, number: int) -> Entry:
        values = list(self._values)
        block = blocks_of(values[at])[number - 1].text
        values[at] = without_block(values[at], number)
        edits: list[list[Edit]] = [[] for _ in values]
        edits[at] = [Edit("delete", number)]
        short = block if len(block) <= 40 else f"{block[:39]}…"
        return Entry(f'without "{short}"', tuple(values), edits, left_out=(at, block))

    async def _least_tested(self) -> Entry | None:
        """Return the current text without the block that was tested longest ago, of equals the one that did worst."""
        tested, records = self._state.tested, self._state.records
        options = await self._removable()
        if not options:
            return None

        def rank(option: tuple[int, int, str]) -> tuple[int, float]:
            at, _, text = option
            return tested[at].get(text, -1), records[at][text].lineage(text).effect or 0.0

        at, number, _ = min(options, key=rank)
        return self._without(at, number)

    # Chains

    def _given(self) -> list[list[list[Mistake]]]:
        """Return for each chain the mistakes that are there already, by parameter.

        They come from the last race, or from the loop around the step.
        """
        state, count = self._state, self._sizes.chains
        known = [list(found) for found in state.carried] or [[] for _ in self._values]
        for position, gradients in self._inputs.feedback.items():
            if self._inputs.parameters[position].requires_grad:
                known[position] += [Mistake(None, str(g.data), g.provenance) for g in gradients]
        return [[found[chain::count] for found in known] for chain in range(count)]

    async def _chains(self, rows: Rows, given: Sequence[Sequence[Sequence[Mistake]]]) -> list[Entry]:
        """Run all chains side by side. A chain that fails keeps the edits that it has made."""
        drafts = [[Draft.of(text) for text in self._values] for _ in rows.chains]
        entries = [
            Entry(
                f"chain {number}" if len(rows.chains) > 1 else "chain",
                self._values,
                mistakes=[[] for _ in self._values],
            )
            for number in range(1, len(rows.chains) + 1)
        ]

        async def chain(number: int) -> None:
            entry = entries[number]
            try:
                async with scope(name=entry.name):
                    await self._chain(entry, drafts[number], rows.chains[number], given[number])
            except Exception as error:
                raise_end(error)
                entry.error = error
            entry.values = tuple(draft.text for draft in drafts[number])
            entry.edits = [draft.edits for draft in drafts[number]]

        await side_by_side([partial(chain, number) for number in range(len(entries))])
        self._drafts = drafts
        return entries

    async def _chain(
        self,
        entry: Entry,
        drafts: list[Draft],
        shards: Sequence[Sequence[int]],
        given: Sequence[Sequence[Mistake]],
    ) -> None:
        waiting = list(shards)
        for number in range(1, self._sizes.inner + 1):
            if number == 1 and any(given):
                found = [list(mistakes) for mistakes in given]
            elif waiting:
                values = [draft.text for draft in drafts]
                _, found = await self._runner.learn(values, waiting.pop(0), f"samples {number}")
            else:
                break
            for position, mistakes in enumerate(found):
                entry.mistakes[position] += mistakes
            positions = [position for position, mistakes in enumerate(found) if mistakes]
            if not positions:
                continue
            async with scope(name=f"edits {number}"):
                made, failed = await for_each(positions, partial(self._edited, drafts, found))
            for position, proposal in made.items():
                drafts[position] = proposal.draft
                entry.dropped += proposal.dropped
            for error in failed.values():
                raise error

    async def _edited(
        self, drafts: Sequence[Draft], mistakes: Sequence[Sequence[Mistake]], position: int
    ) -> Proposal:
        state, draft = self._state, drafts[position]
        return await propose_edits(
            self._inputs.parameters[position],
            draft,
            mistakes[position],
            self._inputs.options[position],
            limit=self._limit(position),
            lost=state.lost[position][-LOST_SHOWN:],
        )

    # Candidates

    async def _composed(self, chains: Sequence[Entry]) -> list[Entry]:
        """Return the candidates of the race: the current text, the chains' ends, their union, a deletion."""
        entries = [Entry("incumbent", self._values), *chains]
        joint = await self._union(chains)
        if joint is not None:
            entries.append(joint)
        every = self._setup.prune_every
        if every is not None and self._number % every == 0:
            shorter = await self._least_tested()
            if shorter is not None:
                entries.append(shorter)
        seen: dict[tuple[str, ...], str] = {}
        for entry in entries:
            first = seen.setdefault(entry.values, entry.name)
            if first != entry.name:
                entry.note = "changed nothing" if first == "incumbent" else f"equals {first}"
                if entry.error is not None:
                    entry.note = f"failed: {entry.error}"
        return entries

    async def _union(self, chains: Sequence[Entry]) -> Entry | None:
        changed = [number for number, entry in enumerate(chains) if entry.values != self._values]
        if len(changed) < 2:
            return None
        joint = Entry("union", self._values, [[] for _ in self._values], [[] for _ in self._values])
        positions = [
            at
            for at, text in enumerate(self._values)
            if sum(chains[number].values[at] != text for number in changed) > 0
        ]

        async def merge(position: int) -> Proposal:
            edits = union([self._drafts[number][position] for number in changed])
            text = self._values[position]
            return await merge_edits(
                self._inputs.parameters[position],
                text,
                edits,
                self._inputs.options[position],
                limit=self._limit(position),
            )

        async with scope(name="union"):
            made, failed = await for_each(positions, merge)
        for error in failed.values():
            if not isinstance(error, Exception):
                raise error
            raise_end(error)
            joint.error, joint.note = error, f"failed: {error}"
        values = list(self._values)
        for position, proposal in made.items():
            values[position] = proposal.draft.text
            joint.edits[position] = list(proposal.edits)
            joint.dropped += proposal.dropped
        for entry in chains:
            for position, mistakes in enumerate(entry.mistakes):
                joint.mistakes[position] += mistakes
        joint.values = tuple(values)
        return joint

    # Results

    async def _concluded(self, result: RacedEntries, chains: Sequence[Entry]) -> Decision:
        state = self._state
        failed = [entry.error for entry in chains if entry.error is not None]
        if len(failed) == len(chains) and all(entry.values == self._values for entry in chains):
            return Decision(self._values, (), tuple(self._candidates), tuple(failed[:1]))
        for entry in result.entries:
            state.remember(entry, self._values)
        self._state.record_race(result)
        self._note(result, state.incumbent)
        winner = result.winner
        before = self._values
        if winner is not None and winner.name != "incumbent":
            self._adopt(winner)
        elif winner is not None:
            state.lose(result, self._values)
        state.steps += 1
        state.raced, state.carried = [], []
        if winner is not None and winner.scores:
            state.raced = result.units
            state.carried = await self._race.mistakes(winner, result.units, "mistakes")
        state.hold(self._values)
        state.forget()
        reason = None
        if before == self._values:
            raced = [e for e in result.entries if not e.note]
            reason = (
                "no edit was proposed"
                if len(raced) < 2
                else "no candidate did better than the current text in the race"
            )
        source = winner if winner is not None and winner.name != "incumbent" else None
        dropped = [text for entry in result.entries for text in entry.dropped]
        if dropped:
            logging.getLogger("afnio").info(
                "%d edits were left out of the step: %s", len(dropped), _counted(dropped)
            )
        return Decision(self._values, self._changes(source, reason, chains, dropped), tuple(self._candidates))

    def _changes(
        self,
        source: Entry | None,
        reason: str | None,
        chains: Sequence[Entry] = (),
        dropped: Sequence[str] = (),
    ) -> tuple[Change, ...]:
        """Return the change of each parameter that had feedback or another value before."""
        changes: list[Change] = []
        for at, (parameter, before) in enumerate(
            zip(self._inputs.parameters, self._inputs.values, strict=True)
        ):
            after = self._values[at]
            seen = [m for entry in chains for m in entry.mistakes[at]]
            if before == after and not seen:
                continue
            mine = source.mistakes[at] if source is not None and source.mistakes else seen
            evidence = tuple(Evidence(m.text, m.trail) for m in mine)
            lineage = tuple(self._state.lineage(at, after))
            why = None if before != after else reason or "another parameter was changed"
            changes.append(
                Change(
                    parameter.role,
                    before,
                    after,
                    len(seen),
                    why,
                    evidence,
                    lineage,
                    tuple(dropped) if not changes else (),
                )
            )
        return tuple(changes)

    def _adopt(self, winner: Entry) -> None:
        state = self._state
        self._values = winner.values
        state.incumbent = winner.number
        state.carried = []
        state.hold(winner.values)

    def _note(self, result: RacedEntries, incumbent: int) -> None:
        """Add the candidates of a race to the step's record."""
        state = self._state
        for entry in result.entries:
            number = incumbent
            parents: tuple[int, ...] = ()
            if entry.name != "incumbent":
                number, parents = state.next, (incumbent,)
                state.next += 1
            entry.number = number
            if entry.left_out is not None and entry.scores:
                position, block = entry.left_out
                state.tested[position][block] = self._number
            verdict = entry.note or entry.verdict or "not raced: there was no other candidate"
            if entry is result.winner and entry.verdict:
                verdict = f"{'kept' if entry.name == 'incumbent' else 'accepted'}: {entry.verdict}"
            if entry.dropped:
                verdict += f"; {len(entry.dropped)} edits left out: {_counted(entry.dropped)}"
            units = tuple(result.units[: len(entry.scores)])
            self._candidates.append(
                Candidate(number, parents, entry.values, tuple(entry.scores), verdict, entry.name, units)
            )

    def _limit(self, position: int) -> int | None:
        most = self._inputs.options[position]["max_chars"]
        return None if most is None else max(most, self._state.starts[position])

    async def _vetoed(self, entry: Entry) -> str | None:
        """Return why the guards refuse a candidate, or None."""
        guards, firm = self._setup.guards, self._state.firm
        assert guards is not None
        assert firm is not None
        broken = await guards.broken(self._inputs, entry, firm)
        if not broken:
            return None
        named = ", ".join(str(unit + 1) for unit in broken[:SHOWN]) + (", …" if len(broken) > SHOWN else "")
        return f"it breaks {len(broken)} of {len(firm)} guards ({named})"

    def _warn_few(self, got: int) -> None:
        if got < self._sizes.race and not self._state.warned:
            self._state.warned = True
            logging.getLogger("afnio").warning(
                "races compare on %d samples instead of %d, because the training set has only %d; give more rows",
                got,
                self._sizes.race,
                len(self._setup.train),
            )


MOST_LEFT_OUT: Final = 6
"""Sentences of the start texts that are left out, one at a time, before the first step."""


SHOWN: Final = 8
"""Numbers of broken guards that a verdict names."""


def _counted(reasons: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return "; ".join(
        reason if count == 1 else f"{reason} ({count} times)" for reason, count in counts.items()
    )


# The race.


@final
class EntryRace:
    """Runs the candidates of one step."""

    def __init__(
        self,
        runner: Runner,
        sizes: Sizes,
        quorum: float,
        veto: Callable[[Entry], Awaitable[str | None]] | None,
        state: SearchState,
    ) -> None:
        self._runner, self._sizes, self._quorum, self._veto = runner, sizes, quorum, veto
        self._state = state

    async def run(
        self, entries: Sequence[Entry], units: Sequence[int], *, staged: bool = True
    ) -> RacedEntries:
        """Run candidates on fresh samples: some for all, the rest for the best."""
        racing = [entry for entry in entries if not entry.note]
        if len(racing) < 2 or not units:
            return RacedEntries(list(entries), list(units), entries[0] if racing else None)
        for place, entry in enumerate(racing):
            entry.place = place
        sizes = self._sizes
        staged = staged and len(racing) > sizes.keep and len(units) > sizes.first
        head = list(units[: sizes.first]) if staged else list(units)
        async with scope(name="race"):
            await self._run(racing, head, 1)
            left = await self._allowed(self._best(racing), sizes.keep if staged else 1)
            if staged and left:
                await self._run(left, list(units[sizes.first :]), 2)
                left = self._best(left)
        return RacedEntries(list(entries), list(units), left[0] if left else None)

    async def _allowed(self, ranked: Sequence[Entry], most: int) -> list[Entry]:
        """Return the best that no guard refuses, in order. The current text isn't asked about."""
        veto, allowed, waiting = self._veto, list[Entry](), list(ranked)
        if veto is None:
            return waiting[:most]
        while waiting and len(allowed) < most:
            asked = [waiting.pop(0) for _ in range(min(most - len(allowed), len(waiting)))]
            reasons: list[str | None] = [None] * len(asked)

            async def ask(number: int, asked: list[Entry], reasons: list[str | None]) -> None:
                if asked[number].name != "incumbent":
                    reasons[number] = await veto(asked[number])

            await side_by_side([partial(ask, number, asked, reasons) for number in range(len(asked))])
            for entry, refused in zip(asked, reasons, strict=True):
                if refused is None:
                    allowed.append(entry)
                else:
                    entry.vetoed, entry.verdict = True, f"vetoed: {refused}"
        if any(entry.vetoed for entry in ranked) and allowed:
            return self._best(allowed)  # verdicts compare with the best that is left
        return allowed

    async def _run(self, entries: Sequence[Entry], units: list[int], stage: int) -> None:
        async def one(entry: Entry) -> None:
            kept = self._kept(entry)
            missing = [unit for unit in units if unit not in kept]
            scores = dict[int, float | None](kept)
            try:
                if missing:
                    async with scope(name=f"candidate {entry.place} part {stage}"):
                        new, explanation = await self._runner.forward(
                            entry.values, missing, "samples", Priority.VALIDATION
                        )
                    scores.update(zip(missing, new, strict=True))
                    entry.graphs.append((explanation, missing))
            except Exception as error:
                raise_end(error)
                entry.error = error
            entry.scores += [scores.get(unit) for unit in units]

        await side_by_side([partial(one, entry) for entry in entries])

    def _best(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the candidates that can be judged, the best first, by their sums.

        Only samples count that all of them have a score of.
        """
        able = [e for e in entries if self._enough(sum(s is not None for s in e.scores), len(e.scores))]
        for entry in entries:
            if entry not in able:
                scored = sum(s is not None for s in entry.scores)
                reason = f": {entry.error}" if entry.error is not None else ""
                entry.verdict = f"failed: only {scored} of {len(entry.scores)} samples have a score{reason}"
        if not able:
            raise entries[0].error or RuntimeError(
                f"no candidate has enough scores (quorum={self._quorum}); the race decides nothing"
            )
        columns = [c for c in zip(*(e.scores for e in able), strict=True) if None not in c]
        sums = [
            math.fsum(score for score in column if score is not None) for column in zip(*columns, strict=True)
        ]
        sums = sums or [0.0] * len(able)
        order = sorted(range(len(able)), key=lambda number: (-sums[number], able[number].place))
        best = able[order[0]]
        for number in order:
            entry = able[number]
            what = f"{sums[number]:g} against {sums[order[0]]:g} of {best.name} on {len(columns)} samples"
            entry.verdict = (
                f"lost: {what}" if number != order[0] else f"{sums[number]:g} on {len(columns)} samples"
            )
        return [able[number] for number in order]

    def _enough(self, scored: int, samples: int) -> bool:
        return scored > 0 and quorum_holds(scored, samples, self._quorum)

    def _kept(self, entry: Entry) -> Mapping[int, float]:
        """Return the scores that an entry has from earlier races. The others' texts are new."""
        return self._state.kept if entry.name == "incumbent" else {}

    async def mistakes(self, winner: Entry, units: Sequence[int], name: str) -> list[list[Mistake]]:
        """Return the winner's mistakes in the race, by parameter, for the next step's proposals.

        They are kept with its scores: if a later race comes to one of these samples, the winner isn't run on it again.
        """
        parts: list[list[list[Mistake]]] = [[] for _ in winner.graphs]

        async def part(number: int) -> None:
            explanation, units = winner.graphs[number]
            parts[number] = await self._runner.mistakes(explanation, units, f"part {number + 1}")

        async with scope(name=name):
            await side_by_side([partial(part, number) for number in range(len(parts))])
        new = [[m for found in parts for m in found[position]] for position in range(len(winner.values))]
        state, kept = self._state, self._kept(winner)
        earlier = state.lessons if kept else [[] for _ in new]
        raced = dict(zip(units, winner.scores, strict=False))  # a winner may be out on the first samples
        scores = {unit: score for unit, score in raced.items() if score is not None}
        state.keep({**kept, **scores}, [[*old, *more] for old, more in zip(earlier, new, strict=True)])
        return [
            [*(mistake for mistake in old if mistake.unit in raced), *more]
            for old, more in zip(earlier, new, strict=True)
        ]


# Running the agent.


@final
class Runner:
    """Runs the agent on training samples, with other values of its parameters."""

    def __init__(self, setup: ChainSetup, inputs: StepInputs) -> None:
        self._setup, self._inputs = setup, inputs
        self._direct = setup.direct(inputs.parameters)

    async def learn(
        self, values: Sequence[Any], units: Sequence[int], name: str, quorum: float | None = None
    ) -> tuple[list[float | None], list[list[Mistake]]]:
        """Run samples forward and backward. Return their scores, and the mistakes of each parameter."""
        async with scope(name=name):
            scores, explanation = await self.forward(
                values, units, "forward", Priority.TRAINING, quorum=quorum
            )
            return scores, await self.mistakes(explanation, units, "backward", quorum=quorum)

    async def forward(
        self,
        values: Sequence[Any],
        units: Sequence[int],
        name: str,
        level: Priority,
        quorum: float | None = None,
    ) -> tuple[list[float | None], Any]:
        """Run samples, with the graph recorded. Return their scores (None for those that failed) and explanation."""
        setup = self._setup
        async with scope(name=name):
            owner = current_scope()
            with (
                bind(self._inputs.bound(values)),
                enable_grad(),
                tolerate(quorum or setup.quorum),
                prioritised(level),
            ):
                result = await called(setup.evaluate, setup.train.batch(units))
                scores = await sample_scores(result)
            owner.unread()  # a failed sample counts as missing, so don't raise its error when the scope is left
        setup.train.by_unit(units, scores)  # raises if there isn't one for each sample
        explanation = result[1] if isinstance(result, tuple) and len(result) > 1 else None
        if not isinstance(explanation, Variable) or not explanation.requires_grad:
            raise TypeError(
                f"evaluate must return (score, explanation) that parameters led to (got {result!r}); is it run "
                "under no_grad, or does it use other parameters?"
            )
        return scores, explanation

    async def mistakes(
        self, explanation: Variable, units: Sequence[int], name: str, quorum: float | None = None
    ) -> list[list[Mistake]]:
        """Send feedback backward. Return that of each parameter, in the order of the samples."""
        learned = [parameter for parameter in self._inputs.parameters if parameter.requires_grad]
        async with scope(name=name):
            owner = current_scope()
            with self._critic(), tolerate(quorum or self._setup.quorum), prioritised(Priority.TRAINING):
                gradients = iter(await launch_grad(explanation, learned))
            owner.unread()
        return [
            [self._mistake(entry, units) for entry in next(gradients)] if parameter.requires_grad else []
            for parameter in self._inputs.parameters
        ]

    def _mistake(self, entry: Variable, units: Sequence[int]) -> Mistake:
        lane = next((t.get("sample") for t in entry.provenance if isinstance(t, Mapping)), None)
        unit = units[lane] if isinstance(lane, int) and 0 <= lane < len(units) else None
        return Mistake(unit, str(entry.data), entry.provenance, self._direct)

    def _critic(self) -> AbstractContextManager[Any]:
        if not self._direct:
            return nullcontext()
        model = backward_model()
        group = next(
            o for p, o in zip(self._inputs.parameters, self._inputs.options, strict=True) if p.requires_grad
        )
        client = model.client if model is not None else group["model_client"]
        arguments = model.completion_args if model is not None else group["completion_args"]
        return backward_by(Quoting(client, arguments))
