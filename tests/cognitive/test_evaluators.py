"""Evaluators take any callable and any target, and explain which samples failed and how."""

from __future__ import annotations

import functools
import math
import threading
from fractions import Fraction

import anyio
import anyio.lowlevel
import pytest
from kit.roles import comment, play, shown

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError, ScoreError
from afnio.testing import ScriptedClient

MATCH = cog.ExactMatchEvaluator()
SCORED = cog.DeterministicEvaluator()


def prediction(data, requires_grad=True):
    return afnio.Variable(data, role="answer", requires_grad=requires_grad)


def feedback(variable):
    return [gradient.data for gradient in variable.grad]


# ExactMatch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [["a", "x"], afnio.Variable(["a", "x"])])
def test_a_batch_counts_its_matches(target):
    """The score is their number, `samples` has one for each."""
    score, explanation = MATCH(prediction(["a", "b"]), target)
    assert (score.data, score.samples, score.shape) == (1, [1, 0], ())
    assert explanation.data == (
        "exact match: the summation over 2 samples is 1.\n"
        'Sample 0: exact match: predicted "a", expected "a", score 1.\n'
        'Sample 1: exact match: predicted "b", expected "x", score 0.'
    )


def test_one_text_is_compared_with_one_text():
    """A scalar has no reduction."""
    score, explanation = MATCH(prediction("a"), "b")
    assert (score.data, score.samples) == (0, [0])
    assert explanation.data == 'exact match: predicted "a", expected "b", score 0.'
    assert (score.role, explanation.role, (score.output_nr, explanation.output_nr)) == (
        "Evaluation result score of answer",
        "Evaluation result explanation of answer",
        (0, 1),
    )
    assert score.grad_fn is explanation.grad_fn


def test_one_target_is_shared_by_a_batch():
    """A str target holds for every sample."""
    assert MATCH(prediction(["a", "b"]), "a").score.samples == [1, 0]


def test_targets_of_another_length_are_refused():
    """At the launch line, with the lengths."""
    with pytest.raises(ValueError, match="equal lengths .got 'answer' has 2, 'target' has 3"):
        MATCH(prediction(["a", "b"]), ["a", "b", "c"])


def test_without_a_reduction_there_is_a_list():
    """Both None: score and explanation are batches."""
    score, explanation = MATCH(prediction(["a", "b"]), ["a", "x"], None, None)
    assert (score.data, len(explanation.data)) == ([1, 0], 2)


def test_missing_samples_are_left_out():
    """None is neither right nor wrong."""
    score, explanation = MATCH(
        prediction(["a", None, "c"]), ["a", "b", None], lambda s: sum(s) / len(s), "mean"
    )
    assert (score.data, score.samples) == (1.0, [1, None, None])
    assert "the mean over 1 samples is 1.0." in explanation.data


def test_only_wrong_samples_send_feedback():
    """The gradient of a batch is aligned to its samples."""
    answer = prediction(["a", "b", "c"])
    MATCH(answer, ["a", "x", "c"])[1].backward()
    assert feedback(answer) == [[None, 'exact match: predicted "b", expected "x", score 0.', None]]


def test_score_and_explanation_start_the_same_pass():
    """Either output reaches the same node."""
    one, two = prediction("a"), prediction("a")
    MATCH(one, "b").score.backward()
    MATCH(two, "b").explanation.backward()
    assert feedback(one) == feedback(two) != []


def test_a_seed_adds_to_the_findings():
    """A person's remark goes along, on right samples too."""
    answer = prediction(["a", "b"])
    MATCH(answer, ["a", "x"]).explanation.backward(afnio.Variable("be polite"))
    assert feedback(answer) == [
        ["be polite", 'exact match: predicted "b", expected "x", score 0.\nbe polite']
    ]


def test_an_edge_sees_what_the_evaluator_saw():
    """Assigning the prediction afterwards changes nothing for the evaluation."""
    answer = prediction(["a"])
    score, explanation = MATCH(answer, ["x"])
    answer.data = ["x"]
    explanation.backward()
    assert score.samples == [0]
    assert 'predicted "a"' in feedback(answer)[0][0]


async def test_both_are_awaited_at_once():
    """`score, explanation = await loss_fn(...)`."""
    score, explanation = await MATCH(prediction(["a"]).map(str), ["a"])
    assert (score.data, "is 1." in explanation.data) == (1, True)


# Any callable ----------------------------------------------------------------------------------


class Scorer:
    def __init__(self, bonus=0):
        self.bonus = bonus

    def __call__(self, p, t):
        return len(p) + self.bonus

    def method(self, p, t):
        return len(p) + self.bonus

    @staticmethod
    def static(p, t):
        return len(p)


class AsyncScorer:
    async def __call__(self, p, t):
        await anyio.lowlevel.checkpoint()
        return len(p)


