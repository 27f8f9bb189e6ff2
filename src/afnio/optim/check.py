"""Check: whether a proposed text may become a parameter's value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from afnio.autodiff._variable import Variable
from afnio.optim.leak import labels, leaks
from afnio.optim.validators import refusals
from afnio.runtime._callables import call_in_node
from afnio.runtime._kernel import Job

_PLACEHOLDER: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")

FEW: Final = 16
"""Training examples that are looked through on the loop itself."""


def objections(before: str, after: str) -> list[str]:
    """Return what speaks against replacing `before` by `after`, in words for the proposer.

    >>> objections("Answer {question}.", "Answer.")
    ['it must keep the placeholder {question}']
    """
    if not after.strip():
        return ["it must not be empty"]
    kept = _PLACEHOLDER.findall(after)
    lost = [name for name in dict.fromkeys(_PLACEHOLDER.findall(before)) if name not in kept]
    return [f"it must keep the placeholder {name}" for name in lost]


async def check(
    job: Job,
    parameter: Variable,
    before: str,
    after: str,
    *,
    count_tokens: Callable[[str], int],
    gradients: Sequence[Variable] = (),
    instructions: Sequence[str] = (),
    allowed: Sequence[str] = (),
    leak_words: int | None = None,
) -> list[str]:
    """Return all that speaks against replacing `before` by `after`, in words for the proposer.

    Placeholders, then the length, then leaks, then the parameter's own validators; what stays as it is passes.

    Args:
        count_tokens: counts as the parameter's `max_tokens` means it.
        gradients: the feedback, whose provenance has the training examples.
        instructions: the prompts that the proposer was sent, without the data in them.
        allowed: texts that the value may repeat, beside its old one.
        leak_words: the number of words in a row from which something counts as repeated; None looks for none.
    """
    if after == before:
        return []
    reasons = objections(before, after)
    if not after.strip():
        return reasons
    most = getattr(parameter, "max_tokens", None)
    if most is not None and (tokens := count_tokens(after)) > most:
        reasons.append(f"it must have at most {most} tokens, about {words_in(most)} words, and has {tokens}")
    if leak_words is not None:
        examples: list[Mapping[str, Any]] = [entry for g in gradients for entry in _flat(g.provenance)]
        look = partial(
            leaks,
            after,
            prompts=instructions,
            examples=examples,
            allowed=[before, *allowed, *labels(examples)],
            words=leak_words,
        )
        # A large batch's examples are a lot of text; those of a few samples take less time than a thread.
        reasons += await call_in_node(job, look) if len(examples) > FEW else look()
    return [*reasons, *await refusals(job, after, getattr(parameter, "validators", ()))]


def words_in(tokens: int) -> int:
    """Return about how many English words so many tokens are.

    >>> words_in(100)
    75
    """
    return max(tokens * 3 // 4, 1)


def _flat(trail: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Return the entries of a provenance, which for feedback on a batch is one for each sample."""
    return [e for entry in trail for e in (_flat(entry) if isinstance(entry, list | tuple) else [entry])]
