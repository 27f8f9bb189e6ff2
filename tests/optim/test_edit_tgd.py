"""EditTGD: chains of small steps side by side, raced on fresh samples."""

from __future__ import annotations

import io
import itertools
import json
import logging
import re
import threading
from collections import Counter

import anyio
import anyio.to_thread
import kit
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.roles import comment, kind, prompt, shown
from kit.virtual import virtual_runtime

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError, ScoreError
from afnio.models import ChatResponse
from afnio.optim import Demos, EditTGD
from afnio.runtime.events import StepEnded, subscribed
from afnio.testing import ScriptedClient
from afnio.trainer import Trainer
from afnio.utils.data import DataLoader

KINDS = 9
"""Sample n is answered rightly by a prompt that says "Know {n % KINDS}."."""


def student(request):
    text = json.dumps(request.messages)
    number = int(re.search(r"sample (\d+)", text)[1])
    if "Never answer." in text:
        return "no"
    return "yes" if f"Know {number % KINDS}." in text else "no"


def add(*texts, samples=(1,), block=1):
    return {
        "edits": [{"op": "add", "block": block, "text": text, "samples": list(samples)} for text in texts]
    }


def teach(request):
    """Add what each mistake needs, after the last block; merge by keeping everything once."""
    if "<places>" in prompt(request):
        edits = dict.fromkeys(shown(request, "edit"))
        place = int(re.search(r'<place block="(\d+)">', prompt(request))[1])
        return add(*edits, block=place)
    blocks = shown(request, "block")
    wanted: dict[str, list[int]] = {}
    for number, mistake in enumerate(shown(request, "mistake"), start=1):
        kind_of = int(re.search(r"sample (\d+)", mistake)[1]) % KINDS
        wanted.setdefault(f"Know {kind_of}.", []).append(number)
    for number, text in enumerate(shown(request, "feedback"), start=1):
        if "<mistake" not in prompt(request) and (found := re.search(r"Know \d\.", text)):
            wanted.setdefault(found[0], []).append(number)
    edits = [
        {"op": "add", "block": len(blocks), "text": text, "samples": numbers}
        for text, numbers in wanted.items()
    ]
    return {"edits": edits}


class Agent:
    """One prompt, or two of which the second is at fault."""

    def __init__(self, text="Answer.", *, second=None, latency=0.0, answer=student, rows=60):
        self.prompts = [cog.Parameter(text, role="prompt", requires_grad=True)]
        if second is not None:
            self.prompts.append(cog.Parameter(second, role="second prompt", requires_grad=True))
        self.user = afnio.Variable("{text}", role="sample")
        self.client = ScriptedClient(answer, latency=latency)
        self.rows = [f"sample {number}" for number in range(rows)]
        self.batches = []

    def launch(self, batch):
        self.batches.append(list(batch))
        messages = [
            {"role": "system", "content": list(self.prompts)},
            {"role": "user", "content": [self.user]},
        ]
        pred = cog.functional.chat_completion(
            self.client, messages, inputs={"text": afnio.Variable(list(batch))}, model="student"
        )
        return cog.functional.exact_match_evaluator(pred, ["yes"] * len(batch))

    def evaluate(self, batch):
        return self.launch(batch)

    async def aevaluate(self, batch):
        return await self.launch(batch)

    def optimizer(self, proposer=teach, *, evaluate=None, latency=0.0, rows=None, **options):
        options = {
            "lr": 2,
            "inner": 2,
            "minibatch": 4,
            "race": 12,
            "first": 4,
            "search_seed": 0,
            "model": "m",
            **options,
        }
        client = (
            proposer if isinstance(proposer, ScriptedClient) else ScriptedClient(proposer, latency=latency)
        )
        return EditTGD(self.prompts, client, evaluate or self.evaluate, rows or self.rows, **options)

    @property
    def value(self):
        return self.prompts[0].data


def told(optimizer, steps=1, closure=None):
    with kit.events(StepEnded) as found:
        for _ in range(steps):
            optimizer.step(closure)
    return found


def names(step):
    return [candidate.name for candidate in step.candidates]


# What a step does


@pytest.mark.parametrize("how", ["evaluate", "aevaluate"])
def test_steps_learn_what_the_mistakes_ask_for(how):
    """Chains, their union and the current text are raced, and the parameter holds the winner."""
    agent = Agent()
    optimizer = agent.optimizer(evaluate=getattr(agent, how))
    steps = told(optimizer, 3)
    assert names(steps[0]) == ["incumbent", "chain 1", "chain 2", "union"]
    for step in steps:
        won = [c for c in step.candidates if c.verdict.startswith(("accepted", "kept"))]
        assert len(won) == any(c.scores for c in step.candidates)
    assert agent.value in {c.values[0] for c in steps[-1].candidates}
    assert len(set(re.findall(r"Know \d\.", agent.value))) >= 6
    assert agent.value.startswith("Answer.\n"), "what the text said stays"


def test_one_prompt_needs_no_critic():
    """The proposer reads the conversations, without a backward model being set; the text stands there once."""
    agent = Agent("Answer the question with yes or no, and with nothing else.")
    proposer = ScriptedClient(teach)
    told(agent.optimizer(proposer))
    assert {kind(request) for request in agent.client.requests} == {"student"}
    first = prompt(proposer.requests[0])
    assert first.count("Answer the question with yes or no, and with nothing else.") == 1
    assert 'predicted "no", expected "yes"' in shown(proposer.requests[0], "mistake")[0]


