"""Browser: Debian's chromium, driven from a thread of its own.

Playwright's blocking interface leaves a running event loop in its thread, where the async tests of the same
process could start none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from studio.visitor import Studio

if TYPE_CHECKING:
    from playwright.sync_api import Page

TIMEOUT = 60_000
"""Milliseconds that the browser waits for what a test expects."""


class Browser:
    """Shows pages to `visit` functions; each visit has cookies, storage and errors of its own."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="browser")

    def __enter__(self) -> Self:
        self._thread.submit(self._start).result(timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.submit(self._stop).result(timeout=60)
        self._thread.shutdown()

    def look(
        self,
        studio: Studio | None,
        visit: Callable[[Page], Any],
        *,
        width: int = 1280,
        scheme: str = "light",
        errors: Sequence[str] = (),
        seconds: float = 100,
    ) -> Any:
        """Open the studio by its first address, then have `visit(page)` run in the browser's thread.

        What the browser complains of, a violated policy too, fails the test unless `errors` has a part of it.
        """
        return self._thread.submit(self._look, studio, visit, width, scheme, errors).result(timeout=seconds)

    def _start(self) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP rebound.example 127.0.0.1"]
        self._browser = self._playwright.chromium.launch(executable_path=self._path, args=arguments)

    def _stop(self) -> None:
        self._browser.close()
        self._playwright.stop()

    def _look(
        self,
        studio: Studio | None,
        visit: Callable[[Page], Any],
        width: int,
        scheme: Any,
        errors: Sequence[str],
    ) -> Any:
        context = self._browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(TIMEOUT)
        complaints: list[str] = []
        try:
            page = context.new_page()
            page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
            if studio is not None:
                page.goto(studio.address)
                assert "token" not in page.url
            result = visit(page)
        finally:
            context.close()
        assert [one for one in complaints if not any(part in one for part in errors)] == []
        return result
