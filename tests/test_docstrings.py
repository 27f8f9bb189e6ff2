"""The examples in docstrings run as they are written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import afnio

MODULES = [
    module.name
    for module in pkgutil.walk_packages(afnio.__path__, "afnio.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example of the module gives what it says."""
    monkeypatch.setenv("OPENAI_API_KEY", "no-key")  # the demo's program makes a client
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
