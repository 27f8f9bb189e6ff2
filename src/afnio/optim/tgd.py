"""TGD: textual gradient descent, a rewrite of each parameter by a model that reads its feedback.

Source: Yuksekgonul et al., "TextGrad: Automatic 'Differentiation' via Text", arXiv:2406.07496.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from afnio.autodiff._variable import Variable
from afnio.cognitive._reduction import BUDGET
from afnio.cognitive._template import check_inputs, check_messages
from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import check_completion_args
from afnio.optim.change import Change
from afnio.optim.leak import WORDS
from afnio.optim.momentum import remember, sampled, window
from afnio.optim.optimizer import Optimizer
from afnio.optim.reduce import Reduced, gathered_of, reduce
from afnio.optim.rewrite import SECTIONS, rewrite
from afnio.optim.step import Acceptance
from afnio.runtime._kernel import Job
from afnio.runtime._settings import draw_seed
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Work

LEAST_FEEDBACK: Final = 200
"""Tokens of feedback that a prompt must be allowed to show: below, no summary would say anything."""

Messages = Sequence[Mapping[str, Any]]


class TGD(Optimizer):
    """Textual gradient descent.

    Args:
        params: Parameters, or dicts of them with options of their own.
        model_client: who rewrites.
        messages: a prompt of your own; its texts may use `{role}`, `{variable}`, `{constraints}`,
            `{history}`, `{rejected}`, `{feedback}`, and the names of `inputs`.
        inputs: values for further placeholders of `messages`.
        constraints: what every value must obey, in words.
        momentum: how many of the last updates the proposer is shown, this one counted.
        momentum_samples: of the updates before this one draw so many instead of showing all (sampled momentum,
            see `afnio.optim.momentum`); newer ones and those with less feedback are likelier.
        momentum_decay: how much less an update weighs in that than the one after it.
        momentum_seed: of those draws; from the run by default.
        feedback_tokens: how much feedback one prompt shows. More is summed up first (`optim.reduce`), by this model;
            None shows all, however long.
        per_failure: of similar failures take so much feedback at most, and say of how many; None takes all.
        leak_words: words in a row that a value may not repeat of the instructions or of training examples, see
            `afnio.optim.leak`; None looks for none.
        accept: what decides whether a proposal becomes the value, such as `optim.Improves(...)`; all do by default.
        **completion_args: `model`, and whatever else the provider takes.
    """

    def __init__(
        self,
        params: Iterable[Variable] | Iterable[dict[str, Any]],
        model_client: ChatClient,
        messages: Messages | None = None,
        inputs: Mapping[str, Any] | None = None,
        constraints: Sequence[str | Variable] | None = None,
        momentum: int = 0,
        *,
        momentum_samples: int | None = None,
        momentum_decay: float = 0.8,
        momentum_seed: int | None = None,
        feedback_tokens: int | None = BUDGET,
        per_failure: int | None = None,
        leak_words: int | None = WORDS,
        accept: Acceptance | None = None,
        **completion_args: Any,
    ) -> None:
        defaults = {
            "model_client": model_client,
            "messages": messages,
            "inputs": inputs,
            "constraints": listed(constraints),
            "momentum": momentum,
            "momentum_samples": momentum_samples,
            "momentum_decay": momentum_decay,
            "momentum_seed": momentum_seed,
            "feedback_tokens": feedback_tokens,
            "per_failure": per_failure,
            "leak_words": leak_words,
            "completion_args": completion_args,
        }
        super().__init__(params, defaults, accept)

    def add_param_group(self, group: dict[str, Any]) -> None:
        if isinstance(group, dict) and "constraints" in group:
            group = {**group, "constraints": listed(group["constraints"])}
        check_options({**self.defaults, **group} if isinstance(group, dict) else self.defaults)
        super().add_param_group(group)

    @folding
    def step(self, closure: Callable[[], Any] | None = None) -> Work[Any]:
        for group in self.param_groups:
            if group["momentum_samples"] is not None and group["momentum_seed"] is None:
                # Here, in program order, so that a repeated run draws the same.
                group["momentum_seed"] = draw_seed()
        return super().step(closure)

    async def reduce(
        self,
        job: Job,
        parameter: Variable,
        value: Any,
        gradients: Sequence[Variable],
        group: Mapping[str, Any],
    ) -> Sequence[Variable]:
        return await reduced(job, parameter, value, gradients, group)

    async def propose(
        self,
        job: Job,
        parameter: Variable,
        value: Any,
        gradients: Sequence[Variable],
        group: Mapping[str, Any],
    ) -> Change:
        rejected = self.state[parameter].get("rejected", ())
        return await rewrite(
            job, parameter, value, gradients, self._history(parameter, group), group, rejected
        )

    def _history(self, parameter: Variable, group: Mapping[str, Any]) -> list[Any]:
        state = self.state[parameter]
        past = window(state.setdefault("momentum_buffer", []), group["momentum"])
        count = group["momentum_samples"]
        if count is None or len(past) <= count:
            return past
        sizes = state["momentum_sizes"][-len(past) :]
        draw = random.Random(f"{group['momentum_seed']}/{state['momentum_steps']}")
        return sampled(past, sizes, count, group["momentum_decay"], draw)

    def remember(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], group: Mapping[str, Any]
    ) -> None:
        state = self.state[parameter]
        buffer = state.setdefault("momentum_buffer", [])
        remember(buffer, Variable(value, parameter.role), gradients, group["momentum"])
        if group["momentum_samples"] is not None:
            # As long as the buffer, also where a group began to sample later.
            sizes = [len(said) for _, said in buffer[:-1]]
            known = state.get("momentum_sizes", [])[-len(sizes) :] if sizes else []
            sizes[len(sizes) - len(known) :] = known
            state["momentum_sizes"] = [*sizes, gathered_of(gradients)][-len(buffer) :]
            state["momentum_steps"] = state.get("momentum_steps", 0) + 1


async def reduced(
    job: Job, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
) -> Reduced:
    """Return the feedback as TGD's proposer is shown it."""
    return await reduce(
        job,
        gradients,
        ChatModel(options["model_client"], options["completion_args"]),
        role=parameter.role,
        value=str(value),
        budget=options["feedback_tokens"],
        per_failure=options["per_failure"],
    )


