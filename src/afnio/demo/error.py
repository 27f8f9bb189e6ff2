"""What ends the demo with one sentence instead of a traceback."""

from __future__ import annotations

from afnio.errors import AfnioError, BatchError


class DemoError(AfnioError):
    """The demo can't go on; the message says why and what to do."""


class RefusedError(DemoError):
    """The demo was asked for something that it won't do; nothing was called."""


def sentence(error: BaseException) -> str | None:
    """Return what to tell a user of an error that is no bug, else None.

    >>> sentence(DemoError("no network"))
    'no network'
    """
    if isinstance(error, BatchError):
        return f"{len(error.samples) or len(error.exceptions)} samples failed, the first with: {error.exceptions[0]}"
    return str(error) if isinstance(error, AfnioError | OSError) else None
