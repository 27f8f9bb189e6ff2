"""Improves: what is better on held-out samples becomes the value; everything else leaves it as it was."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from contextlib import suppress

import anyio
import pytest
from kit.roles import kind, prompt, read_blocks, shown
from kit.virtual import virtual_runtime

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError, ScoreError
from afnio.optim import TGD, Improves
from afnio.runtime.events import CallEnded, StepEnded, subscribed
from afnio.testing import ScriptedClient
from afnio.utils.data import DataLoader


def quality(request):
    """Score samples by the number in the prompt: `q=70` answers the samples below 70 rightly."""
    text = json.dumps(request.messages)
    level, number = re.search(r"q=(\d+)", text), re.search(r"sample (\d+)", text)
    return "yes" if int(number[1]) * 37 % 100 < int(level[1]) else "no"


class Gate:
    """An agent of one prompt, its student, and an `evaluate` over numbered samples."""

    def __init__(self, start=40, *, latency=0.0, student=quality, limits=None):
        self.prompt = cog.Parameter(f"q={start}", role="prompt", requires_grad=True)
        self.user = afnio.Variable("{text}", role="sample")
        self.client = ScriptedClient(student, latency=latency, limits=limits)
        self.data = [f"sample {n}" for n in range(64)]

    def launch(self, batch):
        messages = [{"role": "system", "content": [self.prompt]}, {"role": "user", "content": [self.user]}]
        pred = cog.functional.chat_completion(
            self.client, messages, inputs={"text": afnio.Variable(batch)}, model="student"
        )
        return cog.functional.exact_match_evaluator(pred, ["yes"] * len(batch))

    def evaluate(self, batch):
        score, explanation = self.launch(batch)
        return score, explanation

    async def aevaluate(self, batch):
        return await self.launch(batch)

    def optimizer(self, proposals, evaluate=None, *, client=None, args=None, **options):
        options.setdefault("k", len(proposals))
        accept = Improves(evaluate or self.evaluate, self.data, seed=1, **options)
        proposer = client or ScriptedClient([{"value": text} for text in proposals])
        self.prompt.append_grad(afnio.Variable("be better"))
        return TGD([self.prompt], proposer, accept=accept, **(args or {"model": "m"}))

    def asked(self):
        return len(self.client.requests)


def steps(events):
    return [event for event in events if isinstance(event, StepEnded)]


@pytest.mark.parametrize("how", ["evaluate", "aevaluate"])
def test_the_best_of_those_that_are_better_becomes_the_value(how):
    """Sync and async evaluate alike; candidates are told with their scores and verdicts."""
    gate, events = Gate(40), []
    optimizer = gate.optimizer(["q=35", "q=80", "q=95", "q=41"], getattr(gate, how))
    with subscribed(events.append):
        optimizer.step()
    assert "q=95" == gate.prompt.data
    (step,) = steps(events)
    assert [(0, ()), (1, (0,)), (2, (0,)), (3, (0,)), (4, (0,))] == [
        (candidate.number, candidate.parents) for candidate in step.candidates
    ]
    assert ["q=40", "q=35", "q=80", "q=95", "q=41"] == [c.values[0] for c in step.candidates]
    words = [candidate.verdict for candidate in step.candidates]
    assert ["incumbent", "dropped", "better, but candidate 3 gained more", "accepted"] == [
        word.partition(":")[0] for word in words[:4]
    ]
    assert [64, 64] == [len(step.candidates[0].scores), len(step.candidates[2].scores)]
    assert 16 == len(step.candidates[1].scores), "a loser has those of the blocks that decided"
    (change,) = step.changes
    assert ("q=40", "q=95", None) == (change.before, change.after, change.rejected)


def test_a_step_that_cannot_beat_noise_says_so(caplog):
    """The value stays; the change and one log line say why; the next prompt shows what was tried."""
    gate, events = Gate(60), []
    client = ScriptedClient([{"value": "q=55"}, {"value": "q=62"}, {"value": "q=61"}, {"value": "q=59"}])
    optimizer = gate.optimizer(["", ""], client=client)
    with subscribed(events.append), caplog.at_level(logging.WARNING, logger="afnio"):
        optimizer.step()
        optimizer.step()
    assert "q=60" == gate.prompt.data
    reasons = [step.changes[0].rejected for step in steps(events)]
    assert all(
        "none of 2 proposals beat the current value by more than noise" in reason for reason in reasons
    )
    assert 2 == len(caplog.records)
    assert [[], [], ["q=55", "q=62"], ["q=55", "q=62"]] == [shown(r, "tried") for r in client.requests]
    memory = optimizer.state[gate.prompt]["rejected"]
    assert ["q=55", "q=62", "q=61", "q=59"] == [past["value"] for past in memory]
    assert all(0 <= past["score"] <= 1 and 0 <= past["against"] <= 1 for past in memory)


def test_what_was_rejected_is_not_evaluated_again():
    """Nor is one that equals another, or the current value."""
    gate, events = Gate(60), []
    optimizer = gate.optimizer(["q=10", "q=10", "q=60", "q=10", "q=10", "q=10"], k=3)
    with subscribed(events.append):
        optimizer.step()
        asked = gate.asked()
        optimizer.step()
    assert asked == gate.asked(), "the incumbent's scores are known, and nothing new was proposed"
    first, second = ([c.verdict.split(":")[0] + c.verdict[-12:] for c in s.candidates] for s in steps(events))
    assert first[2].endswith("candidate 1")
    assert first[3].endswith("urrent value")
    assert all(verdict.endswith("tried before") for verdict in second[1:])


def test_the_incumbents_scores_are_paid_for_once():
    """As long as it stays; a winner brings its own."""
    gate = Gate(40)
    optimizer = gate.optimizer(["q=0", "q=90", "q=1"], k=1)
    counts, known = [], []
    for _ in range(3):
        optimizer.step()
        counts.append(gate.asked())
        known.append(len(optimizer.state_dict()["accept"]["scores"]))
    # 64 for the incumbent and one block for q=0; then blocks for q=90; what q=90 was scored on is known.
    assert 80 == counts[0]
    assert 16 <= counts[1] - counts[0] <= 64
    assert counts[2] - counts[1] == 64 - known[1] + 16
    assert known[1] >= 16
    assert "q=90" == gate.prompt.data


def test_without_feedback_nothing_is_asked():
    """No sample failed: no proposal, no evaluation."""
    gate = Gate()
    optimizer = gate.optimizer(["q=99"])
    optimizer.clear_grad()
    optimizer.step()
    assert ("q=40", 0) == (gate.prompt.data, gate.asked())


def test_if_every_proposal_fails_only_the_step_raises():
    """With their errors; one that fails alone is a verdict."""
    gate = Gate()
    bad = FinalModelError("no", status=401)
    with pytest.raises(BaseExceptionGroup) as caught:
        gate.optimizer([], client=ScriptedClient([bad, bad, FinalModelError("not", status=401)]), k=3).step()
    assert {"no", "not"} == {str(error) for error in caught.value.exceptions}
    assert "q=40" == gate.prompt.data
    gate.optimizer([], client=ScriptedClient([bad, {"value": "q=99"}]), k=2).step()
    assert "q=99" == gate.prompt.data


def test_a_failing_evaluate_fails_the_step():
    """And the incumbent stays."""
    gate = Gate()

    def evaluate(batch):
        raise ValueError("no agent")

    with pytest.raises((ValueError, BaseExceptionGroup), match=r"no agent|kept"):
        gate.optimizer(["q=99"], evaluate).step()
    assert "q=40" == gate.prompt.data


def test_failed_samples_are_no_wrong_answers():
    """A student that fails on the incumbent's samples makes no candidate better."""

    def student(request):
        text = json.dumps(request.messages)
        if re.search(r"sample (5|21|37|53)\b", text) and not re.search(r"q=60 ", text):
            return FinalModelError("filtered", status=400)
        return quality(request)

    gate, events = Gate(60, student=student), []
    with subscribed(events.append):
        gate.optimizer(["q=60 better"], quorum=0.75).step()  # a block may have several of the four
    (step,) = steps(events)
    assert "q=60" == gate.prompt.data
    assert 4 == step.candidates[0].scores.count(None)
    assert 0 == step.candidates[1].scores.count(None)
    assert "p=1" in step.candidates[1].verdict


