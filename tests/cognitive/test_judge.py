"""The judge: a model scores; its explanation is the feedback, or its own texts are what learns."""

from __future__ import annotations

import pytest
from kit.roles import comment, play, prompt, shown, variables
from pydantic import BaseModel

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError, ScoreError, TemplateError
from afnio.testing import ScriptedClient

JUDGE = cog.LMJudgeEvaluator()


def rubric(text="Grade {prediction} against {target}."):
    return cog.Parameter(text, role="rubric")


def messages(part):
    return [{"role": "user", "content": [part]}]


def answer(data):
    return afnio.Variable(data, role="answer", requires_grad=True)


def verdict(request):
    good = "good" in prompt(request)
    return {"score": good, "explanation": "fine" if good else "too long"}


def test_it_scores_each_sample_and_explains():
    """The messages are filled with prediction and target, and ask for the form."""
    client = ScriptedClient(verdict)
    score, explanation = JUDGE(client, messages(rubric()), answer(["good", "bad"]), ["x", "y"], model="j")
    assert (score.data, score.samples) == (1, [True, False])
    assert "Sample 1: too long" in explanation.data
    first = client.requests[0]
    assert first.messages[0]["content"].startswith("Grade good against x.\nAnswer with one JSON object")
    assert first.params["response_format"]["json_schema"]["name"] == "afnio_judgement"
    assert list(client.get_usage()["phases"]) == ["judge"]


def test_in_eval_mode_the_explanation_is_the_feedback():
    """No backward call is made; samples that succeeded send none."""
    critic = ScriptedClient(comment("never"))
    afnio.set_backward_model_client(critic, completion_args={"model": "b"})
    grade, given = rubric(), answer(["good", "bad"])
    _, explanation = JUDGE(
        ScriptedClient(verdict), messages(grade), given, ["x", "y"], success_fn=all, model="j"
    )
    explanation.backward()
    assert [g.data for g in given.grad] == [[None, "too long"]]
    assert (grade.grad, critic.requests) == ([], [])


@pytest.mark.parametrize("eval_mode", [False, afnio.Variable(False)])
def test_out_of_eval_mode_the_judges_own_texts_get_the_feedback(eval_mode):
    """The prediction gets none; the critic sees the judge's reply and a person's remark."""
    critic = ScriptedClient(play(critic=comment("be milder")))
    afnio.set_backward_model_client(critic, completion_args={"model": "b"})
    grade, given = rubric(), answer(["good", "bad"])
    note = afnio.Variable("n", role="note", requires_grad=True)
    _, explanation = JUDGE(
        ScriptedClient(verdict),
        messages(grade) + messages(afnio.Variable("{note}")),
        given,
        ["x", "y"],
        inputs={"note": note},
        success_fn=all,
        eval_mode=eval_mode,
        model="j",
    )
    explanation.backward(afnio.Variable("too strict"))
    assert (given.grad, len(grade.grad), len(note.grad)) == ([], 2, 2)
    request = critic.requests[1]
    assert [v.attributes["role"] for v in variables(request)] == ["rubric", "note"]
    assert shown(request, "reply") == ["score: False\ntoo long"]
    assert (shown(request, "feedback"), shown(request, "edited_reply")) == (["too strict"], [])


def test_a_judge_that_succeeded_teaches_nothing():
    """Without a remark from outside, success sends no feedback to the judge's texts."""
    critic = ScriptedClient(comment("never"))
    afnio.set_backward_model_client(critic, completion_args={"model": "b"})
    grade = rubric("Grade {prediction}.")
    _, explanation = JUDGE(
        ScriptedClient(verdict), messages(grade), answer(["good"]), success_fn=all, eval_mode=False, model="j"
    )
    explanation.backward()
    assert (grade.grad, critic.requests) == ([], [])


@pytest.mark.parametrize("judge", [JUDGE, cog.functional.lm_judge_evaluator])
@pytest.mark.parametrize(
    ("best", "other", "args"), [(True, False, {}), (1.0, 0.5, {}), (10, 1, {"max_score": 10})]
)
def test_what_the_judge_finds_right_gets_no_feedback(judge, best, other, args):
    """True, or the highest score; a 1 on a scale of 10 is not."""

    def script(request):
        return {"score": best if "good" in prompt(request) else other, "explanation": "said"}

    given = answer(["good", "bad"])
    _, explanation = judge(ScriptedClient(script), messages(rubric()), given, ["x", "y"], model="j", **args)
    explanation.backward()
    assert [g.data for g in given.grad] == [[None, "said"]]


