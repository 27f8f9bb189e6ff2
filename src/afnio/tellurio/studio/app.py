"""The studio's addresses, and what they answer with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from afnio.tellurio.opening import StoreProblemError
from afnio.tellurio.reader import Reader
from afnio.tellurio.studio import live
from afnio.tellurio.studio.access import Gate
from afnio.tellurio.studio.call_page import call_page, calls_page
from afnio.tellurio.studio.compare_page import MOST, Compared, compare_page, compared
from afnio.tellurio.studio.hostile_text import PAGE, excerpt
from afnio.tellurio.studio.library import Shelf, find_shelf
from afnio.tellurio.studio.lineage import candidate_page, lineage_page
from afnio.tellurio.studio.query_number import query_number
from afnio.tellurio.studio.rendering import FOLDER, render
from afnio.tellurio.studio.run_page import run_page
from afnio.tellurio.studio.run_rows import RunRow, find_run
from afnio.tellurio.studio.runs_page import runs_page
from afnio.tellurio.studio.sample_page import sample_page, samples_page
from afnio.tellurio.studio.step_page import step_page
from afnio.tellurio.studio.tally import Tallies
from afnio.tellurio.studio.whole_text import whole_text

if TYPE_CHECKING:
    import sqlite3

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

STATIC: Final = FOLDER / "static"
RUN: Final = "/runs/{namespace}/{project}/{run}"


class RowConvertor(IntegerConvertor):
    """Numbers of up to 18 digits, which SQLite has room for; at a longer one nothing is."""

    regex = "[0-9]{1,18}"


register_url_convertor("row", RowConvertor())

Page = Callable[["sqlite3.Connection", RunRow], "dict[str, Any] | None"]


def build(home: Path, token: str, cookie: str) -> ASGIApp:
    """Return the studio of the stores under `home`, which answers who has the token."""
    app = Starlette(
        routes=[
            Route("/", runs),
            Route("/compare", compare),
            Route(RUN, run),
            Route(RUN + "/live", stream),
            Route(RUN + "/steps/{number:row}", step),
            Route(RUN + "/samples", samples),
            Route(RUN + "/samples/{number:row}", sample),
            Route(RUN + "/calls", calls),
            Route(RUN + "/calls/{number:row}", call),
            Route(RUN + "/lineage", lineage),
            Route(RUN + "/lineage/{number:row}", candidate),
            Route(RUN + "/text/{kind}/{number:row}/{part}", text),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={HTTPException: problem, StoreProblemError: problem},
    )
    app.state.home = home
    app.state.tallies = Tallies()
    return Gate(app, token, cookie)


# These functions are `def`: Starlette runs them in worker threads, where SQLite may take its time.
def runs(request: Request) -> Response:
    """All runs."""
    context = runs_page(request.app.state.home, request.app.state.tallies, dict(request.query_params))
    return _html("runs.html", **context)


def run(request: Request) -> Response:
    """One run."""
    number = query_number(request.query_params, "after")
    tallies = request.app.state.tallies
    return _of_run(request, "run.html", lambda db, found: run_page(db, found, tallies, after=number))


def step(request: Request) -> Response:
    """One step."""
    return _of_run(request, "step.html", lambda db, found: step_page(db, found, _number(request)))


def samples(request: Request) -> Response:
    """A page of samples."""
    asked = dict(request.query_params)
    return _of_run(request, "samples.html", lambda db, found: samples_page(db, found, asked))


def sample(request: Request) -> Response:
    """One sample."""
    return _of_run(request, "sample.html", lambda db, found: sample_page(db, found, _number(request)))


def calls(request: Request) -> Response:
    """A page of calls."""
    asked = dict(request.query_params)
    return _of_run(request, "calls.html", lambda db, found: calls_page(db, found, asked))


def call(request: Request) -> Response:
    """One call: alone, or in the drawer of the page that asks."""
    return _of_run(
        request, _framed(request, "call"), lambda db, found: call_page(db, found, _number(request))
    )


def lineage(request: Request) -> Response:
    """The candidates of a run."""
    return _of_run(request, "lineage.html", lineage_page)


def candidate(request: Request) -> Response:
    """One candidate: alone, or in the drawer."""
    template = _framed(request, "candidate")
    return _of_run(request, template, lambda db, found: candidate_page(db, found, _number(request)))


def text(request: Request) -> Response:
    """A part of a long text: from a character on, all of it if that is asked for."""
    path, asked = request.path_params, request.query_params
    start = query_number(asked, "from")

    def page(db: sqlite3.Connection, found: RunRow) -> dict[str, Any] | None:
        whole = whole_text(db, found.id, path["kind"], path["number"], path["part"])
        if whole is None:
            return None
        size = len(whole) if asked.get("size") == "all" else PAGE
        return {"run": found, "part": excerpt(whole, start, size), "url": request.url.path}

    return _of_run(request, _framed(request, "text"), page)


def compare(request: Request) -> Response:
    """Runs side by side, the first of them the one that the others are compared with."""
    keys = list(dict.fromkeys(request.query_params.getlist("run")))[:MOST]
    found: list[Compared] = []
    for key in keys:
        namespace, _, rest = key.partition("/")
        project, _, wanted = rest.partition("/")
        shelf = _shelf(request, namespace, project)
        with Reader(shelf.path) as reader, reader.moment() as db:
            found.append(compared(reader, db, _run(reader, shelf, wanted), request.app.state.tallies))
    if len(found) < 2:
        raise HTTPException(400, "A comparison needs two runs: mark them in the list of runs.")
    return _html("compare.html", **compare_page(found))


def stream(request: Request) -> Response:
    """What changes while a run is live, as server-sent events."""
    path = request.path_params
    shelf = _shelf(request, path["namespace"], path["project"])
    events = live.events(shelf, path["run"], request.app.state.tallies)
    return StreamingResponse(events, media_type="text/event-stream")


async def problem(request: Request, error: Exception) -> Response:
    """What isn't there, or can't be read, on a page."""
    if isinstance(error, StoreProblemError):
        return _html("problem.html", 503, title="This store can't be read", reason=str(error))
    assert isinstance(error, HTTPException)
    title = "Not found" if error.status_code == 404 else "That didn't work"
    missing = "Nothing is at this address; the run may have been removed."
    reason = missing if error.detail == "Not Found" else error.detail
    return _html("problem.html", error.status_code, title=title, reason=reason)


def _of_run(request: Request, template: str, page: Page) -> Response:
    path = request.path_params
    shelf = _shelf(request, path["namespace"], path["project"])
    with Reader(shelf.path) as reader, reader.moment() as db:
        context = page(db, _run(reader, shelf, path["run"]))
    if context is None:
        raise HTTPException(404)
    return _html(template, **context)


def _shelf(request: Request, namespace: str, project: str) -> Shelf:
    shelf = find_shelf(request.app.state.home, namespace, project)
    if shelf is None:
        raise HTTPException(404)
    return shelf


def _run(reader: Reader, shelf: Shelf, wanted: str) -> RunRow:
    found = find_run(reader, shelf, wanted)
    if found is None:
        raise HTTPException(404)
    return found


def _number(request: Request) -> int:
    number: int = request.path_params["number"]
    return number


def _framed(request: Request, name: str) -> str:
    """Return the template of a part alone where htmx asks for it, else of a page around it."""
    return f"{name}_part.html" if request.headers.get("hx-request") else f"{name}.html"


def _html(template: str, status: int = 200, **context: Any) -> Response:
    return HTMLResponse(render(template, **context), status)