def test_below_the_quorum_nothing_is_compared():
    """The step raises, the value stays."""
    gate = Gate(student=FinalModelError("down", status=400))
    with pytest.raises(BaseException, match=r"down|samples"):
        gate.optimizer(["q=99"]).step()
    assert "q=40" == gate.prompt.data


def test_all_parameters_are_decided_together():
    """A candidate is one value for each; evaluate sees them all, others see the parameters."""
    one, two = (cog.Parameter(text, role=text, requires_grad=True) for text in "ab")
    seen = []

    def evaluate(batch):
        seen.append((one.data, two.data))
        return [float(one.data == "A" and two.data == "B")] * len(batch)

    def script(request):
        return {"value": shown(request, "variable")[0].upper()}

    for parameter in (one, two):
        parameter.append_grad(afnio.Variable("louder"))
    accept = Improves(evaluate, ["x"] * 32, k=1, seed=0)
    TGD([{"params": [one]}, {"params": [two]}], ScriptedClient(script), accept=accept, model="m").step()
    assert ("A", "B") == (one.data, two.data)
    assert {("a", "b"), ("A", "B")} == set(seen)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.7, "seed": 1}])
def test_where_replies_repeat_candidates_see_other_halves_of_the_feedback(sampling):
    """The first one sees all; equal prompts would give equal proposals."""
    gate = Gate()
    client = ScriptedClient(lambda request: {"value": "q=" + str(40 + len(shown(request, "feedback")))})
    optimizer = gate.optimizer(["", "", ""], client=client, args={"model": "m", **sampling})
    for number in range(9):
        gate.prompt.append_grad(afnio.Variable(f"f{number}"))
    optimizer.step()
    shows = [shown(request, "feedback") for request in client.requests]
    assert [10, 5, 5] == [len(found) for found in shows]
    assert shows[1] != shows[2]
    client.requests.clear()
    optimizer = gate.optimizer(["", ""], client=client, args={"model": "m", "temperature": 0.7})
    optimizer.step()
    assert [11, 11] == [len(shown(request, "feedback")) for request in client.requests]


