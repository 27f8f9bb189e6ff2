"""Check what the linters don't: every class name once, and no module that has outgrown its story.

Run by `make check`. Prints one line for each finding and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES = 1_000
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
    return found


if __name__ == "__main__":
    lines = findings()
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.exit(bool(lines))
