"""Optimizers as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afnio.autodiff._variable import Variable
from afnio.cognitive._reduction import BUDGET
from afnio.models._client import ChatClient
from afnio.optim.change import Change
from afnio.optim.leak import WORDS
from afnio.optim.momentum import remember, window
from afnio.optim.rewrite import rewrite
from afnio.optim.step import Propose, Update, launch_step
from afnio.optim.tgd import Messages, check_options, listed, reduced
from afnio.runtime._kernel import Job, Launch
from afnio.runtime._waiting import Work


def tgd(
    params: Sequence[Variable],
    grads: Sequence[Sequence[Variable]],
    momentum_buffer_list: Sequence[list[Any]],
    model_client: ChatClient,
    messages: Messages | None = None,
    inputs: Mapping[str, Any] | None = None,
    constraints: Sequence[str | Variable] | None = None,
    momentum: int = 0,
    *,
    feedback_tokens: int | None = BUDGET,
    per_failure: int | None = None,
    leak_words: int | None = WORDS,
    **completion_args: Any,
) -> Work[list[Change]]:
    """Rewrite `params` in place by `grads`, one list for each, and refill their momentum buffers in place.

    See `afnio.optim.TGD` for the arguments. It launches, and waits where a blocking wait is allowed.
    """
    if not len(params) == len(grads) == len(momentum_buffer_list):
        raise ValueError(
            f"params, grads and momentum_buffer_list need equal lengths (got {len(params)}, {len(grads)}, "
            f"{len(momentum_buffer_list)})"
        )
    options = {
        "model_client": model_client,
        "messages": messages,
        "inputs": inputs,
        "constraints": listed(constraints),
        "momentum": momentum,
        "momentum_samples": None,
        "momentum_decay": 1.0,
        "feedback_tokens": feedback_tokens,
        "per_failure": per_failure,
        "leak_words": leak_words,
        "completion_args": completion_args,
    }
    check_options(options)
    launch = Launch("tgd")
    updates = [
        Update(parameter, [], _proposer(parameter, list(gradients), buffer, options))
        for parameter, gradients, buffer in zip(params, grads, momentum_buffer_list, strict=True)
        if gradients
    ]
    return Work(launch_step(launch, "tgd", updates), list).wait_if_allowed()


def _proposer(
    parameter: Variable, gradients: list[Variable], buffer: list[Any], options: Mapping[str, Any]
) -> Propose:
    async def propose(job: Job, value: Any) -> Change:
        shown = await reduced(job, parameter, value, gradients, options)
        change = await rewrite(job, parameter, value, shown, window(buffer, options["momentum"]), options)
        remember(buffer, Variable(value, parameter.role), shown, options["momentum"])
        return change

    return propose