def test_halves_of_summed_up_feedback_keep_their_samples():
    """Each point still says how many stand behind it, and the step counts what was gathered."""

    def script(request):
        if kind(request) == "reducer":
            said = [("Be brief.", [1, 2, 3]), ("Be kind.", [1, 2])]
            return {"points": [{"point": point, "sources": sources} for point, sources in said]}
        return {"value": f"q={30 + len(shown(request, 'feedback'))}"}

    gate, client, events = Gate(), ScriptedClient(script), []
    args = {"model": "m", "temperature": 0, "feedback_tokens": 200}
    optimizer = gate.optimizer(["", ""], client=client, args=args)
    for number in range(9):
        gate.prompt.append_grad(afnio.Variable(" ".join(f"w{number}x{n}" for n in range(40))))
    with subscribed(events.append):
        optimizer.step()
    proposers = [request for request in client.requests if kind(request) != "reducer"]
    told = [read_blocks(prompt(request), "feedback") for request in proposers]
    assert [2, 1] == [sum("samples" in block.attributes for block in found) for found in told]
    assert [10] == [change.gradients for change in steps(events)[0].changes]


async def test_a_losers_pending_calls_are_cancelled_and_no_others():
    """It is out after its second block; the third one's calls are cancelled, nobody else's."""
    cancelled, blocks = [], {}

    async def student(request):
        text = json.dumps(request.messages)
        if "never" in text:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                cancelled.append(text)
                raise
        return "no" if "wrong" in text else quality(request)

    gate = Gate(50, student=student)

    async def evaluate(batch):
        mine = blocks.setdefault(gate.prompt.data, [])
        mine.append(batch)
        if gate.prompt.data == "q=55" and len(mine) > 1:
            batch = [f"{text} {'wrong' if len(mine) == 2 else 'never'}" for text in batch]
        return await gate.launch(batch)

    events = []
    optimizer = gate.optimizer(["q=55", "q=99"], evaluate)
    with subscribed(events.append):
        with anyio.fail_after(20):
            await optimizer.step()
    assert "q=99" == gate.prompt.data
    assert 32 == len(cancelled)
    ended = [event for event in events if isinstance(event, CallEnded) and event.error]
    assert 32 == len(ended)
    assert all("candidate 1/" in event.address for event in ended)


