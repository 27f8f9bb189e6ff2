"""Edits: a model reads what went wrong with a text, and answers with edits of its blocks.

    Mistake        what one sample says about one parameter
    Quoting        stands in for the critic: it quotes what the critic would have read, without a call
    propose_edits  one call: mistakes in, checked edits out
    merge_edits    one call that decides what is done where several editors contest a place

A reply is read as JSON, checked edit by edit, and applied without a model. What can't be applied is left out and
counted: an edit of a block that isn't there, two that contradict, one that lost before, one that loses a placeholder,
copies a training sample or makes the text too long. Only if nothing is left is the model asked once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

from afnio.autodiff._variable import Variable, gradient
from afnio.cognitive._prompts import block, complete_json, escape, json_object, unescape
from afnio.models._client import ChatModel
from afnio.models._messages import ChatResponse, Message
from afnio.optim._blocks import Draft, Edit, Union, consistent, fitted
from afnio.optim._checks import check, words_in
from afnio.optim._prompts import EDITS_SCHEMA, edit_message, merge_message, wording
from afnio.runtime._kernel import Job, current_job


@final
@dataclass(frozen=True, slots=True)
class Mistake:
    """Feedback on one parameter from one sample.

    Attributes:
        unit: the number of the training sample. None if the feedback came with the step.
        text: a critic's feedback; or, if `quoted`, the conversation with its reply and the feedback on that.
        trail: the provenance of the feedback.
    """

    unit: int | None
    text: str
    trail: tuple[Mapping[str, Any], ...] = ()
    quoted: bool = False


# The critic that only quotes.


_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_NAMES: Final = re.compile(rf"<variable id=({_QUOTED})(?: \w+={_QUOTED})*?(?: seen_in=({_QUOTED}))?>\n")


@final
class Quoting(ChatModel):
    """A backward model that gives every text the critic's own prompt as feedback: conversation, reply, judgement.

    An agent with one prompt needs no critic to say which prompt is at fault. The proposer reads the mistakes itself,
    as GEPA's reflection does (arXiv:2507.19457). That saves one call for each mistake.

    Args:
        model: makes all other calls of a backward pass, such as those that sum up feedback.
    """

    async def ask(
        self, messages: Sequence[Message], purpose: str, *, job: Job | None = None, **defaults: Any
    ) -> ChatResponse:
        if purpose != "backward":
            return await ChatModel.ask(self, messages, purpose, job=job, **defaults)
        head, _, shown = str(messages[-1]["content"]).partition("</variables>\n")
        feedback: list[dict[str, str]] = []
        for name, seen in _NAMES.findall(head):
            place = f"(the variable stands in calls {json.loads(seen)})\n" if seen else ""
            feedback.append({"variable": json.loads(name), "text": f"{place}{shown or head}"})
        return ChatResponse(content=json.dumps({"feedback": feedback}), finish_reason="stop", model="")


_FORMAT: Final = re.compile(r"<reply_format>\n(.*?)\n</reply_format>\n", re.DOTALL)


def _shown(
    mistakes: Sequence[Mistake], value: str, model: ChatModel, max_tokens: int | None
) -> tuple[list[str], str]:
    """Return the text of each mistake for the prompt, and the format of the replies, which stands there once.

    The text itself is left out of the conversations. Long ones are cut in the middle.
    """
    form = ""
    texts: list[str] = []
    system = block("message", value, role="system")
    for mistake in mistakes:
        text = mistake.text
        if mistake.quoted:
            if text.startswith("<conversation>"):  # in a trace each call has a format
                match = _FORMAT.search(text)
                form = form or (match[1] if match else "")
                text = _FORMAT.sub("", text)
            text = text.replace(f"{system}\n", "")
            if len(value) > _SHORT:
                text = text.replace(escape(value), "(the variable)")
        texts.append(text)
    return _cut(texts, model, max_tokens), form


_SHORT: Final = 40
"""Characters up to which a text isn't taken out of a conversation: it may stand there by chance."""


