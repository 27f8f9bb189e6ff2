"""The card of a run as a page shows it: the answer first, then what a reader can do with it.

`Card` in `tellurio` has what was found. Here it gets what belongs to it on a page: the prompts as differences with each
block's record, what the run cost by purpose and model, whether a model was asked at all, and, of a run that is
running or was killed, what there is of it and how it goes on.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Final, NamedTuple

from afnio._figures import counted
from afnio.optim._blocks import blocks_of
from afnio.runtime._places import QueueState
from afnio.tellurio._card import Card, card_of, kept_card
from afnio.tellurio._control import InForce
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import BlockRecord, RunRecord, Spending
from afnio.tellurio.studio._step import Shown, shown_diff
from afnio.tellurio.studio._text import Piece, seconds, word_diff

# Rows of each kind (wrong now, worse, better) that a card shows.
SHOWN_ROWS: Final = 30


class PromptLine(NamedTuple):
    """A block of a prompt as a difference from the block that it replaced; `block` is None if it was deleted."""

    pieces: list[Piece]
    block: BlockRecord | None


class PromptView(NamedTuple):
    """A prompt: its lines if each block's record is known, else its difference from the start as a whole.

    Attributes:
        why: the step that made it, with feedback that it was proposed from.
    """

    name: str
    lengths: tuple[int, int]
    changed: bool
    pieces: list[Shown]
    lines: list[PromptLine]
    why: list[tuple[int, str]]


class CostShare(NamedTuple):
    """The cost of the calls of one purpose to one model; `share` is of the run's dollars, or of its tokens."""

    purpose: str
    model: str
    spent: Spending
    share: float


def card_view(
    reader: StoreReader, run: RunRecord, total: Spending, models: dict[tuple[str, str], Spending]
) -> dict[str, Any]:
    """Return what the template of the card needs.

    Args:
        models: the totals of the run's calls by purpose and model.
    """
    kept = kept_card(reader, run.id)
    card = kept or card_of(reader, run.id)
    groups = [] if card is None else card.groups
    return {
        "card": card,
        "state": _state(reader, run, total, kept),
        "prompts": [] if card is None else [prompt_view(reader, run.id, card, name) for name in card.prompts],
        "groups": [(title, rows[:SHOWN_ROWS], len(rows)) for title, rows in groups],
        "spent": shares(models),
        "simulated": reader.is_simulated(run.id),
    }


def prompt_view(reader: StoreReader, run: str, card: Card, name: str) -> PromptView:
    """Return one prompt of a card."""
    before, after = card.start.get(name, ""), card.prompts[name]
    changed = before != after
    blocks = reader.blocks_of_text(run, after) if changed else []
    started = [one.text for one in blocks_of(before)] if blocks else []
    lines = []
    for one in blocks:
        # A block may have replaced one that the run had written itself. What is marked is what the start didn't have.
        old = one.text if one.step == 0 else one.replaces if one.replaces in started else ""
        lines.append(PromptLine(word_diff(old or "", one.text), one))
    kept = {one.text for one in blocks} | {one.replaces for one in blocks}
    lines += [PromptLine([Piece("gone", text)], None) for text in started if text not in kept]
    why = reader.feedback_behind(run, after) if changed else []
    return PromptView(name, (len(before), len(after)), changed, shown_diff(before, after), lines, why)


def shares(models: dict[tuple[str, str], Spending]) -> list[CostShare]:
    """Return what calls cost by purpose and model, the most expensive first.

    >>> one, other = Spending(calls=1, cost=3.0), Spending(calls=9, cost=1.0)
    >>> [(found.purpose, found.share) for found in shares({("step", "m"): other, ("forward", "m"): one})]
    [('forward', 0.75), ('step', 0.25)]
    """
    priced = all(spent.cost is not None and not spent.unpriced for spent in models.values())

    def amount(spent: Spending) -> float:
        return (spent.cost or 0.0) if priced else float(spent.prompt_tokens + spent.completion_tokens)

    whole = sum(map(amount, models.values())) or 1.0
    shared = [CostShare(*key, spent, amount(spent) / whole) for key, spent in models.items()]
    return sorted(shared, key=lambda one: (-one.share, one.purpose, one.model))


