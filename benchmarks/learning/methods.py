"""Methods: what is compared, each within the same number of LM calls."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

from afnio.optim import TGD, Demos, EditTGD, Optimizer
from afnio.optim._prompts import EDITS_SCHEMA
from afnio.utils.data import DataLoader
from benchmarks.learning.bandit import Bandit
from benchmarks.learning.curve import SHORT
from benchmarks.learning.tasks import named
from benchmarks.learning.training import Items, MakeOptimizer, Trial

BATCH = 16
READABLE = 1000
"""Tokens of feedback that a proposer is shown where it is reduced: some thirty texts, short of the wall."""

EXAMPLES = 1600
"""Tokens that examples may take, three messages of FacilitySupport with room to spare."""


def tgd(trial: Trial, **options: Any) -> TGD:
    """Return plain textual gradient descent: each proposal becomes the value."""
    return TGD(trial.agent.parameters(), trial.endpoint.client, **{**trial.endpoint.step, **options})


def edits(trial: Trial, **options: Any) -> EditTGD:
    """Return chains of small steps, raced on fresh samples; it runs the agent itself."""
    return EditTGD(
        trial.agent.parameters(),
        trial.endpoint.client,
        trial.judged,
        DataLoader(Items(trial.task.train), collate_fn=list),
        quorum=trial.endpoint.quorum,
        search_seed=trial.seed,
        reserve=trial.reserve,
        **{"budget": trial.budget, **_editing(trial), **options},
    )


def bandit(trial: Trial, **options: Any) -> Bandit:
    """Return a Thompson bandit over a tree of prompts."""
    return Bandit(
        trial.agent.parameters(),
        trial.endpoint.client,
        trial.judged,
        DataLoader(Items(trial.task.train), collate_fn=list),
        quorum=trial.endpoint.quorum,
        search_seed=trial.seed,
        **_editing(trial),
        **options,
    )


def _editing(trial: Trial) -> dict[str, Any]:
    """Return the proposer's arguments. A model that doesn't know when to stop gets a format with limits."""
    arguments = dict(trial.endpoint.step)
    if arguments.pop("response_format", None) is not None:
        form = copy.deepcopy(EDITS_SCHEMA)
        edits = form["json_schema"]["schema"]["properties"]["edits"]
        fields = edits["items"]["properties"]
        edits["minItems"], edits["maxItems"] = 1, 2
        fields["text"]["maxLength"], fields["samples"]["maxItems"] = 240, 4
        arguments["response_format"] = form
    return arguments


def demos(trial: Trial) -> Demos:
    """Return what appends examples of the training split with their targets; it asks no model."""
    return Demos(trial.agent.parameters(), k=3, max_tokens=EXAMPLES)


def concatenated(trial: Trial) -> TGD:
    """Return descent in which the proposer reads all feedback of a batch as it came."""
    return tgd(trial, feedback_tokens=None, constraints=[SHORT])


def reduced(trial: Trial) -> TGD:
    """Return descent in which feedback is summed up to what a proposer can read well."""
    return tgd(trial, feedback_tokens=READABLE, constraints=[SHORT])


def unlimited(trial: Trial) -> TGD:
    """Return descent by a simulated proposer that reads everything, which tells what the wall is to blame for."""
    return tgd(trial, feedback_tokens=None, constraints=[SHORT], model="simulated")


def short(trial: Trial) -> TGD:
    """Return descent in small steps whose prompts stay below 1,000 characters."""
    return tgd(trial, constraints=["Use at most 1000 characters."])


WIDTHS = (3, 6, 12, 24)


@dataclass(frozen=True, slots=True)
class Method:
    """How one method trains.

    Attributes:
        make: makes its optimizer; None trains nothing.
        batch: samples of a step; None for the benchmark's default.
        samples: the training ends after so many samples instead of by its calls.
        pooled: it trains on the validation split too.
        gated: it has a gate at its end.
    """

    make: MakeOptimizer | None
    batch: int | None = None
    samples: int | None = None
    pooled: bool = False
    gated: bool = False


METHODS: dict[str, Method] = {
    "baseline": Method(None),
    "EditTGD": Method(edits, gated=True),
    "EditTGD, no gate": Method(edits),
    "EditTGD, inner 1": Method(partial(edits, inner=1)),
    **{f"EditTGD, {lr} chains": Method(partial(edits, lr=lr)) for lr in WIDTHS},
    "Bandit": Method(bandit, pooled=True),
    "TGD": Method(tgd),
    "TGD 4, 1,000 characters": Method(short, 4),
    "TGD 4, 1,000 characters, gate": Method(short, 4, gated=True),
    "TGD 32, 1,000 characters": Method(short, 32),
    "TGD 64, 1,000 characters": Method(short, 64),
    "Demos": Method(demos),
    "TGD 4, pass of 256": Method(short, 4, 256, pooled=True),
    # Two steps of four chains, each of four small steps with eight samples.
    "EditTGD, pass of 256": Method(
        partial(edits, lr=4, minibatch=8, race=16, first=16), 128, 256, pooled=True
    ),
    "TGD 256, pass of 256": Method(short, 256, 256, pooled=True),
}


def method_of(name: str) -> Method:
    """Return the method of that name, or of `module:name`: an optimizer's class, or a function of the trial.

    A class gets the agent's parameters, the client, and the model and its arguments. It has no gate.

    Raises:
        ValueError: for a name that is none.
    """
    if ":" not in name:
        return METHODS[name]
    make = named(name)
    if isinstance(make, type) and issubclass(make, Optimizer):
        return Method(partial(_plainly, make))
    return Method(make)


def _plainly(kind: Any, trial: Trial) -> Optimizer:
    return kind(trial.agent.parameters(), trial.endpoint.client, **trial.endpoint.step)  # type: ignore[no-any-return]


WAYS: dict[str, MakeOptimizer] = {"concatenation": concatenated, "reduction": reduced}
"""How the feedback of a batch is put together, for the curve."""
CONTROL: dict[str, MakeOptimizer] = {"no wall": unlimited}
"""Also for the curve, of the simulated LM alone."""
