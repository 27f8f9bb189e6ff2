"""SimulatedLM: plays every role of a training run by rules, and FixedReply: one reply for everything.

Tests, the demo and benchmarks of learning need a model that answers the same way every time, costs nothing, and gets
better only if feedback really reaches its prompt. `SimulatedLM` looks up the role that a request is meant for and calls
the function that plays it: `_student.answer`, or one of `_critic`.

The second half is the editor, an optimizer that answers with edits by block instead of a whole text. It adds no rule.
`edit` reads each mistake as the critic would (`comment`), rewrites the text as the optimizer would (`rewrite`), and
answers with the difference, block by block. `_merge` joins cue sentences that several edits contest, by the votes of
their samples, as the optimizer joins claims.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from afnio.testing.simulated._critic import (
    Case,
    Cues,
    by_calls,
    comment,
    criticize,
    is_note,
    judge,
    limits_of,
    noun_of,
    over,
    propose,
    read_feedback,
    reduce,
    rewrite,
)
from afnio.testing.simulated._language import (
    PromptBlock,
    cue_sentence,
    kind_of,
    read_blocks,
    read_conversation,
    read_section,
    samples_of,
    schema_of,
    split_cues,
)
from afnio.testing.simulated._student import PERFECT, Attention, answer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from afnio.testing.simulated._language import Conversation

_VARIABLE: Final = re.compile(r'<variable id="([^"]+)"')


class SimulatedLM:
    """Plays student, critic, reducer, optimizer and judge by rules.

    No rule knows a data set or remembers anything between requests: the same request gets the same reply, and text that
    was cut from a request has no effect. Scores are simulated. They show that feedback travels through an engine, and
    nothing about language models.

    * The *student* counts each label's cues in its instructions. Without cues it takes courtesy at face value. In tasks
      with an exact answer it makes typical mistakes until its instructions rule them out. Otherwise it echoes the
      message, or fills the schema.
    * The *critic* names the phrases of the message that argue for the expected label, by a lexicon of general English,
      or the missing skill. If an input was already wrong, it blames the step that wrote it. It passes on feedback
      without a label.
    * The *reducer* merges the feedback of a group and drops repetitions.
    * The *optimizer* counts the claims in all feedback and writes them as cue sentences. Asked for edits by block, it
      answers with the blocks that it would change, and it merges edits that contest one place.
    * The *judge* compares prediction and target.

    A model whose name starts with `simulated-limited` has the limits of published models. The more feedback, the
    smaller the share it uses; the more instructions, the smaller the share it follows. A quarter of its criticism
    misses the point, and its rewrites get longer (docs/simulated-lm.md). All other names notice everything.

    Args:
        context: the number of characters that it reads of the instructions, and of the prompt.
        seed: seed of the draws of a limited model.

    >>> lm = SimulatedLM()
    >>> lm({"messages": [{"role": "user", "content": "What is the sentiment of: thank you?"}]})
    'neutral'
    """

    def __init__(self, context: int = 1_000_000, seed: int = 0) -> None:
        self._context = context
        self._seed = seed

    def __call__(self, request: dict[str, Any], attempt: int = 1) -> str:
        """Return the text of the reply to a chat completion request.

        Args:
            attempt: how often the request has been sent, this time included; ignored at temperature 0.
        """
        conversation = read_conversation(request, self._context)
        reader = Attention.of(request, attempt, self._seed)
        kind = kind_of(request)
        if kind == "critic":
            return criticize(conversation, reader)
        if kind == "optimizer":
            return propose(conversation, reader)
        if kind == "editor":
            return edit(conversation, reader)
        if kind == "reducer":
            return reduce(conversation, reader)
        if kind == "judge":
            return judge(conversation.prompt)
        _, schema = schema_of(request)
        return answer(conversation, schema, reader)


class FixedReply:
    """Replies with one text to every student, for benchmarks; other roles get a minimal valid object.

    >>> FixedReply("ok")({"messages": [{"role": "user", "content": "hello"}]})
    'ok'
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._comment = text or "Be specific."

    def __call__(self, request: dict[str, Any]) -> str:
        """Return the text of the reply to a chat completion request."""
        kind = kind_of(request)
        if kind == "student":
            return self._text
        prompt = read_conversation(request, 1_000_000).prompt
        if kind == "critic":
            ids = _VARIABLE.findall(prompt)
            return json.dumps({"feedback": [{"variable": name, "text": self._comment} for name in ids]})
        if kind == "editor":
            return json.dumps({"edits": [{"op": "add", "block": 0, "text": self._comment, "samples": []}]})
        if kind == "reducer":
            return json.dumps({"points": [{"point": self._comment, "sources": [1]}]})
        if kind == "judge":
            return json.dumps({"score": 0, "explanation": self._comment})
        variables = read_blocks(prompt, "variable")
        value = variables[0].text if variables else ""
        return json.dumps({"value": value if self._comment in value else f"{value} {self._comment}"})


