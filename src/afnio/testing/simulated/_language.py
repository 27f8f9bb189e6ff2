"""The language of the simulated LM: requests, tagged blocks, cue sentences, words and tasks.

A real model understands any prompt. This one understands a small language that the student, the critic, the reducer
and the optimizer share, so that a criticism can travel from one to the next:

* *Requests*: the role that a request asks for, and the texts in it (`kind_of`, `read_conversation`, `schema_of`).
* *Blocks*: the `<tag name="…">` blocks of Afnio's own prompts (`read_blocks`, `read_section`).
* *Cues*: sentences that tie phrases to a label. The critic claims cues (`claim_sentence`), the optimizer reads the
  claims (`read_claims`) and writes cue sentences into the prompt (`cue_sentence`), and the student reads those
  (`read_cues`). The student reads ordinary prose too, so hand-written prompts work.
* *Words*: a lexicon of general English, with the phrases that argue for each label (`PHRASES`).
* *Tasks*: three families with an exact answer, and the instructions that end a student's mistakes there (`TASKS`).

The lexicon was written in view of training data only. docs/simulated-lm.md describes the rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


# Requests.


Kind = Literal["student", "critic", "optimizer", "editor", "judge", "reducer"]

_KINDS: Final[dict[str, Kind]] = {
    "afnio_feedback": "critic",
    "afnio_value": "optimizer",
    "afnio_edits": "editor",
    "afnio_judgement": "judge",
    "afnio_reduction": "reducer",
}
# How prompts describe the reply in words, for providers that get no schema.
_FEEDBACK_FORM: Final = re.compile(r'\{\s*"feedback"\s*:\s*\[\s*\{\s*"variable"')
_POINTS_FORM: Final = re.compile(r'\{\s*"points"\s*:\s*\[\s*\{\s*"point"')
_EDITS_FORM: Final = re.compile(r'\{\s*"edits"\s*:\s*\[\s*\{\s*"op"')
_VALUE_FORM: Final = re.compile(r'\{\s*"value"\s*:\s*"')


def text_of(message: dict[str, Any]) -> str:
    """Return the text of a message whose content is a string, a list of parts, or nothing.

    >>> text_of({"role": "user", "content": [{"type": "text", "text": "hi"}]})
    'hi'
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


@dataclass(frozen=True, slots=True)
class Conversation:
    """The texts of a request: the system messages, the last user message, and all user messages."""

    instructions: str
    message: str
    prompt: str


def read_conversation(request: dict[str, Any], context: int) -> Conversation:
    """Return the texts of a request, each cut to `context` characters."""
    told: list[str] = []
    said: list[str] = []
    for message in request["messages"]:
        texts = told if message.get("role") in ("system", "developer") else said
        if message.get("role") != "assistant":
            texts.append(text_of(message))
    # Without a system message the instructions are in the first user message.
    instructions = "\n".join(told or said[:1])[:context]
    return Conversation(instructions, (said[-1] if said else "")[:context], "\n".join(said)[:context])


