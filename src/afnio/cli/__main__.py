"""The commands of `afnio`, also as `python -m afnio.cli`, and where each is implemented.

The table has names, not functions: a command's module is imported when the command is used, so `afnio --help` stays
quick. To add a command, write `main(argv) -> exit code` in a file of this package and add a line to `COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Final, NamedTuple

from afnio.cli._parser import Parser


class Command(NamedTuple):
    """A command and its help.

    Attributes:
        main: "module:function". The function takes the arguments after the command's name and returns the exit code.
        help: what the command does, in a few words.
        example: a command line to try.
        shows: what the example does.
    """

    main: str
    help: str
    example: str
    shows: str


COMMANDS: Final = {
    "completion": Command(
        "afnio.cli.__main__:completion_main",
        "print what makes a shell complete these commands",
        'eval "$(afnio completion bash)"',
        "complete commands, options and runs in this shell",
    ),
    "demo": Command(
        "afnio.demo.__main__:main",
        "optimize a prompt in a minute, without a key",
        "afnio demo",
        "run the README's program with a simulated model",
    ),
    "batches": Command(
        "afnio.cli._other:batches_main",
        "list, cancel or fetch the batches of a journal",
        "afnio batches list run.journal",
        "show what a program has left at its providers' batch APIs",
    ),
    "doctor": Command(
        "afnio.cli._doctor:doctor_main",
        "check this machine and an endpoint",
        "afnio doctor --json",
        "check the environment, endpoint, latency and limits",
    ),
    "evaluate": Command(
        "afnio.cli._evaluate:evaluate_main",
        "score an agent on a file of rows",
        "afnio evaluate agent.py:route rows.csv --metric exact",
        "score the function route, row by row",
    ),
    "gateway": Command(
        "afnio.cli._other:gateway_main",
        "admit the calls of many processes under one quota",
        "afnio gateway --rpm 500 --tpm 200000",
        "serve OpenAI's API on 127.0.0.1:8400 under these limits",
    ),
    "journal": Command(
        "afnio.cli._other:journal_main",
        "summarize a journal file",
        "afnio journal stat .afnio/me/project/RUN.journal",
        "show how many replies a journal has and what they cost",
    ),
    "login": Command(
        "afnio.cli._other:login_main",
        "save an API key in the system's keyring (optional)",
        "afnio login",
        "ask for OpenAI's key, check it and save it",
    ),
    "optimize": Command(
        "afnio.cli._optimize:optimize_main",
        "improve an agent's prompts on a file of rows",
        "afnio optimize agent.py:route rows.csv --metric exact --critic openai/gpt-5 --max-calls 700 --check",
        "say what it would do, for free",
    ),
    "prompts": Command(
        "afnio.cli._other:prompts_main",
        "print every prompt that Afnio sends, or export a run's",
        "afnio prompts tgd.system",
        "print the optimizer's instructions and their version",
    ),
    "provider": Command(
        "afnio.cli._other:provider_main",
        "serve a fake provider for tests",
        "afnio provider --latency 0.2 --port 8000",
        "serve an OpenAI-compatible API with 0.2 s latency",
    ),
    "report": Command(
        "afnio.cli._other:report_main",
        "write a run to an HTML file",
        "afnio report calm-heron -o report.html",
        "write prompts, samples and curves of a run to a file",
    ),
    "runs": Command(
        "afnio.cli._runs:runs_main",
        "list, show, compare, delete and export runs",
        "afnio runs list",
        "list the runs recorded on this machine",
    ),
    "skill": Command(
        "afnio.cli._optimize:skill_main",
        "write a SKILL.md that lets a coding agent use Afnio",
        "afnio skill .claude/skills/afnio",
        "teach the coding agent of this folder",
    ),
    "studio": Command(
        "afnio.cli._other:studio_main",
        "show runs in a browser",
        "afnio studio --port 8800",
        "serve pages of runs on 127.0.0.1:8800",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 for success, 1 for failure, 2 for wrong arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments and "_ARGCOMPLETE" not in os.environ:
        _parser().print_help()
        return 0
    if "_ARGCOMPLETE" in os.environ:
        arguments = _completing()
    if not arguments or arguments[0] not in COMMANDS:
        _parser().parse_args(arguments)  # prints help, the version or an error, and exits
    module, _, function = COMMANDS[arguments[0]].main.partition(":")
    run: Callable[[list[str]], int | None] = getattr(importlib.import_module(module), function)
    try:
        return run(arguments[1:]) or 0
    except BrokenPipeError:
        # The reader of a pipe has left, as in `afnio … | head`. Redirect stdout, or flushing it at exit fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _completing() -> list[str]:
    """Make parsers complete instead of parse, as a shell wants now. Return the command whose parser is asked, if any.

    Every command parses its arguments before it does anything, and the process ends there.
    """
    from argcomplete import autocomplete

    argparse.ArgumentParser.parse_args = lambda self, *_: autocomplete(self)  # type: ignore[assignment, method-assign]
    words = os.environ.get("COMP_LINE", "").split()
    if len(words) < 2 or words[1] not in COMMANDS or os.environ["COMP_LINE"].endswith(f" {words[1]}"):
        return []
    os.environ["_ARGCOMPLETE"] = "2"  # the command's parser knows the words after its name
    return words[1:2]


def completion_main(argv: Sequence[str]) -> int:
    """Print what makes a shell complete commands, options and names of runs; return the exit code."""
    parser = Parser(
        prog="afnio completion",
        description="Print what makes a shell complete commands, options and the names of runs.",
        epilog=COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    options = parser.parse_args(argv)
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["afnio"], shell=options.shell))
    return 0


COMPLETION: Final = """\
in the file that the shell reads first:
  eval "$(afnio completion bash)"        ~/.bashrc
  eval "$(afnio completion zsh)"         ~/.zshrc, after compinit
  afnio completion fish | source         ~/.config/fish/config.fish
"""


def _parser() -> Parser:
    width = max(len(command.example) for command in COMMANDS.values())
    examples = [f"  {command.example:<{width}}  {command.shows}" for command in COMMANDS.values()]
    parser = Parser(
        prog="afnio",
        description="Optimize agents whose parameters are text.",
        epilog="\n".join(["Run `afnio COMMAND --help` for help on a command.", "", "examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"afnio {metadata.version('afnio')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
