"""The simulated LM of the learning benchmark reads the peers' prompts as it reads Afnio's own."""

from __future__ import annotations

import httpx

from afnio.cognitive import _prompts
from afnio.testing import Provider
from benchmarks.learning.endpoints import PEERS
from benchmarks.learning.peer_prompts import PeersLM

COUNT = "I have two apples. How many fruits do I have?"
lm = PeersLM()


def messages(*texts: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in texts]


def test_peers_get_the_same_criticism_and_the_same_rewriting():
    feedback = _prompts.deterministic_feedback("exact match", "1", "2", 0)
    objective = (
        f"<LM_SYSTEM_PROMPT> Count. </LM_SYSTEM_PROMPT> <LM_INPUT> {COUNT} </LM_INPUT> <LM_OUTPUT> 1 </LM_OUTPUT>"
        f"<OBJECTIVE_FUNCTION>Address: {feedback}</OBJECTIVE_FUNCTION> <VARIABLE> Count. </VARIABLE>"
    )
    said = lm({"messages": messages(("user", objective))})
    assert "add up the quantities" in said
    step = (
        f"<VARIABLE> Count. </VARIABLE> <FEEDBACK>{said}</FEEDBACK> Send it between <IMPROVED_VARIABLE> tags."
    )
    speaks = ("system", "Tags: <FEEDBACK>: what was said. <VARIABLE>: the text. Use <IMPROVED_VARIABLE>.")
    improved = lm({"messages": messages(speaks, ("user", step))})
    assert improved.startswith("<IMPROVED_VARIABLE>Count.\nIn every reply: add up the quantities")
    reflection = (
        "An assistant got instructions to perform a task:\n```\nCount.\n```\nExamples:\n```\n# Example 1\n"
        f"## Inputs\n{COUNT}\n\n## Generated Outputs\n1\n\n## Feedback\n{feedback}\n\n```\nWrite within ```."
    )
    proposed = lm({"messages": messages(("user", reflection))})
    assert proposed.startswith("```\nCount.\nIn every reply: add up the quantities")


def test_a_form_of_dspy_gets_each_of_its_fields():
    form = (
        "[[ ## basic_instruction ## ]]\nCount.\n\n[[ ## tip ## ]]\nBe brief.\n\nRespond with the corresponding output "
        "fields, starting with the field `[[ ## reasoning ## ]]`, then `[[ ## proposed_instruction ## ]]`, and then "
        "ending with the marker for `[[ ## completed ## ]]`."
    )
    said = lm({"messages": messages(("system", "Fields."), ("user", form))})
    assert said == (
        "[[ ## reasoning ## ]]\nCOMPLETE\n\n[[ ## proposed_instruction ## ]]\nCount. Read it twice.\n\n"
        "[[ ## completed ## ]]"
    )


def test_a_provider_in_a_process_of_its_own_uses_it():
    step = "<VARIABLE> Count. </VARIABLE> <FEEDBACK>Add.</FEEDBACK> Send it between <IMPROVED_VARIABLE> tags."
    body = {"model": "simulated", "messages": messages(("user", step))}
    with Provider.process(lm=PEERS) as provider:
        reply = httpx.post(f"{provider.base_url}/chat/completions", json=body, trust_env=False).json()
    assert reply["choices"][0]["message"]["content"].startswith("<IMPROVED_VARIABLE>Count.")