async def coroutine(p, t):
    await anyio.lowlevel.checkpoint()
    return len(p)


def closure():
    offset = 0

    def score(p, t):
        return len(p) + offset

    return score


@pytest.mark.parametrize(
    "eval_fn",
    [
        lambda p, t: len(p),
        Scorer(),
        Scorer().method,
        Scorer.static,
        AsyncScorer(),
        coroutine,
        closure(),
        functools.partial(lambda k, p, t: len(p) + k, 0),
        functools.partial(coroutine),
        lambda p, t: coroutine(p, t),
    ],
)
def test_any_callable_scores(eval_fn):
    """Sync or async, function, method, closure, object or partial."""
    score, _ = SCORED(prediction(["a", "bb"]), ["x", "y"], eval_fn, "length", max_score=99)
    assert (score.data, score.samples) == (3, [1, 2])


def test_a_def_runs_in_a_worker_thread_and_is_given_plain_values():
    """Never on the caller's thread, nor on the runtime's."""
    names = []

    def eval_fn(p, t):
        names.append(threading.current_thread().name)
        assert (str, float) == (type(p), type(t))
        return 1

    assert SCORED(prediction("a"), afnio.Variable(1.5), eval_fn, "type").score.data == 1
    assert "afnio-runtime" not in names
    assert threading.current_thread().name not in names


def test_an_evaluation_needs_no_target():
    """None means that there are none; the function gets None."""
    score, explanation = SCORED(
        prediction(["a", "bb"]), None, lambda p, t: len(p) if t is None else -1, "length", max_score=9
    )
    assert score.data == 3
    assert 'Sample 1: length: predicted "bb", expected null, score 2.' in explanation.data


def test_success_fn_decides_who_gets_feedback():
    """Asked for each sample with a list of its score."""
    answer = prediction(["a", "bb", "ccc"])
    asked = []

    def success(scores):
        asked.append(scores)
        return scores[0] >= 2

    SCORED(answer, "t", lambda p, t: len(p), "length", success_fn=success)[1].backward()
    assert sorted(asked) == [[1], [2], [3]]
    assert feedback(answer) == [['length: predicted "a", expected "t", score 1.', None, None]]


class Scalar:
    """A number as NumPy and others have them: an array without axes."""

    shape = ()

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


class Float64(float):
    """A number of another library that is a float, too."""


RIGHT = {
    "True": lambda p, t: p == t,
    "1": lambda p, t: int(p == t),
    "1.0": lambda p, t: float(p == t),
    "scalar bool": lambda p, t: Scalar(p == t),
    "scalar": lambda p, t: Scalar(float(p == t)),
    "float of a kind": lambda p, t: Float64(p == t),
    "fraction": lambda p, t: Fraction(p == t),
}


@pytest.mark.parametrize("evaluator", [cog.functional.deterministic_evaluator, SCORED])
@pytest.mark.parametrize("eval_fn", RIGHT.values(), ids=RIGHT)
def test_a_right_sample_sends_no_feedback_whatever_scored_it(evaluator, eval_fn):
    """Nine of ten are right: one critic call, one gradient."""
    critic = ScriptedClient(comment("say no"))
    afnio.set_backward_model_client(critic, completion_args={"model": "b"})
    prompt = cog.Parameter("p", role="prompt")
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [afnio.Variable("{q}")]}]
    inputs = {"q": [str(number) for number in range(10)]}
    reply = cog.functional.chat_completion(ScriptedClient("yes"), messages, inputs, model="m")
    score, explanation = evaluator(reply, ["yes"] * 9 + ["no"], eval_fn, "match")
    explanation.backward()
    assert (score.data, len(critic.requests), len(prompt.grad)) == (9, 1, 1)
    assert {int, float, bool} >= {type(sample) for sample in score.samples}


@pytest.mark.parametrize(
    ("best", "gets"), [(3, [True, True, False]), (3.0, [True, True, False]), (4, [True] * 3)]
)
def test_max_score_is_the_score_of_a_right_sample(best, gets):
    """What has less is not right; True is, whatever the scale."""
    answer = prediction(["a", "bb", "ccc", "yes"])
    eval_fn = lambda p, t: p == "yes" or len(p)  # noqa: E731
    SCORED(answer, None, eval_fn, "length", max_score=best)[1].backward()
    assert [[bool(text) for text in data] for data in feedback(answer)] == [[*gets, False]]