def test_a_function_with_one_prompt_needs_no_critic_either():
    """The proposer reads the trace of its calls, and in which of them the prompt stands."""
    client = ScriptedClient(student)

    async def answer(text, system):
        seen = await client.achat(messages=[{"role": "user", "content": f"Look at {text}"}], model="m")
        messages = [{"role": "system", "content": system}, {"role": "user", "content": f"{text} {seen}"}]
        return str(await client.achat(messages=messages, model="m"))

    agent = cog.Agent(answer, prompts={"system": "Answer the question."})

    def evaluate(batch):
        return cog.functional.exact_match_evaluator(agent(afnio.Variable(list(batch))), ["yes"] * len(batch))

    proposer = ScriptedClient(teach)
    optimizer = EditTGD(
        agent.parameters(), proposer, evaluate, [f"sample {n}" for n in range(40)],
        lr=1, inner=2, minibatch=4, race=8, search_seed=0, model="m",
    )  # fmt: skip
    told(optimizer, 2)
    assert shown(proposer.requests[0], "mistake")[0].startswith("(the variable stands in calls 2)\n")
    assert "Know" in next(agent.parameters()).data


def test_with_several_prompts_the_critics_say_which_one_to_change():
    """The other one keeps its text, and costs no proposal."""
    agent = Agent("Answer.", second="Be right.")

    def critic(request):
        number = int(re.search(r"sample (\d+)", prompt(request))[1]) % KINDS
        return comment(
            lambda block: f"It lacks Know {number}." if block.text.startswith("Be right.") else ""
        )(request)

    proposer = ScriptedClient(teach)
    with afnio.set_backward_model_client(ScriptedClient(critic), completion_args={"model": "c"}):
        (step,) = told(agent.optimizer(proposer))
    assert agent.value == "Answer."
    assert "Know" in agent.prompts[1].data
    assert {re.search(r"<variable role=(.*)>", prompt(r))[1] for r in proposer.requests} == {
        '"second prompt"'
    }
    assert [change.role for change in step.changes] == ["second prompt"]


def test_a_race_uses_samples_that_no_candidate_was_made_from():
    """Whatever the chains have seen; the record names both."""
    agent = Agent()
    for step in told(agent.optimizer(), 4):
        raced = {unit for candidate in step.candidates for unit in candidate.samples}
        for change in step.changes:
            made = {
                unit for line in change.lineage for unit in line.samples if line.step == len(step.changes)
            }
            assert not raced & made
    optimizer, batches = Agent(), []
    one = optimizer.optimizer()
    told(one)
    batches = optimizer.batches
    small = {row for batch in batches[: 2 * 2] for row in batch}
    assert all(not small & set(batch) for batch in batches[2 * 2 :])
    assert {len(batch) for batch in batches[2 * 2 :]} == {4, 8}


@pytest.mark.parametrize("rows", [24, 40, 60, 100])
def test_no_race_uses_a_sample_whose_mistake_was_shown_in_its_step(rows):
    """Not one of the last race either, whose mistakes the chains begin with; so a text that learns rows by heart
    gains nothing."""
    shown_now: set[int] = set()

    def proposer(request):
        if "<places>" not in prompt(request):
            for mistake in shown(request, "mistake"):
                shown_now.add(int(re.search(r"sample (\d+)", mistake)[1]))
        return teach(request)

    agent = Agent(rows=rows, answer=lambda request: "no")
    optimizer = agent.optimizer(proposer, lr=3, inner=2, minibatch=4, race=12, prune_every=None)
    for _ in range(8):
        shown_now.clear()
        (step,) = told(optimizer)
        raced = {unit for candidate in step.candidates for unit in candidate.samples}
        assert len(raced) == 12
        assert shown_now
        assert not raced & shown_now


def test_the_current_text_is_raced_on_each_sample_once():
    """Its scores and mistakes are kept as long as it stays, also in a file; no other text has them."""
    agent, proposer = Agent(rows=16), ScriptedClient(lambda request: add("Useless."))
    options = {"lr": 1, "inner": 1, "race": 8, "first": 8, "prune_every": None}
    optimizer = agent.optimizer(proposer, **options)
    steps = told(optimizer, 3)
    again = agent.optimizer(proposer, **options)
    again.load_state_dict(json.loads(json.dumps(optimizer.state_dict(), default=str)))
    steps += told(again, 3)
    systems = Counter(request.messages[0]["content"] for request in agent.client.requests)
    assert [len(candidate.scores) for step in steps for candidate in step.candidates] == [8] * 12
    assert [len(shown(request, "mistake")) for request in proposer.requests] == [4, *[8] * 5]
    assert systems == {"Answer.": 4 + 16, "Answer.\nUseless.": 6 * 8}


def test_a_long_chain_goes_through_its_samples_again():
    """A minibatch has none twice."""
    agent = Agent(rows=16, answer=lambda request: "no")
    told(agent.optimizer(lr=1, inner=4, minibatch=6, race=24, prune_every=None))
    chain, race = agent.batches[:4], agent.batches[4:]
    assert [len(set(batch)) for batch in chain] == [6] * 4
    assert len({row for batch in chain for row in batch}) == 8
    assert not {row for batch in chain for row in batch} & {row for batch in race for row in batch}


def test_the_state_of_another_training_set_is_refused():
    """Its numbers would name other samples, or none."""
    one, other = Agent(rows=40), Agent(rows=10)
    optimizer = one.optimizer()
    told(optimizer)
    with pytest.raises(ValueError, match=r"must be of 10 training samples \(got 40\); load it with the same"):
        other.optimizer().load_state_dict(optimizer.state_dict())


