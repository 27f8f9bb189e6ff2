"""Commands: what `afnio` can do, and which file does it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Final, NamedTuple


class Command(NamedTuple):
    """A command: where its `main(argv) -> exit code` is, and what help says of it.

    Attributes:
        main: "module:function", called with the arguments after the command's name.
        help: what it does, in a few words.
        example: what to type.
        shows: what the example does.
    """

    main: str
    help: str
    example: str
    shows: str


COMMANDS: Final = {
    "demo": Command(
        "afnio.demo.__main__:main",
        "run the tutorial's job",
        "afnio demo",
        "the tutorial's job against a simulated LM",
    ),
    "doctor": Command(
        "afnio.cli._doctor:doctor_main",
        "check whether Afnio can work here",
        "afnio doctor --json",
        "environment, endpoint, limits, json_schema, latency",
    ),
    "journal": Command(
        "afnio.cli._other:journal_main",
        "look at a journal",
        "afnio journal stat .afnio/me/project/RUN.journal",
        "what a run's journal holds, and what it cost",
    ),
    "login": Command(
        "afnio.cli._other:login_main",
        "keep a provider's key in the system's keyring (optional)",
        "afnio login",
        "asks for OpenAI's key and checks it first",
    ),
    "prompts": Command(
        "afnio.cli._other:prompts_main",
        "print every prompt that Afnio sends",
        "afnio prompts tgd.system",
        "the optimizer's instructions, with their version",
    ),
    "provider": Command(
        "afnio.cli._other:provider_main",
        "serve a provider for tests",
        "afnio provider --latency 0.2 --port 8000",
        "serve an OpenAI-compatible provider",
    ),
    "report": Command(
        "afnio.cli._other:report_main",
        "write one run as one HTML file",
        "afnio report calm-heron -o report.html",
        "a run's prompts, samples and curves in a file",
    ),
    "runs": Command(
        "afnio.cli._runs:runs_main",
        "list, show, compare, delete and export runs",
        "afnio runs list",
        "the runs of the local stores",
    ),
    "studio": Command(
        "afnio.cli._other:studio_main",
        "look at runs in a browser",
        "afnio studio --port 8800",
        "runs as pages on 127.0.0.1",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit code: 0 done, 1 failed, 2 wrong arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        _parser().print_help()
        return 0
    if arguments[0] not in COMMANDS:
        _parser().parse_args(arguments)  # prints help, the version or what is wrong, and exits
    module, _, function = COMMANDS[arguments[0]].main.partition(":")
    run: Callable[[list[str]], int | None] = getattr(importlib.import_module(module), function)
    try:
        return run(arguments[1:]) or 0
    except BrokenPipeError:
        # As in `afnio … | head`: whoever reads has enough. Else the interpreter would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    width = max(len(command.example) for command in COMMANDS.values())
    examples = [f"  {command.example:<{width}}  {command.shows}" for command in COMMANDS.values()]
    parser = argparse.ArgumentParser(
        prog="afnio",
        description="Optimize agents whose parameters are text.",
        epilog="\n".join(["`afnio COMMAND --help` explains a command.", "", "examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"afnio {metadata.version('afnio')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser
