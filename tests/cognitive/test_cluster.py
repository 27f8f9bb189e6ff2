"""Similar failures are found without a model, in the same way in every process."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from afnio.cognitive._reduction import Cluster, clustered

POLITE = "The prompt should say that {} words do not make a message positive when it reports a problem."
URGENT = "Explain that broken heating in {} counts as urgent, since people cannot stay there overnight."


def confusion(said, wanted):
    return ({"sample": 0, "prediction": said, "target": wanted, "score": 0},)


def test_one_confusion_is_one_cluster():
    """Whatever the feedback says; the largest comes first, under its name."""
    sources = [confusion("low", "high"), confusion("a", "b"), confusion("low", "high")]
    assert [
        Cluster('predicted "low", expected "high"', (0, 2)),
        Cluster("", (1,)),
    ] == clustered(["x", "y", "z"], sources)


def test_feedback_in_like_words_is_one_cluster():
    """Where predictions are texts of their own; the name has the words that they share."""
    texts = [POLITE.format("kind"), URGENT.format("winter"), POLITE.format("polite"), URGENT.format("March")]
    sources = [confusion("a long answer " * 9, f"another {n}") for n in range(4)]
    polite, urgent = clustered(texts, sources)
    assert ((0, 2), (1, 3)) == (polite.members, urgent.members)
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
    assert 2 == len(clustered([first, second], [(), ()]))


def test_samples_with_different_confusions_are_no_confusion():
    """Feedback on a text that samples share goes by its words."""
    mixed = (*confusion("a", "b"), *confusion("b", "a"))
    assert ["", ""] == [cluster.name for cluster in clustered(["x", "y"], [mixed, mixed])] or [
        "similar feedback"
    ] == [cluster.name for cluster in clustered(["x", "y"], [mixed, mixed])]


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
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert 1 == len(runs)
