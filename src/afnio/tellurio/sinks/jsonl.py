"""JsonlSink: the event stream as a file with one JSON object on each line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import IO, Any, Final, final

from afnio.runtime._files import make_private_folder
from afnio.tellurio.sinks.sink import Moment, Sink

TEXTS: Final = frozenset(
    {"request", "reply", "inputs", "prediction", "target", "explanation", "changes", "candidates", "values"}
)
"""Fields that hold prompts, replies or samples."""


@final
class JsonlSink(Sink):
    """Appends `{"time": …, "event": "CallEnded", …}` for each event; time in seconds since 1970.

    Args:
        path: the file, made with mode 0600, and its folder with 0700, where there is none.
        content: whether prompts, replies and samples are written too.
        process_wide: as a block, hear the whole process.

    >>> import json, tempfile, afnio
    >>> from pathlib import Path
    >>> from afnio.testing import ScriptedClient
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with JsonlSink(Path(folder) / "events.jsonl") as sink:
    ...         _ = ScriptedClient("Hi").chat(messages=[{"role": "user", "content": "Hello"}], model="m")
    ...     [json.loads(line)["event"] for line in sink.path.read_text().splitlines()]
    ['CallEnded']
    """

    def __init__(
        self, path: str | os.PathLike[str], *, content: bool = False, process_wide: bool = False
    ) -> None:
        self.path = Path(path)
        self._content = content
        make_private_folder(self.path.parent)
        self._file: IO[str] = os.fdopen(
            os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8"
        )
        super().__init__(process_wide=process_wide)

    def take(self, moments: Sequence[Moment]) -> None:
        lines = [json.dumps(self._row(moment), ensure_ascii=False) for moment in moments]
        self._file.write("\n".join([*lines, ""]))
        self._file.flush()

    def end(self) -> None:
        self._file.close()

    def _row(self, moment: Moment) -> dict[str, Any]:
        event = moment.event
        row: dict[str, Any] = {"time": moment.time / 1e9, "event": type(event).__name__}
        if not is_dataclass(event):
            return {**row, "value": _plain(event)}
        for field in fields(event):
            if self._content or field.name not in TEXTS:
                row[field.name] = _plain(getattr(event, field.name))
        return row


def _plain(value: Any) -> Any:
    """Return `value` as JSON has it: models by their fields, what it doesn't know as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "body"):
        return _plain(value.body)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
