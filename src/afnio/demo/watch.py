"""Watch: notice when a server process of the demo is gone, long before its calls run out of attempts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from afnio.demo.error import DemoError

if TYPE_CHECKING:
    from types import TracebackType

PERIOD: Final = 0.5
"""Seconds between two looks."""


class Watch:
    """Looks whether `base_url` still takes connections while its `with` block lasts.

    Once it doesn't, the block's main thread is interrupted and the block raises a `DemoError`.
    """

    def __init__(self, base_url: str, name: str) -> None:
        self._base_url = base_url
        self._name = name
        self._ended = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if error is not None and self._lost:
            raise DemoError(
                f"{self._name} ended while it was needed ({self._base_url} takes no connection); "
                "start the demo again"
            ) from None

    def _look(self) -> None:
        while not self._ended.wait(PERIOD):
            if not takes_connections(self._base_url):
                # It may have been stopped because the block has ended.
                if not self._ended.is_set():
                    self._lost = True
                    # A real signal: it ends a wait for a lock, which `interrupt_main` doesn't.
                    signal.pthread_kill(_main_id(), signal.SIGINT)
                return


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends, and from processes that it starts for good.

    A terminal sends it to the whole group; a server is to end in order, with its standard input.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _main_id() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident


def takes_connections(base_url: str, timeout: float = 10.0) -> bool:
    """Whether a server takes connections at `base_url`; one that is slow to answer does."""
    # Not urllib: it would ask a proxy from the environment.
    connection = HTTPConnection(urlsplit(base_url).netloc, timeout=timeout)
    try:
        connection.request("GET", "/health")
        connection.getresponse().read()
    except TimeoutError:
        return True
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True