def schema_of(request: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Return the name and the schema that the reply must match, or "" and None.

    A plain `json_object` counts as a schema for any object.
    """
    form = request.get("response_format")
    if not isinstance(form, dict):
        return "", None
    if form.get("type") == "json_object":
        return "", {"type": "object"}
    asked = form.get("json_schema")
    if not isinstance(asked, dict):
        return "", None
    name, schema = asked.get("name"), asked.get("schema")
    return name if isinstance(name, str) else "", schema if isinstance(schema, dict) else None


def kind_of(request: dict[str, Any]) -> Kind:
    """Return the role that a request is meant for: by its schema's name, or by the reply format in its prompt.

    >>> kind_of({"messages": [{"role": "system", "content": 'Answer {"value": "<text>"}.'}]})
    'optimizer'
    """
    name, _ = schema_of(request)
    if name:
        return _KINDS.get(name, "student")
    instructions = text_of(request["messages"][0])
    if _FEEDBACK_FORM.search(instructions):
        return "critic"
    if _POINTS_FORM.search(instructions):
        return "reducer"
    if _EDITS_FORM.search(instructions):
        return "editor"
    return "optimizer" if _VALUE_FORM.search(instructions) else "student"


# Blocks.


_TAGS: Final = (
    "variables|variable|conversation|message|reply|edited_reply|reply_format|feedback|value|history"
    "|step|constraints|constraint|feedbacks|failures|failure|rejected|tried|block|mistakes|mistake|places|place|edit"
    "|trace|call|tool|agent_inputs|agent_input|agent_output"
)
_ESCAPED: Final = re.compile(rf"&lt;(?=/?(?:{_TAGS})\b)")
_QUOTED_VALUE: Final = r'"(?:[^"\\]|\\.)*"'
_ATTRIBUTE: Final = re.compile(rf"(\w+)=({_QUOTED_VALUE})")


class PromptBlock(NamedTuple):
    """One `<tag name="…">` block: its attributes and its text, unescaped."""

    attributes: dict[str, str]
    text: str


def read_blocks(text: str, tag: str) -> list[PromptBlock]:
    r"""Return the blocks of `tag` in order. A block without its closing tag (the prompt was cut) is left out.

    >>> read_blocks('<feedback source="judge">\nshorter\n</feedback>', "feedback")
    [PromptBlock(attributes={'source': 'judge'}, text='shorter')]
    """
    return [PromptBlock(attributes, unescape(body)) for attributes, body in read_sections(text, tag)]


def read_sections(text: str, tag: str) -> list[tuple[dict[str, str], str]]:
    """Return the attributes and the raw text of each section `tag`: blocks that contain blocks."""
    return [
        ({name: unescape(json.loads(value)) for name, value in _ATTRIBUTE.findall(head)}, body)
        for head, body in _pattern(tag).findall(text)
    ]


def read_section(text: str, tag: str) -> str:
    """Return the raw text of the section `tag`, or "" if there is none."""
    match = _pattern(tag).search(text)
    return match.group(2) if match else ""


def samples_of(block: PromptBlock) -> int:
    """Return the number of inputs that a block stands for: its attribute `samples`, or 1.

    >>> samples_of(PromptBlock({"samples": "12"}, "shorter")), samples_of(PromptBlock({}, "shorter"))
    (12, 1)
    """
    numbers = block.attributes.get("samples", "1")
    return int(numbers) if numbers.isdecimal() else 1


def unescape(text: str) -> str:
    """Undo the escaping of tags: Afnio's prompts write `&lt;` for a `<` that a user's text would open a tag with."""
    return _ESCAPED.sub("<", text)


@cache
def _pattern(tag: str) -> re.Pattern[str]:
    return re.compile(rf"<{tag}((?: \w+={_QUOTED_VALUE})*)>\n(.*?)\n</{tag}>", re.DOTALL)


# Cues.


_SENTENCE: Final = re.compile(r'(?:"[^"\n]*"|[^.;!?\n"]|")+')
_QUOTED: Final = re.compile(r"[\"“`]([^\"”`\n]+)[\"”`]")
# The words that may come between a label and its unquoted phrases.
_LIST: Final = re.compile(
    r"(?::|\b(?:mentions?|contains?|includes?|says?|such as|like|words?|phrases?|about)\b)\s*:?\s*"
    r"(?!.*(?::|\b(?:mentions?|contains?|includes?|such as)\b))(.+)$"
)
_NEGATED: Final = r"(?:\bnot|\bnever|\brather than|\binstead of)\s+(?:as\s+)?[\"“`]?"
_WRITTEN: Final = re.compile(r'\s*Answer "([^"\n]+)" when the message mentions: ([^.\n]*)\.')
_CLAIM: Final = re.compile(r'phrases such as ((?:"[^"]+"(?:, )?)+) mean the [^".]* is "([^"]+)"')
_DENIAL: Final = re.compile(r'should not say that ((?:"[^"]+"(?:, )?)+) mean the [^".]* is "([^"]+)"')
_LONGEST: Final = 6


@lru_cache(maxsize=256)
def read_cues(prompt: str, labels: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return each label's cue phrases, normalized.

    A sentence gives cues if it names exactly one label, not counting labels after "not" or "rather than". The cues are
    the phrases in quotes, or else the list after a colon or after a word like "mentions". A phrase has at most six
    words.

    >>> read_cues('Answer "neutral" when the message mentions: schedule, inquiry.', ("neutral",))
    {'neutral': (' schedule ', ' inquiry ')}
    """
    cues: dict[str, dict[str, None]] = {}
    for sentence in _SENTENCE.findall(prompt):
        meant = [label for label in labels if _means(sentence, label)]
        if len(meant) == 1:
            for phrase in _phrases(sentence, labels):
                cues.setdefault(meant[0], {})[phrase] = None
    return {label: tuple(phrases) for label, phrases in cues.items()}


def _means(sentence: str, label: str) -> bool:
    name = re.escape(label)
    kept = re.sub(rf"{_NEGATED}{name}\b", "", sentence, flags=re.IGNORECASE)
    return re.search(rf"(?<!\w){name}(?!\w)", kept, re.IGNORECASE) is not None


def _phrases(sentence: str, labels: tuple[str, ...]) -> list[str]:
    names = {normalize(label) for label in labels}
    quoted = [normalize(phrase) for phrase in _QUOTED.findall(sentence)]
    quoted = [phrase for phrase in quoted if phrase not in names]
    if not quoted and (listed := _LIST.search(sentence)):
        quoted = [normalize(part) for part in re.split(r",|\bor\b|\band\b", listed.group(1))]
    # Drop a part with the label in it: it ends the sentence, as in "… or dates, it is neutral".
    quoted = [phrase for phrase in quoted if not any(name in phrase for name in names)]
    return [phrase for phrase in quoted if 0 < len(phrase.split()) <= _LONGEST]


@lru_cache(maxsize=256)
def instructions_in(prompt: str, labels: tuple[str, ...]) -> int:
    """Return the number of instructions in a prompt: its sentences, and every cue phrase after a sentence's first.

    >>> instructions_in('Be kind. Answer "neutral" when the message mentions: date, price.', ("neutral",))
    3
    """
    sentences = sum(any(c.isalnum() for c in sentence) for sentence in _SENTENCE.findall(prompt))
    return sentences + sum(len(phrases) - 1 for phrases in read_cues(prompt, labels).values())


def cue_sentence(label: str, phrases: Iterable[str]) -> str:
    """Return the sentence that a student reads as cues for `label`."""
    return f'Answer "{label}" when the message mentions: {", ".join(phrases)}.'


def split_cues(value: str) -> tuple[str, dict[str, list[str]]]:
    """Split a text into the part without cue sentences and the cue phrases of each label."""
    cues: dict[str, list[str]] = {}
    for label, listed in _WRITTEN.findall(value):
        cues.setdefault(label, []).extend(part for part in listed.split(", ") if part)
    return _WRITTEN.sub("", value), cues


def claim_sentence(noun: str, claims: Mapping[str, str]) -> str:
    """Return the critic's claim that the phrases argue for a label; the values of `claims` are all the same label."""
    quoted = ", ".join(f'"{phrase}"' for phrase in claims)
    label = next(iter(claims.values()))
    return f'The text should say that phrases such as {quoted} mean the {noun} is "{label}".'


def read_claims(feedback: str) -> tuple[list[tuple[str, str]], str]:
    """Split feedback into its (phrase, label) claims and, if it makes none, its text.

    >>> read_claims('Phrases such as "vague" mean the sentiment is "negative".')[0]
    [('vague', 'negative')]
    """
    pairs = [
        (phrase, label)
        for listed, label in _CLAIM.findall(_uncapital(feedback))
        for phrase in _QUOTED.findall(listed)
    ]
    return pairs, "" if pairs else feedback.strip()


def denial_sentence(noun: str, phrases: Iterable[str], label: str) -> str:
    """Return the critic's denial: these cues of the text misled the student."""
    quoted = ", ".join(f'"{phrase}"' for phrase in phrases)
    return f'The text should not say that {quoted} mean the {noun} is "{label}".'


def read_denials(feedback: str) -> list[tuple[str, str]]:
    """Return the (phrase, label) pairs that feedback denies.

    >>> read_denials(denial_sentence("sentiment", ["always"], "positive"))
    [('always', 'positive')]
    """
    return [
        (phrase, label) for listed, label in _DENIAL.findall(feedback) for phrase in _QUOTED.findall(listed)
    ]


def _uncapital(text: str) -> str:
    return text.replace("Phrases such as", "phrases such as")


# Words.


_TYPOGRAPHIC: Final = "\u2019"  # the apostrophe that word processors write
_WORD: Final = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def normalize(text: str) -> str:
    """Return the lower-case words of `text` with one space around each, to look phrases up in.

    >>> " top notch " in normalize("Truly TOP-notch!")
    True
    """
    words = _WORD.findall(text.lower().replace(_TYPOGRAPHIC, "'"))
    return f" {' '.join(words)} "


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


# Words that an uninstructed student takes for a good mood.
COURTESY: Final = frozenset(
    _listed("""
        hope, thank, thanks, appreciate, appreciated, grateful, gratitude, commend, commendable,
        pleased, pleasure, kind, kindly, wonderful, excellent, great, delighted, best, regards,
        sincerely, warm, welcome, forward
    """)
)

# Words that even an uninstructed student takes for a bad mood.
COMPLAINTS: Final = frozenset(
    _listed("""
        unacceptable, terrible, awful, horrible, worst, furious, outraged, angry, appalling,
        disgusted, disappointed, frustrated, disheartened, unhappy, ridiculous, hate
    """)
)

# Phrases that argue for an urgency or for a kind of request, roughly the most telling first.
TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "high": _listed("""
        urgent, urgently, emergency, immediate, immediately, as soon as possible, asap, critical,
        right away, without delay, at once, hazard, dangerous, leak, flood, flooding, broken, outage,
        unacceptable, severe, crucial, prompt attention, swift, deadline, time sensitive
    """),
    "medium": _listed("""
        soon, at your earliest convenience, request, schedule, scheduling, appointment, arrange, concern,
        concerns, issue, issues, resolve, address, inconsistent, inspection, assistance, next week,
        follow up, adjust, support team
    """),
    "low": _listed("""
        inquire, inquiry, information about, learn more, curious, interested in, general, no rush,
        whenever, whenever convenient, feedback, appreciation, gratitude, impressed, exploring,
        considering, options, at your convenience, commend, testament
    """),
    "routine_maintenance_requests": _listed("""
        routine maintenance, maintenance, regular maintenance, hvac, check up, tune up, servicing, plumbing
    """),
    "customer_feedback_and_complaints": _listed("""
        feedback, complaint, disappointed, dissatisfaction, frustrated, unacceptable, experience,
        disappointment, satisfied
    """),
    "training_and_support_requests": _listed("""
        training, training program, training session, workshop, learn how, guidance, onboarding, tutorials
    """),
    "quality_and_safety_concerns": _listed("""
        safety, quality, standards, hazard, compliance, unsafe, subpar, health, inspection
    """),
    "sustainability_and_environmental_practices": _listed("""
        sustainability, sustainable, environmental, environmentally, eco friendly, green, energy efficient,
        carbon, recycling, waste
    """),
    "cleaning_services_scheduling": _listed("""
        cleaning schedule, schedule, reschedule, scheduling, weekly, bi weekly, time slot, appointment
    """),
    "specialized_cleaning_services": _listed("""
        specialized cleaning, deep cleaning, carpet, carpets, window, windows, upholstery, stain, stains
    """),
    "emergency_repair_services": _listed("""
        emergency, emergency repair, repair, urgent, leak, burst, flooding, outage, broke, broken
    """),
    "facility_management_issues": _listed("""
        facility management, space utilization, security, facility, coordination, building management
    """),
    "general_inquiries": _listed("""
        inquire, inquiry, information about, learn more, curious, would like to know, general, services you offer
    """),
}

