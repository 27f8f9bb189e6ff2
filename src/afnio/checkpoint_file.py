"""Checkpoint file: which documents the archive of a training run has, and what is in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from afnio.errors import CheckpointError
from afnio.serialization import decoded, encoded

FORMAT: Final = 1
_VERSIONS: Final = "versions"
_KIND: Final = "afnio checkpoint"
_LAYOUT: Final = {
    "parameters": ("agent",),
    "optimizer": ("optimizers",),
    "loop": ("counters", "metrics", "history", "sampler"),
    "rng": ("rng",),
    "ledger": ("ledger",),
    "callbacks": ("callbacks",),
}
"""Which fields each document holds. One that an older format lacks leaves its fields out."""
_SEALED: Final = ("optimizer", "rng", "callbacks")
"""Documents with a digest among the versions. What is in them only their owners could check, in the middle of a run."""
_LISTS: Final = ("optimizers", "history")


def documents_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the documents of a checkpoint with these fields, "versions" among them; waits for Variables.

    Raises:
        TypeError: for a value that JSON can't hold.
    """
    documents: dict[str, Any] = {
        document: {name: encoded(fields[name]) for name in names} for document, names in _LAYOUT.items()
    }
    digests = {document: _digest(documents[document]) for document in _SEALED}
    documents[_VERSIONS] = {"kind": _KIND, "format": FORMAT, "digests": digests, **fields[_VERSIONS]}
    return documents


def fields_of(name: object, documents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields in the documents of a file of this format or of an older one.

    Args:
        name: the file's, for errors.

    Raises:
        CheckpointError: for documents of something else, damaged ones, or those of a newer format.
    """
    versions = documents.get(_VERSIONS)
    if not isinstance(versions, dict) or versions.get("kind") != _KIND:
        raise foreign(name, "it has no versions.json of one")
    found = versions.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found > FORMAT:
        raise CheckpointError(
            f"the checkpoint [{name}] has format [{found}] of Afnio [{versions.get('afnio')}], and this "
            f"Afnio reads up to [{FORMAT}]; update Afnio to open it"
        )
    fields: dict[str, Any] = {
        _VERSIONS: {key: versions[key] for key in versions if key not in ("kind", "format", "digests")}
    }
    digests = versions.get("digests", {})
    for document in _SEALED if isinstance(digests, dict) else ():
        if digests.get(document) not in (None, _digest(documents.get(document))):
            raise foreign(name, f"its {document}.json was edited")
    try:
        for document, names in _LAYOUT.items():
            content = decoded(documents.get(document, {}))
            fields |= {field: content[field] for field in names if field in content}
    except Exception as error:  # an edited document can hold anything
        raise foreign(name, error) from error
    if "agent" not in fields:
        raise foreign(name, "it has no agent")
    for field, value in fields.items():
        kind = list if field in _LISTS else dict
        if not isinstance(value, kind) and not (field == "sampler" and value is None):
            raise foreign(name, f"its {field} are {str(value)[:80]!r}")
    return fields


def as_state(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with those names that programs know of checkpoints, for `afnio.load`."""
    optimizers, counters = fields.get("optimizers", []), fields.get("counters", {})
    return {
        **fields,
        "epoch": counters.get("epoch"),
        "batch": counters.get("batch"),
        "agent_state_dict": fields["agent"],
        "optimizer_state_dict": optimizers[0] if len(optimizers) == 1 else optimizers,
    }


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def foreign(name: object, reason: object) -> CheckpointError:
    """Return the error for a file that is no checkpoint."""
    return CheckpointError(
        f"[{name}] is no checkpoint that a Trainer wrote, or it is damaged ({' '.join(str(reason).split())}); pickles "
        "are not opened, name another file"
    )