def test_the_first_samples_are_for_all_and_the_rest_for_the_best():
    """So many scores has each candidate, in the columns of one table."""
    (step,) = told(Agent().optimizer(keep=2))
    counts = Counter(len(candidate.scores) for candidate in step.candidates)
    assert counts == {4: 2, 12: 2}
    columns = {candidate.samples[:4] for candidate in step.candidates}
    assert len(columns) == 1


def test_ties_keep_the_current_text():
    """A candidate that does as well isn't better."""
    agent = Agent()
    (step,) = told(agent.optimizer(lambda request: add("Useless.", samples=[1]), lr=1, inner=1))
    assert agent.value == "Answer."
    assert step.candidates[0].verdict.startswith("kept: 0 on 12 samples")
    assert step.candidates[1].verdict == "lost: 0 against 0 of incumbent on 12 samples"
    assert step.changes[0].rejected == "no candidate did better than the current text in the race"


def test_a_harmful_sentence_of_the_start_is_left_out():
    """No mistake names it, so only leaving it out helps; with `prune_every=None` it isn't tried."""
    text = "Know 1. Know 2. Never answer. Know 3."
    quiet = lambda request: {"edits": []}  # noqa: E731
    agent = Agent(text)
    (step,) = told(agent.optimizer(quiet))
    assert agent.value == "Know 1. Know 2. Know 3."
    assert [c.name for c in step.candidates if c.verdict.startswith("accepted")] == [
        'without "Never answer."'
    ]
    agent = Agent(text)
    told(agent.optimizer(quiet, prune_every=None))
    assert text == agent.value


def test_blocks_are_left_out_in_turn_later():
    """Every few steps, the one that was tested longest ago."""
    agent = Agent("Know 1. Know 2. Know 3.", answer=lambda request: "yes")
    steps = told(agent.optimizer(prune_every=2), 6)
    tried = [[name for name in names(step) if name.startswith("without")] for step in steps]
    assert tried[0] == ['without "Know 1."', 'without "Know 2."', 'without "Know 3."']
    assert [
        [],
        *tried[1:],
    ] == [[], ['without "Know 1."'], [], ['without "Know 2."'], [], ['without "Know 3."']]
    assert agent.value == "Know 1. Know 2. Know 3."


def test_placeholders_and_examples_are_not_left_out():
    """A text without them would be another program's."""
    examples = "<examples>\n<example>\n<input>a</input>\n</example>\n</examples>"
    agent = Agent(f"Use {{text}}. Be kind.\n{examples}", answer=lambda request: "yes")
    (step,) = told(agent.optimizer())
    assert names(step)[:2] == ["incumbent", 'without "Be kind."']
    assert sum(name.startswith("without") for name in names(step)) == 1


def test_demos_may_work_on_the_same_text():
    """Its examples are one block, and no edit touches them."""
    agent = Agent()
    demos = Demos(agent.prompts, k=1)
    demos.observe({"text": ["sample 99"]}, ["yes"], [1])
    demos.step()

    def greedy(request):
        (number,) = [n for n, b in enumerate(shown(request, "block"), start=1) if b.startswith("<examples>")]
        return {
            "edits": [{"op": "delete", "block": number, "text": "", "samples": []}, *teach(request)["edits"]]
        }

    (step,) = told(agent.optimizer(greedy))
    assert "sample 99" in agent.value
    assert any("holds examples" in text for text in step.changes[0].dropped)


# Composition


def test_equal_edits_count_once_and_need_no_merge():
    """All chains say the same: their union equals them."""
    agent = Agent(answer=lambda r: "yes" if "Say yes." in json.dumps(r.messages) else "no")
    proposer = ScriptedClient(lambda request: add("Say yes.", samples=[1, 2]))
    (step,) = told(agent.optimizer(proposer, inner=1))
    assert agent.value == "Answer.\nSay yes."
    assert len(proposer.requests) == 2
    assert [c.verdict for c in step.candidates[2:]] == ["equals chain 1", "equals chain 1"]
    (_, line) = step.changes[0].lineage
    assert (line.step, len(line.samples)) == (1, 4), "the samples of both chains stand behind it"


def test_one_call_decides_what_is_done_at_a_contested_place():
    """It sees the edits of the place, with their weight; nothing else is merged by a model."""
    agent, merges = Agent(), []

    def proposer(request):
        if "<places>" in prompt(request):
            merges.append(request)
            return add("Know 0. Know 1. Know 2. Know 3. Know 4. Know 5. Know 6. Know 7. Know 8.")
        return teach(request)

    (step,) = told(agent.optimizer(proposer, inner=1))
    assert len(merges) == 1
    assert {'"1"', '"2"', '"3"', '"4"'} >= set(re.findall(r"samples=(\S+)>", prompt(merges[0])))
    assert re.findall(r"Know \d\.", agent.value) == [f"Know {number}." for number in range(KINDS)]
    assert next(c.name for c in step.candidates if c.verdict.startswith("accepted")) == "union"


@pytest.mark.parametrize("reply", ["I would keep both.", {"edits": []}, add("x", block=7)])
def test_a_merge_that_cannot_be_used_takes_everything(reply):
    """The union is raced all the same."""
    agent = Agent()
    script = lambda request: reply if "<places>" in prompt(request) else teach(request)  # noqa: E731
    (step,) = told(agent.optimizer(script, inner=1))
    joint = next(c for c in step.candidates if c.name == "union")
    both = {
        text
        for c in step.candidates
        if c.name.startswith("chain")
        for text in re.findall(r"Know \d", c.values[0])
    }
    assert both == set(re.findall(r"Know \d", joint.values[0]))