# Phrases that argue for each label, roughly the most telling first.
PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "positive": _listed("""
        exceptional, outstanding, fantastic, wonderful, amazing, impressed, impressive,
        thrilled, delighted, love, loved, enjoy, enjoyed, enjoying, happy, glad, pleasure,
        admire, confident, highly, top notch, truly appreciate, sincerely appreciate, deeply
        appreciate, thank you so much, grateful, heartfelt, remarkable, superb, brilliant,
        perfect, excited, pleasantly, praise, kudos, compliment, testament, invaluable,
        dedication, expertise, went above, above and beyond, exceeded, professionalism, warm
        regards, keep up, great job, satisfied client, satisfied customer, trust your, seamless,
        pleased with
    """),
    "neutral": _listed("""
        inquire, inquiry, inquiring, information about, information on, information regarding,
        more information, detailed information, additional information, more details, details
        on, details about, interested in, curious, would like to know, learn more, available,
        availability, options, pricing, schedule, scheduling, scheduled, adjust, arrange,
        routine, request, requesting, guidance, recommendations, could you provide, please
        provide, could you please, provide me, clarify, clarification, considering, exploring,
        wanted to, would appreciate it if, at this time, if possible, next week, how your, how
        to, appointment, upcoming, flexible, reach out, look into
    """),
    "negative": _listed("""
        frustrated, frustrating, frustration, disappointed, disappointing, disappointment,
        unacceptable, disheartened, disheartening, dissatisfied, dissatisfaction, displeasure,
        unhappy, angry, upset, annoyed, annoying, appalled, appalling, terrible, awful,
        horrible, worst, poor, poorly, fed up, failed, fails, failure, failing, lack of,
        lacking, ignored, neglected, neglect, dismissive, unprofessional, unreliable,
        unresponsive, ridiculous, subpar, inadequate, insufficient, must admit, unfortunately,
        fell short, falls short, let down, expected better, not impressed, far from, undermines,
        reconsider, skeptical, vague, haphazard, careless, negligence, incompetent, complaint,
        distressing, unsatisfactory, rectify, intolerable, unbearable, no response, multiple
        times, yet again, still not, waste of
    """),
    **TOPICS,
}


