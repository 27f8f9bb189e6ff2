"""`afnio prompts`: every prompt that Afnio itself sends."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

PACKAGES: Final = ("afnio.cognitive", "afnio.optim")
"""Those with a file `prompts`, where all of their prompts are."""


class Prompt(NamedTuple):
    """A prompt, or the response format that goes with one (a JSON schema)."""

    name: str
    package: str
    version: int
    text: str


def main(argv: Sequence[str]) -> int:
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


def all_prompts() -> list[Prompt]:
    """Return the prompts in the order of their files.

    >>> [prompt.package for prompt in all_prompts() if prompt.name == "tgd.system"]
    ['afnio.optim']
    """
    found = []
    for package in PACKAGES:
        module = importlib.import_module(f"{package}.prompts")
        # Under the names that `replace_prompts` takes, then the formats.
        found += [Prompt(name, package, module.VERSION, text) for name, text in module.TEXTS.items()]
        for name, value in vars(module).items():
            if name.isupper() and not name.startswith("_") and isinstance(value, dict) and name != "TEXTS":
                found.append(Prompt(name.lower(), package, module.VERSION, json.dumps(value, indent=1)))
    return found
