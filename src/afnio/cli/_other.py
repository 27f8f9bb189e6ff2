"""The small commands: `batches`, `gateway`, `journal`, `login`, `prompts`, `provider`, `report` and `studio`.

Each parses its arguments, calls the package that does the work, and turns errors into one line on standard error.
"""

from __future__ import annotations

import argparse
import getpass
import importlib.util
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from afnio.cli._parser import Parser, say_next
from afnio.errors import AfnioError

if TYPE_CHECKING:
    from afnio.runtime._batch_api import BatchApi
    from afnio.runtime._journal_file import JournalStat
    from afnio.runtime._parcels import Parcel
    from afnio.runtime._spending import Item, Spent


_EXAMPLES = """\
examples:
  afnio batches list run.journal      show the batches that a program has left, and what is done
  afnio batches cancel run.journal    cancel them; what is done is paid for, and can be read
  afnio batches fetch run.journal     keep the results of ended ones beside the journal, before they expire

The keys are those of the environment: OPENAI_API_KEY, ANTHROPIC_API_KEY. A program that is started again reads its
batches by itself.
"""


def batches_main(argv: Sequence[str]) -> int:
    """List, cancel or fetch the open batches of a journal, and return the exit code."""
    parser = Parser(
        prog="afnio batches",
        description="List, cancel or fetch the batches that a program has left at its providers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("list", "cancel", "fetch"))
    parser.add_argument("journal", type=Path, help="the journal file of the program, which must have ended")
    options = parser.parse_args(argv)
    from afnio.runtime._journal import Journal

    try:
        if not options.journal.is_file():
            raise FileNotFoundError(
                f"there is no journal {options.journal}; name the file of afnio.journal(…)"
            )
        with Journal.open(options.journal) as journal:
            return _on_runtime(lambda: _handle(journal, options.command))
    except (AfnioError, OSError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1


def _on_runtime(work: Callable[[], Awaitable[int]]) -> int:
    """Run `work` on the loop of the engine, which has the connections, and return its result."""
    from afnio.runtime import Pending
    from afnio.runtime._kernel import Job, Launch, Slot

    launch = Launch("batches")
    slot = Slot(launch)

    async def body(job: Job, values: list[Any]) -> list[int]:
        return [await work()]

    launch.add(body, [], [slot])
    launch.start()
    return Pending(slot, int).wait()


async def _handle(journal: Any, command: str) -> int:
    from afnio.runtime._kernel import current_runtime
    from afnio.runtime._parcels import Depot, Group, Parcel

    rows, code = journal.parcels(), 0
    if not rows:
        sys.stdout.write("no batch is open\n")
    for row in rows:
        try:
            group = Group(Depot.of(current_runtime()), _api(row), journal)
            said = await _act(Parcel(group, row), command)
        except AfnioError as error:
            said, code = str(error), 1
        minutes = (time.time() - row["created"]) / 60
        name = row["remote"] or f"(planned as {row['name']})"
        about = f"{name}  {len(row['ids']):,} calls of {row['model']} at {row['url']}, {minutes:,.0f} min old"
        sys.stdout.write(f"{about}: {said}\n")
    return code


async def _act(parcel: Parcel, command: str) -> str:
    """Do what the command says with one batch, and return how it stands."""
    if not await parcel.is_at_provider():
        return "the provider doesn't have it; its calls are sent again by the program"
    if command == "cancel":
        await parcel.group.api.cancel(parcel.remote)
        return "it is being cancelled; start the program again to read what was done"
    if command == "fetch" and await parcel.fetch():
        return f"its results are in {parcel.results.name}; start the program again to use them"
    done, total = parcel.status.completed, len(parcel.ids)
    ended = {"": "it goes on", "done": "it has ended", "failed": "it was refused"}[parcel.status.ended]
    return f"{ended}, {done:,} of {total:,} done"


def _api(row: dict[str, Any]) -> BatchApi:
    """Return the API of a batch, with the keys of the environment.

    Raises:
        FinalModelError: if there is no key.
    """
    from afnio.models._accounts import account_of
    from afnio.models._apis import ANTHROPIC
    from afnio.models._batch_apis import AnthropicBatches
    from afnio.models.openai import AsyncOpenAI

    if row["endpoint"] != "/v1/messages":
        return AsyncOpenAI(base_url=row["url"]).batch_api(row["endpoint"], row["model"])
    key = os.environ.get("ANTHROPIC_API_KEY", "")
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}

    async def given() -> dict[str, str]:
        return headers

    account = account_of(row["url"], headers)
    return AnthropicBatches(account, row["endpoint"], row["model"], given, (key,), ANTHROPIC)


# afnio gateway

GATEWAY_EPILOG: Final = """\
Clients need nothing but the base URL that it prints; their keys pass through. A request may have the header
`x-afnio-priority: serving` (or validation, training, speculative).

examples:
  afnio gateway --rpm 500 --tpm 200000                        for OpenAI, or OPENAI_BASE_URL
  afnio gateway --upstream http://127.0.0.1:8000/v1 --max-in-flight 64 --journal calls.journal
  afnio gateway --upstream https://api.openai.com/v1 --upstream claude=https://api.anthropic.com --budget 5.00
"""


def gateway_main(argv: Sequence[str]) -> int:
    """Serve until a signal, and return the exit code."""
    from afnio.errors import AfnioError
    from afnio.models.openai import endpoint_url

    parser = Parser(
        prog="afnio gateway",
        description="Send the calls of many processes, in any language, under one quota, with one journal and budget.",
        epilog=GATEWAY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--upstream",
        action="append",
        metavar="[NAME=]URL",
        help="a provider's base URL; with a name it is served under /NAME (default: OPENAI_BASE_URL, or OpenAI's)",
    )
    parser.add_argument("--rpm", type=_positive, metavar="N", help="requests a minute of each key")
    parser.add_argument("--tpm", type=_positive, metavar="N", help="tokens a minute of each key")
    parser.add_argument("--max-in-flight", type=_positive, metavar="N", help="requests in flight of each key")
    parser.add_argument(
        "--total-rpm", type=_positive, metavar="N", help="requests a minute of all keys together"
    )
    parser.add_argument(
        "--total-tpm", type=_positive, metavar="N", help="tokens a minute of all keys together"
    )
    parser.add_argument(
        "--budget", type=float, metavar="DOLLARS", help="the most to spend; a journal's past counts"
    )
    parser.add_argument(
        "--journal", type=Path, metavar="FILE", help="record replies, to answer again after a restart"
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="answer equal requests of a key by one call, for jobs over rows that a cluster runs again",
    )
    parser.add_argument(
        "--batch", metavar="WAIT", help='send by batch APIs at half the price, and wait as long: "90m", "24h"'
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=_port, default=8400, help="the port, 0 for a free one (default: 8400)")
    parser.add_argument(
        "--token",
        default=os.environ.get("AFNIO_GATEWAY_TOKEN"),
        help="what clients must send, as x-afnio-token or first in the path (default: AFNIO_GATEWAY_TOKEN)",
    )
    options = parser.parse_args(argv)
    try:
        upstreams = _upstreams(options.upstream or [endpoint_url(None)])
    except ValueError as error:
        parser.error(str(error))
    from afnio.gateway import GatewayOptions, serve
    from afnio.runtime._limits import Limits

    limits = Limits(options.max_in_flight, options.rpm, options.tpm)
    total = Limits(requests_per_minute=options.total_rpm, tokens_per_minute=options.total_tpm)
    try:
        serve(
            GatewayOptions(
                upstreams=upstreams,
                limits=None if limits == Limits() else limits,
                total=None if total == Limits() else total,
                budget=options.budget,
                journal=options.journal,
                host=options.host,
                port=options.port,
                token=options.token or None,
                once=options.once,
                batch=options.batch,
            )
        )
    except (AfnioError, ValueError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    return 0


def _upstreams(options: Sequence[str]) -> dict[str, str]:
    """Return base URLs by name; the one without a name is "".

    >>> _upstreams(["https://a.example/v1/", "b=http://127.0.0.1:8000/v1"])
    {'': 'https://a.example/v1', 'b': 'http://127.0.0.1:8000/v1'}
    """
    urls: dict[str, str] = {}
    for entry in options:
        name, equals, url = entry.partition("=")
        if not equals or "/" in name:
            name, url = "", entry
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"--upstream must be a URL with http or https (got {url!r}); pass the provider's base URL"
            )
        if parts.username or parts.query:
            raise ValueError("--upstream must not hold credentials or a query; clients send their own keys")
        if name in urls:
            raise ValueError(
                f"--upstream was given twice for the path /{name}; name one of them, as NAME=URL"
            )
        if name == "afnio":
            raise ValueError(
                "--upstream can't be named afnio, which is the path of the gateway's pages; choose another name"
            )
        urls[name] = url.rstrip("/")
    return urls


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {number})")
    return number