def _cut(texts: list[str], model: ChatModel, max_tokens: int | None) -> list[str]:
    """Return texts of at most `max_tokens` together. The longest ones lose their middle."""
    sizes = [model.count_tokens(text) for text in texts]
    if max_tokens is None or sum(sizes) <= max_tokens:
        return texts
    left, share = max_tokens, 0
    for place, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - place)
        if size > share:
            break
        left -= size
    cut: list[str] = []
    for text, size in zip(texts, sizes, strict=True):
        half = len(text) * share // (2 * size) if size > share else len(text)
        cut.append(text if size <= share else f"{text[:half]}\n[…]\n{text[len(text) - half :]}")
    return cut


# One proposal.


@final
@dataclass(frozen=True, slots=True)
class LostEdit:
    """An edit whose candidates all scored less than the text without it.

    Attributes:
        text: what it wrote; for a deletion, the block that it removed.
        score, against: mean scores with it and without it.
    """

    op: str
    text: str
    score: float
    against: float

    @property
    def key(self) -> tuple[str, str]:
        return self.op, " ".join(self.text.split())

    @property
    def shown(self) -> str:
        return f"delete: {self.text}" if self.op == "delete" else self.text


@final
@dataclass(frozen=True, slots=True)
class Proposal:
    """The result of one call.

    Attributes:
        draft: the text with the edits.
        edits: those that were applied. Their samples are numbers of training samples.
        dropped: why others weren't, one sentence each.
        repaired: True if the model was asked twice.
    """

    draft: Draft
    edits: tuple[Edit, ...] = ()
    dropped: tuple[str, ...] = ()
    repaired: bool = False


async def propose_edits(
    parameter: Variable,
    draft: Draft,
    mistakes: Sequence[Mistake],
    options: Mapping[str, Any],
    *,
    limit: int | None,
    lost: Sequence[LostEdit] = (),
) -> Proposal:
    """Ask for edits of a draft, and apply those that can be made.

    Args:
        mistakes: at least one.
        options: those of `EditTGD`.
        limit: the most characters that the text may have. A text that is longer already may not grow.
        lost: edits that were tried and didn't help.

    Raises:
        ModelError: if the call failed.
    """
    editor = _Editor(parameter, draft, options, limit)
    model = editor.model
    texts, form = _shown(mistakes, draft.text, model, options["mistake_tokens"])
    numbered = list(enumerate(texts, start=1))
    user = edit_message(
        role=parameter.role,
        blocks=draft.blocks,
        constraints=editor.constraints,
        rejected=[(past.shown, past.score, past.against) for past in lost],
        reply_format=form,
        mistakes=[entry for entry, m in zip(numbered, mistakes, strict=True) if m.quoted],
        feedback=[entry for entry, m in zip(numbered, mistakes, strict=True) if not m.quoted],
    )
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": wording("edit.system")},
        {"role": "user", "content": user},
    ]
    trails = [gradient("", parameter.role, mistake.trail) for mistake in mistakes]
    proposal, reply = await _asked(editor, messages, mistakes, trails, lost)
    if proposal.edits or not proposal.dropped:
        return proposal
    objection = wording("edit.objection").replace("{reasons}", "; ".join(dict.fromkeys(proposal.dropped)))
    again = [{"role": "assistant", "content": reply}, {"role": "user", "content": objection}]
    second, _ = await _asked(editor, [*messages, *again], mistakes, trails, lost)
    return replace(second, dropped=(*proposal.dropped, *second.dropped), repaired=True)


async def _asked(
    editor: _Editor,
    messages: Sequence[Message],
    mistakes: Sequence[Mistake],
    trails: Sequence[Variable],
    lost: Sequence[LostEdit],
) -> tuple[Proposal, str]:
    response = await complete_json(editor.model, current_job(), messages, EDITS_SCHEMA, "step")
    reply = str(response)
    try:
        edits = edits_in(reply, escaped="&lt;" not in editor.draft.text)
    except ValueError as error:
        return Proposal(editor.draft, dropped=(_unreadable("reply", response, error),)), reply
    edits = [replace(edit, samples=_units(edit.samples, mistakes)) for edit in edits]
    return await editor.applied(edits, trails, lost), reply


def _unreadable(name: str, response: ChatResponse, error: ValueError) -> str:
    """Return why a reply has no edits. The same for the same cause, because reasons are counted."""
    if not response.complete:
        return f"the {name} was cut off ({response.finish_reason}); make fewer or shorter edits"
    # A decoder's message has the place, which differs from reply to reply.
    return (
        f"the {name} can't be read: {'it is no JSON' if isinstance(error, json.JSONDecodeError) else error}"
    )