# The editor.


_SEEN: Final = re.compile(r"\(the variable stands in calls ([\d ]+)\)\n")


def edit(conversation: Conversation, reader: Attention = PERFECT) -> str:
    """Return the editor's JSON: the edits that the mistakes or the feedback in the prompt ask for."""
    prompt = conversation.prompt
    blocks = [block.text for block in read_blocks(read_section(prompt, "variable"), "block")]
    constraints = [block.text for block in read_blocks(read_section(prompt, "constraints"), "constraint")]
    places = read_blocks(read_section(prompt, "places"), "place")
    if places:
        return _reply(_merge(blocks, places, constraints))
    value = "\n".join(blocks)
    read = [*_mistakes(prompt, value, reader), *_feedback(prompt)]
    read = [(number, text) for number, text in read if text]
    if not read:
        return _reply([])
    refused = [b.text for b in read_blocks(read_section(prompt, "rejected"), "tried")]
    new = rewrite(value, [text for _, text in read], constraints, reader, refused)
    return _reply(_difference(blocks, new, read))


def _reply(edits: list[dict[str, Any]]) -> str:
    return json.dumps({"edits": edits}, ensure_ascii=False)


def _mistakes(prompt: str, value: str, reader: Attention) -> list[tuple[str, str]]:
    """Return the id of each mistake that the prompt shows, and what a critic would say about it."""
    noun = noun_of(read_blocks(prompt, "reply_format"))
    mistakes = []
    for mistake in read_blocks(read_section(prompt, "mistakes"), "mistake"):
        number = mistake.attributes.get("id", "")
        if "\n<trace>\n" in f"\n{mistake.text}":
            seen = _SEEN.match(mistake.text)
            variable = PromptBlock({"seen_in": seen[1] if seen else ""}, value)
            mistakes.append((number, by_calls(f"\n{mistake.text}", [variable], reader)[0]))
            continue
        conversation, _, judged = mistake.text.partition("</conversation>")
        said = [m.text for m in read_blocks(conversation, "message") if m.attributes.get("role") == "user"]
        feedback = [block.text.strip() for block in read_blocks(judged, "feedback")]
        case = Case(said[-1] if said else "", feedback, noun)
        mistakes.append((number, comment(value, case, reader)))
    return mistakes


def _feedback(prompt: str) -> list[tuple[str, str]]:
    blocks = read_blocks(read_section(prompt, "feedbacks"), "feedback")
    return [(block.attributes.get("id", ""), block.text.strip()) for block in blocks]


# The difference of two texts.


