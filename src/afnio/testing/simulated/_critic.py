"""The roles that read feedback: critic, judge, reducer and optimizer.

Feedback travels through them in the small language of `_language`. The critic (`criticize`) compares a wrong reply with
the expected label and claims which phrases of the message argue for that label, or names the skill that was missing.
The reducer (`reduce`) merges the claims of a group into few points, the most frequent first. The optimizer (`propose`)
counts the votes for each claim and writes the winners into the prompt as cue sentences, within the constraints. The
judge (`judge`) compares a prediction with a target.

No role knows more than its prompt shows. A feedback that was cut off, or a sample that was never shown, teaches
nothing; so a higher score proves that feedback really reached the prompt.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from afnio.testing.simulated._language import (
    PHRASES,
    UNKNOWN,
    PromptBlock,
    Task,
    claim_sentence,
    cue_sentence,
    denial_sentence,
    normalize,
    notes_in,
    read_blocks,
    read_claims,
    read_denials,
    read_section,
    read_sections,
    samples_of,
    split_cues,
    task_of,
    told_skills,
)
from afnio.testing.simulated._student import PERFECT, Attention

if TYPE_CHECKING:
    from afnio.testing.simulated._language import Conversation


_MOST_PHRASES: Final = 2
_ASK: Final = "The text should ask for this: "
_EXPECTED: Final = re.compile(r"\bpredicted (.+), expected (?=[\"\d\[{tfn])", re.DOTALL)
_DECODER: Final = json.JSONDecoder()
_LONG: Final = 5


class Case(NamedTuple):
    """A message with a wrong reply: its text, the feedback on the reply, and the noun for the answer."""

    message: str
    feedback: list[str]
    noun: str = "answer"


def criticize(conversation: Conversation, reader: Attention = PERFECT) -> str:
    """Return the critic's JSON, with one entry for each variable in the prompt."""
    prompt = conversation.prompt
    variables = read_blocks(read_section(prompt, "variables"), "variable")
    if "\n<trace>\n" in prompt:
        return _answer(variables, by_calls(prompt, variables, reader))
    messages = read_blocks(read_section(prompt, "conversation"), "message")
    _, _, judged = prompt.partition("</conversation>")
    feedback = [block.text.strip() for block in read_blocks(judged, "feedback")]
    message = next((m.text for m in reversed(messages) if m.attributes.get("role") == "user"), "")
    case = Case(message, feedback, noun_of(read_blocks(judged, "reply_format")))
    told = [m.text for m in messages if m.attributes.get("role") in ("system", "developer")]
    said = []
    for variable in variables:
        upstream = bool(told) and not any(variable.text in text for text in told)
        said.append(blame(variable.text, told, case) if upstream else comment(variable.text, case, reader))
    return _answer(variables, said)


def _answer(variables: list[PromptBlock], said: list[str]) -> str:
    entries = [
        {"variable": variable.attributes.get("id", ""), "text": text}
        for variable, text in zip(variables, said, strict=True)
    ]
    return json.dumps({"feedback": entries}, ensure_ascii=False)


# The critic of an agent's trace. It blames the last call with a text to criticise that could have prevented the
# mistake, and comments on the texts of that call alone, as the critic of a single conversation would.


class ShownCall(NamedTuple):
    """A call of a trace: its number, its messages in full as (role, text), and the noun for its answer."""

    number: str
    messages: list[tuple[str, str]]
    noun: str

    @property
    def message(self) -> str:
        return next((text for role, text in reversed(self.messages) if role == "user"), "")

    @property
    def told(self) -> list[str]:
        return [text for role, text in self.messages if role == "system"]


def by_calls(prompt: str, variables: list[PromptBlock], reader: Attention) -> list[str]:
    trace, _, judged = prompt.partition("\n</trace>")
    calls = _read_calls(trace.partition("\n<trace>")[2])
    feedback = [block.text.strip() for block in read_blocks(judged, "feedback")]
    seen = [variable.attributes.get("seen_in", "").split() for variable in variables]
    holding = [call for call in calls if any(call.number in numbers for numbers in seen)]
    cases = [(call, Case(call.message, feedback, call.noun)) for call in holding or calls[-1:]]
    if not cases:
        shown = "\n".join(
            block.text for block in read_blocks(read_section(prompt, "agent_inputs"), "agent_input")
        )
        return [comment(variable.text, Case(shown, feedback), reader) for variable in variables]
    call, case = next((one for one in reversed(cases) if _could_prevent(one[1])), cases[-1])
    said = []
    for variable, numbers in zip(variables, seen, strict=True):
        told = call.told
        if holding and call.number not in numbers:
            said.append("")
        elif told and not any(variable.text in text for text in told) and variable.text in case.message:
            said.append(blame(variable.text, told, case))
        else:
            said.append(comment(variable.text, case, reader))
    return said