# Tasks with an exact answer: counting objects and sorting words, as in BIG-Bench Hard, and the notes of a small
# question-answering system with three steps: retrieve, draft, judge. Uninstructed, the student makes the mistakes that
# small models make there; each skill ends one of them.


@dataclass(frozen=True, slots=True)
class Skill:
    """One instruction: the words by which a student recognizes it, and the critic's request for it."""

    told: re.Pattern[str]
    wish: str


def _skill(told: str, wish: str) -> Skill:
    return Skill(re.compile(told, re.IGNORECASE), wish)


class Task(NamedTuple):
    """A kind of message, the function that solves it, and the skills that instructions can ask for."""

    asks: re.Pattern[str]
    solve: Callable[[str, Collection[str]], str]
    skills: dict[str, Skill]
    # True if the message contains the outputs of earlier steps of a system.
    inputs: bool = False


def task_of(message: str) -> Task | None:
    """Return the task that a message poses, or None."""
    return next((task for task in TASKS if task.asks.search(message)), None)


def told_skills(task: Task, instructions: str) -> list[str]:
    """Return the names of the skills that the instructions ask for."""
    return [name for name, skill in task.skills.items() if skill.told.search(instructions)]


# Counting ----------------------------------------------------------------------------------------


def _count(message: str, skills: Collection[str]) -> str:
    listed, _, kind = re.sub(r"(?s).*?\bI have ", "", message, count=1).partition("How many ")
    parts = [part for part in re.split(r",|\band\b", listed) if part.strip(" .\n")]
    if "kind" in skills:
        kind = kind.split(" do I have")[0].strip()
        parts = [part for part in parts if is_of_kind(part, kind)]
    return str(sum(quantity(part) if "quantity" in skills else 1 for part in parts))