def _units(ids: Sequence[int], mistakes: Sequence[Mistake]) -> tuple[int, ...]:
    """Return the training samples behind an edit: those that it names, or all that the editor was shown."""
    named = [mistakes[number - 1] for number in ids if 0 < number <= len(mistakes)] or mistakes
    return tuple(dict.fromkeys(mistake.unit for mistake in named if mistake.unit is not None))


def edits_in(reply: str, *, escaped: bool = False) -> list[Edit]:
    """Return the edits in a reply.

    Args:
        escaped: undo the escaping of tags, which models repeat from their prompt.

    Raises:
        ValueError: if it is no JSON object with a list of edits.

    >>> edits_in('Here: {"edits": [{"op": "add", "block": "1", "text": "Be brief.", "samples": [2]}]}')
    [Edit(op='add', block=1, text='Be brief.', samples=(2,))]
    """
    answer = json_object(reply)
    entries = answer.get("edits", [answer] if "op" in answer else None)
    if not isinstance(entries, list):
        raise ValueError('it has no list under "edits"')  # noqa: TRY004 - about a text
    return [_edit(entry, escaped) for entry in entries]


def _edit(entry: Any, escaped: bool) -> Edit:
    if not isinstance(entry, Mapping):
        raise ValueError("every edit must be an object")  # noqa: TRY004 - about a text
    op, text, number, samples = (entry.get(name) for name in ("op", "text", "block", "samples"))
    if op not in ("add", "replace", "delete"):
        raise ValueError(f'"op" must be "add", "replace" or "delete" (got {op!r:.40})')
    if not isinstance(text, str) and not (text is None and op == "delete"):
        raise ValueError('"text" must be a text')
    if isinstance(number, str) and number.strip().isdecimal():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f'"block" must be the number of a block (got {number!r:.40})')  # noqa: TRY004
    ids = [int(i) for i in samples if str(i).isdecimal()] if isinstance(samples, list) else []
    words = "" if op == "delete" else str(text).strip()
    return Edit(op, number, unescape(words) if escaped else words, tuple(dict.fromkeys(ids)))


@final
class _Editor:
    """Applies edits to one draft of one parameter, as far as the checks allow."""

    def __init__(
        self, parameter: Variable, draft: Draft, options: Mapping[str, Any], limit: int | None
    ) -> None:
        self.parameter, self.draft, self.limit = parameter, draft, limit
        self.model = ChatModel(options["model_client"], options["completion_args"])
        self._leak_words = options["leak_words"]
        self.constraints = [
            str(c.data) if isinstance(c, Variable) else str(c) for c in options["constraints"]
        ]
        if limit is not None:
            self.constraints.append(f"Use at most {max(limit, len(draft.text))} characters.")
        most = getattr(parameter, "max_tokens", None)
        if most is not None:
            self.constraints.append(f"At most {most} tokens, about {words_in(most)} words.")

    async def applied(
        self, edits: Sequence[Edit], trails: Sequence[Variable], lost: Sequence[LostEdit] = ()
    ) -> Proposal:
        """Return the draft with those edits that can be made together, and the reasons against the others."""
        blocks = self.draft.blocks
        kept, dropped = consistent(edits, blocks)
        earlier = {past.key for past in lost}
        for edit in list(kept):
            what = blocks[edit.block - 1] if edit.op == "delete" else edit.text
            if (edit.op, " ".join(what.split())) in earlier:
                kept.remove(edit)
                dropped.append(f"{edit.op} at block {edit.block} was tried and lost before")
        draft, kept, left = fitted(self.draft, kept, self.limit)
        dropped += [f"{e.op} at block {e.block} makes it longer than {self.limit} characters" for e in left]
        reasons = await self._objections(draft, trails)
        if reasons:
            draft, kept, found = await self._one_by_one(kept, trails)
            dropped += found
        if not kept:
            return Proposal(self.draft, (), tuple(dropped))
        return Proposal(draft, tuple(kept), tuple(dropped))

    async def _one_by_one(
        self, edits: Sequence[Edit], trails: Sequence[Variable]
    ) -> tuple[Draft, list[Edit], list[str]]:
        """Leave out the edits that the checks object to, those with most samples tried first."""
        draft, kept, dropped = self.draft, list[Edit](), list[str]()
        for edit in sorted(edits, key=lambda edit: -len(edit.samples)):
            order = [e for e in edits if e is edit or e in kept]
            tried = self.draft.edited(order)
            reasons = await self._objections(tried, trails)
            if reasons:
                dropped.append(f"{edit.op} at block {edit.block}: {'; '.join(reasons)}")
            else:
                draft, kept = tried, order
        return draft, kept, dropped

    async def _objections(self, draft: Draft, trails: Sequence[Variable]) -> list[str]:
        return await check(
            self.parameter,
            self.draft.text,
            draft.text,
            count_tokens=self.model.count_tokens,
            gradients=trails,
            instructions=[wording(name) for name in ("edit.system", "edit.objection", "merge.system")],
            allowed=self.constraints,
            leak_words=self._leak_words,
        )


