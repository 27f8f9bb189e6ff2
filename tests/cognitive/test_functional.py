"""A toy model that multiplies: prompts and feedback are numbers, and every gradient is checked by hand."""

from __future__ import annotations

import operator
import re
from typing import Any

import pytest
from kit.blocks import read_blocks, read_section
from kit.roles import comment, play, prompt, shown

import afnio
import afnio.cognitive as cog
import afnio.cognitive.functional as F
from afnio.testing import ScriptedClient

RATE = 0.05
DECAY = 0.5
_ERROR = re.compile(r"predicted ([-\d.]+), expected ([-\d.]+)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def gradient(text: str) -> float:
    """Return dL/d(output) for L = ½ (predicted - expected)², or the number that a critic wrote."""
    found = _ERROR.search(text)
    return float(found[1]) - float(found[2]) if found else float(_NUMBER.findall(text)[-1])


def multiply(request: Any) -> str:
    weight, value = (float(message["content"]) for message in request.messages)
    return repr(weight * value)


def differentiate(request: Any) -> Any:
    """Play the critic: for reply = weight · input, d/d(weight) is the input and the other way round."""
    weight, value = (float(text) for text in shown(request, "message"))
    upstream = sum(gradient(text) for text in shown(request, "feedback"))
    return comment(
        lambda block: repr(upstream * (value if block.attributes["role"].startswith("weight") else weight))
    )(request)


def descend(request: Any) -> dict[str, str]:
    """Play the optimizer: gradient descent whose momentum is what the history shows."""
    asked = prompt(request)
    (variable,) = read_blocks(asked, "variable")
    now = [gradient(b.text) for b in read_blocks(read_section(asked, "feedbacks"), "feedback")]
    before = [gradient(b.text) for b in read_blocks(read_section(asked, "history"), "feedback")]
    return {"value": repr(round(float(variable.text) - RATE * (sum(now) + DECAY * sum(before)), 6))}


@pytest.fixture
def lm() -> ScriptedClient:
    client = ScriptedClient(play(student=multiply, critic=differentiate, optimizer=descend))
    afnio.set_backward_model_client(client, completion_args={"model": "toy"})
    return client


def chat(lm: ScriptedClient, weight: Any, value: Any) -> cog.Completion:
    messages = [
        {"role": "system", "content": [weight]},
        {"role": "user", "content": [afnio.Variable("{x}")]},
    ]
    return F.chat_completion(lm, messages, {"x": value}, model="toy")


def loss(prediction: afnio.Variable, target: Any) -> cog.Judgement:
    return F.deterministic_evaluator(
        prediction, target, lambda p, t: -((p - t) ** 2), "error", success_fn=lambda s: s[0] == 0
    )


def numbers(gradients: list[afnio.Variable]) -> list[float]:
    return [gradient(g.data) for g in gradients]


def test_two_chats_in_a_row(lm):
    """dL/dw2 = e·h and dL/dw1 = e·w2·x, for each wrong sample."""
    w1, w2 = cog.Parameter("2", role="weight 1"), cog.Parameter("3", role="weight 2")
    out = chat(lm, w2, chat(lm, w1, ["1", "2", "5"]))
    assert out.data == ["6.0", "12.0", "30.0"]
    score, explanation = loss(out.map(float), afnio.Variable([7.0, 12.0, 28.0]))
    explanation.backward()
    assert score.samples == [-1.0, 0.0, -4.0]
    assert numbers(w2.grad) == [-1.0 * 2, 2.0 * 10]
    assert numbers(w1.grad) == [-1.0 * 3 * 1, 2.0 * 3 * 5]
    assert {phase: use["calls"] for phase, use in lm.get_usage()["phases"].items()} == {
        "forward": 6,
        "backward": 4,
    }


def test_add_sum_and_map_between_chats(lm):
    """A value that two ops consume gets the sum of what both say."""
    w1, w2 = cog.Parameter("2", role="weight 1"), cog.Parameter("3", role="weight 2")
    bias = afnio.Variable(1.0, role="bias", requires_grad=True)
    hidden = chat(lm, w1, ["1", "2"])
    out = chat(lm, w2, hidden)
    total = F.sum([F.add(out.map(float), hidden.map(float)), bias])
    assert total.data == [6 + 2 + 1.0, 12 + 4 + 1.0]
    _, explanation = loss(total, afnio.Variable([8.0, 19.0]))
    explanation.backward()
    errors = [1.0, -2.0]
    assert errors == numbers(bias.grad)
    assert numbers(w2.grad) == [1.0 * 2, -2.0 * 4]
    # Through the second chat and past it: e·(w2 + 1)·x.
    assert numbers(w1.grad) == [1.0 * 4 * 1, -2.0 * 4 * 2]


def test_a_weight_used_by_two_chats_gets_a_gradient_from_each(lm):
    """For y = w·(w·x): e·(w·x) from the last node and e·w·x from the first, in the order of the nodes."""
    weight = cog.Parameter("2", role="weight")
    out = chat(lm, weight, chat(lm, weight, ["3"]))
    _, explanation = loss(out.map(float), afnio.Variable([11.0]))
    explanation.backward()
    assert numbers(weight.grad) == [1.0 * 2 * 3, 1.0 * 6]


def test_inputs_get_their_gradients_aligned_to_samples(lm):
    """A batch leaf has one gradient with an entry for each sample: e·w."""
    x = afnio.Variable(["1", "2", "3"], role="x", requires_grad=True)
    out = chat(lm, afnio.Variable("4"), x)
    _, explanation = loss(out.map(float), afnio.Variable([4.0, 7.0, 14.0]))
    explanation.backward()
    (only,) = x.grad
    assert [text and float(text) for text in only.data] == [None, 1.0 * 4, -2.0 * 4]


def test_descent_with_momentum(lm):
    """Three steps of w ← w - r·(g + d·g_previous), computed by hand and by TGD."""
    weight = cog.Parameter("1", role="weight")
    optimizer = afnio.optim.TGD([weight], lm, momentum=2, model="toy")
    w, before, expected, found = 1.0, 0.0, [], []
    for _ in range(3):
        _, explanation = loss(chat(lm, weight, ["1", "2"]).map(float), afnio.Variable([3.0, 6.0]))
        explanation.backward()
        optimizer.step()
        optimizer.clear_grad()
        found.append(float(weight.data))
        now = (w * 1 - 3) * 1 + (w * 2 - 6) * 2
        w, before = round(w - RATE * (now + DECAY * before), 6), now
        expected.append(w)
    assert found == expected
    assert found == [1.5, 2.125, 2.53125]


def test_split_is_a_read_and_its_parts_send_feedback_back(lm):
    """The parts of a reply can be judged alone."""
    text = afnio.Variable("6.0 1.0", role="pair", requires_grad=True)
    first, second = F.split(text, " ")
    assert (first.data, second.data) == ("6.0", "1.0")
    F.exact_match_evaluator(first, "7.0")[1].backward()
    assert len(text.grad) == 1
    assert text.grad[0].data.endswith(
        '<ITEM>exact match: predicted "6.0", expected "7.0", score 0.</ITEM><ITEM></ITEM>'
    )


def test_the_functions_and_the_modules_are_the_same_ops():
    """Each module calls its function."""
    a, b = afnio.Variable("x", role="a"), afnio.Variable("y", role="b")
    assert (F.add(a, b).data, (a + b).data, F.add(a, b).role) == ("xy", "xy", "a and b")
    assert F.sum([a, b]).data == "<ITEM>x</ITEM><ITEM>y</ITEM>"
    assert [part.data for part in F.split(afnio.Variable("x,z"), ",")] == ["x", "z"]
    assert F.exact_match_evaluator(a, "y").score.data == cog.ExactMatchEvaluator()(a, "y").score.data == 0


@pytest.mark.parametrize("op", [operator.add, cog.functional.add])
def test_text_and_number_do_not_add(op):
    """The launch line says what to do."""
    with pytest.raises(TypeError, match="strings or numbers, not both .got str, int.; convert one of them"):
        op(afnio.Variable("a"), afnio.Variable(1))
