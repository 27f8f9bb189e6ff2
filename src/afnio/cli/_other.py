"""`afnio journal`: look at a journal."""

from __future__ import annotations

import argparse
import getpass
import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from afnio.runtime._journal_file import JournalStat


def journal_main(argv: Sequence[str]) -> int:
    """Run the command and return the process's exit code."""
    parser = argparse.ArgumentParser(prog="afnio journal", description="Look at a journal.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    stat = commands.add_parser("stat", help="what it holds and what was spent, also while it is written")
    stat.add_argument("path", help="the journal's file")
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
        "spent": [{**item._asdict(), **asdict(spent)} for item, spent in sorted(stat.spent.items())],
    }


def _as_text(stat: JournalStat) -> str:
    lines = [
        f"{stat.path}",
        (
            f"  {stat.records:,} records, {stat.size:,} bytes, schema {stat.version}, "
            f"from {_date(stat.first)} to {_date(stat.last)}"
        ),
    ]
    for item, spent in sorted(stat.spent.items()):
        unknown = f", {spent.unknown} attempts that may have been paid" if spent.unknown else ""
        lines.append(
            f"  {item.purpose:<16} {item.model:<24} {spent.calls:>7,} calls "
            f"{spent.usage.prompt_tokens:>10,} in {spent.usage.completion_tokens:>9,} out{unknown}"
        )
    return "\n".join(lines)


def _date(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


# `afnio login`: keep a provider's key in the operating system's keyring.


EPILOG = """\
Nothing needs this: a key in OPENAI_API_KEY, or given as api_key=…, goes before.

examples:
  afnio login                                    asks for the key, checks it, keeps it
  afnio login --base-url https://host/v1 < FILE  of another endpoint, from a file
  afnio login --remove                           takes it out again
"""


def login_main(argv: Sequence[str]) -> int:
    """Run the command and return the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="afnio login",
        description="Check a provider's key and keep it in this machine's keyring, where Afnio's clients find it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base-url", help="the endpoint (default: OPENAI_BASE_URL, else OpenAI's own)")
    parser.add_argument("--remove", action="store_true", help="take the key out of the keyring")
    options = parser.parse_args(argv)
    from afnio.errors import AfnioError

    try:
        return _remove(options.base_url) if options.remove else _keep(options.base_url)
    except (AfnioError, ValueError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    except (KeyboardInterrupt, EOFError):
        sys.stderr.write("\nafnio: nothing was kept\n")
        return 130


def _keep(base_url: str | None) -> int:
    from afnio.models import openai
    from afnio.models.openai import AsyncOpenAI, endpoint_url
    from afnio.runtime._callables import run

    url = endpoint_url(base_url)
    openai.forget(url)  # before anybody types a key: is there a keyring at all?
    key = getpass.getpass(f"API key for {url}: ") if sys.stdin.isatty() else sys.stdin.readline()
    key = key.strip()
    if not key:
        sys.stderr.write("afnio: no key was given; nothing was kept\n")
        return 1
    models = run(AsyncOpenAI(api_key=key, base_url=url).list_models())
    openai.keep(url, key)
    sys.stdout.write(
        f"{url} takes the key ({len(models)} models); it is in the keyring of {getpass.getuser()}\n"
    )
    if os.environ.get("OPENAI_API_KEY"):
        sys.stdout.write("OPENAI_API_KEY is set and goes before it\n")
    return 0


def _remove(base_url: str | None) -> int:
    from afnio.models import openai
    from afnio.models.openai import endpoint_url

    url = endpoint_url(base_url)
    gone = openai.forget(url)
    sys.stdout.write(f"the key for {url} was taken out\n" if gone else f"there was no key for {url}\n")
    return 0


# `afnio prompts`: every prompt that Afnio itself sends.


PACKAGES: Final = ("afnio.cognitive", "afnio.optim")
"""Those with a file `prompts`, where all of their prompts are."""


class ListedPrompt(NamedTuple):
    """A prompt, or the response format that goes with one (a JSON schema)."""

    name: str
    package: str
    version: int
    text: str


def prompts_main(argv: Sequence[str]) -> int:
    """Run the command and return the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="afnio prompts",
        description="Print every prompt that Afnio sends on its own account, and the formats it asks for.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--list", action="store_true", help="names and versions without the texts")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    options = parser.parse_args(argv)
    prompts = all_prompts()
    known = [prompt.name for prompt in prompts]
    unknown = [name for name in options.names if name not in known]
    if unknown:
        sys.stderr.write(f"afnio: there is no prompt {unknown[0]!r}; there are {', '.join(known)}\n")
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
    """Return the prompts in the order of their files.

    >>> [prompt.package for prompt in all_prompts() if prompt.name == "tgd.system"]
    ['afnio.optim']
    """
    found = []
    for package in PACKAGES:
        module = importlib.import_module(f"{package}._prompts")
        # Under the names that `replace_prompts` takes, then the formats.
        found += [ListedPrompt(name, package, module.VERSION, text) for name, text in module.TEXTS.items()]
        for name, value in vars(module).items():
            if name.isupper() and not name.startswith("_") and isinstance(value, dict) and name != "TEXTS":
                found.append(ListedPrompt(name.lower(), package, module.VERSION, json.dumps(value, indent=1)))
    return found


# `afnio provider`: serve a provider for tests.


def provider_main(argv: Sequence[str]) -> int:
    """Serve until the input ends, and return the process's exit code."""
    from afnio.testing.provider._provider import main as serve

    serve(argv, prog="afnio provider")
    return 0


# `afnio report`: one run as one HTML file.


def report_main(argv: Sequence[str]) -> int:
    """Write the report and return the process's exit code."""
    from afnio.errors import AfnioError
    from afnio.tellurio._queries import home_folder
    from afnio.tellurio.studio._report import write_report

    parser = argparse.ArgumentParser(
        prog="afnio report",
        description="Write one run as one HTML file, with its prompts, samples and curves, that needs no server.",
    )
    parser.add_argument("run", help="a name, an id, namespace/project/name, or the beginning of one")
    parser.add_argument("-o", "--output", type=Path, help="the file (default: named after the run, here)")
    parser.add_argument("--dir", type=Path, help="folder of the stores (default: AFNIO_HOME, else .afnio)")
    options = parser.parse_args(argv)
    try:
        path = write_report(home_folder(options.dir), options.run, options.output)
    except (AfnioError, OSError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


# `afnio studio`: look at runs in a browser.


def studio_main(argv: Sequence[str]) -> int:
    """Serve the studio until Ctrl-C, and return the process's exit code."""
    from afnio.errors import StudioError
    from afnio.tellurio._queries import home_folder
    from afnio.tellurio.studio._app import serve

    parser = argparse.ArgumentParser(
        prog="afnio studio",
        description="Show runs as pages on 127.0.0.1, to whoever has the address that is printed first.",
    )
    parser.add_argument("--port", type=_port, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--dir", type=Path, help="folder of the stores (default: AFNIO_HOME, else .afnio)")
    options = parser.parse_args(argv)
    home = home_folder(options.dir)
    if not home.is_dir():
        sys.stderr.write(f"afnio: the folder [{home}] doesn't exist yet, so the studio starts without runs\n")
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
