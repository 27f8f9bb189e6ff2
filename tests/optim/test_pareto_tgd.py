"""ParetoTGD: several proposals a step, a pool of what improved, merges of what was found apart."""

from __future__ import annotations

import io
import json
import re
import threading

import anyio
import anyio.to_thread
import pytest
from kit.roles import comment, kind, shown
from kit.virtual import virtual_runtime

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError, ScoreError
from afnio.optim import ParetoTGD
from afnio.runtime.events import StepEnded, subscribed
from afnio.testing import ScriptedClient
from afnio.utils.data import Dataset


class Samples(Dataset[str]):
    def __init__(self, low, high):
        self.texts = [f"sample {number}" for number in range(low, high)]

    def __getitem__(self, index):
        return self.texts[index]

    def __len__(self):
        return len(self.texts)


def student(request):
    """Even samples are answered rightly by a prompt `even`, odd ones by a prompt `odd`."""
    text = json.dumps(request.messages)
    number = int(re.search(r"sample (\d+)", text)[1])
    return "yes" if ("EVEN" if number % 2 == 0 else "ODD") in text else "no"


def rewrite(request):
    """Improve the one that is shown."""
    return {"value": {"even": "EVEN", "odd": "ODD"}.get(shown(request, "variable")[0], "worse")}


class Agent:
    """Two prompts, each of which half of the samples depends on."""

    def __init__(self, *, latency=0.0, critic=None, answer=student):
        self.even = cog.Parameter("even", role="for even samples", requires_grad=True)
        self.odd = cog.Parameter("odd", role="for odd samples", requires_grad=True)
        self.user = afnio.Variable("{text}", role="sample")
        critic = critic or comment(lambda block: "it was wrong")

        def script(request):
            return critic(request) if kind(request) == "critic" else answer(request)

        self.client = ScriptedClient(script, latency=latency)

    def launch(self, batch):
        messages = [
            {"role": "system", "content": [self.even, self.odd]},
            {"role": "user", "content": [self.user]},
        ]
        inputs = {"text": afnio.Variable(list(batch))}
        pred = cog.functional.chat_completion(self.client, messages, inputs=inputs, model="student")
        return cog.functional.exact_match_evaluator(pred, ["yes"] * len(batch))

    def evaluate(self, batch):
        return self.launch(batch)

    async def aevaluate(self, batch):
        return await self.launch(batch)

    def optimizer(self, proposer=rewrite, evaluate=None, **options):
        afnio.set_backward_model_client(self.client, completion_args={"model": "critic"})
        options = {"proposals": 2, "minibatch_size": 4, "search_seed": 0, "model": "m", **options}
        client = proposer if isinstance(proposer, ScriptedClient) else ScriptedClient(proposer)
        data = (Samples(0, 20), Samples(20, 32))
        return ParetoTGD([self.even, self.odd], client, evaluate or self.evaluate, *data, **options)

    @property
    def values(self):
        return self.even.data, self.odd.data


def told(optimizer, steps, closure=None):
    """Run steps and return the candidates that each told of."""
    found = []
    with subscribed(lambda e: found.append(e) if isinstance(e, StepEnded) else None):
        for _ in range(steps):
            optimizer.step(closure)
    return found


@pytest.mark.parametrize("how", ["evaluate", "aevaluate"])
def test_a_step_finds_candidates_and_the_parameters_hold_the_best(how):
    """The start is validated beside the first proposals; children that improve join the pool."""
    agent = Agent()
    optimizer = agent.optimizer(evaluate=getattr(agent, how))
    (step,) = told(optimizer, 1)
    assert ["start", "accepted", "accepted"][:2] == [c.verdict.partition(":")[0] for c in step.candidates][:2]
    assert [0, 0.5] == [optimizer.pool[0].mean, optimizer.pool[1].mean]
    assert agent.values == max(optimizer.pool, key=lambda m: (m.mean, -m.number)).values
    assert [(), (0,)] == [member.parents for member in optimizer.pool[:2]]
    assert all(12 == len(member.scores) for member in optimizer.pool)
    changed = [change for change in step.changes if change.rejected is None]
    assert agent.values == tuple({c.before: c.after for c in changed}.get(v, v) for v in ("even", "odd"))
    assert 0 == len(agent.even.grad) + len(agent.odd.grad), "feedback of proposals is not the parameters' own"


