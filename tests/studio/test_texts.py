"""The parts that work on texts and numbers, for whatever they are given."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from studio.made_store import START, MadeRun

from afnio.tellurio._compare import Scores
from afnio.tellurio._queries import StoreReader
from afnio.tellurio.studio._runs import Tallies
from afnio.tellurio.studio._step import changed_sentences
from afnio.tellurio.studio._text import INVISIBLE, environment, plain, seconds, visible, word_diff

WORDS = st.lists(st.sampled_from(["a", "be", "cat", " ", "\n", ".", "é", "  "]), max_size=30).map("".join)


@given(WORDS, WORDS)
def test_a_diff_holds_both_texts(before: str, after: str) -> None:
    """Joined without what is new it is the old text, and the other way round."""
    pieces = word_diff(before, after)
    assert before == "".join(piece.text for piece in pieces if piece.kind != "new")
    assert after == "".join(piece.text for piece in pieces if piece.kind != "gone")
    assert all(piece.text for piece in pieces)


def test_a_diff_of_very_long_texts_is_quick() -> None:
    """A mebibyte on each side, with lines and without; both texts are still all there."""
    line, lines = "word salad " * 95_000, "".join(f"line {n} of a long text\n" for n in range(45_000))
    began = time.perf_counter()
    for before, after in (
        (line, line[7:] + "end"),
        (lines, lines.replace("line 77 ", "row 77 ")),
        (line, lines),
    ):
        pieces = word_diff(before, after)
        assert before == "".join(piece.text for piece in pieces if piece.kind != "new")
        assert after == "".join(piece.text for piece in pieces if piece.kind != "gone")
    assert time.perf_counter() - began < 60  # a second here; hours if it were quadratic


@given(st.text())
def test_no_character_hides_or_reorders(text: str) -> None:
    """Whatever is in a text, on a page each character is seen or is plain space, and none is markup."""
    shown = (
        environment().from_string('<p title="{{ text }}">{{ text }}</p>{{ text|visible }}').render(text=text)
    )
    assert not INVISIBLE.search(shown)
    assert shown.count("<p") == 1
    assert shown.count("<") == 2 + 2 * shown.count('<span class="control"')
    assert not INVISIBLE.search(plain(text))


def test_markup_is_never_taken_for_safe_by_accident() -> None:
    """A text that looks like markup is escaped by every filter that templates use on texts."""
    attack = "<b>&amp;</b>"
    for expression in (
        "text",
        "text|visible",
        "text|plain",
        "text|truncate(5)",
        "(text|excerpt).text|visible",
    ):
        shown = environment().from_string("{{ " + expression + " }}").render(text=attack)
        assert "<b" not in shown, expression
    assert isinstance(visible(attack), Markup)


@pytest.mark.parametrize(
    ("text", "value"),
    [("999 ms", 0.9994), ("1.0 s", 0.9996), ("59.9 s", 59.94), ("1 min 0 s", 59.96), ("2 min 0 s", 119.7),
     ("1 h 0 min", 3599.7), ("2 h 0 min", 7199.7)],
)  # fmt: skip
def test_a_duration_never_has_a_full_unit_too_much(text: str, value: float) -> None:
    """Sixty seconds are a minute, also where rounding makes them sixty."""
    assert text == seconds(value)


def test_feedback_is_matched_by_rare_new_words() -> None:
    """A word that all evidence shares, or that the old text had, is no reason for a match."""
    evidence = ["the message is about heating", "the message is about invoices and refunds", "be brief"]
    found = changed_sentences(
        "The message is a mail.", "The message is a mail. Refunds and invoices are money.", evidence
    )
    assert [(one.text, [m.number for m in one.matches]) for one in found] == [
        ("Refunds and invoices are money.", [1])
    ]
    [alone] = changed_sentences("", "Something else entirely.", evidence)
    assert alone.matches == ()


def test_many_equal_samples_take_no_longer_than_others() -> None:
    """Each has its place, without a search among those before it."""
    found = Scores(("val", "same", float(n % 2)) for n in range(100_000))
    assert len(found.last) == len(found.phases["val"]) == 100_000
    assert found.last["same", 99_999] == 1.0


def test_a_tally_that_follows_is_the_same_as_one_from_the_start(tmp_path: Path) -> None:
    """Counted in parts or at once; a run that is started anew is counted anew."""
    path = tmp_path / "acme" / "mails.db"
    run = MadeRun(path, "one", status="COMPLETED")
    follower = Tallies()
    for number in range(3):
        run.db.execute("BEGIN")
        for call in range(5):
            error = "503" if call == number else None
            run.call(f"run/{number}", "", call, "forward", [], "yes", error=error, cost=None if call else 0.5)
        run.db.execute("COMMIT")
        with StoreReader(path) as reader, reader.moment():
            found = reader.run(run.id)
            assert found is not None
            part, whole = follower.of(reader, found), Tallies().of(reader, found)
        assert whole == part
    assert (part.total.calls, part.total.failed, part.total.cost) == (15, 3, 1.5)
    assert part.curves["time"][-1] < START
    run.db.execute("DELETE FROM calls WHERE id > 5")
    with StoreReader(path) as reader, reader.moment():
        assert follower.of(reader, found).total.calls == 5
    run.db.close()