@pytest.mark.parametrize("reduction", [(sum, "summation"), (None, None)])
@pytest.mark.parametrize("read", ["data", "samples", "backward", "await"])
def test_a_score_above_max_score_fails_the_launch_whatever_the_quorum(reduction, read):
    """Else the 1 of a scale of 10 would be taken for right; the error names the argument."""
    answer = prediction(["a", "bb", "ccc"])
    readers = {
        "data": lambda score, explanation: score.data,
        "samples": lambda score, explanation: score.samples,
        "backward": lambda score, explanation: explanation.backward(),
        "await": lambda score, explanation: afnio.run(awaited(score)),
    }
    with afnio.tolerate(quorum=0.1):
        found = SCORED(answer, None, lambda p, t: len(p), "length", None, *reduction)
        with pytest.raises(
            ScoreError, match=r"must not exceed max_score=1 \(got [23]\); pass max_score="
        ) as caught:
            readers[read](*found)
    assert isinstance(caught.value, ValueError)
    assert answer.grad == []


async def awaited(variable):
    return await variable


def test_no_score_is_right_without_a_bound():
    """`math.inf` leaves every sample its feedback."""
    answer = prediction(["a", "bb"])
    SCORED(answer, "t", lambda p, t: 10 * len(p), "length", max_score=math.inf)[1].backward()
    assert [len([text for text in data if text]) for data in feedback(answer)] == [2]


def test_a_text_is_never_right_by_itself():
    """No rule says which texts are good."""
    answer = prediction(["a"])
    with pytest.raises(BatchError, match=r"\(sample 0\): .* must return a number or a bool .*got 'good'\)"):
        SCORED(answer, "t", lambda p, t: "good", "mark").score.data
    marked = SCORED(answer, "t", lambda p, t: "good", "mark", lambda s: s == ["good"], max, "best")
    assert marked.score.data == "good"
    marked.explanation.backward()
    assert feedback(answer) == []


async def mean(scores):
    await anyio.lowlevel.checkpoint()
    return sum(scores) / len(scores)


@pytest.mark.parametrize("reduction", [lambda s: sum(s) / len(s), mean, functools.partial(mean)])
def test_reductions_may_be_any_callable(reduction):
    """Sync or async."""
    score, explanation = SCORED(
        prediction(["a", "bbb"]), "t", lambda p, t: len(p), "length", None, reduction, "mean", max_score=9
    )
    assert score.data == 2.0
    assert explanation.data.startswith("length: the mean over 2 samples is 2.0.")


def test_a_failing_eval_fn_fails_its_samples_only():
    """The read says which; under tolerate they are left out of score, explanation and feedback."""

    def eval_fn(p, t):
        if p == "b":
            raise KeyError("no such thing")
        return 0

    answer = prediction(["a", "b", "c"])
    score, _ = SCORED(answer, "t", eval_fn, "lookup")
    with pytest.raises(
        BatchError, match="1 of 3 samples of DeterministicEvaluator|of Deterministic"
    ) as caught:
        _ = score.data
    assert ((1,), KeyError) == (caught.value.samples, type(caught.value.exceptions[0]))
    assert any(__file__ in note for note in caught.value.exceptions[0].__notes__)
    with afnio.tolerate(quorum=0.6):
        score, explanation = SCORED(answer, "t", eval_fn, "lookup")
        explanation.backward()
        assert (score.data, score.samples) == (0, [0, None, 0])
        assert "1 samples failed and are left out." in explanation.data
        assert "Sample 1" not in explanation.data
    ((first, second, third),) = feedback(answer)
    assert (bool(first), second, bool(third)) == (True, None, True)


def test_below_the_quorum_a_batch_fails():
    """Tolerance has a limit."""
    with afnio.tolerate(quorum=0.9):
        score, _ = SCORED(prediction(["a", "b"]), "t", lambda p, t: {"a": 1}[p], "lookup")
        with pytest.raises(BatchError, match="quorum=0.9 allows fewer"):
            _ = score.data


def test_a_failed_prediction_is_no_wrong_answer():
    """An infrastructure failure enters neither score nor feedback."""

    def answer(request):
        return RuntimeError("down") if request.messages[-1]["content"] == "b" else "wrong"

    prompt = cog.Parameter("p", role="prompt")
    afnio.set_backward_model_client(ScriptedClient(comment("better")), completion_args={"model": "b"})
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [afnio.Variable("{q}")]}]
    with afnio.tolerate(quorum=0.5):
        reply = cog.ChatCompletion()(
            ScriptedClient(answer), messages, inputs={"q": ["a", "b", "c"]}, model="m"
        )
        score, explanation = MATCH(reply, "right", lambda s: len(s), "count")
        explanation.backward()
        assert (score.data, score.samples) == (2, [0, None, 0])
    assert [gradient.provenance[0]["sample"] for gradient in prompt.grad] == [0, 2]


def test_a_long_batch_lists_fifty_samples():
    """The explanation stays readable."""
    _, explanation = MATCH(prediction(["a"] * 60), "a")
    assert len(explanation.data.splitlines()) == 52
    assert explanation.data.endswith("… and 10 more.")


