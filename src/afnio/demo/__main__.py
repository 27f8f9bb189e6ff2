"""Run a program against the simulated model, and say in the end what came out of it.

The program is run in this process as `python PROGRAM` would, so that its Ctrl-C and its screen are its own. Only the
endpoint differs: `OPENAI_BASE_URL` is that of the bundled provider, which is a process of its own and ends with this
one. If the program leaves an `afnio.Result` in the name `result`, the demo tells it.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from afnio.studies._result import Result

BUNDLED: Final = Path(__file__).parent / "_classify.py"
LATENCY: Final = 0.2
"""Seconds that each simulated call takes, so that concurrent calls can be told from calls in a row."""
HOST: Final = "127.0.0.1"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: the arguments, by default those of the process.

    Returns:
        The exit code: 0, 1 if it failed, 2 if it wasn't started, 130 after Ctrl-C.

    Raises:
        SystemExit: with code 2 for wrong options, with code 0 after `--help`, and if the program raises it.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a model may write any character
    parser = argparse.ArgumentParser(
        prog="afnio demo",
        description="Run a program against a simulated model on this machine: offline, and without a key.",
    )
    parser.add_argument(
        "program",
        nargs="?",
        type=Path,
        default=BUNDLED,
        help="a Python program that asks a model by OpenAI's API (default: the README's)",
    )
    program: Path = parser.parse_args(argv).program
    if not program.is_file():
        parser.error(f"PROGRAM must be a file (got {program})")
    if not os.access(Path.cwd(), os.W_OK | os.X_OK):
        parser.error(f"the working folder must be writable (got {Path.cwd()}); start the demo elsewhere")
    try:
        return _run(program)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; the demo has stopped all that it started.\n")
        return 130


def _run(program: Path) -> int:
    # Imported here, so that Ctrl-C during the imports ends in one line too.
    from afnio.errors import DownloadError
    from afnio.studies._result import Result
    from afnio.testing import Provider

    key = "any"
    with Provider.process(latency=LATENCY, api_key=key) as provider:
        _stay_on_this_machine()
        os.environ |= {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": key}
        print(
            f"The model is SIMULATED: rules on this machine read the actual prompts. Each call takes {LATENCY} s.\n"
            f"{_shown(program)} runs against {provider.base_url}",
            flush=True,
        )
        # As `python PROGRAM` does: its arguments, and its folder first in the path.
        sys.argv, sys.path = [str(program)], [str(program.parent), *sys.path]
        try:
            names = runpy.run_path(str(program), run_name="__main__")
        except DownloadError as error:
            print(f"The demo failed: {error}", file=sys.stderr)
            return 1
    if isinstance(result := names.get("result"), Result):
        _tell(result, program)
    return 0


def _stay_on_this_machine() -> None:
    """Change this process's environment so that no setting of the user redirects or labels a call.

    Variables of the OpenAI SDK could add an organization's name or headers. A proxy would get the requests to 127.0.0.1
    unless that is excluded. Other addresses, such as a package index, keep their proxy.
    """
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        del os.environ[name]
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{excluded},{HOST}" if excluded else HOST


def _tell(result: Result, program: Path) -> None:
    """Say how the prompts were and are, the verdict, and what to do next."""
    from rich.console import Console
    from rich.rule import Rule
    from rich.text import Text

    console = Console(highlight=False)
    console.print()
    console.print(Rule("with a simulated model", style="dim"))
    titles = "First", "New" if result.prompts != result.start else "Kept"
    for title, prompts, score in zip(
        titles, (result.start, result.prompts), (result.before, result.after), strict=True
    ):
        for name, text in prompts.items():
            console.print(
                Text.assemble((f"{title} prompt", "bold"), f" ({name}), {score or 'not measured'}:")
            )
            for line in text.splitlines():
                wrapped = fill(line, console.width, initial_indent="  ", subsequent_indent="    ")
                console.print(Text(wrapped, "green" if title == "New" else ""))
    console.print(Text(f"\n{result.verdict}", "bold"))
    console.print("The model was simulated: a real one learns other words, and gains more or less.\n")
    python = Path(sys.executable)
    console.print("See this run in a browser, with its steps, rows and prompts:")
    console.print(Text(f"  {_shown(python.with_name('afnio'))} studio", "cyan"), soft_wrap=True)
    console.print("Do the same with a real model:")
    console.print(Text(f"  OPENAI_API_KEY=… {_shown(python)} {_shown(program)}", "cyan"), soft_wrap=True)


def _shown(path: Path) -> str:
    """Return how to type a path here: a command's name if the shell finds it, relative if it is below this folder."""
    if shutil.which(path.name) == str(path):
        return path.name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
