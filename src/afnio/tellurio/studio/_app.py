"""The studio's addresses, and what they answer with."""

from __future__ import annotations

import importlib.util
import json
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from afnio.errors import StoreProblemError, StudioError
from afnio.tellurio._queries import StoreReader
from afnio.tellurio.studio._compare import MOST_RUNS, Compared, compare_page, compared
from afnio.tellurio.studio._run import figures, run_page
from afnio.tellurio.studio._runs import RunRow, Shelf, Tallies, find_run, find_shelf, runs_page
from afnio.tellurio.studio._sample import call_page, calls_page, sample_page, samples_page, whole_text
from afnio.tellurio.studio._step import candidate_page, lineage_page, step_page
from afnio.tellurio.studio._text import (
    EXCERPT,
    FOLDER,
    dollars,
    excerpt,
    number,
    query_number,
    render,
    score,
    seconds,
)

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


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
        size = len(whole) if asked.get("size") == "all" else EXCERPT
        return {"run": found, "part": excerpt(whole, start, size), "url": request.url.path}

    return _of_run(request, _framed(request, "text"), page)


def compare(request: Request) -> Response:
    """Runs side by side, the first of them the one that the others are compared with."""
    keys = list(dict.fromkeys(request.query_params.getlist("run")))[:MOST_RUNS]
    found: list[Compared] = []
    for key in keys:
        namespace, _, rest = key.partition("/")
        project, _, wanted = rest.partition("/")
        shelf = _shelf(request, namespace, project)
        with StoreReader(shelf.path) as reader, reader.moment() as db:
            found.append(compared(reader, db, _run(reader, shelf, wanted), request.app.state.tallies))
    if len(found) < 2:
        raise HTTPException(400, "A comparison needs two runs: mark them in the list of runs.")
    return _html("compare.html", **compare_page(found))


def stream(request: Request) -> Response:
    """What changes while a run is live, as server-sent events."""
    path = request.path_params
    shelf = _shelf(request, path["namespace"], path["project"])
    events = live_events(shelf, path["run"], request.app.state.tallies)
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
    with StoreReader(shelf.path) as reader, reader.moment() as db:
        context = page(db, _run(reader, shelf, path["run"]))
    if context is None:
        raise HTTPException(404)
    return _html(template, **context)


def _shelf(request: Request, namespace: str, project: str) -> Shelf:
    shelf = find_shelf(request.app.state.home, namespace, project)
    if shelf is None:
        raise HTTPException(404)
    return shelf


def _run(reader: StoreReader, shelf: Shelf, wanted: str) -> RunRow:
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


# Gate: who may read the studio's pages, and what their browser may do with them.


HOSTS: Final = ("127.0.0.1", "localhost")
"""Names under which this machine reaches itself; any other came by DNS rebinding, or by mistake."""

# Prompts and replies are hostile text. Escaping keeps them text; this keeps a hole in it harmless.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

HEADERS: Final = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Refusal(NamedTuple):
    """What a request that gets nothing is told; it names neither a run nor a file."""

    status: int
    reason: str


