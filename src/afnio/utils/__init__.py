"""Data loading, datasets and ready-made agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio._public import lazily as _lazily

if TYPE_CHECKING:
    from afnio.utils import agents as agents
    from afnio.utils import data as data
    from afnio.utils import datasets as datasets

__getattr__, __dir__ = _lazily(__name__, globals(), {}, modules="agents data datasets")