async def test_a_cancelled_step_cancels_its_calls_and_keeps_the_value():
    """Also those of a `def evaluate` in a worker thread, which launches nothing more."""
    begun, go = threading.Event(), threading.Event()

    async def student(request):
        begun.set()
        await anyio.sleep_forever()

    gate, later = Gate(student=student), []

    def evaluate(batch):
        score, _ = gate.launch(batch)
        with suppress(Exception):
            score.samples
        go.wait(5)
        try:
            gate.launch(batch)
        except Exception as error:
            later.append(error)
            raise
        return [0.0] * len(batch)

    with pytest.raises(RuntimeError, match="stop"):
        async with afnio.scope():
            gate.optimizer(["q=99"], evaluate).step()
            await anyio.to_thread.run_sync(begun.wait)
            raise RuntimeError("stop")
    await gate.prompt
    assert "q=40" == gate.prompt.data
    asked = gate.asked()
    go.set()
    with anyio.fail_after(5):
        while not later:
            await anyio.sleep(0.01)
    assert {"LaunchCancelledError"} == {type(error).__name__ for error in later}
    assert asked == gate.asked()


def test_the_state_goes_through_a_file_and_the_next_step_is_the_same():
    """Draws, numbers, known scores and rejected proposals."""
    proposals = ["q=38", "q=42", "q=90", "q=41"]

    def run(gate, optimizer, client_proposals):
        events = []
        with subscribed(events.append):
            optimizer.step()
        return gate.prompt.data, steps(events)[0].candidates

    gate = Gate(40)
    optimizer = gate.optimizer(proposals, k=2, minibatch_size=32)
    run(gate, optimizer, None)
    file = io.BytesIO()
    afnio.save(optimizer.state_dict(), file)
    went_on = run(gate, optimizer, None)
    file.seek(0)
    other = Gate(40)
    restored = other.optimizer(proposals[2:], k=2, minibatch_size=32)
    restored.accept._seed = 99  # what the state says holds
    restored.load_state_dict(afnio.load(file))
    assert went_on == run(other, restored, None)
    with pytest.raises(ValueError, match="must fit this optimizer's accept=None .got an accept state"):
        file.seek(0)
        TGD([other.prompt], ScriptedClient("x"), model="m").load_state_dict(afnio.load(file))


def test_a_journal_gives_the_same_values_without_a_call(tmp_path):
    """Three steps, run and replayed with dead clients."""

    def run(student, proposer):
        gate = Gate(40, student=student)
        optimizer = gate.optimizer([], client=ScriptedClient(proposer), k=3)
        told = []
        with subscribed(lambda e: told.append(e.candidates) if isinstance(e, StepEnded) else None):
            with afnio.journal(tmp_path / "calls.journal"):
                for _ in range(3):
                    optimizer.step()
        return gate, (gate.prompt.data, told, optimizer.state_dict()["accept"])

    levels = iter([41, 30, 70, 69, 71, 10, 95, 72, 20])
    _, first = run(quality, lambda request: {"value": f"q={next(levels)}"})
    dead = FinalModelError("nobody must be asked", status=400)
    gate, again = run(dead, dead)
    assert (first, 0) == (again, gate.asked()), "not even for blocks that had been cancelled"
    assert "q=95" == first[0]


def test_a_gated_step_takes_two_latencies_more():
    """One for the first block of all candidates, one for the others; the incumbent is free. 256 in flight."""
    with virtual_runtime() as clock:
        walls = {}
        for gated in (False, True):
            levels = iter([60, 70, 80, 90])
            gate = Gate(40, latency=1.0, limits=afnio.Limits(max_in_flight=256))
            proposer = ScriptedClient(lambda _, levels=levels: {"value": f"q={next(levels)}"}, latency=1.0)
            optimizer = gate.optimizer([], gate.aevaluate, client=proposer, k=4)
            if not gated:
                optimizer.accept = None
            ends = []
            began = clock.now
            with subscribed(
                lambda e, ends=ends: ends.append(clock.now) if isinstance(e, StepEnded) else None
            ):
                optimizer.step()
            walls[gated] = ends[0] - began
    print(f"plain {walls[False]:.2f}, gated {walls[True]:.2f} latencies")
    assert 1.0 == pytest.approx(walls[False], abs=0.3)
    assert walls[True] - walls[False] <= 2.5
    assert gate.asked() <= 64 + 4 * 64


