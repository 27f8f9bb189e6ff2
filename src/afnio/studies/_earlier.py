"""Earlier runs of the same study in the store: one to continue, or one with a result to return."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, final

from afnio.errors import StoreProblemError
from afnio.tellurio._card import Card, kept_card
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._store import stores

# The kind of the event that holds a run's result.
RESULT: Final = "OptimizeResult"


@final
@dataclass(frozen=True, slots=True)
class Earlier:
    """The records of an earlier call with the same data.

    Attributes:
        run: the id of an unfinished run to continue, or None.
        result: the result of a finished run with the same settings, or None.
        card: the card of that run, with the rows of its last look.
        when: when it ended.
    """

    run: str | None = None
    result: Mapping[str, Any] | None = None
    card: Card | None = None
    when: str = ""

    @classmethod
    def find(cls, store: Any, identity: str, settings: Mapping[str, Any]) -> Earlier:
        if not store.exists():
            return cls()
        with StoreReader(store) as reader:
            for run in reader.runs():
                config = run.config if isinstance(run.config, dict) else {}
                if config.get("identity") != identity or run.status == "RUNNING":
                    continue
                kept = reader.last_event(run.id, RESULT)
                when = f"{datetime.fromtimestamp(run.date_updated, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
                if run.status == "COMPLETED":
                    same = config.get("settings") == json.loads(json.dumps(settings))
                    return cls(None, kept, kept_card(reader, run.id), when) if same and kept else cls()
                return cls(run.id)
        return cls()


def trained_on(home: Path, prompts: Mapping[str, str]) -> set[str]:
    """Return the keys of the inputs that prompts were trained on, by any optimization in a folder of stores."""
    keys: set[str] = set()
    for store in stores(home):
        if store.parent.name == "optimize":
            with suppress(StoreProblemError), StoreReader(store) as reader:
                for run in reader.runs():
                    result = reader.last_event(run.id, RESULT) or {}
                    if result.get("prompts") == prompts != result.get("start"):
                        keys.update(result.get("trained", ()))
    return keys
