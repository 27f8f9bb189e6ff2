"""What the demo prints and keeps, for results made by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from afnio.demo._job import (
    Epoch,
    Phase,
    Result,
    best,
    described,
    difference,
    phase_table,
    print_difference,
    print_prompts,
    read_sentiment,
    write,
)
from afnio.errors import ReplyError
from afnio.trainer._options import Accuracy


def epoch(number: int, prompt: str, correct: int) -> Epoch:
    return Epoch(number, prompt, Accuracy(correct, 10))


def test_the_best_prompt_on_validation_is_chosen_the_earliest_of_equals():
    assert best([epoch(0, "a", 4), epoch(1, "b", 7), epoch(2, "c", 7)]).number == 1


def test_a_prompt_that_stayed_gets_no_second_try():
    assert best([epoch(0, "a", 4), epoch(1, "a", 5)]).number == 0


def test_a_prompt_without_any_answer_is_not_chosen():
    nothing = Epoch(1, "b", Accuracy(0, 0, failed=10))
    assert best([epoch(0, "a", 1), nothing]).number == 0


@pytest.mark.parametrize("reply", ["positive", "{}", "[]", '{"sentiment": ', ""])
def test_a_reply_without_a_sentiment_is_a_failure(reply: str):
    with pytest.raises(ReplyError, match="sentiment"):
        read_sentiment(reply)


def test_a_fenced_reply_is_read():
    assert read_sentiment('```json\n{"sentiment": "Positive"}\n```') == "positive"


def test_failed_samples_are_told():
    assert described(Accuracy(5, 10, failed=2)).endswith(", 2 without an answer")
    assert "none" in described(Accuracy(0, 0, failed=3))


def test_the_difference_marks_lines():
    assert difference("a\nb", "a\nc") == [(" ", "a"), ("-", "b"), ("+", "c")]


@pytest.mark.parametrize("width", [40, 80])
def test_tables_and_prompts_fit_a_narrow_terminal(width: int):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    phases = {name: Phase(1_000, 10, 1, 12_345_678, 234_567) for name in ("forward", "backward-repair")}
    console.print(phase_table(phases, sum(phases.values(), Phase())))
    print_difference(console, "one", "one\nLook for [bold]words[/bold] " + "and more words " * 20)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    # A prompt is text, not markup.
    assert any("[bold]words[/bold]" in line for line in lines)


def test_what_training_made_is_shown_even_if_it_is_not_taken():
    epochs = [epoch(0, "first", 5), epoch(1, "worse", 3)]
    result = Result(Accuracy(5, 10), epochs, epochs[0], Accuracy(5, 10), wrong=5)
    out = io.StringIO()
    print_prompts(Console(file=out, width=80), result)
    assert "(unchanged)" in out.getvalue()
    assert "epoch 1 (3/10 on validation)" in out.getvalue()
    assert "+ worse" in out.getvalue()


def test_columns_of_failures_appear_with_the_first_failure():
    out = io.StringIO()
    console = Console(file=out, width=80)
    console.print(phase_table({"forward": Phase(calls=3)}, Phase(calls=3)))
    assert "failed" not in out.getvalue()
    console.print(phase_table({"forward": Phase(calls=3, failed=1)}, Phase(calls=3, failed=1)))
    assert "failed" in out.getvalue()


def test_the_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "demo.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write({"figure": object()}, path)
    assert path.read_text() == "old"
    write({"figure": 1}, path)
    assert json.loads(path.read_text()) == {"figure": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo.json"]
    assert 0o600 == path.stat().st_mode & 0o777