# afnio journal


def journal_main(argv: Sequence[str]) -> int:
    """Summarize a journal, and return the exit code."""
    parser = Parser(
        prog="afnio journal",
        description="Summarize a journal: the file of replies that a killed run is resumed from.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    stat = commands.add_parser(
        "stat", help="show how many replies it has and what they cost; works while it is being written"
    )
    stat.add_argument("path", help="the journal file")
    stat.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    return _stat(options.path, as_json=options.json)


def _stat(path: str, *, as_json: bool) -> int:
    from afnio.errors import JournalError
    from afnio.runtime._journal import Journal

    try:
        stat = Journal.stat(path)
    except (JournalError, FileNotFoundError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    sys.stdout.write(json.dumps(_as_dict(stat), indent=1) if as_json else _as_text(stat))
    sys.stdout.write("\n")
    return 0


def _as_dict(stat: JournalStat) -> dict[str, object]:
    return {
        "path": str(stat.path),
        "version": stat.version,
        "records": stat.records,
        "bytes": stat.size,
        "first": stat.first,
        "last": stat.last,
        "spent": [_spent_as_dict(item, spent) for item, spent in sorted(stat.spent.items.items())],
    }


def _spent_as_dict(item: Item, spent: Spent) -> dict[str, object]:
    return {
        "purpose": item.purpose,
        "model": item.model,
        "account": item.client,
        "calls": spent.calls,
        "failed": spent.attempts - spent.calls - spent.unknown,
        "unknown": spent.unknown,
        "usage": asdict(spent.usage),
        "reserved": asdict(spent.reserved),
    }


def _as_text(stat: JournalStat) -> str:
    lines = [
        f"{stat.path}",
        (
            f"  {stat.records:,} records, {stat.size:,} bytes, schema {stat.version}, "
            f"from {_date(stat.first)} to {_date(stat.last)}"
        ),
    ]
    for item, spent in sorted(stat.spent.items.items()):
        unknown = f", {spent.unknown} attempts that may have been billed" if spent.unknown else ""
        lines.append(
            f"  {item.purpose:<16} {item.model:<24} {spent.calls:>7,} calls "
            f"{spent.usage.prompt_tokens:>10,} in {spent.usage.completion_tokens:>9,} out{unknown}"
        )
    return "\n".join(lines)


def _date(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


# afnio login

EPILOG = """\
You don't need this to use Afnio. A key in OPENAI_API_KEY, or passed as api_key=…, takes precedence.

examples:
  afnio login                                    ask for the key, check it and save it
  afnio login --base-url https://host/v1 < FILE  read another endpoint's key from a file
  afnio login --remove                           remove the key from the keyring
"""


def login_main(argv: Sequence[str]) -> int:
    """Save or remove a key, and return the exit code."""
    parser = Parser(
        prog="afnio login",
        description="Check an API key and save it in this machine's keyring, where Afnio's clients find it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base-url", help="the endpoint (default: OPENAI_BASE_URL, or OpenAI's)")
    parser.add_argument("--remove", action="store_true", help="remove the key from the keyring")
    options = parser.parse_args(argv)
    from afnio.errors import AfnioError

    try:
        return _remove(options.base_url) if options.remove else _keep(options.base_url)
    except (AfnioError, ValueError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    except (KeyboardInterrupt, EOFError):
        sys.stderr.write("\nafnio: nothing was saved\n")
        return 130


def _keep(base_url: str | None) -> int:
    from afnio.models._accounts import forget_key, keep_key
    from afnio.models.openai import AsyncOpenAI, endpoint_url
    from afnio.runtime._callables import run

    url = endpoint_url(base_url)
    forget_key(url)  # fails without a keyring, before the user has typed a key
    key = getpass.getpass(f"API key for {url}: ") if sys.stdin.isatty() else sys.stdin.readline()
    key = key.strip()
    if not key:
        sys.stderr.write("afnio: no key was given; nothing was saved\n")
        return 1
    models = run(AsyncOpenAI(api_key=key, base_url=url).list_models())
    keep_key(url, key)
    sys.stdout.write(
        f"{url} accepts the key ({len(models)} models); it is saved in {getpass.getuser()}'s keyring\n"
    )
    if os.environ.get("OPENAI_API_KEY"):
        sys.stdout.write("OPENAI_API_KEY is set and takes precedence\n")
    return 0


def _remove(base_url: str | None) -> int:
    from afnio.models._accounts import forget_key
    from afnio.models.openai import endpoint_url

    url = endpoint_url(base_url)
    gone = forget_key(url)
    sys.stdout.write(f"the key for {url} was removed\n" if gone else f"there was no key for {url}\n")
    return 0


# afnio prompts

# The packages with prompts; each has all of them in its `_prompts`.
PACKAGES: Final = ("afnio.cognitive", "afnio.optim")


class ListedPrompt(NamedTuple):
    """A prompt, or a response format (a JSON schema)."""

    name: str
    package: str
    version: int
    text: str


def prompts_main(argv: Sequence[str]) -> int:
    """Print prompts, or export a run's, and return the exit code."""
    if argv[:1] == ["export"]:
        return _export_main(argv[1:])
    parser = Parser(
        prog="afnio prompts",
        description="Print the prompts that Afnio itself sends (as critic, optimizer or judge) and its JSON schemas. "
        "`afnio prompts export RUN` prints those that a run has learned.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="print only these")
    parser.add_argument("--list", action="store_true", help="print names and versions only")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    options = parser.parse_args(argv)
    prompts = all_prompts()
    names = [prompt.name for prompt in prompts]
    unknown = [name for name in options.names if name not in names]
    if unknown:
        sys.stderr.write(f"afnio: there is no prompt {unknown[0]!r}; there are {', '.join(names)}\n")
        return 2
    chosen = [prompt for prompt in prompts if not options.names or prompt.name in options.names]
    if options.json:
        rows = [prompt._asdict() for prompt in chosen]
        for row in rows if options.list else ():
            del row["text"]
        sys.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        return 0
    for prompt in chosen:
        head = f"{prompt.name}  ({prompt.package}, version {prompt.version})"
        sys.stdout.write(
            f"{head}\n" if options.list else f"{head}\n{'-' * len(head)}\n{prompt.text.strip()}\n\n"
        )
    return 0


def all_prompts() -> list[ListedPrompt]:
    """Return all prompts and formats, package by package.

    >>> [prompt.package for prompt in all_prompts() if prompt.name == "tgd.system"]
    ['afnio.optim']
    """
    listed = []
    for package in PACKAGES:
        module = importlib.import_module(f"{package}._prompts")
        # The prompts have the names that `replace_prompts` takes. The formats are the module's other constants.
        listed += [ListedPrompt(name, package, module.VERSION, text) for name, text in module.TEXTS.items()]
        for name, value in vars(module).items():
            if name.isupper() and not name.startswith("_") and isinstance(value, dict) and name != "TEXTS":
                listed.append(
                    ListedPrompt(name.lower(), package, module.VERSION, json.dumps(value, indent=1))
                )
    return listed


def _export_main(argv: Sequence[str]) -> int:
    from afnio.errors import AfnioError
    from afnio.studies._exports import FORMS, RunPrompts, write_files, write_text
    from afnio.tellurio._store import home_folder

    parser = Parser(
        prog="afnio prompts export",
        description="Print the prompts of a run, or write them to files, for an app that doesn't need Afnio.",
    )
    parser.add_argument(
        "run",
        metavar="RUN[@kept|@found|@N]",
        help="a run, and which of its prompts: kept at its end (default), found by its training, or after step N",
    )
    parser.add_argument("--format", choices=FORMS, default="text", help="default: text")
    parser.add_argument(
        "-o", "--output", type=Path, help="a file for json and python; a folder for text and prompty"
    )
    parser.add_argument("--dir", type=Path, help="the folder of runs (default: AFNIO_HOME, or .afnio)")
    options = parser.parse_args(argv)
    try:
        form = FORMS[options.format](RunPrompts.read(home_folder(options.dir), options.run))
        if isinstance(form, str):
            if options.output is not None:
                write_text(options.output, form)
        elif options.output is not None:
            write_files(options.output, form, ".txt" if options.format == "text" else f".{options.format}")
        elif len(form) > 1:
            raise LookupError(
                f"{options.format} is a file for each prompt, and the run has {len(form)} ({', '.join(form)}); give "
                "-o FOLDER, or --format json"
            )
    except (AfnioError, LookupError, OSError, ValueError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    if options.output is not None:
        sys.stdout.write(f"{options.output}\n")
        return 0
    text = form if isinstance(form, str) else next(iter(form.values()))
    sys.stdout.write(text if text.endswith("\n") or not sys.stdout.isatty() else f"{text}\n")
    return 0


# afnio provider


def provider_main(argv: Sequence[str]) -> int:
    """Serve until standard input ends, and return the exit code."""
    from afnio.testing.provider._provider import main as serve

    serve(argv)
    return 0


# afnio report


def report_main(argv: Sequence[str]) -> int:
    """Write the report, and return the exit code."""
    from afnio.errors import AfnioError
    from afnio.tellurio._store import home_folder
    from afnio.tellurio.studio._report import write_report

    parser = Parser(
        prog="afnio report",
        description="Write a run to one HTML file with its prompts, samples and curves. It needs no server.",
    )
    parser.add_argument("run", help="a name, an id, namespace/project/name, or the beginning of one")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="the file to write (default: the run's name, in the working directory)",
    )
    parser.add_argument("--dir", type=Path, help="the folder of runs (default: AFNIO_HOME, or .afnio)")
    options = parser.parse_args(argv)
    try:
        path = write_report(home_folder(options.dir), options.run, options.output)
    except (AfnioError, OSError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    say_next(
        {f"afnio prompts export {options.run}": "the run's prompts", "afnio studio": "all runs in a browser"}
    )
    return 0


# afnio studio


def studio_main(argv: Sequence[str]) -> int:
    """Serve the studio until Ctrl-C, and return the exit code."""
    parser = Parser(
        prog="afnio studio",
        description="Serve pages of runs on 127.0.0.1. Open the printed address; its token keeps others out.",
    )
    parser.add_argument("--port", type=_port, default=0, help="the port (default: a free one)")
    parser.add_argument("--dir", type=Path, help="the folder of runs (default: AFNIO_HOME, or .afnio)")
    options = parser.parse_args(argv)
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"afnio: the studio needs {' and '.join(missing)}; run pip install 'afnio[studio]'\n"
        )
        return 1
    from afnio.errors import StudioError
    from afnio.tellurio._store import home_folder
    from afnio.tellurio.studio._app import serve

    home = home_folder(options.dir)
    if not home.is_dir():
        sys.stderr.write(f"afnio: the folder {home} doesn't exist yet, so the studio starts without runs\n")
    try:
        serve(home, options.port)
    except StudioError as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535 (got {text})")
    return int(text)