def test_a_failed_merge_costs_the_union_only():
    """The chains race on."""
    agent = Agent()

    def proposer(request):
        if "<places>" in prompt(request):
            raise FinalModelError("no merges today", status=400)
        return teach(request)

    (step,) = told(agent.optimizer(proposer, inner=1))
    assert "failed: no merges today" in next(c.verdict for c in step.candidates if c.name == "union")
    assert "Know" in agent.value


# Bad edits


BAD = {
    "a block that isn't there": (add("Know 1.", block=7), "add at block 7, which isn't there"),
    "contradictory ones": (
        {
            "edits": [
                {"op": "replace", "block": 1, "text": "Use {text} well.", "samples": [1]},
                {"op": "replace", "block": 1, "text": "{text}!", "samples": [1, 2]},
            ]
        },
        "replace block 1 contradicts replace",
    ),
    "a lost placeholder": (
        {"edits": [{"op": "replace", "block": 1, "text": "Answer.", "samples": []}]},
        "it must keep the placeholder {text}",
    ),
    "an empty text": (
        {"edits": [{"op": "delete", "block": 1, "text": "", "samples": []}]},
        "it must not be empty",
    ),
    "no text": (add(" "), "add without a text"),
    "too long a text": (add("word " * 100), "longer than 120 characters"),
    "a repetition": (add("Use {text}."), "add of a block that is there already"),
    "instructions": (
        add("Keep every {placeholder} of the variable as it is. Obey every constraint."),
        "it must not repeat instructions",
    ),
    "prose": ("I would add that it should know more.", "the reply can't be read"),
    "broken JSON": ('{"edits": [{"op" "add"}]}', "the reply can't be read: it is no JSON"),
    "a reply that was cut off": (
        ChatResponse(content='{"edits": [{"op": "add", "block": 1, "te', finish_reason="length"),
        "the reply was cut off (length); make fewer or shorter edits",
    ),
    "another shape": ({"edits": [{"op": "move", "block": 1, "text": "x", "samples": []}]}, '"op" must be'),
    "no number": (
        {"edits": [{"op": "add", "block": "end", "text": "x", "samples": []}]},
        '"block" must be the number',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_edits_that_cannot_be_made_are_repaired_once_dropped_and_counted(name):
    """The proposer is asked once more with the reasons; the others' edits are made, the text is never broken."""
    reply, reason = BAD[name]
    again = []

    def proposer(request):
        if len(request.messages) > 2:
            again.append(request.messages[-1]["content"])
            return add("Know more.")
        return reply

    agent = Agent("Use {text}.")
    (step,) = told(agent.optimizer(proposer, lr=1, inner=1, max_chars=120))
    (change,) = step.changes
    assert any(reason in text for text in change.dropped)
    assert "{text}" in agent.value
    chain = next(c for c in step.candidates if c.name == "chain")
    if name == "contradictory ones":
        assert (again, chain.values[0]) == ([], "{text}!"), "the one with more samples is made"
    else:
        assert reason in again[0]
        assert chain.values[0] == "Use {text}.\nKnow more."
    assert f"{len(change.dropped)} edits left out" in chain.verdict or len(change.dropped) == 1


def test_an_edit_that_copies_a_training_sample_is_not_made():
    """The proposer saw it, and mustn't pass it on."""
    rows = [f"sample {n} is a{n} b{n} c{n} d{n} e{n} f{n} g{n} h{n} i{n}" for n in range(40)]

    def proposer(request):
        if len(request.messages) > 2:
            return add("Know more.")
        return add(f"Think of {re.search(r'sample .*', prompt(request))[0]}.")

    agent = Agent()
    (step,) = told(agent.optimizer(proposer, rows=rows, lr=1, inner=1))
    assert "must not copy training examples" in step.changes[0].dropped[0]
    assert step.candidates[1].values[0] == "Answer.\nKnow more."


def test_good_edits_beside_bad_ones_are_made_without_another_call():
    """Only what is wrong is left out."""
    agent = Agent(answer=lambda r: "yes" if "Say yes." in json.dumps(r.messages) else "no")
    reply = {"edits": [*add("Nothing.", block=9)["edits"], *add("Say yes.")["edits"]]}
    proposer = ScriptedClient(lambda request: reply)
    (step,) = told(agent.optimizer(proposer, lr=1, inner=1))
    assert (agent.value, len(proposer.requests)) == ("Answer.\nSay yes.", 1)
    assert step.changes[0].dropped == ("add at block 9, which isn't there",)


def test_an_edit_that_lost_is_shown_and_not_made_again():
    """With the scores with it and without it."""
    agent = Agent("Know 1. Know 2.")
    proposer = ScriptedClient(lambda request: add("Never answer.", block=2, samples=[1]))
    steps = told(agent.optimizer(proposer, lr=1, inner=1, prune_every=None), 2)
    assert "lost" in steps[0].candidates[1].verdict
    assert shown(proposer.requests[-2], "tried") == ["Never answer."]
    assert 'score="0"' in prompt(proposer.requests[-2])
    assert any("was tried and lost before" in text for text in steps[1].changes[0].dropped)
    assert agent.value == "Know 1. Know 2."


def test_a_validator_may_object_to_one_edit_of_several():
    """The others are made."""
    agent = Agent(answer=lambda r: "yes" if "Say yes." in json.dumps(r.messages) else "no")
    agent.prompts = [
        cog.Parameter(
            "Answer.", role="prompt", requires_grad=True,
            validators=[lambda text: "it must not mention JSON" if "JSON" in text else None],
        )
    ]  # fmt: skip
    (step,) = told(agent.optimizer(lambda request: add("Use JSON.", "Say yes."), lr=1, inner=1))
    assert agent.value == "Answer.\nSay yes."
    assert step.changes[0].dropped == ("add at block 1: it must not mention JSON",)


def test_texts_stay_within_the_limit():
    """Whatever the chains propose and the union adds up to; a longer start text may keep its length."""
    agent = Agent()
    lengths = [len(c.values[0]) for step in told(agent.optimizer(max_chars=30), 3) for c in step.candidates]
    assert max(lengths) <= 30
    long = "A sentence that is long enough. " * 3
    agent = Agent(long)
    lengths = [
        len(c.values[0])
        for step in told(agent.optimizer(max_chars=30, prune_every=None), 2)
        for c in step.candidates
    ]
    assert max(lengths) <= len(long)


@given(
    text=st.text(alphabet="ab. \n!{}1-`", min_size=1, max_size=60).filter(str.strip),
    edits=st.lists(
        st.fixed_dictionaries(
            {
                "op": st.sampled_from(["add", "replace", "delete"]),
                "block": st.integers(-1, 6),
                "text": st.text(alphabet="xy. \n{", max_size=12),
                "samples": st.lists(st.integers(-1, 9), max_size=3),
            }
        ),
        max_size=5,
    ),
)
@settings(max_examples=25, deadline=None)
def test_any_edits_of_any_text_leave_a_text_that_is_made_of_its_blocks(text, edits):
    """Nothing of the start is lost but what was deleted or replaced, and no edit breaks the step."""
    agent = Agent(text)
    optimizer = agent.optimizer(lambda request: {"edits": edits}, lr=1, inner=1, prune_every=None)
    (step,) = told(optimizer)
    for candidate in step.candidates:
        value = candidate.values[0]
        assert value.strip()
        kept = [line for line in text.split() if not any(e["op"] != "add" for e in edits)]
        assert all(word in value for word in kept)
    for change in step.changes:
        rest = change.after
        for line in change.lineage:
            assert line.text in rest
            rest = rest.partition(line.text)[2]
        assert not rest.strip()


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.5}, "lr must be a whole number of chains, 1 or more (got 0.5)"),
        ({"inner": 0}, "inner must be a whole number, 1 or more (got 0)"),
        ({"race": 1.5}, "race must be a whole number"),
        ({"max_chars": 0}, "max_chars must be a whole number"),
        ({"quorum": 0}, "quorum must be above 0 and at most 1"),
        ({"reserve": -1}, "reserve must be a whole number of calls, 0 or more"),
        ({"rows": ["sample 1"]}, "train must have at least 2 samples (got 1)"),
        ({"mistake_tokens": 5}, "mistake_tokens must be a number from 100"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options, words):
    """On the line that gives them."""
    with pytest.raises(ValueError) as caught:
        Agent().optimizer(**options)
    assert words in str(caught.value)