def _difference(blocks: list[str], new: str, read: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the edits that make `new` from blocks."""
    sentences = _sentences(new)
    left = [sentence for sentence in sentences if sentence not in blocks]
    edits: list[dict[str, Any]] = []
    for number, block in enumerate(blocks, start=1):
        if block in sentences:
            continue
        labels = list(split_cues(block)[1])
        successor = next((s for s in left if labels and list(split_cues(s)[1]) == labels), None)
        if successor is not None:
            left.remove(successor)
            edits.append(_edit("replace", number, successor, _behind(_changed(block, successor), read)))
        elif not _inside(block, new):
            edits.append(_edit("delete", number, "", _behind(_phrases(block), read)))
    end = len(blocks)
    return [*edits, *(_edit("add", end, text, _behind(_phrases(text) or {text}, read)) for text in left)]


def _sentences(text: str) -> list[str]:
    """Return the lines of a text, with each cue sentence as a line of its own."""
    head, cues = split_cues(text)
    lines = [line.strip() for line in head.split("\n")]
    return [line for line in [*lines, *_written(cues)] if line]


def _inside(block: str, text: str) -> bool:
    """Return True if `text` has the block, perhaps in the middle of a line."""
    return block.strip() in text


def _written(cues: Cues) -> list[str]:
    return [cue_sentence(label, phrases) for label, phrases in cues.items() if phrases]


def _phrases(sentence: str) -> set[str]:
    return {phrase for phrases in split_cues(sentence)[1].values() for phrase in phrases}


def _changed(one: str, other: str) -> set[str]:
    return _phrases(one) ^ _phrases(other)


def _behind(phrases: Iterable[str], read: list[tuple[str, str]]) -> list[int]:
    """Return the ids of the feedback that has one of the phrases, or of all if none has."""
    wanted = list(phrases)
    named = [number for number, text in read if any(phrase in text for phrase in wanted)]
    named = named or [
        number
        for number, text in read
        for wish in read_feedback([text])[2]
        if any(wish in phrase for phrase in wanted)
    ]
    return [int(number) for number in named or [number for number, _ in read] if number.isdecimal()]


def _edit(op: str, block: int, text: str, samples: list[int]) -> dict[str, Any]:
    return {"op": op, "block": block, "text": text, "samples": samples}


# Merging.


def _merge(blocks: list[str], places: list[PromptBlock], constraints: list[str]) -> list[dict[str, Any]]:
    """Return one set of edits for contested places.

    A cue that one edit takes out goes. A phrase that edits give to two labels goes to the one with more samples.
    Over the limit, the repeated notes go first and then the cues with the fewest samples.
    """
    votes: dict[str, Counter[str]] = {}
    order: dict[str, None] = {}
    lines: dict[str, None] = {}
    starts: list[tuple[int, str]] = []
    for place in places:
        number = int(place.attributes.get("block", "0"))
        edits = read_blocks(place.text, "edit")
        changing = [edit for edit in edits if edit.attributes.get("op") != "add"]
        old = blocks[number - 1] if changing and 0 < number <= len(blocks) else ""
        starts.append((number, old))
        kept = _phrases(old)
        for edit in changing:
            kept &= _phrases(edit.text)
        for edit in edits:
            head, cues = split_cues(edit.text)
            lines.update(dict.fromkeys(line.strip() for line in head.split("\n") if line.strip()))
            for label, phrases in cues.items():
                for phrase in phrases:
                    if phrase in kept or phrase not in _phrases(old):
                        votes.setdefault(phrase, Counter())[label] += samples_of(edit)
                        order[phrase] = None
    ranked = sorted(order, key=lambda phrase: -max(votes[phrase].values()))
    texts = _within(list(lines), ranked, votes, limits_of(constraints))
    return _placed(starts, texts)


def _within(
    lines: list[str], phrases: list[str], votes: dict[str, Counter[str]], limits: list[tuple[str, str]]
) -> list[str]:
    while True:
        cues: Cues = {}
        for phrase in phrases:
            cues.setdefault(votes[phrase].most_common(1)[0][0], []).append(phrase)
        texts = [*lines, *_written(cues)]
        if not any(over("\n".join(texts), *limit) for limit in limits):
            return texts
        if any(is_note(line) for line in lines):
            lines = [line for line in lines if not is_note(line)]
        elif phrases:
            phrases = phrases[:-1]
        else:
            return texts


def _placed(starts: list[tuple[int, str]], texts: list[str]) -> list[dict[str, Any]]:
    """Return edits that put the texts at the places: cue sentences where one of their label stood, others last."""
    edits: list[dict[str, Any]] = []
    left = list(texts)
    for number, old in starts:
        if not old:
            continue
        labels = list(split_cues(old)[1])
        mine = next((text for text in left if labels and list(split_cues(text)[1]) == labels), None)
        if mine is not None:
            left.remove(mine)
        if mine != old:
            edits.append(_edit("replace" if mine else "delete", number, mine or "", []))
    last = starts[-1][0]
    return [*edits, *(_edit("add", last, text, []) for text in left)]
