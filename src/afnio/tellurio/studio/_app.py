"""The studio's web application and its server.

`serve` listens on 127.0.0.1 and prints an address with a random token. `AccessCheck` is in front of everything: it lets
requests through that come from this machine's user and refuses the rest. The routes then open the store, read one
snapshot, and render a page. A live run's page also listens to `live_events`, which looks at the store twice a second
and sends the figures that changed.

Nothing here writes but the orders of a run's page: POST requests that must name this page as their origin, and that
only slow the run down or stop it (`_control` of `tellurio`). Prompts and replies are hostile text: templates escape
them, and the headers forbid every script that isn't the studio's own.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
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

from afnio.errors import ControlError, StoreProblemError, StudioError
from afnio.tellurio._control import give
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import RunRecord
from afnio.tellurio._store import find_store
from afnio.tellurio.studio._comparison import MOST_RUNS, ComparedRun, compare_page, compared
from afnio.tellurio.studio._orders import MOST_BYTES, order_of
from afnio.tellurio.studio._runs import Tallies, figures, run_page, runs_page
from afnio.tellurio.studio._sample import (
    call_page,
    calls_page,
    sample_page,
    samples_page,
    samples_table,
    whole_text,
)
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
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


STATIC: Final = FOLDER / "static"
RUN: Final = "/runs/{namespace}/{project}/{run}"


class RowConvertor(IntegerConvertor):
    """A row id in an address: up to 18 digits, which fit into SQLite's 64 bits. Longer ones are not found."""

    regex = "[0-9]{1,18}"


register_url_convertor("row", RowConvertor())

# Makes a page of a run; None if the run doesn't have what was asked for.
Page = Callable[[StoreReader, RunRecord], dict[str, Any] | None]


