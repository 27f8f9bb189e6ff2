"""Reduction: similar feedback is found without a model, and a tree of calls, fixed before the first one, sums it up."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys

import anyio
import kit
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.blocks import read_blocks, read_section
from kit.roles import kind, prompt
from kit.virtual import virtual_runtime

import afnio
from afnio.cognitive._reduction import Cluster, clustered, reduce_feedback
from afnio.errors import BatchError, FinalModelError, TransientModelError
from afnio.models import ChatModel
from afnio.runtime import Limits, Pending
from afnio.runtime._kernel import Launch, Slot
from afnio.runtime.events import CallEnded
from afnio.testing import ScriptedClient


def launched(texts, client, sources=None, **options):
    """Start a reduction as a step would, and return its Pending."""
    launch, model = Launch("test"), ChatModel(client, {"model": "m"})
    slot = Slot(launch)

    async def body(job, values):
        given = sources or [({"sample": n},) for n in range(len(texts))]
        return [await reduce_feedback(job, texts, given, model, role="prompt", value="old", **options)]

    launch.add(body, [], [slot])
    launch.start()
    return Pending(slot, lambda outcome: outcome)


def reduced(texts, client, sources=None, **options):
    return launched(texts, client, sources, **options).wait()


def entries(request):
    return read_blocks(read_section(prompt(request), "feedbacks"), "feedback")


def summary(request):
    """Say one thing about all that was shown, in as many words as it may, the first word of it among them."""
    shown = entries(request)
    words = int(re.search(r"points, (\d+) words in all", prompt(request))[1])
    first = shown[0].text.removeprefix("sum ").split()[0]
    said = " ".join(["sum", first, *["word"] * (words - 3)])
    return {"points": [{"point": said, "sources": list(range(1, len(shown) + 1))}]}


def different(count, words=12, seed=0):
    """Return texts that share no words, all of one length."""
    draw = random.Random(seed)
    letters = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=7 * words)) for _ in range(count)]
    return [" ".join(text[n : n + 7] for n in range(0, len(text), 7)) for text in letters]


def test_what_fits_is_left_alone():
    """No call; each text is a point of its own, in order, equal ones too."""
    client = ScriptedClient()
    found = reduced(["b", "a", "b"], client)
    assert [(p.text, p.sources) for p in found.points] == [("b", (0,)), ("a", (1,)), ("b", (2,))]
    assert (found.calls, found.failed, found.capped, len(client.requests)) == (0, (), (), 0)


def test_none_at_all():
    """Nothing to read, nothing to ask."""
    assert reduced([], ScriptedClient()).points == ()


def test_equal_texts_are_read_once():
    """A hundred times the same feedback needs no call."""
    client = ScriptedClient()
    found = reduced(["Be brief."] * 99 + ["be  BRIEF."], client, max_tokens=20)
    assert [(p.text, p.sources) for p in found.points] == [("Be brief.", tuple(range(100)))]
    assert client.requests == []


def test_groups_are_summed_up_side_by_side():
    """Each within the budget; every feedback is in one group, and its points name it."""
    client = ScriptedClient(summary)
    texts = different(100)
    found = reduced(texts, client, max_tokens=1000)
    assert kind(client.requests[0]) == "reducer"
    shown = [block.text for request in client.requests for block in entries(request)]
    assert sorted(texts) == sorted(shown)
    assert len(client.requests) == found.calls == 3
    assert all(sum(-(-len(b.text) // 4) for b in entries(r)) <= 1000 for r in client.requests)
    assert list(range(100)) == sorted(source for point in found.points for source in point.sources)
    assert [len(point.sources) for point in found.points] == [34, 34, 32]
    assert list(client.get_usage()["phases"]) == ["reduce"]


def test_similar_failures_stand_together_and_are_named_first():
    """With how many samples they have; the largest first."""
    sources = [
        ({"sample": n, "prediction": "low", "target": ("high", "none")[n % 3 == 0]},) for n in range(30)
    ]
    client = ScriptedClient(summary)
    reduced(different(30), client, sources, max_tokens=400)
    first, *_ = client.requests
    (failure,) = read_blocks(read_section(prompt(first), "failures"), "failure")
    assert (
        failure.text,
        failure.attributes,
    ) == ('predicted "low", expected "high"', {"id": "1", "samples": "20"})
    assert prompt(first).index("<failures>") < prompt(first).index("<feedbacks>")
    assert {block.attributes["failure"] for block in entries(first)} == {"1"}


def test_the_stable_parts_come_first():
    """Instructions and the text itself are the same for all groups, whose prompts begin alike."""
    client = ScriptedClient(summary)
    reduced(different(100), client, max_tokens=1000)
    systems = {request.messages[0]["content"] for request in client.requests}
    heads = {prompt(request).split("<feedbacks>")[0].split("<failures>")[0] for request in client.requests}
    assert (len(systems), len(heads)) == (1, 1)
    assert read_blocks(heads.pop(), "variable")[0].text == "old"


def test_summaries_are_summed_up_again():
    """A point's sources are the samples, through all levels."""
    client = ScriptedClient(summary)
    found = reduced(different(200, words=200), client, max_tokens=400)
    assert len(client.requests) == found.calls == 200 + 13
    assert len(found.points) == 13
    assert sum(len(point.sources) for point in found.points) == 200
    assert list(range(200)) == sorted(source for point in found.points for source in point.sources)