def _read_calls(trace: str) -> list[ShownCall]:
    """Return the calls of a trace, each with the messages that it shares with an earlier one."""
    calls: list[ShownCall] = []
    whole: dict[str, list[tuple[str, str]]] = {}
    noun = "answer"
    for attributes, body in read_sections(trace, "call"):
        number, shared = attributes.get("id", ""), attributes.get("shared", "0")
        before = whole.get(attributes.get("begins_like", ""), [])
        messages = before[: int(shared) if shared.isdecimal() else 0]
        messages += [(m.attributes.get("role", ""), m.text) for m in read_blocks(body, "message")]
        formats = read_blocks(body, "reply_format")
        noun = noun_of(formats) if formats else noun
        calls.append(ShownCall(number, messages, noun))
        whole[number] = [*messages, *(("assistant", reply.text) for reply in read_blocks(body, "reply"))]
    return calls


def _could_prevent(case: Case) -> bool:
    """Return True if, by its message, a call could have led to the right answer."""
    label = next((expected for text in case.feedback if (expected := expected_label(text)) is not None), None)
    if label is None:
        return True
    task = task_of(case.message)
    if task is not None:
        return _right(task.solve(case.message, list(task.skills)), label)
    return any(_telling_phrases(case.message, part.strip()) for part in [label, *label.split(",")])


def comment(value: str, case: Case, reader: Attention = PERFECT) -> str:
    """Return the change that the instructions `value` need for this case, or ""."""
    for text in case.feedback:
        label = expected_label(text)
        if label is None:
            continue
        if (task := task_of(case.message)) is not None:
            return _missing_skill(value, task, case.message, label, reader)
        return _missing_phrases(value, case, label, reader)
    said = " ".join(dict.fromkeys(text for text in case.feedback if text))
    return f"{_ASK}{said}" if said else ""


def _missing_phrases(value: str, case: Case, label: str, reader: Attention) -> str:
    normal = normalize(value)
    parts = [label] if label.lower() in PHRASES else [part.strip() for part in label.split(",")]
    said = [_misleading(value, case, parts, reader)] if reader.limited else []
    for part in parts if all(part.lower() in PHRASES for part in parts) else [label]:
        phrases = [p for p in _telling_phrases(case.message, part) if f" {p} " not in normal]
        if phrases and reader.strays(part):
            words = [w for w in dict.fromkeys(normalize(case.message).split()) if len(w) > _LONG]
            phrases = [words[reader.pick("word", len(words))]]
        if phrases:
            said.insert(0, claim_sentence(case.noun, dict.fromkeys(phrases[:_MOST_PHRASES], part)))
            break
    return " ".join(text for text in said if text)


def _misleading(value: str, case: Case, expected: list[str], reader: Attention) -> str:
    """Return the denial of one cue in the text that argued for a wrong label here, or ""."""
    words = normalize(case.message)
    _, cues = split_cues(value)
    for label, phrases in cues.items():
        wrong = [phrase for phrase in phrases if f" {phrase} " in words]
        if label not in expected and wrong:
            return denial_sentence(case.noun, [wrong[reader.pick(f"deny {label}", len(wrong))]], label)
    return ""


def _missing_skill(value: str, task: Task, message: str, label: str, reader: Attention) -> str:
    told = told_skills(task, value)
    missing = [name for name in task.skills if name not in told]
    every = [*told, *missing]
    if not _right(task.solve(message, every), label):
        return _vague(value, reader)  # the inputs were wrong: no instruction would have helped
    alone = [name for name in missing if _right(task.solve(message, [*told, name]), label)]
    if not missing or reader.strays("skill"):
        return _vague(value, reader)
    return f"{_ASK}{task.skills[(alone or missing)[0]].wish}."


def _vague(value: str, reader: Attention) -> str:
    """Return useless advice if the critic misses the point, else ""."""
    return f"{_ASK}{_VAGUE[reader.pick('vague', len(_VAGUE))]}." if reader.strays("vague") else ""


