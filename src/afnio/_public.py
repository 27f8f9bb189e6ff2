"""How packages present their public names.

Code lives in private modules (`afnio.runtime._kernel`), and a package's `__init__` names what is public. Two helpers
keep that tidy:

* `show_in` gives public classes and functions the name under which users import them, so that tracebacks, `repr`
  and pickles contain `afnio.runtime.Limits` and not the private module.
* `lazily` imports a package's names at their first use, so that a program pays only for the parts that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def show_in(package: str, namespace: Mapping[str, Any], names: Iterable[str]) -> None:
    """Set `__module__` to `package` for those of `names` that are defined in a private module."""
    for name in names:
        value = namespace[name]
        if isinstance(value, type) or callable(value):
            home = getattr(value, "__module__", None) or ""
            if home.startswith("afnio.") and "._" in home:
                value.__module__ = package


def lazily(
    package: str, namespace: dict[str, Any], homes: Mapping[str, str], *, modules: str = ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`.

    Args:
        homes: the module of each name: {"afnio.trainer._trainer": "Trainer AgentSummary"}.
        modules: the package's own modules that are imported at their first use: "bridge ray".
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}
    own = modules.split()

    def find(name: str) -> Any:
        if name in own:
            return import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = getattr(import_module(home_of[name]), name)
        show_in(package, namespace, [name])
        return namespace[name]

    def names() -> list[str]:
        return sorted({*namespace, *home_of, *own})

    return find, names