def test_a_reply_that_is_too_long_is_cut_by_what_stands_behind_it():
    """Or no tree would end; rare points go first, and one over-long point is shortened."""

    def long(request):
        count = len(entries(request))
        most = {"point": "common " * 20, "sources": list(range(2, count + 1))}
        return {"points": [{"point": "rare " * 30, "sources": [1]}, most]}

    (point,) = reduced(different(10), ScriptedClient(long), max_tokens=200).points[:1]
    assert ("common " * 20).strip() == point.text
    endless = {"points": [{"point": "word " * 5000, "sources": [1]}]}
    found = reduced(different(10), ScriptedClient(endless), max_tokens=200)
    assert all(len(point.text) <= 210 for point in found.points)
    assert all(point.text.endswith(" …") for point in found.points)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ({"points": [{"point": "x", "sources": []}]}, "no point has a text and an id from 1 to"),
        ({"points": [{"point": "x", "sources": [99]}]}, "no point has a text and an id from 1 to"),
        ({"points": [{"point": "x"}]}, "every point must have a text"),
        ({"points": "x"}, '"points" must be a list of objects'),
        ({"sums": []}, "the key 'points' is missing"),
        ("no JSON", "it holds no JSON object"),
    ],
)
def test_an_unreadable_summary_is_repaired_once(reply, words):
    """The repair says what is wrong."""
    good = {"points": [{"point": "good", "sources": ["2", 1, 77]}]}
    client = ScriptedClient(lambda request: good if len(request.messages) == 4 else reply)
    (point,) = reduced(different(8), client, max_tokens=150).points
    # Two groups of four, each of whose summaries names two.
    assert (point.text, point.sources) == ("good", (0, 1, 4, 5))
    assert words in prompt(client.requests[-1])


def test_points_come_in_the_order_of_the_samples_behind_them():
    """Whatever their order in the replies; what one prompt says twice counts for all who said it."""

    def rare_first(request):
        count = len(entries(request))
        first = entries(request)[0].text.split()[0]
        rare = {"point": f"rare {first}", "sources": [1]}
        return {"points": [rare, {"point": "common", "sources": list(range(2, count + 1))}]}

    found = reduced(different(100), ScriptedClient(rare_first), max_tokens=1000)
    assert [point.text.split()[0] for point in found.points] == ["common", "rare", "rare", "rare"]
    assert [len(point.sources) for point in found.points] == [97, 1, 1, 1]


def test_a_point_that_nothing_stands_behind_is_dropped():
    """Made up, as far as anybody can tell."""
    reply = {"points": [{"point": "made up", "sources": []}, {"point": "real", "sources": [1]}]}
    assert [p.text for p in reduced(different(8), ScriptedClient(reply), max_tokens=150).points] == ["real"]


def test_no_more_than_so_many_of_a_cluster():
    """The rest is left out and said to be; what then fits needs no call."""
    sources = [({"sample": n, "prediction": "a", "target": "b"},) for n in range(20)]
    sources += [({"sample": 20, "prediction": "c", "target": "d"},)]
    found = reduced(different(21), ScriptedClient(), sources, per_failure=3)
    assert sorted(source for point in found.points for source in point.sources) == [0, 1, 2, 20]
    assert tuple(range(3, 20)) == found.capped
    assert [(f.name, len(f.members)) for f in found.mistakes] == [('predicted "a", expected "b"', 20)]


