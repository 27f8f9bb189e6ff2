"""Rewrite: one proposal for one text, made from its feedback, checked, and repaired once."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from afnio.autodiff._variable import Variable
from afnio.cognitive._prompts import unescape
from afnio.cognitive._reduction import complete_json, json_object, unfenced
from afnio.cognitive._template import fill, rendered
from afnio.errors import ReplyError
from afnio.models._client import ChatModel
from afnio.optim.change import Change
from afnio.optim.check import check, words_in
from afnio.optim.prompts import TGD_SCHEMA, tgd_sections, wording
from afnio.optim.reduce import Reduced, evidence_of, gathered_of
from afnio.runtime._kernel import Job

SECTIONS: Final = ("role", "variable", "constraints", "history", "rejected", "feedback")
"""Placeholders that `messages` may use beside those of `inputs`."""

History = Sequence[tuple[Any, Sequence[Any]]]
"""Earlier values, oldest first, each with the feedback that it received."""

_OBJECT: Final = re.compile(r'(?:```\w*\s*)?\{\s*(?:"|\}|$)')
"""How a JSON object starts, and a prompt with a placeholder doesn't."""


async def rewrite(
    job: Job,
    parameter: Variable,
    value: Any,
    gradients: Sequence[Variable],
    history: History,
    options: Mapping[str, Any],
    rejected: Sequence[Mapping[str, Any]] = (),
) -> Change:
    """Ask for a better value; a proposal that the checks refuse is repaired once, else the value stays.

    Args:
        gradients: as they are to be shown; what `reduce` returned.
        options: those of `TGD`.
        rejected: proposals that did not help before: "value", "score", "against".
    """
    role = parameter.role
    if not isinstance(value, str):
        raise TypeError(f"TGD rewrites texts (the value of {role!r} is {value!r})")
    model = ChatModel(options["model_client"], options["completion_args"])
    constraints = _constraints(parameter, options)
    messages = _messages(role, value, gradients, history, options, rejected, constraints, model)
    count = gathered_of(gradients)
    evidence = evidence_of(gradients)

    async def asked(messages: list[dict[str, Any]]) -> tuple[str, str, list[str]]:
        reply = str(await complete_json(model, job, messages, TGD_SCHEMA, "step"))
        proposed = value_in(reply)
        if (
            "&lt;" not in value
        ):  # tags in the value were escaped for the prompt, and the model repeats them so
            proposed = unescape(proposed)
        reasons = await check(
            job,
            parameter,
            value,
            proposed,
            count_tokens=model.count_tokens,
            gradients=gradients,
            instructions=_instructions(options),
            allowed=constraints,
            leak_words=options["leak_words"],
        )
        return proposed, reply, reasons

    proposed, reply, reasons = await asked(messages)
    if reasons:
        objection = wording("tgd.objection").replace("{reasons}", "; ".join(reasons))
        again = [{"role": "assistant", "content": reply}, {"role": "user", "content": objection}]
        proposed, _, reasons = await asked([*messages, *again])
    if reasons:
        logging.getLogger("afnio").warning(
            "the proposal for %r was not taken, as %s; the parameter keeps its value",
            role,
            "; ".join(reasons),
        )
        return Change(role, value, value, count, "; ".join(reasons), evidence)
    return Change(role, value, proposed, count, None, evidence)


def _constraints(parameter: Variable, options: Mapping[str, Any]) -> list[str]:
    constraints = [text_of(constraint) for constraint in options["constraints"]]
    most = getattr(parameter, "max_tokens", None)
    if most is not None:
        constraints.append(f"At most {most} tokens, about {words_in(most)} words.")
    return constraints


def _instructions(options: Mapping[str, Any]) -> list[str]:
    """Return what the proposer is told, without the data that is filled in."""
    if options["messages"] is None:
        return [wording("tgd.system"), wording("tgd.objection")]
    texts = [text_of(part) for message in options["messages"] for part in message["content"]]
    return [*texts, wording("tgd.objection")]


def _messages(
    role: str,
    value: str,
    gradients: Sequence[Variable],
    history: History,
    options: Mapping[str, Any],
    rejected: Sequence[Mapping[str, Any]],
    constraints: list[str],
    model: ChatModel,
) -> list[dict[str, Any]]:
    budget = options["feedback_tokens"]
    share = None if budget is None else budget // max(len(history), 1)
    sections = tgd_sections(
        role=role,
        value=value,
        constraints=constraints,
        history=[
            (text_of(past), _fitting([text_of(g) for g in said], share, model)) for past, said in history
        ],
        rejected=[(str(past["value"]), past["score"], past["against"]) for past in rejected],
        feedback=[text_of(gradient) for gradient in gradients],
        **_summary(gradients),
    )
    if options["messages"] is None:
        user = "\n".join(part for line in wording("tgd.user").splitlines() if (part := fill(line, sections)))
        return [{"role": "system", "content": wording("tgd.system")}, {"role": "user", "content": user}]
    inputs = {name: text_of(entry) for name, entry in (options["inputs"] or {}).items()}
    plain = [
        {"role": message["role"], "content": [text_of(part) for part in message["content"]]}
        for message in options["messages"]
    ]
    return rendered(plain, {**sections, **inputs})


def _summary(gradients: Sequence[Variable]) -> dict[str, Any]:
    """Return what a prompt says of feedback that was summed up; nothing where all of it is shown."""
    if not isinstance(gradients, Reduced):
        return {}
    reduction = gradients.reduction
    if not reduction.calls and len(gradients) == gradients.gathered:
        return {}
    return {
        "samples": [len(point.sources) for point in reduction.points],
        "failures": [(failure.name, len(failure.members)) for failure in reduction.failures],
        "left_out": len(reduction.failed) + len(reduction.capped),
    }


def _fitting(texts: list[str], budget: int | None, model: ChatModel) -> list[str]:
    """Return the first texts that fit, at least one: of summed up feedback what most samples stand behind."""
    if budget is None:
        return texts
    left, kept = budget, 0
    for text in texts:
        left -= model.count_tokens(text)
        if left < 0 and kept:
            break
        kept += 1
    return texts[:kept]


def value_in(reply: str) -> str:
    """Return the value that an optimizer's reply proposes; a reply in plain words is the value itself.

    >>> value_in('Here it is: {"value": "Be brief."}'), value_in("{question} Be brief.")
    ('Be brief.', '{question} Be brief.')

    Raises:
        ReplyError: for a JSON object that is cut off, or has no text as its "value".
    """
    text = unfenced(reply)
    try:
        answer = json_object(text)
    except ValueError:
        answer = {}
    value = answer.get("value")
    if not _OBJECT.match(text):
        return value if isinstance(value, str) and len(answer) == 1 else text
    if not isinstance(value, str):
        raise ReplyError(
            f'the optimizer\'s reply is cut off or has no text as its "value" (it starts {reply[:80]!r}); '
            "raise max_completion_tokens"
        )
    return value


def text_of(value: Any) -> str:
    """Return the text of a Variable, or of anything else."""
    return str(value.data) if isinstance(value, Variable) else str(value)