# Sorting -----------------------------------------------------------------------------------------

_LONG_LIST: Final = 10


def _sort(message: str, skills: Collection[str]) -> str:
    words = message.partition("List:")[2].split()
    if "all" not in skills and len(words) > _LONG_LIST:
        words = words[:-1]
    return " ".join(sorted(words) if "letters" in skills else sorted(words, key=lambda word: word[:1]))


# Notes -------------------------------------------------------------------------------------------

_NOTE: Final = re.compile(r"^\[\d+\] (.+), (.+), (\d{4}): (.+)$", re.MULTILINE)
_QUESTION: Final = re.compile(r"Question: What is the (.+) of (.+)\?")
_MOST_NOTES: Final = 2
UNKNOWN: Final = "unknown"


def notes_in(text: str) -> list[tuple[str, str, int, str, str]]:
    """Return `(place, topic, year, value, line)` of each note in a text.

    >>> notes_in("[1] Elm House, opening time, 2023: 7:30")
    [('Elm House', 'opening time', 2023, '7:30', '[1] Elm House, opening time, 2023: 7:30')]
    """
    return [(m[1], m[2], int(m[3]), m[4], m[0]) for m in _NOTE.finditer(text)]


def _asked(message: str) -> tuple[str, str]:
    match = _QUESTION.search(message)
    return (match[1], match[2]) if match else ("", "")


def _retrieve(message: str, skills: Collection[str]) -> str:
    topic, place = _asked(message)
    notes = [note for note in notes_in(message) if note[0] == place]
    if "topic" in skills:
        notes = [note for note in notes if note[1] == topic]
    return "\n".join(note[4] for note in notes[:_MOST_NOTES]) or "(no note)"


def _draft(message: str, skills: Collection[str]) -> str:
    notes = notes_in(message)
    if not notes:
        return "unclear"
    return max(notes, key=lambda note: note[2])[3] if "recent" in skills else notes[0][3]