# Runs that haven't ended by themselves.


class RunState(NamedTuple):
    """A run that is running or was killed: a word for it, sentences, and the command that continues it or ""."""

    word: str
    sentences: list[str]
    command: str


def _state(reader: StoreReader, run: RunRecord, total: Spending, card: Card | None) -> RunState | None:
    if run.status == "COMPLETED" or (card is not None and not run.is_running):
        return None
    steps = reader.step_count(run.id)
    phase = reader.last_phase(run.id)
    done = f"{steps} optimizer step{'' if steps == 1 else 's'} done"
    where = f"{done}, last in {phase}" if phase else done
    main = reader.headline(run.id)
    best = (
        ""
        if main is None or main.best is None
        else f"{main.metric} {main.best:.3g} at {main.unit} {main.step}"
    )
    if run.is_running:
        lines = [f"{where}."]
        if best:
            lines.append(f"Best so far: {best}.")
        lines.append(
            "If it is stopped now, every reply stays in its journal, and the same program continues it."
        )
        return RunState("Running", lines, "")
    word = "Killed" if run.status == "CRASHED" else "Failed"
    lines = [f"{where}."]
    replies = total.calls - total.failed - total.cancelled
    if not (run.store.with_suffix("") / f"{run.id}.journal").exists():
        return RunState(word, [*lines, "It has no journal, so it can't be continued."], "")
    lines.append(f"Nothing that was paid for is lost: {replies:,} replies are in its journal.")
    if best:
        lines.append(f"Best so far: {best}.")
    command = command_of(run)
    how = "Start the same program again" if command else "Make the same call again, in the same folder"
    return RunState(word, [*lines, f"{how}; it continues where it was and pays for no reply twice."], command)


def command_of(run: RunRecord) -> str:
    """Return the command that starts a run's program, or "" if it was typed at a prompt or in a notebook."""
    identity = run.identity
    if (
        not isinstance(identity, list)
        or len(identity) < 3
        or not all(isinstance(one, str) for one in identity[:2])
    ):
        return ""
    folder, script, arguments = identity[:3]
    path = Path(script)
    shown = str(path.relative_to(folder)) if path.is_relative_to(folder) else script
    words = [str(one) for one in arguments] if isinstance(arguments, list) else []
    return shlex.join(["python", shown, *words])


MINUTE: Final = 60.0


def pulse_of(reader: StoreReader, run: RunRecord, now: float) -> str:
    """Return how a live run does: how far it is, what it waits for, and when the last reply came; "" of others."""
    if not run.is_running:
        return ""
    orders = reader.orders(run.id)
    if InForce.after(order for order, _ in orders).paused:
        by, since = next((order.giver, time) for order, time in reversed(orders) if order.command == "pause")
        flight = f"; {run.in_flight:,} in flight end" if run.in_flight else ""
        return f"Paused by {by} {seconds(round(now - since))} ago{flight}. Nothing is sent until it goes on."
    pulse = reader.pulse(run.id, now - MINUTE)
    said = [
        f"Calls wait for {account}, which doesn't answer: {error[:200]}."
        for account, error in pulse.down.items()
    ]
    places = run.places if isinstance(run.places, dict) else {}
    queues = [QueueState(**one) for one in places.get("queues", ())]
    if queues and not said:
        said.append("Limited, not stuck.")
    said += [f"{queue}." for queue in queues]
    if run.waiting and not run.in_flight and not said:
        said.append(f"{run.waiting:,} calls wait, for a budget or to be tried again.")
    if pulse.retried:
        attempts = counted(pulse.retried, "attempt")
        said.append(f"{attempts} failed in the last minute and are made again: {(pulse.error or '')[:200]}.")
    silent = now - (pulse.last_reply or run.date_created)
    reply = "No reply yet, after" if pulse.last_reply is None else "Last reply"
    said.append(f"{reply} {seconds(round(silent))}{'' if pulse.last_reply is None else ' ago'}.")
    return " ".join([*(f"{line}." for line in places.get("progress", ())), *said])
