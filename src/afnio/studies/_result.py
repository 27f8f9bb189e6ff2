"""Result: what `afnio.optimize` found, as an object, a text, a page and files.

The claim of a result is one sentence, `verdict`, and it never says more than the held-out rows do. Before and after are
scored on the same rows, so the gain is a paired difference. Its interval is much narrower than those of the two scores
suggest, and if it contains 0 the verdict is "no gain beyond noise", whatever the two scores are.

`verdict_of` writes the sentence. A result is plain data, kept as JSON in its run (`to_json`, `from_json`): a program
that is started again gets it from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Self, final

from afnio._figures import NOISE, Accuracy, Gain, MeanScore, Measured, Share, counted, foreseen
from afnio.optim._gate import GateVerdict
from afnio.tellurio._card import Bar, Card, Example
from afnio.tellurio._store import home_folder

KEPT: Final = "The old prompts are kept; the new ones are in .candidate."
# The verdict of a budget that ended too soon, in spite of what was reserved.
UNTESTED: Final = f"Not measured: the budget ended before all held-out rows were scored. {KEPT}"


def verdict_of(gain: Gain | None, gate: GateVerdict | None, *, on: str, vetoed: str = "") -> str:
    """Return the sentence that sums a result up.

    Args:
        gain: on the held-out rows; None if nothing was left to compare, or if the first ones stopped the result.
        gate: the decision; None if the training led to no other prompts.
        on: the rows that before and after are of, such as "60 held-out rows".
        vetoed: how many candidates the guards refused, such as "3 of 7 candidates"; empty if none.
    """
    if gate is None:
        why = "no other prompts won a race against the old ones"
        if vetoed:
            why = f"the guards vetoed {vetoed}{'' if vetoed.startswith('all') else f', and {why}'}"
        return f"{NOISE}: {why}. The prompts are unchanged."
    if gain is None:
        return (
            f"{NOISE}: the first held-out rows are evidence that the new prompts do harm ({evidence(gate)}). The "
            "prompts are unchanged."
        )
    if gain.is_clear:
        return gain.claim(on)
    rest = (
        "The rows don't speak against the new prompts, so these are the result; the old ones are in .start."
        if gate.passed and not gain.is_loss
        else "The old prompts are kept."
    )
    return f"{gain.claim(on)} {rest}"


def evidence(gate: GateVerdict) -> str:
    """Return what a gate decided by.

    >>> evidence(GateVerdict.of([0] * 3 + [1] * 3 + [0] * 34, [1] * 3 + [0] * 3 + [0] * 34, range(40)))
    '3 of 40 rows better, 3 worse, p = 0.66, level 0.5'
    """
    seen = gate.wins + gate.losses + gate.ties
    return f"{gate.wins} of {seen} rows better, {gate.losses} worse, p = {gate.p:.2g}, level {gate.level:g}"


# What can be shown


class Carded:
    """Something with a card: a notebook shows it."""

    @property
    def card(self) -> Card:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        from afnio.tellurio.studio._text import render, word_diff

        card = self.card
        prompts = [
            (name, text != card.start.get(name), word_diff(card.start.get(name, ""), text))
            for name, text in card.prompts.items()
        ]
        return render("result_cell.html", card=card, prompts=prompts)


class Reported(Carded):
    """Something that a run of the store has: it has a page, and may be awaited wherever it was made."""

    run: str
    home: str

    def __await__(self) -> Generator[Any, None, Self]:
        yield from ()
        return self

    def report(self, path: str | Path = "report.html") -> Path:
        """Write this and its run as one page that needs neither a server nor a network, and return its path.

        The page has prompts, rows and replies in clear. Only the current user can read the file.

        Raises:
            ChoiceError: if the run is no longer in its folder.
        """
        from afnio.tellurio.studio._report import write_report

        return write_report(home_folder(self.home or None), self.run, Path(path))


def spending(calls: int, tokens: int, cost: float | None, minutes: float) -> str:
    """Return what was spent, in words."""
    dollars = "unpriced" if cost is None else f"${cost:,.2f}" if cost >= 1 else f"${cost:.4f}"
    return f"{counted(calls, 'call')}, {counted(tokens, 'token')}, {dollars}, {in_time(minutes)}"


# The result


@final
@dataclass(frozen=True, repr=False, eq=False)
class Result(Reported):
    """What `afnio.optimize` found. Print it, save its prompts, or write it as a page.

    `await` of a result gives the result itself, so that `await afnio.optimize(…)` has the same type everywhere.

    Attributes:
        verdict: one sentence. "No gain beyond noise" is one.
        prompts: the prompts to use, by name. They are the old ones if nothing better was found.
        start: the old prompts.
        takes: how many times the tokens, the cost and the calls of a row the new prompts take, by these names; empty
            without new prompts, and without what is unknown.
        candidate: the prompts that the training ended with, whether they are kept or not.
        before, after: the scores of the old and the new prompts on the held-out rows, an `Accuracy`, or a `MeanScore`
            for graded scores. Equal if there were no new prompts. None if the first rows stopped these.
        gain: their paired difference; None without new prompts, or if the first rows stopped them.
        gate: the evidence by which the new prompts were kept or the old ones restored (`passed`, `wins`, `losses`,
            `p`, `rows`). None if the training led to no other prompts.
        on: the rows that before and after are of.
        failed: rows on which the agent or the metric crashed with one of the two. They count as wrong.
        stopped: why the training ended.
        steps: optimizer steps.
        calls, tokens, cost, minutes: everything that was spent, over all starts of a run that was continued; `cost` is
            in dollars, or None if a price is unknown. Minutes are those of the last start.
        paid_before: how many of the calls an earlier start made. The journal answered them this time.
        run: the run's name in the store, for `afnio report` and `afnio studio`.
        notes: what was left out, and why.
        examples: the rows that were scored last.
        earlier: when the run ended that this result was read from; "" if it was made just now.
        trained: digests of the inputs that the prompts were trained on, by which `Evaluation.compare` knows them.
        test_rows: the rows that weren't trained on, as `(inputs, expected)`, to evaluate the prompts on.
    """

    verdict: str
    prompts: Mapping[str, str]
    start: Mapping[str, str]
    before: Measured | None
    after: Measured | None
    gain: Gain | None
    on: str
    failed: int
    stopped: str
    steps: int
    calls: int
    tokens: int
    cost: float | None
    minutes: float
    run: str
    paid_before: int = 0
    gate: GateVerdict | None = None
    notes: Sequence[str] = ()
    candidate: Mapping[str, str] = field(default_factory=dict)
    takes: Mapping[str, float] = field(default_factory=dict)
    home: str = ""
    splits: Mapping[str, int] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    earlier: str = ""
    make_agent: Callable[[Mapping[str, str]], Any] | None = None
    trained: Sequence[str] = ()
    test_rows: Sequence[Any] = ()

    @property
    def agent(self) -> Any:
        """The agent with `prompts`, ready to call: the function with them filled in, or a copy of the module."""
        if self.make_agent is None:
            raise ValueError("this result was read from a file without an agent; pass .prompts to yours")
        return self.make_agent(self.prompts)

    @property
    def changed(self) -> bool:
        """True if `prompts` differ from the old ones."""
        return dict(self.prompts) != dict(self.start)

    def __repr__(self) -> str:
        return f"<Result: {self.verdict}>"

    def __str__(self) -> str:
        lines = [self.verdict, ""]
        lines += [f"{name:<9} {value}" for name, value in self.figures()]
        for name, text in self.prompts.items():
            lines += ["", f"{name}{'' if text != self.start.get(name) else ' (unchanged)'}:"]
            lines += [f"  {line}" for line in text.splitlines()]
        for name, text in self.candidate.items() if self.before is None and self.gate is None else ():
            if text != self.prompts.get(name):
                lines += [
                    "",
                    f"{name} (candidate, not measured):",
                    *(f"  {line}" for line in text.splitlines()),
                ]
        return "\n".join(lines)

    def figures(self) -> list[tuple[str, str]]:
        """Return the figures as pairs of a name and a text, as `print` and the page show them."""
        rows = [("before", str(self.before)), ("after", str(self.after))] if self.before is not None else []
        if self.gain is not None:
            rows.append(("gain", str(self.gain)))
            if not self.gain.is_clear and not self.gain.graded:
                rows.append(("power", foreseen(self.gain.rows)))
        if self.gate is not None:
            decided = "stopped early" if self.gate.stopped else "passed" if self.gate.passed else "failed"
            rows.append(("gate", f"{decided}: {evidence(self.gate)}"))
        if self.takes:
            ratios = [f"{name} \u00d7{ratio:.2f}" for name, ratio in self.takes.items()]
            rows.append(("takes", f"{', '.join(ratios)} a row"))
        spent = spending(self.calls, self.tokens, self.cost, self.minutes)
        if self.paid_before:
            spent += f"; {counted(self.paid_before, 'call')} of these made before, by a start that this one continued"
        used = f"{self.splits['train']} to train, {self.splits['held']} held out" if self.splits else ""
        rows += [("rows", used)] if used else []
        if self.failed:
            rows.append(("crashed", f"{counted(self.failed, 'row')}, which count as wrong"))
        return [
            *rows,
            ("spent", spent),
            ("ended", f"{self.stopped}, {counted(self.steps, 'step')}"),
            *(("note", note) for note in self.notes),
            ("run", self.run),
            *([("earlier", f"read from this run, which ended {self.earlier}")] if self.earlier else []),
        ]

    def save(self, folder: str | Path) -> Path:
        """Write each prompt to `folder/<name>.txt`, exactly as it is. `afnio.load_prompts(folder)` reads them.

        A file of the same name is replaced as a whole, so that a program which reads it meanwhile gets the old text or
        the new one. Only the current user can read the files.

        Raises:
            ValueError: if two names are the same as names of files, or UTF-8 can't express a text.
        """
        from afnio.studies._exports import write_files

        folder = Path(folder)
        write_files(folder, self.prompts, ".txt")
        return folder

    def push(self, store: str, name: str, *, alias: str = "candidate") -> None:
        """Write the prompts into a store as new versions, with the verdict, and let an alias point to them.

        `afnio.load_prompts` reads them. The alias moves after all versions are there. It blocks.

        Args:
            store: "mlflow:http://…", "phoenix:http://…", "langfuse:http://…" or "folder:…". Credentials come from the
                variables that the store's own client reads: MLFLOW_TRACKING_TOKEN (or _USERNAME and _PASSWORD),
                PHOENIX_API_KEY, LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY.
            name: of the set of prompts.
            alias: only "candidate" for prompts that aren't clearly better on held-out rows.

        Raises:
            ValueError: for another alias without a clear gain, names that are equal in the store, or texts that it
                can't keep.
            ConnectionError: if the store can't be reached, or refuses.
            BlockingReadError: if it would block an event loop.
        """
        from afnio.studies._stores import push_prompts

        if alias != "candidate" and (self.gain is None or not self.gain.is_clear):
            raise ValueError(
                f'alias must be "candidate" for prompts that aren\'t clearly better (got {alias!r}; {self.verdict})'
            )
        push_prompts(store, name, self.prompts, alias=alias, verdict=self.verdict, start=self.start)

    @property
    def card(self) -> Card:
        """The card that the pages of the run show first."""
        measured = [("before", self.before), ("after", self.after)]
        bars = [Bar.of(name, one) for name, one in measured if one is not None]
        drawn = all(bar.is_share for bar in bars)
        scored = [score for one in self.examples for score in one.scores if score is not None]
        return Card(
            verdict=self.verdict,
            tone="" if self.gain is None else self.gain.tone,
            bars=bars,
            on=self.on if bars else "",
            facts=[one for one in self.figures() if not (drawn and one[0] in ("before", "after"))],
            start=self.start,
            prompts=self.prompts,
            rows=self.examples,
            top=max(scored, default=1.0),
        )


def in_time(minutes: float) -> str:
    """Return minutes as people say them."""
    return f"{60 * minutes:.0f} s" if minutes < 2 else f"{minutes:.0f} min"


# Kept in the run


def to_json(result: Result) -> dict[str, Any]:
    """Return a result as plain data, without its agent and the rows, which are in its card."""
    data = {
        one.name: getattr(result, one.name)
        for one in fields(result)
        if one.name not in ("make_agent", "home", "earlier", "examples", "test_rows")
    }
    for name in _PARTS:
        data[name] = _plain(data[name])
    plain: dict[str, Any] = json.loads(
        json.dumps(
            {
                **data,
                "prompts": dict(result.prompts),
                "start": dict(result.start),
                "candidate": dict(result.candidate),
                "takes": dict(result.takes),
            }
        )
    )
    return plain


_PARTS: Final = ("before", "after", "gain", "gate")


def _plain(part: Any) -> Any:
    """Return a part of a result as plain data, with the name of its class; anything else as it is."""
    if not is_dataclass(part) or isinstance(part, type):
        return dict(part) if isinstance(part, Mapping) else part
    return {
        "kind": type(part).__name__,
        **{one.name: _plain(getattr(part, one.name)) for one in fields(part)},
    }


def _restored(data: Any) -> Any:
    """Return the part that `_plain` made data of."""
    if not isinstance(data, Mapping) or "kind" not in data:
        return data
    kinds: dict[str, Any] = {k.__name__: k for k in (Accuracy, Share, MeanScore, Gain, GateVerdict)}
    values = {name: _restored(value) for name, value in data.items() if name != "kind"}
    if data["kind"] == "GateVerdict":
        values["rows"] = tuple(values["rows"])
    return kinds[data["kind"]](**values)


def from_json(data: Mapping[str, Any], **others: Any) -> Result:
    """Return the result that `to_json` made data of. `others` are the fields that it leaves out."""
    fields = dict(data)
    for name in _PARTS:
        fields[name] = _restored(fields.get(name))
    return Result(**fields, **others)