def build(home: Path, token: str, cookie: str) -> ASGIApp:
    """Return the application for the stores under `home`. It answers only requests that know the token."""
    app = Starlette(
        routes=[
            Route("/", runs),
            Route("/compare", compare),
            Route(RUN, run),
            Route(RUN + "/live", stream),
            Route(RUN + "/control", control, methods=["POST"]),
            Route(RUN + "/steps/{number:row}", step),
            Route(RUN + "/samples", samples),
            Route(RUN + "/samples.csv", table),
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
    return AccessCheck(app, token, cookie)


# The routes are plain functions, so Starlette runs them in worker threads: a slow query doesn't block other pages.


def runs(request: Request) -> Response:
    """All runs."""
    context = runs_page(request.app.state.home, request.app.state.tallies, dict(request.query_params))
    return _html("runs.html", **context)


def run(request: Request) -> Response:
    """One run."""
    number = query_number(request.query_params, "after")
    tallies = request.app.state.tallies
    return _of_run(
        request, "run.html", lambda reader, record: run_page(reader, record, tallies, after=number)
    )


def step(request: Request) -> Response:
    """One step."""
    return _of_run(request, "step.html", lambda reader, record: step_page(reader, record, _number(request)))


def samples(request: Request) -> Response:
    """A page of samples."""
    asked = dict(request.query_params)
    return _of_run(request, "samples.html", lambda reader, record: samples_page(reader, record, asked))


def table(request: Request) -> Response:
    """The samples that a list has, as CSV."""
    path, asked = request.path_params, dict(request.query_params)
    store = _store(request, path["namespace"], path["project"])

    def lines() -> Iterator[str]:
        with StoreReader(store) as reader, reader.moment():
            yield from samples_table(reader, _run(reader, path["run"]), asked)

    with StoreReader(store) as reader:
        name = re.sub(r"[^\w.-]", "-", _run(reader, path["run"]).name, flags=re.ASCII)
    named = {"content-disposition": f'attachment; filename="{name}.csv"'}
    return StreamingResponse(lines(), media_type="text/csv; charset=utf-8", headers=named)


def sample(request: Request) -> Response:
    """One sample."""
    return _of_run(
        request, "sample.html", lambda reader, record: sample_page(reader, record, _number(request))
    )


def calls(request: Request) -> Response:
    """A page of calls."""
    asked = dict(request.query_params)
    return _of_run(request, "calls.html", lambda reader, record: calls_page(reader, record, asked))


def call(request: Request) -> Response:
    """One call: a page, or its part for the drawer."""
    return _of_run(
        request, _framed(request, "call"), lambda reader, record: call_page(reader, record, _number(request))
    )


def lineage(request: Request) -> Response:
    """The candidates of a run."""
    return _of_run(request, "lineage.html", lineage_page)


def candidate(request: Request) -> Response:
    """One candidate: a page, or its part for the drawer."""
    template = _framed(request, "candidate")
    return _of_run(request, template, lambda reader, record: candidate_page(reader, record, _number(request)))


def text(request: Request) -> Response:
    """A part of a long text, from a character on: an excerpt, or all the rest."""
    path, asked = request.path_params, request.query_params
    start = query_number(asked, "from")

    def page(reader: StoreReader, record: RunRecord) -> dict[str, Any] | None:
        whole = whole_text(reader, record.id, path["kind"], path["number"], path["part"])
        if whole is None:
            return None
        size = len(whole) if asked.get("size") == "all" else EXCERPT
        return {"run": record, "part": excerpt(whole, start, size), "url": request.url.path}

    return _of_run(request, _framed(request, "text"), page)


def compare(request: Request) -> Response:
    """Runs side by side. The first one is the baseline."""
    keys = list(dict.fromkeys(request.query_params.getlist("run")))[:MOST_RUNS]
    found: list[ComparedRun] = []
    for key in keys:
        namespace, _, rest = key.partition("/")
        project, _, wanted = rest.partition("/")
        with StoreReader(_store(request, namespace, project)) as reader, reader.moment():
            found.append(compared(reader, _run(reader, wanted), request.app.state.tallies))
    if len(found) < 2:
        raise HTTPException(400, "A comparison needs two runs. Select them in the list of runs.")
    return _html("compare.html", **compare_page(found))


async def control(request: Request) -> Response:
    """Give a run an order, and show its page."""
    path, body = request.path_params, b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"Nothing was changed: an order has at most {MOST_BYTES:,} bytes.")

    def given() -> str:
        order = order_of(body)
        with StoreReader(_store(request, path["namespace"], path["project"])) as reader:
            record = _run(reader, path["run"])
        give(record, order)
        return record.url

    try:
        return RedirectResponse(await to_thread.run_sync(given), 303)
    except ControlError as error:
        raise HTTPException(409, f"Nothing was changed: {error}.") from None
    except ValueError as error:
        raise HTTPException(400, f"Nothing was changed: {error}.") from None


def stream(request: Request) -> Response:
    """A live run's figures as server-sent events."""
    path = request.path_params
    store = _store(request, path["namespace"], path["project"])
    events = live_events(store, path["run"], request.app.state.tallies)
    return StreamingResponse(events, media_type="text/event-stream")


async def problem(request: Request, error: Exception) -> Response:
    """A page about what went wrong: nothing at this address, or a store that can't be read."""
    if isinstance(error, StoreProblemError):
        return _html("problem.html", 503, title="This store can't be read", reason=str(error))
    assert isinstance(error, HTTPException)
    title = "Not found" if error.status_code == 404 else "That didn't work"
    missing = "Nothing is at this address; the run may have been removed."
    reason = missing if error.detail == "Not Found" else error.detail
    return _html("problem.html", error.status_code, title=title, reason=reason)


def _of_run(request: Request, template: str, page: Page) -> Response:
    path = request.path_params
    store = _store(request, path["namespace"], path["project"])
    with StoreReader(store) as reader, reader.moment():
        context = page(reader, _run(reader, path["run"]))
    if context is None:
        raise HTTPException(404)
    return _html(template, **context)


def _store(request: Request, namespace: str, project: str) -> Path:
    store = find_store(request.app.state.home, namespace, project)
    if store is None:
        raise HTTPException(404)
    return store


def _run(reader: StoreReader, wanted: str) -> RunRecord:
    record = reader.run(wanted)
    if record is None:
        raise HTTPException(404)
    return record


def _number(request: Request) -> int:
    number: int = request.path_params["number"]
    return number


def _framed(request: Request, name: str) -> str:
    """Return the name of a template: of the part alone if htmx asks for it, otherwise of a page around it."""
    return f"{name}_part.html" if request.headers.get("hx-request") else f"{name}.html"


def _html(template: str, status: int = 200, **context: Any) -> Response:
    return HTMLResponse(render(template, **context), status)


# The gate. Any program and any website on this machine can send requests to 127.0.0.1, so being there proves nothing.

# Hosts that a browser on this machine uses. With DNS rebinding, a website's own name would be here instead.
HOSTS: Final = ("127.0.0.1", "localhost")

# Templates escape prompts and replies. If one ever forgets to, this policy keeps their scripts from running.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

HEADERS: Final = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with none, browsers hide the origin of a form, too
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Refusal(NamedTuple):
    """An answer to a request that isn't allowed. It names neither a run nor a file."""

    status: int
    reason: str


class AccessCheck:
    """Middleware that only lets this machine's user through.

    A request must have the token that was printed at the start. It comes in the address once. The answer moves it to a
    cookie and redirects, so that the token doesn't stay in the address bar, in history or in bookmarks.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app = app
        self._token = token.encode()
        # Cookies are shared between ports, so two studios in one browser need different names.
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets; the server answers 403

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        app = self._answer(scope) or self._app
        await app(scope, receive, send_with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """Return the answer that replaces the page; None if the request is allowed."""
        headers = Headers(scope=scope)
        orders = scope["method"] == "POST"
        refusal = refused_by_method(scope["method"], scope["path"]) or refused_by_origin(
            headers, named=orders
        )
        if refusal is not None:
            return PlainTextResponse(refusal.reason + "\n", refusal.status)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in query if name == "token"]
        if tokens and not orders and self._is_token(tokens[-1]):
            return self._move_token(scope["path"], query)
        if self._is_token(_cookie(headers, self._cookie)):
            return None
        return PlainTextResponse(
            "Open the address that `afnio studio` printed; it contains the token.\n", 401
        )

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "replace"), self._token)

    def _move_token(self, path: str, query: list[tuple[str, str]]) -> Response:
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        # A browser would read //name as another host.
        place = "/" + path.lstrip("/\\")
        response = RedirectResponse(f"{place}?{rest}" if rest else place, 303)
        response.set_cookie(self._cookie, self._token.decode(), path="/", httponly=True, samesite="strict")
        return response


def refused_by_method(method: str, path: str) -> Refusal | None:
    """Refuse methods that could change something, except for orders to a run."""
    if method in ("GET", "HEAD") or (method == "POST" and path.endswith("/control")):
        return None
    return Refusal(405, "The studio only reads here, so it only answers GET and HEAD.")


def refused_by_origin(headers: Headers, *, named: bool = False) -> Refusal | None:
    """Refuse hosts other than this machine (DNS rebinding) and requests made by other websites.

    Args:
        named: refuse requests that don't name their origin, too, as every browser does for a form.
    """
    host = headers.get("host", "")
    name, _, port = host.partition(":")
    if name not in HOSTS or not (port == "" or port.isdecimal()):
        return Refusal(403, "The studio answers on 127.0.0.1 and localhost only.")
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    if named and origin is None:
        return Refusal(403, "An order comes from the run's page, or from `afnio runs`.")
    if (origin is not None and origin != f"http://{host}") or site not in ("none", "same-origin"):
        return Refusal(
            403, "This request came from another site; paste the address into the address bar instead."
        )
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


# Live updates.

# Seconds between two looks at the store.
PERIOD: Final = 0.5
# Seconds without news after which a comment is sent, so that the connection isn't taken for dead.
BEAT: Final = 15.0


async def live_events(store: Path, run: str, tallies: Tallies) -> AsyncIterator[str]:
    """Yield a server-sent event whenever the run's figures have changed, until it has ended or was removed."""
    before, sent = "", anyio.current_time()
    yield "retry: 2000\n\n"
    while True:
        state = await to_thread.run_sync(_look, store, run, tallies, abandon_on_cancel=True)
        text = json.dumps(state)
        if text != before:
            before, sent = text, anyio.current_time()
            yield f"data: {text}\n\n"
        elif anyio.current_time() - sent > BEAT:
            sent = anyio.current_time()
            yield ": still here\n\n"
        if state.get("ended"):
            return
        await anyio.sleep(PERIOD)


def _look(store: Path, run: str, tallies: Tallies) -> dict[str, Any]:
    try:
        with StoreReader(store) as reader, reader.moment():
            record = reader.run(run)
            if record is None:
                return {"problem": "This run has been removed.", "ended": True}
            fresh = figures(reader, record, tallies)
    except StoreProblemError as error:
        # A lock passes, so keep looking. A damaged file stays damaged.
        return {"problem": str(error), "ended": not error.passing}
    return {
        "numbers": shown(fresh["live"]),
        "curves": fresh["curves"],
        "steps": fresh["step_count"],
        "about": fresh["about"],
        "ended": not record.is_running,
    }


def shown(numbers: dict[str, Any]) -> dict[str, str]:
    """Format the live numbers as the templates do, so that an update doesn't look different from a reload.

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


# The server.

ADDRESS: Final = "127.0.0.1"
# Seconds that open connections get at the end. A live run's stream would never close by itself.
GRACE: Final = 1


def serve(home: Path, port: int = 0) -> None:
    """Serve the stores under `home` until interrupted. The first line printed is the address with its token.

    Args:
        home: the folder of stores, usually `.afnio`. It needn't exist yet.
        port: 0 for a free one.

    Raises:
        StudioError: if the port is taken.
    """
    listener = listen(port)
    token = secrets.token_urlsafe(32)
    number = listener.getsockname()[1]
    # The socket is already listening, so a browser may connect now; it waits until uvicorn is imported.
    sys.stdout.write(f"http://{ADDRESS}:{number}/?token={token}\n")
    sys.stdout.write(f"Showing the runs in {home}, to this machine only. Press Ctrl-C to stop.\n")
    sys.stdout.flush()
    try:
        _serve(home, token, listener)
    finally:
        listener.close()


def listen(port: int) -> socket.socket:
    """Return a socket that only this machine can connect to.

    >>> with listen(0) as listener:
    ...     listener.getsockname()[0]
    '127.0.0.1'
    """
    try:
        return socket.create_server((ADDRESS, port))
    except (OSError, OverflowError) as error:
        raise StudioError(
            f"the port must be free (got {port}: {error}); omit --port to use a free one"
        ) from error


def _serve(home: Path, token: str, listener: socket.socket) -> None:
    import uvicorn

    number = listener.getsockname()[1]
    config = uvicorn.Config(
        build(home, token, f"afnio_studio_{number}"),
        log_level="warning",
        access_log=False,  # it would print the token
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=GRACE,
    )
    uvicorn.Server(config).run(sockets=[listener])