def test_a_failed_group_is_left_out_and_said_to_be(caplog):
    """The others count; the warning says how many and why."""
    texts = different(100)

    def script(request):
        return FinalModelError("broken") if texts[0] in prompt(request) else summary(request)

    found = reduced(texts, ScriptedClient(script), max_tokens=1000)
    assert (len(found.failed), sum(len(point.sources) for point in found.points)) == (34, 66)
    assert 0 in found.failed
    (record,) = caplog.records
    assert (
        record.getMessage()
        == "34 of 100 feedback texts on 'prompt' are left out of the step, because the call that sums them up failed "
        "(broken)"
    )


def test_a_group_that_fails_further_up_loses_what_is_below_it(caplog):
    """And no other."""
    texts = different(40, words=200)

    def script(request):
        first, *_ = entries(request)
        return FinalModelError("broken") if first.text.startswith("sum " + texts[0][:7]) else summary(request)

    found = reduced(texts, ScriptedClient(script), max_tokens=400)
    assert tuple(range(14)) == found.failed
    assert len(found.failed) + sum(len(point.sources) for point in found.points) == 40


def test_below_the_quorum_it_fails():
    """With the errors of the groups, equal ones once, and the numbers of what is lost."""
    with pytest.raises(
        BatchError, match="100 of 100 feedback texts on 'prompt' could not be summed"
    ) as caught:
        reduced(different(100), ScriptedClient(FinalModelError("broken")), max_tokens=1000)
    assert (len(caught.value.exceptions), len(caught.value.samples)) == (1, 100)


def test_a_bug_is_not_tolerated():
    """What no model can be blamed for is raised, once."""
    with pytest.raises(ZeroDivisionError):
        reduced(different(100), ScriptedClient(lambda request: 1 / 0), max_tokens=1000)


def test_who_no_longer_waits_pays_for_no_more():
    """Cancelling the reduction cancels its calls."""
    client = ScriptedClient(summary, latency=60)

    async def main():
        with anyio.move_on_after(0.05):
            await launched(different(100), client, max_tokens=1000)
        return len(client.requests)

    assert afnio.run(main()) <= 3
    assert client.get_usage()["calls"] == 0


# Time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "max_tokens", "levels"), [(12, 4000, 1), (40, 400, 2), (200, 400, 3)])
def test_1024_gradients_take_three_latencies_at_most(words, max_tokens, levels):
    """From one sentence each to one that fills a prompt, on a virtual clock."""
    with virtual_runtime() as loop:
        client = ScriptedClient(summary, latency=1.0, limits=Limits(max_in_flight=1024))
        start = loop.now
        found = reduced(different(1024, words=words), client, max_tokens=max_tokens)
        seconds = loop.now - start
    assert levels == round(seconds, 3)
    assert sum(len(point.sources) for point in found.points) == 1024


def test_a_group_starts_as_soon_as_it_is_full():
    """One slow call holds up its own group alone; all others of the next level have been asked by then."""
    sent = []
    texts = different(512, words=200)

    async def script(request):
        sent.append((loop.now, [block.text for block in entries(request)]))
        await anyio.sleep(100.0 if any(texts[0] == b.text for b in entries(request)) else 1.0)
        return summary(request)

    with virtual_runtime() as loop:
        client = ScriptedClient(script, limits=Limits(max_in_flight=1024))
        reduced(texts, client, max_tokens=400)
    levels = [
        [time for time, shown in sent if all(text.startswith("sum ") for text in shown) == above]
        for above in (False, True)
    ]
    assert (len(levels[0]), set(levels[0])) == (512, {0.0})
    # 512, 32 groups of 16 of them, 2 groups of 16 of those.
    assert sorted(levels[1]) == [1.0] * 31 + [2.0] + [100.0, 101.0]


# Repeated under a journal ----------------------------------------------------------------------


def test_the_tree_doesnt_depend_on_who_is_quick():
    """The same calls at the same addresses, whatever the order in which they end."""

    def run(seed):
        draw = random.Random(seed)

        async def script(request):
            await anyio.sleep(draw.uniform(0, 10))
            return summary(request)

        with virtual_runtime():
            with kit.events(CallEnded) as ended:
                client = ScriptedClient(script, limits=Limits(max_in_flight=1024))
                found = reduced(different(100, words=200), client, max_tokens=400)
        asked = sorted(json.dumps(list(request.messages)) for request in client.requests)
        return found, asked, sorted(event.address for event in ended), [event.address for event in ended]

    one, other = run(1), run(2)
    assert one[:3] == other[:3]
    assert one[3] != other[3]