class Gate:
    """Lets through what this machine's user asks for, and says the same few words to everybody else.

    The token comes in the address once, is moved to a cookie, and is out of the address bar from then on.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app = app
        self._token = token.encode()
        # Cookies don't know ports: two studios of one browser need two names.
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here; the server answers 403

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        app = self._answer(scope) or self._app
        await app(scope, receive, send_with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """Return what to say instead of a page; None where the page is allowed."""
        headers = Headers(scope=scope)
        refusal = refused_by_method(scope["method"]) or refused_by_origin(headers)
        if refusal is not None:
            return PlainTextResponse(refusal.reason + "\n", refusal.status)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and self._is_token(given[-1]):
            return self._move_token(scope["path"], query)
        if self._is_token(_cookie(headers, self._cookie)):
            return None
        return PlainTextResponse("Open the address that `afnio studio` printed; it holds the token.\n", 401)

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "replace"), self._token)

    def _move_token(self, path: str, query: list[tuple[str, str]]) -> Response:
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        # A path that starts with two slashes would be another host.
        place = "/" + path.lstrip("/\\")
        response = RedirectResponse(f"{place}?{rest}" if rest else place, 303)
        response.set_cookie(self._cookie, self._token.decode(), path="/", httponly=True, samesite="strict")
        return response


def refused_by_method(method: str) -> Refusal | None:
    """Refuse whatever could change something: the studio only reads."""
    if method in ("GET", "HEAD"):
        return None
    return Refusal(405, "The studio only reads; GET and HEAD are all it answers.")


def refused_by_origin(headers: Headers) -> Refusal | None:
    """Refuse a host that isn't this machine (DNS rebinding), and pages of another origin."""
    host = headers.get("host", "")
    name, _, port = host.partition(":")
    if name not in HOSTS or not (port == "" or port.isdecimal()):
        return Refusal(403, "The studio answers on 127.0.0.1 and localhost only.")
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    if (origin is not None and origin != f"http://{host}") or site not in ("none", "same-origin"):
        return Refusal(403, "Asked for by another site; paste the address into the address bar instead.")
    return None


def _cookie(headers: Headers, name: str) -> str:
    for line in headers.getlist("cookie"):
        try:
            morsel = SimpleCookie(line).get(name)
        except CookieError:
            continue
        if morsel is not None:
            return morsel.value
    return ""


# Live: what changes on a run's page while it goes on, as server-sent events.


PERIOD: Final = 0.5
"""Seconds between two looks at the store."""
BEAT: Final = 15.0
"""Seconds after which a stream without news says that it is still there."""


async def live_events(shelf: Shelf, run: str, tallies: Tallies) -> AsyncIterator[str]:
    """Yield an event whenever the run's figures differ from those before, until it has ended or is gone."""
    before, told = "", anyio.current_time()
    yield "retry: 2000\n\n"
    while True:
        found = await to_thread.run_sync(_look, shelf, run, tallies, abandon_on_cancel=True)
        text = json.dumps(found)
        if text != before:
            before, told = text, anyio.current_time()
            yield f"data: {text}\n\n"
        elif anyio.current_time() - told > BEAT:
            told = anyio.current_time()
            yield ": still here\n\n"
        if found.get("ended"):
            return
        await anyio.sleep(PERIOD)


def _look(shelf: Shelf, run: str, tallies: Tallies) -> dict[str, Any]:
    try:
        with StoreReader(shelf.path) as reader, reader.moment() as db:
            found = find_run(reader, shelf, run)
            if found is None:
                return {"problem": "This run has been removed.", "ended": True}
            fresh = figures(db, found, tallies)
    except StoreProblemError as error:
        # Another process may hold the store for a moment; what is damaged stays so.
        return {"problem": str(error), "ended": not error.passing}
    return {
        "numbers": shown(fresh["live"]),
        "curves": fresh["curves"],
        "steps": fresh["step_count"],
        "about": fresh["about"],
        "ended": not found.is_running,
    }


def shown(numbers: dict[str, Any]) -> dict[str, str]:
    """Return the live numbers as the page writes them; the same texts as in the templates.

    >>> shown({"calls": 1200, "cost": None, "metric": 0.5, "status": "RUNNING"})
    {'calls': '1,200', 'cost': 'unpriced', 'metric': '0.500', 'status': 'RUNNING'}
    """
    forms = {"cost": dollars, "metric": score, "rate": score, "seconds": seconds}
    found = {}
    for name, value in numbers.items():
        if name == "status":
            found[name] = value
        elif name == "metric_name":
            found[name] = value or "Score"
        elif isinstance(value, str):
            found[name] = value
        else:
            found[name] = forms.get(name, number)(value)
    return found


# Server: the studio on a port of 127.0.0.1, until Ctrl-C.


ADDRESS: Final = "127.0.0.1"
NEEDED: Final = ("starlette", "uvicorn", "jinja2")
GRACE: Final = 1
"""Seconds that open pages have at the end; their streams would go on for ever."""


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
        _serve(home, token, listener)
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


def _serve(home: Path, token: str, listener: socket.socket) -> None:
    import uvicorn

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