def _judge(message: str, skills: Collection[str]) -> str:
    topic, place = _asked(message)
    draft = message.partition("Draft:")[2].strip()
    supported = any(note[:2] == (place, topic) for note in notes_in(message))
    return UNKNOWN if "unknown" in skills and not supported else draft


TASKS: Final = (
    Task(
        re.compile(r"\bI have .*\bHow many .* do I have\?", re.DOTALL),
        _count,
        {
            "quantity": _skill(
                r"\b(?:quantit\w+|add up|number words?)\b",
                "add up the quantities, so that a number word counts as so many",
            ),
            "kind": _skill(
                r"\b(?:leave out|exclude|only (?:the )?(?:things|items|objects))\b",
                "leave out things that are not of the kind asked for",
            ),
        },
    ),
    Task(
        re.compile(r"\bSort the following words alphabetically\b.*\bList:", re.DOTALL),
        _sort,
        {
            "letters": _skill(
                r"\b(?:letter by letter|second letters?|next letters?)\b",
                "compare words letter by letter, the second letter where the first is the same",
            ),
            "all": _skill(
                r"\b(?:every word|all (?:of )?the words|no word)\b",
                "check that every word of the list is in the answer",
            ),
        },
    ),
    Task(
        re.compile(r"Question: .*\nNotes:", re.DOTALL),
        _retrieve,
        {
            "topic": _skill(
                r"\btopic\b.*\b(?:match\w*|fits?)\b|\bmatch\w*\b.*\btopic\b",
                "take only notes whose topic matches the question as well as the place",
            )
        },
    ),
    Task(
        re.compile(r"Question: .*\nRetrieved:.*\nDraft:", re.DOTALL),
        _judge,
        {
            "unknown": _skill(
                rf"\b{UNKNOWN}\b", f'say "{UNKNOWN}" where no retrieved note answers the question'
            )
        },
        inputs=True,
    ),
    Task(
        re.compile(r"Question: .*\nRetrieved:", re.DOTALL),
        _draft,
        {
            "recent": _skill(
                r"\b(?:most recent|latest|newest)\b", "go by the most recent note where several answer"
            )
        },
        inputs=True,
    ),
)


# Quantities and kinds of everyday things, for the counting task.


def _words_of(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NUMBERS: Final = _words_of(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
)

KINDS: Final[dict[str, frozenset[str]]] = {
    "fruits": frozenset(
        _words_of("""apple apricot banana blackberry blueberry cherry fig grape grapefruit kiwi lemon lime mango melon
        nectarine orange papaya peach pear pineapple plum raspberry strawberry""")
    ),
    "vegetables": frozenset(
        _words_of("""artichoke asparagus broccoli cabbage carrot cauliflower celery cucumber garlic leek lettuce onion
        potato pumpkin radish spinach turnip yam zucchini""")
    ),
    "animals": frozenset(
        _words_of("""bear bird cat chicken cow crocodile dog donkey duck fish frog goat goose hen horse lion mouse
        monkey parrot pig rabbit rat sheep snail snake spider tiger turkey""")
    ),
    "musical instruments": frozenset(
        _words_of("""accordion bassoon cello clarinet drum flute guitar harmonica harp oboe piano saxophone trombone
        trumpet tuba violin viola""")
    ),
}


def quantity(part: str) -> int:
    """Return the number of things that one entry of a list stands for; 1 without a number word.

    >>> quantity(" four stoves"), quantity("a bed")
    (4, 1)
    """
    words = re.findall(r"\w+", part.lower())
    return next((_NUMBERS.index(word) for word in words if word in _NUMBERS), 1)


def is_of_kind(part: str, kind: str) -> bool:
    """Return True if one entry of a list names a thing of that kind. Unknown kinds, such as objects, match everything.

    >>> is_of_kind("two blackberries", "fruits"), is_of_kind("a bed", "fruits"), is_of_kind("a bed", "objects")
    (True, False, True)
    """
    members = KINDS.get(kind)
    if members is None:
        return True
    return any(_singular(word) in members for word in re.findall(r"\w+", part.lower()))


def _singular(word: str) -> str:
    for ending, instead in (("ies", "y"), ("oes", "o"), ("ches", "ch"), ("shes", "sh"), ("s", "")):
        if word.endswith(ending):
            return word[: -len(ending)] + instead
    return {"mice": "mouse", "geese": "goose"}.get(word, word)