def test_where_calls_queue_a_block_waits_for_the_verdict_on_the_one_before():
    """32 in flight: losers send little more than the blocks that decided."""
    with virtual_runtime():
        levels = iter([50, 51, 39, 20])
        gate = Gate(40, latency=1.0, limits=afnio.Limits(max_in_flight=32))
        proposer = ScriptedClient(lambda _: {"value": f"q={next(levels)}"}, latency=1.0)
        optimizer, events = gate.optimizer([], gate.aevaluate, client=proposer, k=4), []
        with subscribed(events.append):
            optimizer.step()
    (step,) = steps(events)
    decided = sum(len(candidate.scores) for candidate in step.candidates)
    assert decided == gate.asked()
    assert decided < 64 + 4 * 64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k must be a whole number from 1 upwards (got 0)"),
        ({"minibatch_size": 1.5}, "minibatch_size must be a whole number"),
        ({"confidence": 1.0}, "confidence must be above 0 and below 1 (got 1.0)"),
        ({"quorum": 0}, "quorum must be above 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    """At the line that gives them."""
    with pytest.raises(ValueError) as caught:
        Improves(len, [1], **options)
    assert words in str(caught.value)
    with pytest.raises(TypeError, match="evaluate must be a callable of a batch"):
        Improves("agent", [1])


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (0.5, "evaluate must return the score of each sample"),
        (["a"], "a sample's score must be a number or None"),
    ],
)
def test_what_evaluate_returns_is_checked(result, words):
    """A mean alone can't be paired."""
    gate = Gate()
    with pytest.raises(BaseException) as caught:
        gate.optimizer(["q=99"], lambda batch: result).step()
    assert words in str(getattr(caught.value, "exceptions", [caught.value])[0])


def test_a_loader_is_drawn_from_sample_by_sample():
    """Its collate makes the batches, also of the samples that are not known yet."""

    class Numbers:
        def __getitem__(self, index):
            return f"sample {index}"

        def __len__(self):
            return 100

    gate = Gate(40)
    gate.data = DataLoader(Numbers(), batch_size=7, shuffle=True, seed=1)
    optimizer = gate.optimizer(["q=39", "q=90"], k=1, minibatch_size=48)
    optimizer.step()
    known = len(optimizer.state_dict()["accept"]["scores"])
    before = gate.asked()
    optimizer.step()
    assert (48, "q=90") == (known, gate.prompt.data)
    assert gate.asked() - before < 96, "samples that were drawn before are not evaluated again"


def test_a_list_of_rows_is_compared_on_as_many_samples_as_a_loader():
    """Each row is a sample, and `evaluate` gets batches of them."""
    rows = [(f"sample {n}", "yes") for n in range(64)]
    asked = {}
    for name, data in (("list", rows), ("loader", DataLoader(rows, batch_size=3))):
        gate, batches = Gate(40), []

        def evaluate(batch, gate=gate, batches=batches):
            texts, labels = batch
            batches.append((texts, labels))
            return gate.launch(texts)

        gate.data = data
        gate.optimizer(["q=95"], evaluate).step()
        assert "q=95" == gate.prompt.data
        assert all((list, list) == (type(texts), type(labels)) for texts, labels in batches)
        asked[name] = sorted(batches)
    assert asked["list"] == asked["loader"]
    assert 64 == len({text for texts, _ in asked["list"] for text in texts})


def test_a_candidate_that_exceeds_max_score_fails_the_step():
    """The others' verdicts mean nothing either: an argument of the evaluator is wrong."""
    gate = Gate(40)

    def evaluate(batch):
        long = len(gate.prompt.data) > len("q=40")
        pred = afnio.Variable(list(batch), role="text")
        return cog.deterministic_evaluator(pred, None, lambda p, t: 5 if long else 0, "mark")

    with pytest.raises(ScoreError, match=r"max_score=1 \(got 5\)"):
        gate.optimizer(["q=35", "q=80 and more"], evaluate).step()
    assert "q=40" == gate.prompt.data
