"""Peers: TextGrad, GEPA and DSPy within the same number of calls, against the same endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from afnio import cognitive as cog
from afnio.models._prices import price_of
from afnio.runtime._spending import cost
from afnio.runtime.events import Usage
from benchmarks.child import DEADLINE
from benchmarks.learning.agents import Answerer, Clerk, Hopper
from benchmarks.learning.endpoints import api_key_of
from benchmarks.learning.outcome import Outcome
from benchmarks.learning.training import Trial
from benchmarks.peers.environment import Peer, PeerError

FOLDER = Path(__file__).parent / "peers"
_TEXTGRAD = Peer("TextGrad", ("textgrad",), "textgrad_learn.py")
_GEPA = Peer("GEPA", ("gepa", "openai"), "gepa_learn.py")
_DSPY = Peer("DSPy", ("dspy", "optuna", "openai"), "dspy_learn.py")

PATIENCE = 7200.0
"""Seconds that a peer may take with a real model, or with latencies."""
THREADS = 8
"""In flight while a peer evaluates; what it optimizes with is up to the peer."""

LIMIT = "Use at most 1000 characters."
"""A constraint that tuned peers have, as `EditTGD` has it by default."""


LIVE_THREADS = 64
"""The same with a real model, whose users wait for it."""


@dataclass(frozen=True, slots=True)
class PeerMethod:
    """A peer with some of its options.

    Attributes:
        options: of its training; see its script. "validation" is the number of rows that it keeps for that. The
            others of the validation split are training rows then.
        threads: in flight while it evaluates.
    """

    peer: Peer
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = THREADS


PEERS = {
    "TextGrad": PeerMethod(_TEXTGRAD),
    "GEPA": PeerMethod(_GEPA),
    "DSPy": PeerMethod(_DSPY),
    "GEPA, minibatch 8": PeerMethod(_GEPA, {"minibatch": 8}),
    "GEPA, 4 proposals": PeerMethod(_GEPA, {"proposals": 4}, 32),
    "GEPA, 64 in flight": PeerMethod(_GEPA, {}, 64),
    "GEPA, tuned": PeerMethod(_GEPA, {"minibatch": 8, "validation": 24, "limit": LIMIT}, 64),
    "TextGrad, tuned": PeerMethod(_TEXTGRAD, {"minibatch": 8, "validation": 16, "limit": LIMIT}, 64),
    "TextGrad, 64 in flight": PeerMethod(_TEXTGRAD, {}, 64),
}


def run_peer(method: PeerMethod, trials: Sequence[Trial]) -> Iterator[Outcome]:
    """Train with a peer, one trial after the other in one process; look at the test split once after each.

    Raises:
        PeerError: with the reason, if it can't be had or its script failed.
    """
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"job{number}.json" for number in range(len(trials))]
        for path, trial in zip(paths, trials, strict=True):
            path.write_text(json.dumps(_spec(trial, method)))
        deadline = DEADLINE if trials[0].endpoint.kind == "simulated" and not trials[0].traced else PATIENCE
        found = method.peer.stream([str(path) for path in paths], FOLDER, deadline * len(trials))
        for trial, run in zip(trials, found, strict=True):
            yield _outcome(trial, run)


def _outcome(trial: Trial, found: dict[str, Any]) -> Outcome:
    outcome = trial.outcome()
    outcome.prompts, outcome.note = found["prompts"], found["note"]
    outcome.calls, outcome.seconds = found["calls"], found["seconds"]
    outcome.prompt_tokens, outcome.completion_tokens = found["prompt_tokens"], found["completion_tokens"]
    parameters = dict(trial.agent.named_parameters())
    outcome.changed = {
        name: int(str(parameters[name].data) != text) for name, text in outcome.prompts.items()
    }
    outcome.lengths = [sum(map(len, outcome.prompts.values()))]
    prices = {model: price_of(model, trial.endpoint.base_url) for model in found["tokens"]}
    if None not in prices.values():
        outcome.cost = float(
            sum(cost(prices[model], Usage(*tokens)) for model, tokens in found["tokens"].items())  # type: ignore[arg-type]
        )
    outcome.scores = trial.tested(outcome.prompts)
    outcome.rounds = found["rounds"]
    trial.look_back(found["path"], outcome)
    return outcome


def _spec(trial: Trial, method: PeerMethod) -> dict[str, Any]:
    task, endpoint = trial.task, trial.endpoint
    kept = method.options.get("validation", len(task.val))
    train = [*task.train, *task.val[kept:]]
    return {
        "base_url": endpoint.base_url,
        "api_key": api_key_of(endpoint),
        "student": dict(endpoint.forward),
        "critic": {name: value for name, value in endpoint.step.items() if name != "response_format"},
        "budget": trial.budget,
        "options": dict(method.options),
        "threads": LIVE_THREADS if endpoint.kind == "live" else method.threads,
        "traced": trial.traced,
        "seed": trial.seed,
        "steps": _steps(trial.agent),
        "read": list(task.reading),
        "score": ["exact", []] if task.flags is None else ["share", list(task.flags)],
        "train": [{"inputs": dict(item.inputs), "target": item.target} for item in train],
        "val": [{"inputs": dict(item.inputs), "target": item.target} for item in task.val[:kept]],
    }


def _steps(agent: cog.Module) -> list[dict[str, Any]]:
    """Return the agent's steps as plain data: prompt, template, and what its reply is called."""
    if isinstance(agent, Clerk):
        parts = [
            (agent.retrieve, agent.notes, ["question", "notes"], "retrieved"),
            (agent.draft, agent.found, ["question", "retrieved"], "draft"),
            (agent.judge, agent.drafted, ["question", "retrieved", "draft"], "answer"),
        ]
        names = ["retrieve", "draft", "judge"]
    elif isinstance(agent, Hopper):
        parts = [
            (agent.find, agent.facts, ["question", "facts"], "found"),
            (agent.answer, agent.found, ["question", "facts", "found"], "answer"),
        ]
        names = ["find", "answer"]
    elif not isinstance(agent, Answerer):
        raise PeerError(
            f"its script runs the agents of benchmarks.learning.agents, and no {type(agent).__name__}"
        )
    else:
        parts, names = [(agent.prompt, agent.template, ["message"], "answer")], ["prompt"]
    return [
        {
            "name": name,
            "role": prompt.role,
            "prompt": str(prompt.data),
            "template": str(template.data),
            "fields": fields,
            "output": output,
            "arguments": getattr(agent, "form", {}),
        }
        for name, (prompt, template, fields, output) in zip(names, parts, strict=True)
    ]