def test_what_is_improved_apart_is_merged():
    """Each proposer call improves one prompt; the merge has both and is the best."""
    agent = Agent()
    optimizer = agent.optimizer(proposals=4)
    steps = told(optimizer, 1)
    assert {("EVEN", "odd"), ("even", "ODD")} <= {member.values for member in optimizer.pool}
    # No proposal may find it: only the merge can.
    optimizer.param_groups[0]["model_client"] = ScriptedClient({"value": "worse"})
    steps += told(optimizer, 1)
    assert ("EVEN", "ODD") == agent.values
    merged = next(member for member in optimizer.pool if len(member.parents) == 2)
    assert (("EVEN", "ODD"), 1.0) == (merged.values, merged.mean)
    assert [merged] == optimizer.front
    assert any("accepted" in c.verdict and len(c.parents) == 2 for c in steps[1].candidates)


def test_a_child_that_is_not_strictly_better_is_not_validated():
    """It costs its minibatch only; the values stay."""
    agent = Agent()
    optimizer = agent.optimizer(lambda request: {"value": "other"}, proposals=1)
    (step,) = told(optimizer, 1)
    assert (("even", "odd"), 1) == (agent.values, len(optimizer.pool))
    assert step.candidates[1].verdict.startswith("rejected: 0 against 0 on a minibatch of 4")
    assert 12 + 4 + 4 == sum(kind(request) == "student" for request in agent.client.requests)
    (change,) = step.changes
    assert "no candidate with another value is the best" in change.rejected


def test_a_minibatch_without_feedback_asks_nobody():
    """All of its samples succeeded."""
    agent = Agent(answer=lambda request: "yes")
    proposer = ScriptedClient(rewrite)
    (step,) = told(agent.optimizer(proposer), 1)
    assert ([], 1.0) == (proposer.requests, step.candidates[0].scores[0])
    assert {"not made: no sample of the minibatch had feedback"} == {c.verdict for c in step.candidates[1:]}


@pytest.mark.parametrize("credit", ["share", "round_robin", "all"])
def test_the_parameter_that_earned_the_feedback_is_rewritten(credit):
    """A critic that finds fault with one alone has that one rewritten, whatever the way of choosing."""
    critic = comment(lambda block: "it was wrong" if block.text == "odd" else "")
    agent, proposer = Agent(critic=critic), ScriptedClient(rewrite)
    told(agent.optimizer(proposer, credit=credit), 2)
    assert {"odd"} == {shown(request, "variable")[0] for request in proposer.requests} - {"ODD"}


def test_parameters_take_turns():
    """With round robin the children of one parent get other parameters rewritten."""
    agent, proposer = Agent(), ScriptedClient(rewrite)
    told(agent.optimizer(proposer, credit="round_robin", proposals=2), 1)
    assert ["even", "odd"] == sorted(shown(request, "variable")[0] for request in proposer.requests)


def test_summed_up_feedback_counts_as_much_as_was_gathered():
    """Sixty equal texts for one prompt are one point, and still sixty times the credit of the other's one."""
    rewritten = []
    for seed in range(6):
        agent = Agent()
        optimizer = agent.optimizer(proposals=1, search_seed=seed, feedback_tokens=200)
        for _ in range(60):
            agent.odd.append_grad(afnio.Variable("it was wrong because of the odd one"))
        agent.even.append_grad(afnio.Variable("it was wrong"))
        (step,) = told(optimizer, 1)
        rewritten.append(step.candidates[1].values)
    assert [("even", "ODD")] * 6 == rewritten


def test_feedback_of_a_loop_makes_one_proposal_more():
    """From the current values; so it fits a closure, and a trainer that calls backward itself."""
    agent, proposer = Agent(), ScriptedClient(rewrite)
    optimizer = agent.optimizer(proposer, proposals=1, minibatch_size=4)

    async def closure():
        optimizer.clear_grad()
        score, explanation = await agent.launch(["sample 1", "sample 3"])
        await explanation.backward()
        return score.data

    found = []
    with subscribed(lambda e: found.append(e) if isinstance(e, StepEnded) else None):
        assert 0 == optimizer.step(closure).wait()
    assert 3 == len(found[0].candidates), "start, the loop's, its own"
    assert 2 == len(proposer.requests)


def test_if_all_fail_only_the_step_raises():
    """The start stays in the pool, the values stay."""
    agent = Agent()
    optimizer = agent.optimizer(ScriptedClient(FinalModelError("no", status=401)))
    with pytest.raises(BaseException, match=r"no|kept"):
        optimizer.step()
    assert (("even", "odd"), 1) == (agent.values, len(optimizer.pool))


def test_an_evaluate_without_a_graph_is_told():
    """Its scores alone teach nothing."""
    agent = Agent()
    with pytest.raises(BaseException) as caught:
        agent.optimizer(evaluate=lambda batch: [0.0] * len(batch), proposals=1).step()
    assert "evaluate must return (score, explanation) that parameters led to" in str(caught.value)


