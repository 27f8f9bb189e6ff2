"""Cluster: similar failures found without a model, so that feedback on them can be read together.

Feedback on the same confusion (predicted this, expected that) belongs together. Where predictions are texts of
their own, the words of the feedback decide: each text is reduced to a bottom-k sketch of its words, and joins
the first text that it is similar enough to (leader clustering). Both are deterministic: the hash is CRC-32,
which no process salts, and ties go to what came first.

Source of the sketch: A. Broder, "On the resemblance and containment of documents", SEQUENCES 1997.
"""

from __future__ import annotations

import heapq
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

SKETCH: Final = 32
"""Hashes that are kept of a text; the estimate of a similarity of 0.5 is then off by 0.09, typically."""
SIMILAR: Final = 0.4
"""Share of common words from which two texts count as saying the same of different samples."""
MAX_LABEL: Final = 60
"""Characters up to which a prediction or a target is taken for a label."""
_WORD: Final = re.compile(r"[^\W\d_]{4,}")
_QUOTED: Final = re.compile(r"\"[^\"\n]{0,200}\"|“[^”\n]{0,200}”|`[^`\n]{0,200}`")


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """Feedback on similar failures.

    Attributes:
        name: what they have in common; empty for one that is like no other.
        members: which ones, by number, ascending.
    """

    name: str
    members: tuple[int, ...]


def clustered(texts: Sequence[str], trails: Sequence[Sequence[Mapping[str, Any]]]) -> list[Cluster]:
    """Return every text in one cluster, the largest clusters first.

    Args:
        texts: the feedback.
        trails: for each of them where it comes from, as in `Variable.provenance`.

    >>> clustered(["a", "b", "c"], [({"prediction": p, "target": "no"},) for p in ("yes", "maybe", "yes")])[0]
    Cluster(name='predicted "yes", expected "no"', members=(0, 2))
    """
    confusions = [_confusion(trail) for trail in trails]
    counts = Counter(confusion for confusion in confusions if confusion)
    groups: dict[str, list[int]] = {}
    rest: list[int] = []
    for number, confusion in enumerate(confusions):
        if confusion and counts[confusion] > 1:
            groups.setdefault(confusion, []).append(number)
        else:
            rest.append(number)
    found = [Cluster(name, tuple(members)) for name, members in groups.items()]
    found += [Cluster(_name(texts, members), tuple(members)) for members in _alike(texts, rest)]
    return sorted(found, key=lambda cluster: (-len(cluster.members), cluster.members[0]))


def _confusion(trail: Sequence[Mapping[str, Any]]) -> str:
    """Return what was predicted for what, if it is one confusion of labels."""
    found: dict[str, None] = {}
    for entry in trail:
        if "prediction" not in entry or entry.get("target") is None:
            return ""
        said, wanted = (_quoted(entry[key]) for key in ("prediction", "target"))
        if max(len(said), len(wanted)) > MAX_LABEL:
            return ""
        found[f"predicted {said}, expected {wanted}"] = None
    return next(iter(found)) if len(found) == 1 else ""


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _alike(texts: Sequence[str], numbers: Sequence[int]) -> list[list[int]]:
    sketches: list[frozenset[int]] = []
    members: list[list[int]] = []
    leaders: dict[int, list[int]] = {}
    for number in numbers:
        mine = sketch(texts[number])
        shared: Counter[int] = Counter()
        for element in mine:
            shared.update(leaders.get(element, ()))
        best = min(shared, key=lambda leader: (-shared[leader], leader), default=None)
        if best is not None and similarity(sketches[best], mine) >= SIMILAR:
            members[best].append(number)
            continue
        for element in mine:
            leaders.setdefault(element, []).append(len(members))
        sketches.append(mine)
        members.append([number])
    return members


def sketch(text: str) -> frozenset[int]:
    """Return the bottom-k sketch of a text's words."""
    # What is quoted belongs to one sample, and endings of words to its grammar.
    words = {word[:6] for word in _WORD.findall(_QUOTED.sub(" ", text).lower())}
    return frozenset(heapq.nsmallest(SKETCH, [zlib.crc32(word.encode()) for word in words]))


def similarity(one: frozenset[int], other: frozenset[int]) -> float:
    """Return the share of words that two sketched texts have in common, estimated, from 0 to 1.

    >>> similarity(sketch("Heating broken again"), sketch("heating BROKEN again"))
    1.0
    >>> similarity(sketch("Heating broken"), sketch("Thank you!"))
    0.0
    """
    smallest = heapq.nsmallest(SKETCH, one | other)
    common = one & other
    return sum(element in common for element in smallest) / len(smallest) if smallest else 0.0


def _name(texts: Sequence[str], members: Sequence[int]) -> str:
    """Return the words that most of a cluster's texts have, in the order of the first one."""
    if len(members) < 2:
        return ""
    counts: Counter[str] = Counter()
    for member in members:
        counts.update(list(dict.fromkeys(_WORD.findall(_QUOTED.sub(" ", texts[member]).lower()))))
    common = [word for word, count in counts.items() if 2 * count > len(members)][:8]
    return f"feedback about: {', '.join(common)}" if common else "similar feedback"