def test_feedback_by_the_lm_is_phrased_for_wrong_samples_only():
    """`feedback="lm"` asks the backward model to put the finding in words."""
    critic = ScriptedClient(play(student="Say it in words."))
    afnio.set_backward_model_client(critic, completion_args={"model": "b"})
    answer = prediction(["a", "b"])
    MATCH(answer, ["a", "x"], feedback="lm")[1].backward()
    assert feedback(answer) == [[None, "Say it in words."]]
    (request,) = critic.requests
    assert shown(request, "feedback") == ['exact match: predicted "b", expected "x", score 0.']


def test_no_feedback_makes_no_graph():
    """A prediction that needs no gradient leaves no node."""
    score, explanation = MATCH(prediction("a", requires_grad=False), "b")
    assert (score.grad_fn, explanation.grad_fn) == (None, None)


# Refusals --------------------------------------------------------------------------------------


def scored(**change):
    given = {"prediction": prediction(["a"]), "target": "a", "eval_fn": len, "eval_fn_purpose": "length"}
    return lambda: SCORED(**{**given, **change})


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: MATCH("a", "b"), TypeError, "prediction must be a Variable (got 'a'); wrap it"),
        (lambda: MATCH(prediction("a"), ("b",)), TypeError, "a Variable holds no tuples (got ('b',))"),
        (lambda: MATCH(prediction("a"), "b", sum, ""), ValueError, "reduction_fn_purpose, a short noun"),
        (lambda: MATCH(prediction("a"), "b", None), ValueError, "was given without a reduction_fn"),
        (
            lambda: MATCH(prediction("a"), "b", 3, "x"),
            TypeError,
            "reduction_fn must be a callable or None (got 3)",
        ),
        (
            lambda: MATCH(prediction("a"), "b", feedback="llm"),
            ValueError,
            "must be 'rules' or 'lm' (got 'llm')",
        ),
        (
            scored(eval_fn=None),
            TypeError,
            "eval_fn must be a callable of a prediction and a target (got None)",
        ),
        (scored(eval_fn_purpose=""), ValueError, "eval_fn needs eval_fn_purpose, a short noun"),
        (
            scored(success_fn=1),
            TypeError,
            "success_fn must be a callable of a list with one sample's score, or None (got 1)",
        ),
        (scored(max_score="10"), TypeError, "max_score must be a number (got '10'); math.inf sets no bound"),
        (scored(max_score=True), TypeError, "max_score must be a number (got True)"),
        (scored(max_score=9, success_fn=all), ValueError, "max_score=9 has no effect with a success_fn"),
    ],
)
def test_bad_arguments_are_refused_at_the_launch_line(call, error, words):
    """One sentence with the value and the fix."""
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize("score", [None, [1], {"a": 1}, object(), "0.5", (0.5, 1), (1, 2, 3), (None, "why")])
def test_what_is_no_score_is_refused_when_it_comes(score):
    """A forgotten return must not mark a sample as missing."""
    with pytest.raises(TypeError, match="eval_fn must return a number or a bool"):
        _ = SCORED(prediction("a"), "a", lambda p, t: score, "nothing").score.data


@pytest.mark.parametrize("nan", [math.nan, (math.nan, "why")])
def test_nan_is_no_score(nan):
    """It would make the mean of a batch NaN; the message names the row."""
    with pytest.raises(BatchError, match=r"\(sample 1\): .* must return a number \(got NaN\)"):
        SCORED(prediction(["a", "b"]), "t", lambda p, t: nan if p == "b" else 0, "size").score.data


async def commented(answer, target):
    await anyio.lowlevel.checkpoint()
    return Scalar(float(answer == target)), f"{answer} has too few letters"


@pytest.mark.parametrize(
    "eval_fn", [commented, lambda p, t: (p == t, f"{p} has too few letters"), functools.partial(commented)]
)
def test_an_eval_fn_may_write_the_feedback_itself(eval_fn):
    """It takes the place of the generated one, for wrong samples; None leaves that."""
    answers = prediction(["Rome", "rom"])
    score, explanation = SCORED(answers, "Rome", eval_fn, "match")
    explanation.backward()
    assert score.samples == [1, 0]
    assert feedback(answers) == [[None, "rom has too few letters"]]
    left = prediction("rom")
    SCORED(left, "Rome", lambda p, t: (0, None), "match").explanation.backward()
    assert feedback(left) == ['match: predicted "rom", expected "Rome", score 0.']


def test_a_failing_reduction_surfaces_at_the_read():
    """With the launch line as a note."""
    score, _ = MATCH(prediction(["a"]), "a", lambda s: 1 / 0, "ratio")
    with pytest.raises(ZeroDivisionError) as caught:
        _ = score.data
    assert any(__file__ in note for note in caught.value.__notes__)