_VAGUE: Final = (
    "read the input with more care",
    "think about what the user needs before answering",
    "be precise and complete",
    "double check the reply before it is sent",
)


def blame(value: str, told: list[str], case: Case) -> str:
    """Return feedback on an input that an earlier step wrote, or "" if that input was right."""
    task = task_of(case.message)
    label = next((named for text in case.feedback if (named := expected_label(text)) is not None), None)
    if task is None or label is None or not task.inputs:
        return ""
    if _right(task.solve(case.message, list(task.skills)), label):
        return ""  # these inputs were enough for the right answer
    expected = json.dumps(label, ensure_ascii=False)
    said = (
        f"the input to a later step: predicted {json.dumps(value, ensure_ascii=False)}, expected {expected}."
    )
    there = any(note[3] == label for note in notes_in(case.message)) or label == UNKNOWN
    return said if bool(notes_in(value) or value.startswith("(no")) != there else ""


def _right(reply: str, label: str) -> bool:
    """Return True if a reply is the expected one, or is a list of notes with the expected one among them."""
    notes = notes_in(reply)
    return any(note[3] == label for note in notes) if notes else reply == label


def expected_label(feedback: str) -> str | None:
    """Return the answer that a deterministic evaluator expected, or None if the feedback names none.

    >>> expected_label('exact match: predicted "positive", expected "neutral", score 0.')
    'neutral'
    """
    match = _EXPECTED.search(feedback)
    if match is None:
        return None
    try:
        value, _ = _DECODER.raw_decode(feedback, match.end())
    except ValueError:
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _telling_phrases(message: str, label: str) -> list[str]:
    """Return the phrases of `message` that argue for `label`, the most telling first.

    If the lexicon doesn't have the label: the long words of the first line.
    """
    telling = PHRASES.get(label.lower())
    words = normalize(message)
    if telling is not None:
        return [phrase for phrase in telling if f" {phrase} " in words]
    lines = [line for line in message.splitlines() if len(normalize(line).split()) > 2]
    first = normalize(lines[0] if lines else message).split()
    return list(dict.fromkeys(word for word in first if len(word) > _LONG))


def noun_of(formats: list[PromptBlock]) -> str:
    """Return the name of the reply format's field that holds the label, or "answer"."""
    nouns: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                if isinstance(child, dict) and "enum" in child:
                    nouns.append(name)
                visit(child)

    for block in formats:
        try:
            visit(json.loads(block.text))
        except (ValueError, RecursionError):
            continue
    return nouns[0] if nouns else "answer"


# The judge.


_PREDICTION: Final = re.compile(r"\b(?:prediction|answer|reply|response)\b[^\n:]*:\s*(.+)", re.IGNORECASE)
_TARGET: Final = re.compile(r"\b(?:target|expected|reference|truth|gold)\b[^\n:]*:\s*(.+)", re.IGNORECASE)


def judge(text: str) -> str:
    r"""Return the judge's JSON: score 1 if prediction and target have the same words, else 0.

    Each is expected on its own line, after its name and a colon. Without a target every prediction that isn't empty
    gets a 1.

    >>> judge("Prediction: Seven.\nTarget: seven")
    '{"score": 1, "explanation": "exact match: predicted \\"Seven.\\", expected \\"seven\\", score 1."}'
    """
    said, wanted = _last(_PREDICTION, text), _last(_TARGET, text)
    if wanted is None:
        good = bool(said and normalize(said).strip())
        return json.dumps({"score": int(good), "explanation": "It answers." if good else "It says nothing."})
    score = int(normalize(said or "") == normalize(wanted))
    quoted = [json.dumps(value, ensure_ascii=False) for value in (said or "", wanted)]
    explanation = f"exact match: predicted {quoted[0]}, expected {quoted[1]}, score {score}."
    return json.dumps({"score": score, "explanation": explanation}, ensure_ascii=False)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    matches = pattern.findall(text)
    return str(matches[-1]).strip() if matches else None


# The reducer.


_LIMITS: Final = re.compile(r"at most (\d+) points?, (\d+) words")
_NOUN: Final = re.compile(r'mean the ([^".]*?) is "')
# Words of a point in addition to its phrases.
_SPARE_WORDS: Final = 14