def test_a_repeated_run_is_answered_by_the_journal(tmp_path):
    """All of it, although every call failed once the first time."""
    failed = set()

    def flaky(request):
        key = json.dumps(list(request.messages))
        if key not in failed:
            failed.add(key)
            return TransientModelError("again")
        return summary(request)

    def run(script):
        client = ScriptedClient(script)
        with afnio.journal(tmp_path / "journal.db"):
            return reduced(different(40, words=200), client, max_tokens=400), client

    with virtual_runtime():
        first, paid = run(flaky)
        again, free = run(FinalModelError("not to be asked"))
    assert (first, 86, 0) == (again, len(paid.requests), len(free.requests))


# Similar feedback ------------------------------------------------------------------------------


POLITE = "The prompt should say that {} words do not make a message positive when it reports a problem."
URGENT = "Explain that broken heating in {} counts as urgent, since people cannot stay there overnight."


def confusion(said, wanted):
    return ({"sample": 0, "prediction": said, "target": wanted, "score": 0},)


def test_one_confusion_is_one_cluster():
    """Whatever the feedback says; the largest comes first, under its name."""
    sources = [confusion("low", "high"), confusion("a", "b"), confusion("low", "high")]
    assert clustered(["x", "y", "z"], sources) == [
        Cluster('predicted "low", expected "high"', (0, 2)),
        Cluster("", (1,)),
    ]


def test_feedback_in_like_words_is_one_cluster():
    """Where predictions are texts of their own; the name has the words that they share."""
    texts = [POLITE.format("kind"), URGENT.format("winter"), POLITE.format("polite"), URGENT.format("March")]
    sources = [confusion("a long answer " * 9, f"another {n}") for n in range(4)]
    polite, urgent = clustered(texts, sources)
    assert (polite.members, urgent.members) == ((0, 2), (1, 3))
    assert polite.name.startswith("feedback about: prompt, should")
    assert "overnight" not in polite.name


def test_what_is_unlike_stays_apart():
    """Each in a cluster of its own, without a name, in order."""
    texts = ["Name the currency.", "Answer in Italian only.", "Sort before you print anything."]
    assert [Cluster("", (n,)) for n in range(3)] == clustered(texts, [()] * 3)


def test_quotes_of_samples_decide_nothing():
    """Two texts that quote one message are not alike for that."""
    quote = '"the heating in the gymnasium has broken down again since yesterday evening"'
    first, second = f"In {quote} the anger was missed.", f"For {quote} shorter replies would have sufficed."
    assert len(clustered([first, second], [(), ()])) == 2


def test_samples_with_different_confusions_are_no_confusion():
    """Feedback on a text that samples share goes by its words."""
    mixed = (*confusion("a", "b"), *confusion("b", "a"))
    assert [cluster.name for cluster in clustered(["x", "y"], [mixed, mixed])] == ["", ""] or [
        cluster.name for cluster in clustered(["x", "y"], [mixed, mixed])
    ] == ["similar feedback"]


@given(st.lists(st.text(alphabet="abcdefgh ", max_size=40), max_size=30))
def test_every_text_is_in_one_cluster(texts):
    """None is lost, none is there twice; equal texts with words are together."""
    found = clustered(texts, [()] * len(texts))
    assert list(range(len(texts))) == sorted(n for cluster in found for n in cluster.members)
    home = {n: place for place, cluster in enumerate(found) for n in cluster.members}
    for one, text in enumerate(texts):
        for other in range(one):
            if text == texts[other] and any(len(word) >= 4 for word in text.split()):
                assert home[one] == home[other]


def test_another_process_finds_the_same():
    """No hash is salted."""
    code = (
        "from afnio.cognitive._reduction import clustered\n"
        "texts = [f'{w} should name the {x} more {y}' for w in ('label', 'prompt', 'reply')\n"
        "    for x in ('amount', 'currency') for y in ('clearly', 'often', 'early')]\n"
        "print(clustered(texts, [()] * len(texts)))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1
