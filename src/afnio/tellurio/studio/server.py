"""Server: the studio on a port of 127.0.0.1, until Ctrl-C."""

from __future__ import annotations

import importlib.util
import secrets
import socket
import sys
from typing import TYPE_CHECKING, Final

from afnio.errors import AfnioError

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS: Final = "127.0.0.1"
NEEDED: Final = ("starlette", "uvicorn", "jinja2")
GRACE: Final = 1
"""Seconds that open pages have at the end; their streams would go on for ever."""


class StudioError(AfnioError):
    """The studio can't start; the message says why and what to do."""


def serve(home: Path, port: int = 0) -> None:
    """Serve the stores under `home` until interrupted; the first line printed is the address, with its token.

    Args:
        home: the folder with the stores, usually `.afnio`; it may come to be later.
        port: 0 takes a free one.

    Raises:
        StudioError: if packages are missing or the port is taken.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise StudioError(
            f"the studio needs packages that are not installed [{', '.join(missing)}]; "
            "install them with: pip install 'afnio[studio]'"
        )
    listener = listen(port)
    token = secrets.token_urlsafe(32)
    number = listener.getsockname()[1]
    # It listens already: what connects before the imports below are done, waits for them.
    sys.stdout.write(f"http://{ADDRESS}:{number}/?token={token}\n")
    sys.stdout.write(f"Shows the runs in {home}, to this machine only. Ctrl-C ends it.\n")
    sys.stdout.flush()
    try:
        _run(home, token, listener)
    finally:
        listener.close()


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine alone.

    >>> with listen(0) as listener:
    ...     listener.getsockname()[0]
    '127.0.0.1'
    """
    try:
        return socket.create_server((ADDRESS, port))
    except (OSError, OverflowError) as error:
        raise StudioError(
            f"port [{port}] can't be used ({error}); leave --port out for a free one"
        ) from error


def _run(home: Path, token: str, listener: socket.socket) -> None:
    import uvicorn

    from afnio.tellurio.studio.app import build

    number = listener.getsockname()[1]
    config = uvicorn.Config(
        build(home, token, f"afnio_studio_{number}"),
        log_level="warning",
        access_log=False,  # the first address holds the token
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=GRACE,
    )
    uvicorn.Server(config).run(sockets=[listener])
