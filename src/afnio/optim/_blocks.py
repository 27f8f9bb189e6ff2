"""Blocks: a text as sentences and lines that edits add, replace and delete.

An optimizer that rewrites whole texts can't say what it changed, and two rewrites of one text can't be put together.
Edits can: several proposers work on one text side by side, and `compose` puts what they did into one.

    blocks_of      a text as blocks; joined again they give the same text
    Draft          a text in the making: it takes edits, and remembers which block of the start became what
    Draft.edits    the net change, as edits of the start text
    union          the edits of several drafts of one text, equal ones once, and the places that they contest

Everything here is deterministic and asks no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, final

Op = Literal["add", "replace", "delete"]

# Regions that are no prose. They stay whole: half of a code fence is worth nothing.
_WHOLE: Final = re.compile(
    r"^```.*?^```[^\n]*$|^<(examples|example)>\n.*?^</\1>[^\n]*$", re.DOTALL | re.MULTILINE
)
# A sentence ends at a full stop before a space, but not after an abbreviation or the number of a list.
_ENDS: Final = re.compile(r"(?<=[.!?…])[\"”')\]]*[ \t]+(?=\S)|[ \t]*\n\s*")
_OPEN: Final = re.compile(
    r"^\s*\(?(?:\d{1,3}|[A-Za-z])\.$|(?:^|[\s(])(?:e\.g|i\.e|etc|vs|cf|Mr|Mrs|Ms|Dr|Nos?|approx|incl|resp)\.$"
)


class TextBlock(NamedTuple):
    """One block of a text, and the blanks between it and the next one."""

    text: str
    gap: str


def blocks_of(text: str) -> list[TextBlock]:
    r"""Return the sentences and lines of a text. Code fences and sections of examples are one block each.

    >>> [block.text for block in blocks_of("Be kind, e.g. say hello. Be brief!\n1. Read it.\n- Answer.")]
    ['Be kind, e.g. say hello.', 'Be brief!', '1. Read it.', '- Answer.']
    >>> "".join(block.text + block.gap for block in blocks_of(" a.  b.\n\nc\n"))
    ' a.  b.\n\nc\n'
    """
    blocks: list[TextBlock] = []
    at = 0
    for match in _WHOLE.finditer(text):
        blocks += _prose(text[at : match.start()])
        blocks.append(TextBlock(match.group(), ""))
        at = match.end()
    blocks += _prose(text[at:])
    return _without_blank(blocks)


def _prose(text: str) -> Iterator[TextBlock]:
    start = 0
    for match in _ENDS.finditer(text):
        # Closing quotes belong to the sentence, blanks to the gap.
        end = match.start() + len(match.group()) - len(match.group().lstrip("\"”')]"))
        if "\n" not in match.group() and _OPEN.search(text[start:end]):
            continue
        yield TextBlock(text[start:end], text[end : match.end()])
        start = match.end()
    if start < len(text):
        yield TextBlock(text[start:], "")


def _without_blank(blocks: Iterable[TextBlock]) -> list[TextBlock]:
    """Move blanks that stand alone into the gap before them."""
    kept: list[TextBlock] = []
    before = ""
    for text, gap in blocks:
        if text.strip():
            kept.append(TextBlock(before + text, gap))
            before = ""
        elif kept:
            kept[-1] = TextBlock(kept[-1].text, kept[-1].gap + text + gap)
        else:
            before += text + gap
    return kept


def is_editable(block: str) -> bool:
    """Return False for a section of examples, which belongs to `Demos`."""
    return not block.startswith("<examples>")


@final
@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one block.

    Attributes:
        op: "add" puts `text` after the block, "replace" puts it in its place, "delete" removes the block.
        block: the number of the block, from 1. `add` takes 0 too, for the beginning.
        text: the new text. Empty for `delete`.
        samples: numbers of the training samples that it was made from.
    """

    op: Op
    block: int
    text: str = ""
    samples: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, int, str]:
        """Equal for edits that do the same."""
        return self.op, self.block, " ".join(self.text.split())


