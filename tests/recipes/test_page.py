"""The page of recipes shows the files as they are, all of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "examples" / "recipes"


def test_the_page_has_the_files() -> None:
    page = (ROOT / "docs" / "guide" / "recipes.md").read_text()
    files = [path.read_text() for path in RECIPES.glob("*.py")]
    assert sorted(files) == sorted(re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    for text in files:
        compile(text, "recipe", "exec")
        assert len(text.splitlines()) <= 50
