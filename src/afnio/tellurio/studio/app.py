"""The studio's addresses, and what they answer with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from afnio.tellurio.studio.access import Gate
from afnio.tellurio.studio.library import shelves
from afnio.tellurio.studio.rendering import FOLDER, render

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

STATIC: Final = FOLDER / "static"


def build(home: Path, token: str, cookie: str) -> ASGIApp:
    """Return the studio of the stores under `home`, which answers who has the token."""
    app = Starlette(
        routes=[
            Route("/", runs),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={HTTPException: problem},
    )
    app.state.home = home
    return Gate(app, token, cookie)


def runs(request: Request) -> Response:
    """All runs."""
    home: Path = request.app.state.home
    return HTMLResponse(render("runs.html", home=str(home), shelves=shelves(home)))


async def problem(request: Request, error: Exception) -> Response:
    """What isn't there, on a page."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    title = "Not found" if status == 404 else "That didn't work"
    reason = "Nothing is at this address; the run may have been removed."
    return HTMLResponse(render("problem.html", title=title, reason=reason), status)