def test_a_batch_that_is_all_right_costs_no_proposal():
    """There is nothing to learn, and nothing to race."""
    agent, proposer = Agent(answer=lambda request: "yes"), ScriptedClient(teach)
    (step,) = told(agent.optimizer(proposer))
    assert proposer.requests == []
    assert {c.verdict for c in step.candidates} == {
        "not raced: there was no other candidate",
        "changed nothing",
    }
    assert (step.changes, len(agent.client.requests)) == ((), 2 * 2 * 4)


def test_half_of_the_samples_failing_ends_a_chain_and_all_of_them_the_step():
    """Values are kept; the next step is as if there had been none."""

    def answer(request):
        number = int(re.search(r"sample (\d+)", json.dumps(request.messages))[1])
        if failing and number % 2:
            raise FinalModelError("refused", status=400)
        return student(request)

    failing = True
    agent = Agent(answer=answer)
    optimizer = agent.optimizer()
    with pytest.raises(BaseException, match="samples"):
        optimizer.step()
    assert agent.value == "Answer."
    agent = Agent(answer=answer)
    told(agent.optimizer(quorum=0.2))
    assert "Know" in agent.value, "a lower quorum takes what is there"
    failing = False


def test_a_candidate_that_fails_is_out_of_the_race():
    """A text that the provider refuses can't win, and costs only itself."""

    def answer(request):
        if "Know 1." in json.dumps(request.messages):
            raise FinalModelError("refused", status=400)
        return "yes" if "Say yes." in json.dumps(request.messages) else "no"

    replies = iter([add("Know 1."), add("Say yes.")])
    agent = Agent(answer=answer)
    (step,) = told(
        agent.optimizer(lambda r: {"edits": []} if "<places>" in prompt(r) else next(replies), inner=1)
    )
    assert agent.value == "Answer.\nSay yes."
    assert any(c.verdict.startswith("failed: only 0 of 4 samples have a score") for c in step.candidates)


def test_few_rows_make_a_smaller_race_which_is_said_once(caplog):
    """It takes half of them, and chains share the others."""
    agent = Agent(rows=8)
    with caplog.at_level(logging.WARNING, "afnio"):
        steps = told(agent.optimizer(), 3)
    assert sum("races compare on 4 samples instead of 12" in r.message for r in caplog.records) == 1
    assert {len(c.samples) for step in steps for c in step.candidates if c.samples} == {4}


def test_two_rows_are_enough():
    """One for the mistakes, one for the race."""
    agent = Agent(rows=2, answer=lambda r: "yes" if "Know" in json.dumps(r.messages) else "no")
    told(agent.optimizer())
    assert "Know" in agent.value


def test_a_budget_that_cannot_pay_for_a_step_is_an_error_before_the_first_call():
    """With the sum; also if only the reserve is too much. It may be a block's or the run's."""
    agent, proposer = Agent(), ScriptedClient(teach)
    with pytest.raises(
        ValueError, match=r"must pay for one step of \d+ calls and a reserve of 64 \(got 70\)"
    ):
        agent.optimizer(proposer, budget=70, reserve=64).step()
    with afnio.budget(max_calls=5), pytest.raises(ValueError, match=r"one step of \d+ calls \(got 5\)"):
        agent.optimizer(proposer).step()
    assert (agent.client.requests, proposer.requests, agent.value) == ([], [], "Answer.")


