"""The simulated LM for peers: it also reads the prompts of TextGrad and GEPA, and fills in DSPy's forms.

They ask for criticism and for new texts in prose, with their own tags and fences. A real model understands them all.
Here they are parsed, and answered by the same functions as Afnio's own prompts, so that comparisons run against the
same model.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from afnio.testing.simulated import Kind, SimulatedLM
from afnio.testing.simulated._critic import Case, blame, comment, expected_label, rewrite
from afnio.testing.simulated._language import text_of
from afnio.testing.simulated._student import Attention


class PeersLM(SimulatedLM):
    """Answers the requests of TextGrad and GEPA in the form that they parse, all others as `SimulatedLM` does."""

    def __call__(self, request: dict[str, Any], attempt: int = 1) -> str:
        # The peers' prompts describe the reply in prose and send no response_format.
        asked = None if request.get("response_format") else _dialect_of(request["messages"])
        if asked is None:
            return super().__call__(request, attempt)
        return _reply_in_dialect(*asked, Attention.of(request, attempt, self._seed))


_GEPA: Final = re.compile(
    r"instructions to perform a task.*?\n```\n(.*?)\n```\n.*?\n```\n(.*)\n```\n", re.DOTALL
)
_FORM_END: Final = "[[ ## completed ## ]]"
_FIELD: Final = re.compile(r"\[\[ ## (\w+) ## \]\]")
_EXAMPLE: Final = re.compile(r"^# Example \d+$", re.MULTILINE)
_HEADING: Final = re.compile(r"^## (.+)$", re.MULTILINE)
_INPUT: Final = re.compile(r"\*\*Prediction\(.*?\)\*\*: (.*?)\n\n\*\*Truth\(.*?\)\*\*: (.*)", re.DOTALL)
_NOUN: Final = re.compile(r'\{"(\w+)":')


def _dialect_of(messages: list[dict[str, Any]]) -> tuple[Kind, str] | None:
    """Return the role and the text of a peer's request, or None for one of Afnio's own."""
    text = "\n".join(text_of(message) for message in messages)
    if _FORM_END in text:
        return "optimizer", text
    if "<OBJECTIVE_FUNCTION>" in text and "<VARIABLE>" in text:
        return "critic", text
    if "<IMPROVED_VARIABLE>" in text:
        return "optimizer", text
    return ("optimizer", text) if len(messages) == 1 and _GEPA.search(text) else None


def _reply_in_dialect(kind: Kind, text: str, reader: Attention) -> str:
    """Return the critic's or the proposer's reply to a peer's prompt, in the format that the peer parses."""
    if _FORM_END in text:
        return _dspy_form(text)
    if kind == "critic":
        return _textgrad_critic(text, reader)
    if "<IMPROVED_VARIABLE>" in text:
        return f"<IMPROVED_VARIABLE>{_textgrad_value(text, reader)}</IMPROVED_VARIABLE>"
    return f"```\n{_gepa_value(text, reader)}\n```"


def _dspy_form(text: str) -> str:
    """Fill in a form of DSPy's proposer. It shows no mistakes, so a new instruction is the old one, worded anew."""
    asked = text.rpartition("espond with the corresponding output fields")[2]
    old = text.rpartition("[[ ## basic_instruction ## ]]")[2].partition("[[ ##")[0].strip()
    values = {"proposed_instruction": f"{old} Read it twice."}
    names = [name for name in _FIELD.findall(asked) if name != "completed"]
    return (
        "\n\n".join(f"[[ ## {name} ## ]]\n{values.get(name, 'COMPLETE')}" for name in names)
        + f"\n\n{_FORM_END}"
    )


def _textgrad_critic(text: str, reader: Attention) -> str:
    value = _tagged(text, "VARIABLE")
    told = _tagged(text, "LM_SYSTEM_PROMPT")
    if told:
        feedback = _tagged(text, "OBJECTIVE_FUNCTION")
        if expected_label(feedback) is None:
            return "No change is needed."  # the objective alone names no mistake
        reply = _NOUN.search(_tagged(text, "LM_OUTPUT"))
        case = Case(_tagged(text, "LM_INPUT"), [feedback], reply[1] if reply else "answer")
        start, _, _ = value.partition(" (...) ")
        said = comment(told, case, reader) if told.startswith(start) else blame(value, [told], case)
        return said or "No change is needed."
    found = _INPUT.search(_tagged(text, "INPUTS_TO_FUNCTION"))
    if found is None or _tagged(text, "OUTPUT_OF_FUNCTION") == "1":
        return "No change is needed."
    said, wanted = (json.dumps(part.strip(), ensure_ascii=False) for part in found.groups())
    return f"exact match: predicted {said or value}, expected {wanted}, score 0."


def _textgrad_value(text: str, reader: Attention) -> str:
    # `_tagged` takes the last match: the glossary before the request names the tags too.
    value = _tagged(text, "VARIABLE")
    start, gap, _ = value.partition(" (...) ")
    if gap:
        # TextGrad shortens a long variable to its first and last words; the conversations show all of it.
        whole = _all_tagged(text, "LM_SYSTEM_PROMPT")
        value = next((found for found in whole if found.startswith(start)), value)
    useful = [said for said in _all_tagged(text, "FEEDBACK") if said and said != "No change is needed."]
    constraints = [part for part in _tagged(text, "CONSTRAINTS").split("\n") if part]
    return rewrite(value, useful, constraints, reader) if useful else value


def _gepa_value(text: str, reader: Attention) -> str:
    found = _GEPA.search(text)
    assert found is not None
    value, examples = found.groups()
    feedback = []
    for example in _EXAMPLE.split(examples)[1:]:
        parts = _HEADING.split(example)
        sections = {name.strip(): said.strip() for name, said in zip(parts[1::2], parts[2::2], strict=True)}
        reply = _NOUN.search(sections.get("Generated Outputs", ""))
        case = Case(
            sections.get("Inputs", ""), [sections.get("Feedback", "")], reply[1] if reply else "answer"
        )
        if "score 1" not in case.feedback[0]:
            feedback.append(comment(value, case, reader))
    useful = [said for said in feedback if said]
    limits = [text[found.end() :]]  # what follows the examples; these may name limits of their own
    return rewrite(value, useful, limits, reader) if useful else value


def _tagged(text: str, tag: str) -> str:
    found = _all_tagged(text, tag)
    return found[-1] if found else ""


def _all_tagged(text: str, tag: str) -> list[str]:
    # Prompts also mention their tags ("in <FEEDBACK> tags"): match from the last opening before a closing tag.
    return [
        str(found).strip() for found in re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", text, re.DOTALL)
    ]