# An element of a feedback: "claim", "denial" or "wish", its phrase, and its label ("" for a wish).
Remark = tuple[str, str, str]
# For each remark the indices of the feedback texts that contain it.
Sources = dict[Remark, list[int]]


def reduce(conversation: Conversation, reader: Attention = PERFECT) -> str:
    """Return the reducer's JSON: the points of the group's feedback, those of most samples first."""
    prompt = conversation.prompt
    blocks = read_blocks(read_section(prompt, "feedbacks"), "feedback")
    said = _said([block.text for block in blocks], reader)
    limits = _LIMITS.search(prompt)
    most_points, most_words = (int(limits[1]), int(limits[2])) if limits else (len(blocks) or 1, 10_000)
    noun = _NOUN.search(prompt)
    points: list[dict[str, object]] = []
    room = most_words
    for things in _points(said, blocks):
        how, _, label = things[0]
        kept: list[Remark] = []
        for what in things:
            if room - len(what[1].split()) < (0 if kept else _SPARE_WORDS):
                break
            room -= len(what[1].split()) + (0 if kept else _SPARE_WORDS)
            kept.append(what)
        if kept and len(points) < most_points:
            sources = sorted({number + 1 for what in kept for number in said[what]})
            point = _sentence(how, [what[1] for what in kept], label, noun[1] if noun else "answer")
            points.append({"point": point, "sources": sources})
    if not points and blocks:
        points.append({"point": blocks[0].text, "sources": [1]})
    return json.dumps({"points": points}, ensure_ascii=False)


def _said(texts: list[str], reader: Attention) -> Sources:
    """Return the remarks that the reader notices. A remark in two texts gets two chances."""
    read = [read_feedback([text]) for text in texts]
    among = sum(
        (len(claims) + len(denials)) / _MOST_PHRASES + len(wishes) for claims, denials, wishes in read
    )
    said: Sources = {}
    for number, (claims, denials, wishes) in enumerate(read):
        things = [("claim", *claim) for claim in claims] + [("denial", *denial) for denial in denials]
        for thing in [*things, *(("wish", wish, "") for wish in wishes)]:
            if reader.uses(f"{number} {thing}", among):
                numbers = said.setdefault(thing, [])
                numbers += [] if number in numbers else [number]
    return said


def _points(said: Sources, blocks: list[PromptBlock]) -> list[list[Remark]]:
    """Group remarks into points, those of most samples first.

    The remarks of a point are about one label, and each comes from at least half as many samples as the point's first.
    A remark of a single sample is a separate point. It is dropped if the sample's kind of failure already has a point.
    """
    samples = [samples_of(block) for block in blocks]
    votes = {what: sum(samples[number] for number in numbers) for what, numbers in said.items()}
    points: dict[tuple[str, str], list[list[Remark]]] = {}
    alone: dict[tuple[str, str, int], list[Remark]] = {}
    for what in sorted(said, key=lambda what: -votes[what]):
        how, phrase, label = what
        if votes[what] == 1:
            alone.setdefault((how, label or phrase, said[what][0]), []).append(what)
            continue
        parts = points.setdefault((how, label or phrase), [])
        if not parts or 2 * votes[what] < votes[parts[-1][0]]:
            parts.append([])
        parts[-1].append(what)
    common = [part for parts in points.values() for part in parts]
    behind = {number for part in common for what in part for number in said[what]}
    failures = {blocks[number].attributes.get("failure") for number in behind} - {None}
    rare = [
        things
        for (_, _, number), things in alone.items()
        if number not in behind and blocks[number].attributes.get("failure") not in failures
    ]

    def support(things: list[Remark]) -> int:
        return sum(samples[number] for number in {number for what in things for number in said[what]})

    return sorted([*common, *rare], key=lambda things: -support(things))


def _sentence(how: str, phrases: list[str], label: str, noun: str) -> str:
    if how == "wish":
        return f"{_ASK}{phrases[0]}."
    if how == "denial":
        return denial_sentence(noun, phrases, label)
    return claim_sentence(noun, dict.fromkeys(phrases, label))


# The optimizer: rewrites a text by the claims and wishes in its feedback, and by nothing else.