# Merging the edits of several drafts.


async def merge_edits(
    parameter: Variable, start: str, found: Union, options: Mapping[str, Any], *, limit: int | None
) -> Proposal:
    """Return a text with the edits of several editors. Contested places cost one call.

    If its reply can't be used, the edit with most samples behind it is made at each place, and all texts that were
    added there.
    """
    draft = Draft.of(start)
    editor = _Editor(parameter, draft, options, limit)
    dropped: list[str] = []
    decided: list[Edit] = []
    if found.contested:
        places = {
            number: [(edit.op, edit.text, len(edit.samples)) for edit in edits]
            for number, edits in found.contested.items()
        }
        messages = [
            {"role": "system", "content": wording("merge.system")},
            {
                "role": "user",
                "content": merge_message(
                    role=parameter.role,
                    blocks=draft.blocks,
                    constraints=_room(editor, found, limit),
                    places=places,
                ),
            },
        ]
        response = await complete_json(editor.model, current_job(), messages, EDITS_SCHEMA, "merge")
        try:
            decided = _only_there(edits_in(str(response), escaped="&lt;" not in start), found)
        except ValueError as error:
            dropped.append(_unreadable("merge", response, error))
        if not decided:
            decided = by_support(found)
    merged = sorted([*found.agreed, *decided], key=lambda edit: edit.block)
    proposal = await editor.applied(merged, ())
    return replace(proposal, dropped=(*dropped, *proposal.dropped))


def _room(editor: _Editor, found: Union, limit: int | None) -> list[str]:
    """Return the constraints, with the characters that are left for the contested places."""
    if limit is None:
        return editor.constraints
    rest = editor.draft.edited(found.agreed).text
    changing = {n for n, edits in found.contested.items() if any(edit.op != "add" for edit in edits)}
    held = sum(len(editor.draft.blocks[number - 1]) for number in changing)
    others = [text for text in editor.constraints if not text.startswith("Use at most")]
    return [*others, f"Use at most {max(limit - len(rest) + held - len(found.contested), 0)} characters."]


def _only_there(edits: Sequence[Edit], whole: Union) -> list[Edit]:
    """Return the edits of contested places, each with the samples of those of the place's edits that went into it."""
    kept: list[Edit] = []
    for edit in edits:
        rivals = whole.contested.get(edit.block, ())
        if not rivals:
            continue
        shares = [_share(rival.text, edit.text) for rival in rivals]
        sources = [r for r, share in zip(rivals, shares, strict=True) if share >= min(_TAKEN, max(shares))]
        samples = tuple(dict.fromkeys(number for rival in sources for number in rival.samples))
        kept.append(replace(edit, samples=samples))
    return kept


_TAKEN: Final = 0.6
"""The share of an edit's words from which it counts as taken into a merged text."""


def _share(part: str, whole: str) -> float:
    """Return the share of a text's words that another one has. 1 for no words: a deletion is behind every outcome."""
    words = set(part.split())
    return len(words & set(whole.split())) / len(words) if words else 1.0


def by_support(found: Union) -> list[Edit]:
    """Return what is done at contested places without asking: what most samples stand behind."""
    decided: list[Edit] = []
    for edits in found.contested.values():
        changing = [edit for edit in edits if edit.op != "add"]
        decided += changing[:1]
        decided += [edit for edit in edits if edit.op == "add"]
    return decided
