"""Check what the linters don't: class names, long modules, and private imports in tests' code strings.

Run by `make check`. Prints one line for each finding and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES = 1_000
PRIVATE_IMPORT = re.compile(
    r"^\s*(from afnio[.\w]*\._\w+|import afnio[.\w]*\._\w+|from afnio[.\w]* import _)", re.MULTILINE
)
PUBLIC_TWICE = {"Add", "Sum", "Split", "ChatCompletion"}
"""Ops and the modules that apply them have one name, as in PyTorch's `functional` and `nn`."""


def findings() -> list[str]:
    """Return a line for each class name that stands twice, long module, and private path in the reference."""
    found = []
    homes = defaultdict(list)
    for file in sorted((ROOT / "src").rglob("*.py")):
        text, name = file.read_text(), file.relative_to(ROOT)
        if (lines := text.count("\n")) > MOST_LINES:
            found.append(f"{name}: {lines} lines; split it where its second story begins")
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and node.name not in PUBLIC_TWICE:
                homes[node.name].append(f"{name}:{node.lineno}")
    found += [
        f"class {name} is defined in {' and '.join(where)}" for name, where in homes.items() if len(where) > 1
    ]
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if re.match(r"::: \S*\._", line):
                found.append(
                    f"{page.relative_to(ROOT)}:{number}: a private path; name the package that exports it"
                )
    return found + private_imports_in_strings()


def private_imports_in_strings() -> list[str]:
    """Return a line for each private import in a test's code string, where ruff can't see it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    allowed = [path for path, rules in settings["per-file-ignores"].items() if "PLC2701" in rules]
    return [
        f"{name}:{node.lineno}: a private import in a string; use the public name"
        for file in sorted((ROOT / "tests").rglob("*.py"))
        if not any(fnmatch(name := str(file.relative_to(ROOT)), path) for path in allowed)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and PRIVATE_IMPORT.search(node.value)
    ]


if __name__ == "__main__":
    lines = findings()
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.exit(bool(lines))