@pytest.mark.parametrize("calls", [60, 120, 400])
def test_a_step_takes_its_share_of_the_budget(calls):
    """Sizes shrink until a step costs a third at most; what one sample takes is rehearsed."""
    agent, proposer = Agent(), ScriptedClient(teach)
    optimizer = agent.optimizer(proposer, budget=calls, lr=3, inner=3, minibatch=8, race=24, first=8)
    told(
        optimizer
    )  # the first one has no race behind it, so its chains run samples for their first small step
    before = len(agent.client.requests) + len(proposer.requests)
    told(optimizer)
    assert len(agent.client.requests) + len(proposer.requests) - before <= calls / 3 + 1
    assert optimizer.step_cost <= calls / 3


def test_chains_shrink_first():
    """One long chain learns more than two short ones, and a race of fewer texts takes fewer samples."""
    found = []
    for calls in (1_000, 500, 300, 200, 100):
        optimizer = Agent().optimizer(budget=calls, lr=3, inner=4, minibatch=12, race=24, first=12)
        told(optimizer)
        found.append(tuple(optimizer.sizes)[:4])
    assert found[:3] == [(3, 4, 12, 24), (2, 4, 12, 24), (1, 4, 12, 24)]
    assert all(chains == 1 and inner == 4 and minibatch < 12 for chains, inner, minibatch, _ in found[3:])


def test_a_budget_that_ends_in_the_middle_keeps_the_value():
    """The step raises it, unwrapped."""
    agent = Agent()
    optimizer = agent.optimizer(budget=1000)
    with pytest.raises(afnio.errors.BudgetExceeded), afnio.budget(max_calls=30):
        optimizer.step()
    assert agent.value == "Answer."


def test_an_evaluate_without_a_graph_is_told():
    """Its scores alone teach nothing."""
    with pytest.raises(BaseException) as caught:
        Agent().optimizer(evaluate=lambda batch: [0.0] * len(batch)).step()
    assert "evaluate must return (score, explanation) that parameters led to" in str(caught.value)


def test_a_score_above_the_maximum_ends_the_step():
    """The evaluator's arguments are wrong for every sample."""
    agent = Agent()

    def evaluate(batch):
        messages = [{"role": "user", "content": [*agent.prompts, afnio.Variable("{t}")]}]
        pred = cog.functional.chat_completion(
            agent.client, messages, inputs={"t": afnio.Variable(list(batch))}, model="s"
        )
        return cog.functional.deterministic_evaluator(pred, "yes", lambda p, t: 7 if p == t else 0, "mark")

    with pytest.raises(ScoreError, match=r"max_score=1 \(got 7\)"):
        told(agent.optimizer(evaluate=evaluate), 4)


def test_if_every_chain_fails_the_step_raises():
    """The proposer's error, not that of a race without candidates."""
    agent = Agent()
    with pytest.raises(FinalModelError, match="no"):
        agent.optimizer(ScriptedClient(FinalModelError("no", status=401))).step()
    assert agent.value == "Answer."


# Time


@pytest.mark.parametrize(("inner", "merges"), [(1, True), (2, False), (3, True)])
def test_a_step_takes_two_latencies_for_each_small_step_and_one_for_the_race(inner, merges):
    """One more for a merge, and in the first step; however many chains there are."""
    with virtual_runtime() as clock:
        for lr in (2, 6):
            agent = Agent(latency=1.0, rows=200)
            script = (
                teach
                if merges
                else (lambda r: {"edits": []} if len(shown(r, "block")) > 1 else add("Know 1."))
            )
            optimizer = agent.optimizer(script, evaluate=agent.aevaluate, latency=1.0, lr=lr, inner=inner)
            began, ends = clock.now, []
            with subscribed(
                lambda e, ends=ends: ends.append(clock.now) if isinstance(e, StepEnded) else None
            ):
                optimizer.step()
            assert ends[0] - began <= 1.1 * (2 * inner + 2 + merges)


def test_critics_take_one_latency_for_each_small_step():
    """Those of the race included."""
    with virtual_runtime() as clock:
        agent = Agent(latency=1.0, rows=200)
        critic = ScriptedClient(comment("It lacks Know 1. It lacks Know 2."), latency=1.0)
        optimizer = agent.optimizer(
            lambda r: add(f"Know {len(shown(r, 'block')) % KINDS}."), evaluate=agent.aevaluate, latency=1.0,
            lr=2, inner=3, critics=True,
        )  # fmt: skip
        ends = [clock.now]
        with (
            afnio.set_backward_model_client(critic, completion_args={"model": "c"}),
            subscribed(lambda e: ends.append(clock.now) if isinstance(e, StepEnded) else None),
        ):
            for _ in range(2):
                optimizer.step().wait()
    assert max(later - earlier for earlier, later in itertools.pairwise(ends)) <= 1.1 * (3 * 3 + 2 + 1)