async def test_a_cancelled_step_keeps_the_values():
    """And leaves no call."""
    begun = threading.Event()

    async def answer(request):
        begun.set()
        await anyio.sleep_forever()

    agent = Agent(answer=answer)
    with pytest.raises(RuntimeError, match="stop"):
        async with afnio.scope():
            agent.optimizer(evaluate=agent.aevaluate).step()
            assert await anyio.to_thread.run_sync(begun.wait, 20)
            raise RuntimeError("stop")
    await agent.even
    assert ("even", "odd") == agent.values


def test_the_whole_pool_goes_through_a_file():
    """The next step is the same as without."""
    one, other = Agent(), Agent()
    went_on, restored = one.optimizer(), other.optimizer(search_seed=5)
    told(went_on, 1)
    file = io.BytesIO()
    afnio.save(went_on.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(afnio.load(file))
    other.even.data, other.odd.data = one.values
    first, second = told(went_on, 2), told(restored, 2)
    assert [step.candidates for step in first] == [step.candidates for step in second]
    assert (one.values, went_on.pool) == (other.values, restored.pool)
    json.dumps(went_on.state_dict()["accept"])


def test_a_journal_gives_the_same_pool_without_a_call(tmp_path):
    """Run, then replayed with dead clients."""

    def run(dead):
        agent = Agent(answer=dead or student, critic=dead)
        optimizer = agent.optimizer(dead or rewrite, proposals=3)
        with afnio.journal(tmp_path / "calls.journal"):
            told(optimizer, 3)
        return agent.values, optimizer.pool

    def nobody(request):
        raise FinalModelError("nobody must be asked", status=401)

    assert run(None) == run(nobody)


def test_proposals_of_a_step_run_at_once():
    """Forward, backward, propose, child, validation: five latencies, for one proposal as for four."""
    with virtual_runtime() as clock:
        walls = []
        for proposals in (1, 4):
            agent = Agent(latency=1.0)
            proposer = ScriptedClient(rewrite, latency=1.0)
            optimizer = agent.optimizer(proposer, agent.aevaluate, proposals=proposals)
            began, ends = clock.now, []
            with subscribed(
                lambda e, ends=ends: ends.append(clock.now) if isinstance(e, StepEnded) else None
            ):
                optimizer.step()
            walls.append(ends[0] - began)
    assert [5.0, 5.0] == pytest.approx(walls, abs=0.2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"proposals": 0}, "proposals must be a whole number"),
        ({"merges": -1}, "merges must be a whole number"),
        ({"credit": "luck"}, "credit must be 'share', 'round_robin' or 'all' (got 'luck')"),
        ({"quorum": 2}, "quorum must be above 0 and at most 1 (got 2)"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    """At the line that gives them."""
    with pytest.raises(ValueError) as caught:
        Agent().optimizer(**options)
    assert words in str(caught.value)


def test_a_seed_is_the_providers_as_with_tgd():
    """The search has a name of its own for its draws."""
    agent = Agent()
    client = ScriptedClient(rewrite)
    agent.optimizer(client, seed=7).step()
    assert {7} == {request.params["seed"] for request in client.requests}


def test_lists_of_samples_come_in_batches():
    """A row is no batch: `evaluate` gets lists, of the minibatch's size."""
    agent, sizes = Agent(), set()

    def evaluate(batch):
        texts, labels = batch
        assert (list, list) == (type(texts), type(labels))
        sizes.add(len(texts))
        return agent.launch(texts)

    rows = [(f"sample {number}", "yes") for number in range(8)]
    afnio.set_backward_model_client(agent.client, completion_args={"model": "critic"})
    search = ParetoTGD(
        [agent.even, agent.odd], ScriptedClient(rewrite), evaluate, rows, rows,
        proposals=2, minibatch_size=4, search_seed=0, model="m",
    )  # fmt: skip
    search.step()
    assert {8, 4} == sizes
    assert all(8 == len(member.scores) for member in search.pool)


def test_a_child_that_exceeds_max_score_fails_the_step():
    """Even beside children that can be compared."""
    agent = Agent()

    def evaluate(batch):
        texts = afnio.Variable(list(batch))
        messages = [{"role": "user", "content": [agent.even, agent.odd, afnio.Variable("{t}")]}]
        pred = cog.chat_completion(agent.client, messages, inputs={"t": texts}, model="student")
        return cog.deterministic_evaluator(pred, "yes", lambda p, t: 7 if p == t else 0, "mark")

    with pytest.raises(ScoreError, match=r"max_score=1 \(got 7\)"):
        told(agent.optimizer(evaluate=evaluate), 3)
    assert ("even", "odd") == agent.values
