"""Modules import downwards only: pyproject.toml has the floors."""

from __future__ import annotations

import grimp


def test_only_the_graph_is_a_circle() -> None:
    """An import that `TYPE_CHECKING` hides from import-linter counts, too: a reader has to follow it."""
    graph = grimp.build_graph("afnio", exclude_type_checking_imports=False, cache_dir=None)
    imports = {
        name: {one for one in graph.find_modules_directly_imported_by(name) if one != "afnio"}
        for name in graph.modules
    }

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = set(imports[start])
        while ahead:
            seen |= ahead
            ahead = set().union(*(imports[name] for name in ahead)) - seen
        return seen

    in_circles = {name.rpartition(".")[0] for name in imports if name in reached(name)}
    assert len(imports) > 100
    assert in_circles == {"afnio.autodiff"}