@pytest.mark.parametrize("critics", [False, True])
def test_with_one_small_step_the_race_is_the_next_forward_pass(critics):
    """Three latencies a step, four with critics, beside a merge."""
    with virtual_runtime() as clock:
        agent = Agent(latency=1.0, rows=200)
        critic = ScriptedClient(comment("It lacks Know 1. It lacks Know 2."), latency=1.0)
        script = lambda r: add(f"Know {len(shown(r, 'block')) % KINDS}.", samples=[1])  # noqa: E731
        optimizer = agent.optimizer(
            script, evaluate=agent.aevaluate, latency=1.0, lr=2, inner=1, critics=critics, prune_every=None
        )
        ends = [clock.now]
        with (
            afnio.set_backward_model_client(critic, completion_args={"model": "c"}),
            subscribed(lambda e: ends.append(clock.now) if isinstance(e, StepEnded) else None),
        ):
            for _ in range(3):
                optimizer.step().wait()
    walls = [later - earlier for earlier, later in itertools.pairwise(ends)]
    assert max(walls[1:]) <= 1.1 * (3 + critics)


# Journals, states, entrances


def play(agent, tmp_path, *, proposer=teach, steps=2, **options):
    with afnio.journal(tmp_path / "calls.journal"):
        optimizer = agent.optimizer(proposer, **options)
        found = told(optimizer, steps)
    return agent.value, [step.candidates for step in found], optimizer.state_dict()["search"]


def test_a_journal_gives_the_same_run_without_a_call(tmp_path):
    """Run, then replayed with dead clients."""

    def nobody(request):
        raise FinalModelError("nobody must be asked", status=401)

    options = {"inner": 2, "prune_every": 2, "budget": 400}
    one = play(Agent("Know 1. Know 2."), tmp_path, steps=3, **options)
    agent = Agent("Know 1. Know 2.", answer=nobody)
    assert one == play(agent, tmp_path, proposer=nobody, steps=3, **options)


@pytest.mark.parametrize("inner", [pytest.param(1), pytest.param(2, marks=pytest.mark.nightly)])
async def test_a_run_that_is_killed_anywhere_goes_on_and_pays_for_nothing_twice(tmp_path, inner):
    """Inside a chain, in the merge, in the race: the program is run again with its journal."""

    async def run(folder, answer=student, proposer=teach):
        agent = Agent(answer=answer)
        optimizer = agent.optimizer(proposer, evaluate=agent.aevaluate, inner=inner)
        async with afnio.journal(folder / "calls.journal"), afnio.scope(name="run"):
            for _ in range(2):
                await optimizer.step()
        return agent.value, optimizer.state_dict()["search"]

    calls = Counter()
    begun = threading.Event()

    def mortal(script, most):
        async def answer(request):
            if calls["answered"] >= most:
                begun.set()
                await anyio.sleep_forever()
            calls["answered"] += 1
            return script(request)

        return answer

    expected = await run(tmp_path / "whole", mortal(student, 10**9), mortal(teach, 10**9))
    total = calls["answered"]
    for cut in range(3, total, 12):
        calls.clear()
        begun.clear()
        folder = tmp_path / f"cut {cut}"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, folder, mortal(student, cut), mortal(teach, cut))
            assert await anyio.to_thread.run_sync(begun.wait, 20)
            tasks.cancel_scope.cancel()
        assert await run(folder, mortal(student, 10**9), mortal(teach, 10**9)) == expected
        assert total == calls["answered"]