_MOST_CUES: Final = 25
_MOST_WISHES: Final = 3
_FORBIDS: Final = re.compile(r"\b(?:never|not|without|avoid|no)\b", re.IGNORECASE)
_CHARACTER: Final = re.compile(r"[`\"'](\W)[`\"']|(?<=\s)([{}<>\[\]#*@_|~^])(?=[\s,.]|$)")
# The sentence that a limited proposer adds for each feedback it used, as real ones lengthen prompts.
_NOTE: Final = 'One input with "{phrase}" was answered wrongly before, so weigh all of such an input again.'
_RETOLD: Final = re.compile(re.escape(_NOTE).replace(re.escape("{phrase}"), ".*"))
_LIMIT: Final = re.compile(
    r"\b(?:at most|no more than|under|up to|maximum of)\s+(\d+)\s+(character|word)s?", re.IGNORECASE
)

Cues = dict[str, list[str]]


def propose(conversation: Conversation, reader: Attention = PERFECT) -> str:
    """Return the optimizer's JSON with the new value; without feedback the value is unchanged."""
    prompt = conversation.prompt
    # Take the last section: the history before it contains feedback too. The end of the prompt may be cut off.
    _, _, told = prompt.rpartition("<feedbacks>\n")
    blocks = read_blocks(told, "feedback") if "<feedbacks>\n" in prompt else []
    blocks = [block for block in blocks if block.text.strip()]
    variables = read_blocks(prompt, "variable")
    value = variables[0].text if variables else ""
    constraints = [b.text for b in read_blocks(prompt, "constraint")]
    failures = [b.text for b in read_blocks(read_section(prompt, "failures"), "failure")]
    refused = [b.text for b in read_blocks(read_section(prompt, "rejected"), "tried")]
    texts, samples = [b.text for b in blocks], [samples_of(b) for b in blocks]
    new = rewrite(value, texts, constraints, reader, refused, samples, failures) if blocks else value
    return json.dumps({"value": new}, ensure_ascii=False)


def rewrite(
    value: str,
    feedback: list[str],
    constraints: list[str],
    reader: Attention = PERFECT,
    refused: list[str] | None = None,
    samples: list[int] | None = None,
    failures: list[str] | None = None,
) -> str:
    """Return `value` with the claims and wishes of the feedback added, within the constraints.

    Args:
        refused: values that were tried and rejected.
        samples: the number of inputs behind each feedback, the weight of its votes; 1 each by default.
        failures: repeated mistakes, the most frequent first; cues against them win ties.

    >>> rewrite("Be kind.", ["answer in Italian"], [])
    'Be kind.\\nIn every reply: answer in Italian.'
    """
    head, before = split_cues(value)
    claims, denials, wishes, notes = _gather(feedback, samples or [1] * len(feedback), reader)
    if refused:
        tried = normalize(" ".join(refused))
        claims = [c for c in claims if f" {c[0][0]} " not in tried or reader.repeats(c[0][0])]
    wanted = [expected_label(failure) or "" for failure in failures or ()]
    claims = sorted(
        claims, key=lambda c: next((n for n, label in enumerate(wanted) if c[0][1] in label), len(wanted))
    )
    cues = _tally(before, claims, denials)
    lines = [f"In every reply: {wish}." for wish, _ in wishes.most_common(_MOST_WISHES) if wish]
    lines = [line for line in [*lines, *notes] if line not in head]
    whole = "\n".join([head, *lines, *_sentences(cues)])
    if reader.limited and any(over(whole, *limit) for limit in limits_of(constraints)):
        # Over the limit: drop the notes about feedback first, those of earlier steps too.
        lines = [line for line in [*head.split("\n"), *lines] if not is_note(line)]
        head = lines.pop(0) if lines else ""
    return _fit("\n".join([head, *lines]), cues, constraints)


Pairs = list[tuple[str, str]]
# (phrase, label) pairs in the order of the feedback, each with its weight.
Votes = list[tuple[tuple[str, str], int]]