def test_a_judge_with_another_scale_fails_the_launch():
    """Even if a quorum could leave the sample out."""
    client = ScriptedClient([{"score": score, "explanation": "said"} for score in (1, 1, 7)])
    with afnio.tolerate(quorum=0.1):
        score, _ = JUDGE(client, messages(rubric("Grade {prediction}.")), answer(["a", "b", "c"]), model="j")
        with pytest.raises(ScoreError, match="max_score=1 .got 7"):
            _ = score.data


def test_an_unreadable_judgement_is_repaired_once():
    """The judge is told what was wrong."""
    client = ScriptedClient(["4 of 5", {"score": 4, "explanation": "ok"}])
    score, _ = JUDGE(client, messages(rubric("Grade {prediction}.")), answer("a"), max_score=5, model="j")
    assert score.data == 4
    assert "it holds no JSON object" in client.requests[1].messages[-1]["content"]
    assert {phase: use["calls"] for phase, use in client.get_usage()["phases"].items()} == {
        "judge": 1,
        "judge-repair": 1,
    }


@pytest.mark.parametrize(
    "bad", ["no", {"score": None, "explanation": "x"}, {"score": [1], "explanation": "x"}, {"score": 1}]
)
def test_a_judge_without_a_verdict_fails_its_sample(bad):
    """It is never counted as a score."""

    def script(request):
        return bad if "bad" in request.messages[0]["content"] else {"score": 1, "explanation": "ok"}

    score, _ = JUDGE(
        ScriptedClient(script), messages(rubric("Grade {prediction}.")), answer(["bad", "good"]), model="j"
    )
    with pytest.raises(BatchError, match="1 of 2 samples") as caught:
        _ = score.data
    assert "judge model's reply could not be read" in str(caught.value.exceptions[0])


def test_missing_samples_are_not_judged():
    """None makes no call and enters no score."""
    client = ScriptedClient(verdict)
    score, _ = JUDGE(client, messages(rubric()), answer(["good", None, "bad"]), ["x", "y", None], model="j")
    assert (score.samples, len(client.requests)) == ([True, None, None], 1)


def test_a_response_format_of_the_user_is_sent():
    """A pydantic model works here too."""

    class Verdict(BaseModel):
        score: int
        explanation: str

    client = ScriptedClient('{"score": 3, "explanation": "ok"}')
    score, _ = JUDGE(
        client, messages(rubric("{prediction}")), answer("a"), response_format=Verdict, max_score=5, model="j"
    )
    assert score.data == 3
    assert client.requests[0].params["response_format"]["json_schema"]["name"] == "Verdict"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"inputs": {"prediction": "x"}}, ValueError, "the input name 'prediction' is filled by the judge"),
        ({"inputs": {"target": "x"}}, ValueError, "the input name 'target' is filled by the judge"),
        ({"forward_model_client": None}, TypeError, "takes a model client (got None)"),
        ({"prediction": "x"}, TypeError, "prediction must be a Variable (got 'x')"),
        ({"success_fn": 3}, TypeError, "success_fn must be a callable"),
        ({"max_score": None}, TypeError, "max_score must be a number (got None)"),
        (
            {"messages": messages(rubric("Grade it."))},
            TemplateError,
            "input 'prediction' is used by no message",
        ),
        (
            {"messages": messages(afnio.Variable("{prediction} {other}"))},
            TemplateError,
            "placeholder {other}",
        ),
        ({"model": ""}, TypeError, "a call needs a model name (got '')"),
        ({"reduction_fn_purpose": None}, ValueError, "reduction_fn needs reduction_fn_purpose"),
    ],
)
def test_bad_arguments_are_refused_at_the_launch_line(change, error, words):
    """Nothing is asked then."""
    client = ScriptedClient(verdict)
    given = {
        "forward_model_client": client,
        "messages": messages(rubric("Grade {prediction}.")),
        "prediction": answer("a"),
        "model": "j",
    }
    with pytest.raises(error) as caught:
        JUDGE(**{**given, **change})
    assert words in str(caught.value)
    assert client.requests == []