@pytest.mark.parametrize("inner", [1, 2])
def test_the_state_goes_through_a_file_and_the_next_step_is_the_same(inner):
    """Records, the order of the rows, lost edits, and with `inner=1` the mistakes of the race."""
    one, other = Agent(), Agent()
    went_on, restored = one.optimizer(inner=inner), other.optimizer(inner=inner, search_seed=5)
    told(went_on, 2)
    file = io.BytesIO()
    afnio.save(went_on.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(afnio.load(file))
    other.prompts[0].data = one.value
    first, second = told(went_on, 2), told(restored, 2)
    assert [step.candidates for step in first] == [step.candidates for step in second]
    assert went_on.lineage == restored.lineage
    json.dumps(went_on.state_dict()["search"])


async def test_a_cancelled_step_keeps_the_values_and_the_state():
    """And leaves no call."""
    begun = threading.Event()

    async def answer(request):
        begun.set()
        await anyio.sleep_forever()

    agent = Agent(answer=answer)
    optimizer = agent.optimizer(evaluate=agent.aevaluate)
    before = optimizer.state_dict()["search"]
    with pytest.raises(RuntimeError, match="stop"):
        async with afnio.scope():
            optimizer.step()
            assert await anyio.to_thread.run_sync(begun.wait, 20)
            raise RuntimeError("stop")
    await agent.prompts[0]
    assert agent.value == "Answer."
    after = optimizer.state_dict()["search"]
    assert {**before, "seed": 0} == {**after, "seed": 0}


def test_feedback_of_a_loop_takes_the_place_of_the_first_samples():
    """So it fits a closure, and a Trainer that calls backward itself."""
    agent, proposer = Agent(), ScriptedClient(teach)
    optimizer = agent.optimizer(proposer, inner=1)
    agent.prompts[0].append_grad(afnio.Variable("It lacks Know 4."))
    agent.prompts[0].append_grad(afnio.Variable("It lacks Know 5."))
    (step,) = told(optimizer)
    assert [shown(r, "feedback") for r in proposer.requests[:2]] == [
        ["It lacks Know 4."],
        ["It lacks Know 5."],
    ]
    assert {"Know 4.", "Know 5."} >= set(re.findall(r"Know \d\.", agent.value))
    assert step.changes[0].gradients == 2


def test_a_value_from_outside_is_another_text():
    """The mistakes of the last race were another text's, so they aren't used."""
    agent = Agent()
    optimizer = agent.optimizer(inner=1)
    told(optimizer, 2)
    agent.prompts[0].data = "Start again."
    (step,) = told(optimizer)
    assert step.candidates[0].values[0] == "Start again."
    assert agent.value.startswith("Start again.")


def test_a_trainer_trains_with_it():
    """`fit` with automatic optimization: the batch's feedback starts the chains."""

    class Module(cog.Module):
        def __init__(self):
            super().__init__()
            self.inner = Agent()
            self.prompt = self.inner.prompts[0]

        def training_step(self, batch, index):
            return self.inner.launch(batch)

        def configure_optimizers(self):
            return self.inner.optimizer(
                lambda r: (
                    teach(r)
                    if "<places>" in prompt(r) or "<mistake" in prompt(r) or "lacks" in prompt(r)
                    else {}
                )
            )

    def critic(request):
        number = int(re.search(r"sample (\d+)", prompt(request))[1]) % KINDS
        return comment(f"It lacks Know {number}.")(request)

    module = Module()
    with afnio.set_backward_model_client(ScriptedClient(critic), completion_args={"model": "c"}):
        loader = DataLoader(module.inner.rows, batch_size=12)
        trainer = Trainer(max_steps=3, enable_checkpointing=False, enable_progress_bar=False)
        trainer.fit(module, loader)
    assert len(set(re.findall(r"Know \d\.", module.prompt.data))) >= 5


class Manual(cog.Module):
    """Steps by itself, so that no critic reads the loader's batches."""

    automatic_optimization = False

    def __init__(self, answer=student, proposer=teach):
        super().__init__()
        self.inner = Agent(answer=answer)
        self.proposer = proposer
        self.prompt = self.inner.prompts[0]

    async def training_step(self, batch, index):
        await self.optimizer.step()

    def configure_optimizers(self):
        self.optimizer = self.inner.optimizer(self.proposer, evaluate=self.inner.aevaluate)
        return self.optimizer


async def test_a_trainer_that_is_killed_inside_a_step_resumes_it(tmp_path):
    """From the checkpoint before it and its journal: the same text, and nothing is paid for twice."""
    calls, begun = Counter(), threading.Event()

    def mortal(script, most):
        async def answer(request):
            if calls["answered"] >= most:
                begun.set()
                await anyio.sleep_forever()
            calls["answered"] += 1
            return script(request)

        return answer

    async def fit(folder, most, **options):
        module = Manual(mortal(student, most), mortal(teach, most))
        trainer = Trainer(max_steps=2, default_root_dir=folder, enable_progress_bar=False, seed=1)
        await trainer.afit(module, DataLoader(module.inner.rows, batch_size=12), **options)
        return module.prompt.data, module.optimizer.lineage

    expected = await fit(tmp_path / "whole", 10**9)
    total = calls["answered"]
    calls.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fit, tmp_path / "cut", total - 20)
        assert await anyio.to_thread.run_sync(begun.wait, 30)
        tasks.cancel_scope.cancel()
    assert await fit(tmp_path / "cut", 10**9, ckpt_path="last") == expected
    assert total == calls["answered"]


# The record of a block


def test_a_block_keeps_its_lineage():
    """Step, samples, what it replaced, and how candidates with it did."""
    agent = Agent()
    optimizer = agent.optimizer()
    steps = told(optimizer, 4)
    ((first, *others),) = optimizer.lineage
    assert (first.text, first.step, first.samples) == ("Answer.", 0, ())
    assert "".join(line.text + "\n" for line in (first, *others)).rstrip("\n") == agent.value
    for line in others:
        kind_of = int(re.search(r"\d", line.text)[0])
        assert {unit % KINDS for unit in line.samples} == {kind_of}
        assert line.step in (1, 2, 3, 4)
    raced = [line for line in others if line.races]
    assert raced
    for line in raced:
        assert line.low <= line.effect <= line.high
        assert line.wins + line.losses + line.ties >= 4 * line.races
    told_last = next(step.changes[0].lineage for step in reversed(steps) if step.changes)
    assert [line.text for line in told_last] == [line.text for line in (first, *others)]


def test_wins_and_losses_are_those_of_candidates_with_the_block():
    """By sample, on the means of those with it and without it."""
    agent = Agent(answer=lambda r: "yes" if "Say yes." in json.dumps(r.messages) else "no")
    optimizer = agent.optimizer(lambda r: add("Say yes.", samples=[1]), lr=1, inner=1, race=12, first=4)
    told(optimizer)
    line = optimizer.lineage[0][1]
    assert (line.races, line.wins, line.losses, line.ties, line.effect) == (1, 12, 0, 0, 1.0)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_block_that_a_validator_protects_is_not_left_out(asynchronous):
    """Though the agent does better without it: before the first step, and later."""

    def protects(text):
        return None if "Say no." in text else "the sentence about no must stay"

    async def aprotects(text):
        return protects(text)

    agent = Agent("Answer.\nSay no.", answer=lambda r: "no" if "Say no." in json.dumps(r.messages) else "yes")
    agent.prompts[0].validators = [aprotects if asynchronous else protects]
    steps = told(
        agent.optimizer(lambda request: add("Be kind.", samples=[1]), prune_every=1, max_chars=30), 2
    )
    assert "Say no." in agent.value
    tried = {value for step in steps for one in step.candidates for value in one.values}
    assert [value for value in tried if "Say no." not in value] == []
    assert any(one.name == 'without "Answer."' for step in steps for one in step.candidates)


def test_lr_is_read_where_the_step_is_launched():
    """What a loop assigns later is the next step's."""
    agent = Agent()
    optimizer = agent.optimizer(rows=agent.rows)
    with kit.events(StepEnded) as steps:
        for lr in (4, 1, 2):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
    assert [sum(name.startswith("chain") for name in names(step)) for step in steps] == [4, 1, 2]
