"""The documentation's code runs, page by page, against the bundled provider; its links lead somewhere."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from markdown.extensions.toc import slugify

import afnio
from afnio.cli import COMMANDS
from afnio.testing import Provider

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ (.*?)$", re.MULTILINE)
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
NOT_IN_THE_REFERENCE = {"afnio.cli.main"}  # docs/command-line.md describes it
SEARCHES = {
    "rate limit": "engine/limits/",
    "resume": "engine/journal/",
    "cache": "engine/journal/",
    "anthropic": "any-agent/",
    "langgraph": "any-agent/",
    "tool calls": "guide/tools-agents/",
    "deploy": "guide/into-your-app/",
    "export prompt": "guide/into-your-app/",
    "cost": "engine/prices/",
    "price": "engine/prices/",
    "structured output": "guide/agents/",
}
WALKED = {"own-data.md", "a-day.md"}  # by tests/test_newcomer.py and test_day.py, in folders with files
PAGES = [
    path for path in sorted(DOCS.rglob("*.md")) if FENCE.search(path.read_text()) and path.name not in WALKED
]


@pytest.fixture(scope="module")
def provider():
    with Provider.process() as process:
        yield process


@pytest.fixture
def folder(provider, monkeypatch, tmp_path):
    """A new working folder, with the data where a download would have put it."""
    monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.chdir(tmp_path)
    if data := os.environ.get("AFNIO_DATA"):
        target = tmp_path / "data" / "FacilitySupport" / "facility_support.json"
        target.parent.mkdir(parents=True)
        target.write_bytes(Path(data, "facility_support.json").read_bytes())
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_code(page: Path, folder: Path) -> None:
    """Every block of a page runs after those before it, as a reader would paste them."""
    blocks = FENCE.findall(page.read_text())
    if any("FacilitySupport(" in block for block in blocks) and "AFNIO_DATA" not in os.environ:
        pytest.skip("e-mails: a network, or facility_support.json in AFNIO_DATA")
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks):
        code = compile(block, f"{page.name}[{number}]", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, names))
        else:
            exec(code, names)


def test_shell_lines_name_commands_that_exist() -> None:
    """`make` targets and `afnio` commands in the pages are real."""
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(path.read_text() for path in DOCS.rglob("*.md"))
    for target in set(re.findall(r"\bmake ([a-z-]+)`?(?=[\s`,;.])", "\n".join(_code(text)))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    said = subprocess.run([sys.executable, "-m", "afnio.cli", "--help"], capture_output=True, text=True)
    for command in set(re.findall(r"(?:^|`)afnio ([a-z]+)", "\n".join(_code(text)), re.MULTILINE)):
        assert command in said.stdout, command


def test_pages_name_every_command_extra_example_and_benchmark() -> None:
    """What exists is in the page that lists it, and nothing else is."""
    table = r"^\| `{}` \|"
    commands = re.findall(table.format(r"afnio (\w+)"), (DOCS / "command-line.md").read_text(), re.MULTILINE)
    assert sorted(COMMANDS) == sorted(commands)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    said = re.findall(table.format(r"afnio\[(\w+)\]"), (DOCS / "install.md").read_text(), re.MULTILINE)
    assert sorted(extras) == sorted(said)
    examples = re.findall(
        table.format(r"(\w+\.(?:py|ipynb))"), (DOCS / "examples.md").read_text(), re.MULTILINE
    )
    folder = ROOT / "examples"
    there = {path.name for path in (*folder.glob("*.py"), *folder.glob("*.ipynb"))} - {"offline.py"}
    assert sorted(there) == sorted(examples)
    parts = re.findall(table.format(r"(\w+)"), (DOCS / "benchmarks.md").read_text(), re.MULTILINE)
    source = ast.parse((ROOT / "benchmarks" / "__main__.py").read_text())
    (known,) = [
        node.value.keys
        for node in source.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PARTS"
    ]
    assert sorted(key.value for key in known) == sorted(parts)


def test_reference_has_every_public_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each class and function of a package's `__all__` is in the reference, so that users find it."""
    monkeypatch.setenv("OPENAI_API_KEY", "any")  # the demo's program makes a client when it is imported
    directives = "\n".join(path.read_text() for path in sorted((DOCS / "reference").glob("*.md")))
    shown = [pkgutil.resolve_name(name) for name in re.findall(r"^::: ([\w.]+)", directives, re.MULTILINE)]
    missing = {
        f"{package.__name__}.{name}"
        for package in _public_packages()
        for name in package.__all__
        if inspect.isclass(value := getattr(package, name)) or inspect.isfunction(value)
        if not any(value is one or value is vars(one).get(name) for one in shown if hasattr(one, "__dict__"))
    }
    assert missing == NOT_IN_THE_REFERENCE


def _public_packages() -> Iterator[ModuleType]:
    yield afnio
    for found in pkgutil.walk_packages(afnio.__path__, "afnio."):
        if found.name == "afnio.demo.classify":  # the README's program: importing it would run it
            continue
        if not any(part.startswith("_") for part in found.name.split(".")):
            module = importlib.import_module(found.name)
            if hasattr(module, "__all__"):
                yield module


def _code(text: str) -> list[str]:
    return re.findall(r"`[^`\n]+`", text) + re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_links_and_navigation() -> None:
    """Each page is in the navigation once; each link leads to a page or an image, and to a heading of it."""
    pages = {path: FENCED.sub("", path.read_text()) for path in DOCS.rglob("*.md")}
    anchors = {
        path: {slugify(re.sub(r"[`*]", "", heading), "-") for heading in HEADING.findall(text)}
        | set(re.findall(r"^::: ([\w.]+)", text, re.MULTILINE))
        for path, text in pages.items()
    }
    for path, text in pages.items():
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", text)):
            name, _, anchor = target.partition("#")
            other = (path.parent / name).resolve() if name else path
            assert other.exists(), (path.name, target)
            assert not anchor or anchor in anchors[other], (path.name, target)
    shown = re.findall(r"^ +- .*?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(str(path.relative_to(DOCS)) for path in pages)


@pytest.mark.nightly
def test_site(tmp_path: Path) -> None:
    """It builds without a warning: every reference is found, and nothing is loaded from elsewhere."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="https?://(?!github)[^"]*\.(?:js|css|woff2?)', home)
    assert (tmp_path / "site" / "search" / "search_index.json").exists()
    figures = (tmp_path / "site" / "benchmarks" / "index.html").read_text()
    assert "durable journal records" in figures
    # Words that people search for are in a heading of the page that answers them, where they weigh most.
    entries = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text())["docs"]
    for words, answered_by in SEARCHES.items():
        titles = [entry["title"].lower() for entry in entries if entry["location"].startswith(answered_by)]
        assert any(all(word in title for word in words.split()) for title in titles), words
    assert "<h1" in (tmp_path / "site" / "changelog" / "index.html").read_text()
    assert (
        len(re.findall(r'<input class="md-nav__toggle md-toggle " type="checkbox" id="__nav_\d"', home)) == 5
    )
    reference = (tmp_path / "site" / "reference" / "utils" / "index.html").read_text()
    assert "WeightedRandomSampler" in reference
    assert "<blockquote" not in reference  # what `>>>` is to Markdown
