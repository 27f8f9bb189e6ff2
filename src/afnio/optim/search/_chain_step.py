"""One step of `EditTGD`: chains side by side, their union, a race on fresh samples, and what is learned from it.

`ChainStep.run` reads as its summary. Chains have scopes of their own, named by number, so the addresses of their calls
don't depend on which of them is first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final, final

from afnio.optim._blocks import Draft, Edit, blocks_of, is_editable, union, without_block
from afnio.optim._checks import objections
from afnio.optim._edits import Mistake, Proposal, merge_edits, propose_edits
from afnio.optim._optimizer import Candidate, Change, Decision, Evidence, StepInputs, for_each, side_by_side
from afnio.optim.search._chain_race import ChainSetup, Entry, EntryRace, RacedEntries, Runner, raise_end
from afnio.optim.search._chain_state import LOST_SHOWN, SearchState
from afnio.optim.search._sizes import Rows, Sizes, rows_for
from afnio.runtime._waiting import scope


@final
class ChainStep:
    """One step of a search. It changes `state`, which must be a copy."""

    def __init__(self, setup: ChainSetup, state: SearchState, inputs: StepInputs, sizes: Sizes) -> None:
        self._setup, self._state, self._inputs, self._sizes = setup, state, inputs, sizes
        self._runner = Runner(setup, inputs)
        self._race = EntryRace(self._runner, sizes, setup.quorum)
        self._drafts: list[list[Draft]] = []
        self._values: tuple[str, ...] = tuple(inputs.values)
        self._candidates: list[Candidate] = []
        self._number = state.steps + 1

    async def run(self) -> Decision:
        state = self._state
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
        options = self._removable()[: self._most_left_out()]
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
            state.raced, state.carried = units, await self._race.mistakes(winner, "start mistakes")

    def _most_left_out(self) -> int:
        """Return how many sentences may be left out: together they may cost as much as a step."""
        state, sizes = self._state, self._sizes
        if state.sample is None or state.step_cost is None:
            return MOST_LEFT_OUT
        first, keep = min(sizes.first, sizes.race), sizes.keep
        samples = state.step_cost // state.sample.forward - keep * (sizes.race - first)
        return max(0, min(MOST_LEFT_OUT, samples // first - 1))

    def _removable(self) -> list[tuple[int, int, str]]:
        """Return (position, number, text) of each block that a text may lose."""
        found: list[tuple[int, int, str]] = []
        for at, parameter in enumerate(self._inputs.parameters):
            blocks = [b.text for b in blocks_of(self._values[at])]
            if not parameter.requires_grad or len(blocks) < 2:
                continue
            for number, text in enumerate(blocks, start=1):
                rest = without_block(self._values[at], number)
                if is_editable(text) and not objections(self._values[at], rest):
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

    def _least_tested(self) -> Entry | None:
        """Return the current text without the block that was tested longest ago, of equals the one that did worst."""
        tested, records = self._state.tested, self._state.records
        options = self._removable()
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
        self, drafts: Sequence[Draft], found: Sequence[Sequence[Mistake]], position: int
    ) -> Proposal:
        state, draft = self._state, drafts[position]
        return await propose_edits(
            self._inputs.parameters[position],
            draft,
            found[position],
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
            shorter = self._least_tested()
            if shorter is not None:
                entries.append(shorter)
        seen: dict[tuple[str, ...], str] = {}
        for entry in entries:
            known = seen.setdefault(entry.values, entry.name)
            if known != entry.name:
                entry.note = "changed nothing" if known == "incumbent" else f"equals {known}"
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
            found = union([self._drafts[number][position] for number in changed])
            text = self._values[position]
            return await merge_edits(
                self._inputs.parameters[position],
                text,
                found,
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

    # The race

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
        if winner is not None and winner.graphs:
            state.raced, state.carried = result.units, await self._race.mistakes(winner, "mistakes")
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
        most = self._setup.max_chars
        return None if most is None else max(most, self._state.starts[position])

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


def _counted(reasons: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return "; ".join(
        reason if count == 1 else f"{reason} ({count} times)" for reason, count in counts.items()
    )
