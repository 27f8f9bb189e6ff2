"""A rival: a Thompson bandit over a tree of prompts.

The root is the start prompt. A step draws an accuracy for each prompt from what its rows have shown (a beta
distribution), takes the prompt with the highest, runs it on rows that it hasn't been run on, and adds a child: the
prompt with the edits that its mistakes ask for. A new prompt is believed to be as good as its parent, to the weight of
a few rows. So all rows that a prompt was ever run on count, and rows go where a prompt may be the best. The result is
the prompt with the highest mean of its distribution.

It edits as `EditTGD` does, so that the searches alone are compared. It may use all rows, as the peers use their
training and validation rows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from afnio.autodiff._variable import Variable
from afnio.optim._blocks import Draft
from afnio.optim._checks import WORDS
from afnio.optim._edit_step import ChainSetup, Runner
from afnio.optim._edits import Mistake, propose_edits
from afnio.optim._holdout import Evaluate, Holdout
from afnio.optim._optimizer import Change, Decision, Optimizer, StepInputs

PARENT: Final = 4.0
"""The rows that the belief in a parent weighs with its child."""


@dataclass(slots=True)
class Prompt:
    """A node of the tree.

    Attributes:
        prior: its believed accuracy before its first row.
        scores: of the rows that it was run on.
        mistakes: on these rows.
    """

    text: str
    prior: float
    scores: dict[int, float] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def evidence(self) -> tuple[float, float]:
        """The two parameters of its beta distribution."""
        right = PARENT * self.prior + sum(self.scores.values())
        return right + 0.5, PARENT + len(self.scores) - right + 0.5

    @property
    def mean(self) -> float:
        right, wrong = self.evidence
        return right / (right + wrong)


class Bandit(Optimizer):
    """Thompson sampling over a tree of prompts, for one parameter and scores from 0 to 1.

    Args:
        minibatch: the rows of a step.
        search_seed: of all draws.
    """

    needs_feedback = False

    def __init__(
        self,
        params: Any,
        model_client: Any,
        evaluate: Evaluate,
        rows: Any,
        *,
        minibatch: int = 12,
        max_chars: int = 1_000,
        quorum: float = 0.9,
        search_seed: int = 0,
        **completion_args: Any,
    ) -> None:
        self._setup = ChainSetup(evaluate, Holdout(rows), None, None, None, quorum)
        self._minibatch, self._rng = minibatch, random.Random(search_seed)
        self._order = self._rng.sample(range(len(self._setup.train)), len(self._setup.train))
        self.tree: list[Prompt] = []
        defaults = {
            "model_client": model_client,
            "max_chars": max_chars,
            "constraints": [],
            "leak_words": WORDS,
            "mistake_tokens": 8_000,
            "completion_args": completion_args,
        }
        super().__init__(params, defaults)

    async def propose(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> Change:
        raise NotImplementedError("Bandit runs the agent itself; call step() without feedback")

    def _begin(self) -> Any:
        return self._searched

    async def _searched(self, inputs: StepInputs) -> Decision:
        """Run the prompt that is drawn on new rows, and add its child."""
        (parameter,), (options,) = inputs.parameters, inputs.options
        self.tree = self.tree or [Prompt(str(inputs.values[0]), 0.5)]
        drawn = [self._rng.betavariate(*node.evidence) for node in self.tree]
        node = self.tree[drawn.index(max(drawn))]
        rows = [row for row in self._order if row not in node.scores][: self._minibatch]
        if rows:
            scores, (mistakes,) = await Runner(self._setup, inputs).learn([node.text], rows, "rows")
            node.scores.update((row, s) for row, s in zip(rows, scores, strict=True) if s is not None)
            node.mistakes += mistakes
        shown = node.mistakes[-self._minibatch :]
        if shown:
            limit = options["max_chars"]
            proposal = await propose_edits(parameter, Draft.of(node.text), shown, options, limit=limit)
            text = proposal.draft.text
            if text not in [other.text for other in self.tree]:
                self.tree.append(Prompt(text, node.mean))
        best = max(self.tree, key=lambda other: (len(other.scores) > 0, other.mean)).text
        before = inputs.values[0]
        return Decision((best,), (Change(parameter.role, before, best, len(shown)),))
