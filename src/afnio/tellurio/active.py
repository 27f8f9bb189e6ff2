"""Which run is the active one: the block's, else the process's."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from afnio.runtime._settings import seed_source
from afnio.runtime._waiting import active_journal
from afnio.runtime.events import recorder

if TYPE_CHECKING:
    from afnio.tellurio.run import Run

# The runs started by a plain `init` that haven't ended; the last is the process default.
_started: list[Run] = []
_entered: ContextVar[Run | None] = ContextVar("afnio_run", default=None)


def get_active_run() -> Run:
    """The run of the innermost `with te.init(...)`, else the last one started plainly."""
    run = _entered.get()
    if run is not None:
        return run
    try:
        return _started[-1]
    except IndexError:
        raise ValueError(
            "No run is active here; start one with te.init(namespace, project). In a thread of "
            "your own, call log on the run that te.init returned."
        ) from None


def start(run: Run) -> None:
    """Make `run` the process default."""
    _started.append(run)
    _use_as_default(run)


def remove(run: Run) -> None:
    """Make `run` no process default any more; the one started before it takes its place."""
    if run in _started:
        _started.remove(run)
        _use_as_default(_started[-1] if _started else None)


def enter(run: Run) -> Token[Run | None]:
    """Make `run` the active one of this context, until `leave`."""
    return _entered.set(run)


def leave(token: Token[Run | None]) -> None:
    """Undo an `enter`."""
    _entered.reset(token)


def _use_as_default(run: Run | None) -> None:
    """Have the calls, the events and the seeds of the process, outside of any block, go to this run."""
    recorder.default = None if run is None else run.observe
    # Requests come in another order each time: a journal could only answer one from another's past.
    active_journal.default = None if run is None or run.process_wide else run.journal
    seed_source.default = None if run is None else run.draw_seed