def listed(constraints: Any) -> list[str | Variable]:
    """Return constraints as a list, refusing one text, whose letters would become the constraints."""
    if isinstance(constraints, str | Variable):
        raise TypeError(f"constraints is a list of texts or Variables (got {constraints!r}); write [...]")
    return list(constraints or ())


_LEAST: Final = {"momentum_samples": 1, "feedback_tokens": LEAST_FEEDBACK, "per_failure": 1, "leak_words": 4}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise for options that can't work, at the line that gives them."""
    if not isinstance(options["model_client"], ChatClient):
        raise TypeError(f"model_client must be a model client (got {options['model_client']!r})")
    momentum = options["momentum"]
    if isinstance(momentum, bool) or not isinstance(momentum, int) or momentum < 0:
        raise ValueError(f"momentum must be a number of updates, 0 or more (got {momentum!r})")
    for name, least in _LEAST.items():
        number = options[name]
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise ValueError(f"{name} must be a number from {least}, or None (got {number!r})")
    decay = options["momentum_decay"]
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay <= 1:
        raise ValueError(f"momentum_decay must be from 0 to 1 (got {decay!r})")
    for constraint in options["constraints"]:
        if not isinstance(constraint, str | Variable):
            raise TypeError(f"a constraint is a text or a Variable (got {constraint!r})")
    check_completion_args(**options["completion_args"])
    if options["messages"] is not None:
        check_messages(options["messages"])
        inputs = list(options["inputs"] or ())
        used = "".join(str(part.data) for message in options["messages"] for part in message["content"])
        check_inputs(options["messages"], [*inputs, *(name for name in SECTIONS if f"{{{name}}}" in used)])