def _gather(
    feedback: list[str], samples: list[int], reader: Attention
) -> tuple[Votes, Votes, Counter[str], list[str]]:
    """Return the claims, denials and wishes that the reader uses, and its notes about them.

    The critic makes at most `_MOST_PHRASES` claims a sample, so that many claims count as one feedback.
    """
    claims: Votes = []
    denials: Votes = []
    wishes: list[tuple[str, int]] = []
    for text, count in zip(feedback, samples, strict=True):
        claimed, denied, wished = read_feedback([text])
        claims += [(claim, count) for claim in claimed]
        denials += [(denial, count) for denial in denied]
        wishes += [(wish, count) for wish in wished]
    # The number of samples behind a feedback is its weight. It doesn't change the chance that it is noticed.
    among = (len(claims) + len(denials)) / _MOST_PHRASES + len(wishes)
    used = [vote for n, vote in enumerate(claims) if reader.uses(f"{n} {vote[0]}", among)]
    against = [vote for n, vote in enumerate(denials) if reader.uses(f"not {n} {vote[0]}", among)]
    wanted: Counter[str] = Counter()
    for n, (wish, count) in enumerate(wishes):
        if reader.uses(f"{n} {wish}", among):
            wanted[wish] += count
    notes: list[str] = []
    if reader.limited:
        about = [phrase for (phrase, _), _ in used[::_MOST_PHRASES]] + list(wanted)
        notes = [_NOTE.format(phrase=text) for text in dict.fromkeys(about)]
    return used, against, wanted, notes


def read_feedback(feedback: list[str]) -> tuple[Pairs, Pairs, list[str]]:
    """Return all claims, denials and wishes in feedback texts, repeated ones repeatedly."""
    claims: Pairs = []
    denials: Pairs = []
    wishes: list[str] = []
    for text in feedback:
        pairs, rest = read_claims(text)
        against = read_denials(text)
        claims += pairs
        denials += against
        if pairs or against:
            _, asked, rest = text.partition(_ASK)
            rest = rest if asked else ""
        wishes += [wish.rstrip(".").strip() for wish in rest.split(_ASK) if wish.strip()] if rest else []
    return claims, denials, wishes


def _tally(before: Cues, claims: Votes, denials: Votes) -> Cues:
    """Return the cues of each label: those in the text, then the claimed ones, the most frequent first.

    A cue that was claimed for two labels goes to the one with more votes. On a tie it stays at its label in the text,
    or is dropped if it is new. A cue in the text counts as one vote. A cue with as many denials as claims is dropped.
    """
    votes: dict[str, Counter[str]] = {}
    homes = {phrase: label for label in before for phrase in before[label]}
    for (phrase, label), count in [*((home, 1) for home in homes.items()), *claims]:
        votes.setdefault(phrase, Counter())[label] += count
    for (phrase, label), count in denials:
        votes.get(phrase, Counter())[label] -= count
    cues: Cues = {label: [] for label in before}
    # Sorting is stable: cues with equal votes keep the order of their first claim.
    for phrase, labels in sorted(votes.items(), key=lambda item: -max(item[1].values())):
        (label, most), *others = labels.most_common()
        if most <= 0:
            continue
        if others and others[0][1] == most:
            if phrase not in homes:
                continue
            label = homes[phrase]
        cues.setdefault(label, []).append(phrase)
    kept = {label: set(before.get(label, ())) for label in cues}
    return {
        label: sorted(phrases, key=lambda phrase: phrase not in kept[label])[:_MOST_CUES]
        for label, phrases in cues.items()
        if phrases
    }


def _fit(head: str, cues: Cues, constraints: list[str]) -> str:
    """Return the text with its cues. Drop the rarest ones until it is within the length limits."""
    banned = {c for text in constraints for c in _banned_characters(text)}
    limits = limits_of(constraints)
    cues = {label: list(phrases) for label, phrases in cues.items()}
    while True:
        text = "\n".join([head, *_sentences(cues)])
        text = "".join(character for character in text if character not in banned)
        if not any(cues.values()) or not any(over(text, *limit) for limit in limits):
            return text
        max(cues.values(), key=len).pop()


def _sentences(cues: Cues) -> list[str]:
    return [cue_sentence(label, phrases) for label, phrases in cues.items() if phrases]


def is_note(line: str) -> bool:
    """Return True if a line is a limited proposer's note about one feedback."""
    return _RETOLD.fullmatch(line) is not None


def limits_of(constraints: list[str]) -> list[tuple[str, str]]:
    return [limit for text in constraints for limit in _LIMIT.findall(text)]


def _banned_characters(constraint: str) -> list[str]:
    if not _FORBIDS.search(constraint):
        return []
    return [quoted or bare for quoted, bare in _CHARACTER.findall(constraint)]


def over(text: str, count: str, unit: str) -> bool:
    return (len(text) if unit.lower() == "character" else len(text.split())) > int(count)