@final
@dataclass(frozen=True, slots=True)
class _Piece:
    """A block of a draft.

    Attributes:
        origin: the number of the start text's block that it is, or that it replaces. None if it was added.
        anchor: the number of the last block of the start text before it, or its own.
        samples: those behind the edits that wrote it.
    """

    text: str
    gap: str
    origin: int | None
    anchor: int
    samples: tuple[int, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Draft:
    """A text in the making. Edits return a new draft.

    >>> draft = Draft.of("Be kind. Be brief.")
    >>> draft = draft.edited([Edit("replace", 2, "Be very brief.", (4,)), Edit("add", 2, "Say no more.", (7,))])
    >>> draft.text
    'Be kind. Be very brief.\\nSay no more.'
    >>> draft = draft.edited([Edit("delete", 1), Edit("replace", 3, "Say nothing.", (9,))])
    >>> [(edit.op, edit.block, edit.text, edit.samples) for edit in draft.edits]
    [('delete', 1, '', ()), ('replace', 2, 'Be very brief.', (4,)), ('add', 2, 'Say nothing.', (7, 9))]
    """

    start: str
    pieces: tuple[_Piece, ...]
    removed: tuple[tuple[int, tuple[int, ...]], ...] = field(default=())
    """The blocks of the start text that were deleted, each with the samples behind that."""

    @classmethod
    def of(cls, text: str) -> Draft:
        pieces = [_Piece(b.text, b.gap, n, n) for n, b in enumerate(blocks_of(text), start=1)]
        return cls(text, tuple(pieces))

    @property
    def text(self) -> str:
        return "".join(piece.text + piece.gap for piece in self.pieces)

    @property
    def blocks(self) -> list[str]:
        return [piece.text for piece in self.pieces]

    def edited(self, edits: Sequence[Edit]) -> Draft:
        """Return the draft with `edits`, whose numbers are those of its blocks now. They must be consistent."""
        by_block: dict[int, list[Edit]] = {}
        for edit in edits:
            by_block.setdefault(edit.block, []).append(edit)
        pieces: list[_Piece] = []
        removed = list(self.removed)
        for edit in by_block.get(0, ()):
            pieces += _added(edit, 0, "\n" if self.pieces else "")
        for number, piece in enumerate(self.pieces, start=1):
            here = by_block.get(number, ())
            kept: list[_Piece] = [piece]
            for edit in here:
                samples = _joined(piece.samples, edit.samples)
                if edit.op == "replace":
                    first, *rest = blocks_of(edit.text)
                    last = rest[-1] if rest else first
                    kept = [replace(piece, text=first.text, gap=first.gap, samples=samples)]
                    kept += [_Piece(b.text, b.gap, None, piece.anchor, samples) for b in rest]
                    kept[-1] = replace(kept[-1], text=last.text, gap=piece.gap)
                elif edit.op == "delete":
                    kept = []
                    if piece.origin is not None:
                        removed.append((piece.origin, samples))
                    if pieces:
                        pieces[-1] = replace(
                            pieces[-1], gap=_wider(pieces[-1].gap, piece.gap, number == len(self.pieces))
                        )
            for edit in here:
                tail = kept or pieces
                if edit.op == "add" and tail:
                    gap = tail[-1].gap
                    tail[-1] = replace(tail[-1], gap=gap or "\n")
                    kept += _added(edit, piece.anchor, gap)
                elif edit.op == "add":
                    kept += _added(edit, piece.anchor, piece.gap)
            pieces += kept
        return Draft(self.start, tuple(pieces), tuple(removed))

    @property
    def edits(self) -> list[Edit]:
        """The net change, as edits of the start text, in the order of its blocks."""
        before = blocks_of(self.start)
        gone = dict(self.removed)
        found: list[tuple[int, int, Edit]] = []
        for number, samples in gone.items():
            found.append((number, 0, Edit("delete", number, "", samples)))
        for place, piece in enumerate(self.pieces):
            if piece.origin is None:
                found.append((piece.anchor, place + 2, Edit("add", piece.anchor, piece.text, piece.samples)))
            elif piece.text != before[piece.origin - 1].text:
                found.append((piece.origin, 1, Edit("replace", piece.origin, piece.text, piece.samples)))
        return [edit for _, _, edit in sorted(found, key=lambda entry: entry[:2])]


def _added(edit: Edit, anchor: int, gap: str) -> list[_Piece]:
    added = blocks_of(edit.text)
    pieces = [_Piece(b.text.strip(), b.gap, None, anchor, edit.samples) for b in added]
    if pieces:
        pieces[-1] = replace(pieces[-1], gap=gap)
    return pieces


def _wider(gap: str, other: str, last: bool) -> str:
    """Return the gap that stays where a block between two gaps is deleted."""
    return other if last or other.count("\n") > gap.count("\n") else gap


def _joined(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys((*one, *other)))


# Composition.


@final
@dataclass(frozen=True, slots=True)
class Union:
    """The edits of several drafts of one text.

    Attributes:
        agreed: edits that no other contests.
        contested: the edits of each contested place, by the number of its block, those with most samples first.
    """

    agreed: tuple[Edit, ...]
    contested: dict[int, tuple[Edit, ...]]


def union(drafts: Sequence[Draft]) -> Union:
    """Return the edits of drafts of one text together. Equal ones count once, with the samples of all.

    A place is contested if one draft replaces or deletes a block and another one does something else with it, or if
    several add different texts there.

    >>> one = Draft.of("One. Two.").edited([Edit("replace", 1, "Un.", (1,)), Edit("delete", 2, "", (2,))])
    >>> other = Draft.of("One. Two.").edited([Edit("replace", 1, "Eins.", (3, 4)), Edit("delete", 2, "", (5,))])
    >>> found = union([one, other])
    >>> found.agreed, [edit.text for edit in found.contested[1]]
    ((Edit(op='delete', block=2, text='', samples=(2, 5)),), ['Eins.', 'Un.'])
    """
    merged: dict[tuple[str, int, str], Edit] = {}
    by: dict[tuple[str, int, str], set[int]] = {}
    for number, draft in enumerate(drafts):
        for edit in draft.edits:
            same = merged.get(edit.key)
            merged[edit.key] = (
                edit if same is None else replace(same, samples=_joined(same.samples, edit.samples))
            )
            by.setdefault(edit.key, set()).add(number)
    places: dict[tuple[int, bool], list[Edit]] = {}
    for edit in merged.values():
        places.setdefault((edit.block, edit.op == "add"), []).append(edit)
    contested: dict[int, tuple[Edit, ...]] = {}
    agreed: list[Edit] = []
    for (block, _), edits in places.items():
        authors = set().union(*(by[edit.key] for edit in edits))
        if len(edits) > 1 and len(authors) > 1:
            ordered = sorted(edits, key=lambda edit: -len(edit.samples))
            contested[block] = (*contested.get(block, ()), *ordered)
        else:
            agreed += edits
    return Union(tuple(agreed), contested)


def fitted(draft: Draft, edits: Sequence[Edit], limit: int | None) -> tuple[Draft, list[Edit], list[Edit]]:
    """Return a draft with edits, the edits, and those left out because the text would be longer than `limit`.

    Edits with few samples behind them are left out first, of equals the last one. Deletions stay.

    >>> draft, _, left = fitted(Draft.of("One."), [Edit("add", 1, "Two.", (1,)), Edit("add", 1, "Six.", (2, 3))], 9)
    >>> draft.text, [edit.text for edit in left]
    ('One.\\nSix.', ['Two.'])
    """
    kept, left = list(edits), list[Edit]()
    while True:
        after = draft.edited(kept)
        longer = [edit for edit in kept if edit.op != "delete"]
        if limit is None or len(after.text) <= max(limit, len(draft.text)) or not longer:
            return after, kept, left
        least = min(reversed(longer), key=lambda edit: len(edit.samples))
        kept.remove(least)
        left.append(least)


def consistent(edits: Sequence[Edit], blocks: Sequence[str]) -> tuple[list[Edit], list[str]]:
    """Return the edits that fit a text with these blocks, and the reasons against the others.

    Of several edits that replace or delete one block, the one with most samples stays, of equals the first.

    >>> edits = [Edit("replace", 1, "X.", (1,)), Edit("delete", 1, "", (1, 2)), Edit("add", 9, "Y."), Edit("add", 1)]
    >>> kept, reasons = consistent(edits, ["One."])
    >>> [edit.op for edit in kept], reasons
    (['delete'], ["add at block 9, which isn't there", 'add without a text', 'replace block 1 contradicts delete'])
    """
    kept: list[Edit] = []
    reasons: list[str] = []
    seen: set[tuple[str, int, str]] = set()
    for edit in edits:
        least = 0 if edit.op == "add" else 1
        if not least <= edit.block <= len(blocks):
            reasons.append(f"{edit.op} at block {edit.block}, which isn't there")
        elif edit.op != "add" and not is_editable(blocks[edit.block - 1]):
            reasons.append(f"{edit.op} at block {edit.block}, which holds examples")
        elif edit.op != "delete" and not edit.text.strip():
            reasons.append(f"{edit.op} without a text")
        elif edit.key in seen:
            reasons.append(f"{edit.op} at block {edit.block} twice")
        elif edit.op != "delete" and edit.text.strip() in (block.strip() for block in blocks):
            reasons.append(f"{edit.op} of a block that is there already")
        else:
            seen.add(edit.key)
            kept.append(edit)
    for number in sorted({edit.block for edit in kept if edit.op != "add"}):
        rivals = [edit for edit in kept if edit.block == number and edit.op != "add"]
        best = max(rivals, key=lambda edit: len(edit.samples))
        for edit in rivals:
            if edit is not best:
                kept.remove(edit)
                reasons.append(f"{edit.op} block {number} contradicts {best.op}")
    return kept, reasons


def without_block(text: str, number: int) -> str:
    """Return a text without its block `number`, from 1.

    >>> without_block("One. Two.\\nThree.", 2)
    'One.\\nThree.'
    """
    return Draft.of(text).edited([Edit("delete", number)]).text
