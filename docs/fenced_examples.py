"""Show docstrings' `>>>` examples as code in the reference. Without fences, Markdown reads them as quotations."""

from __future__ import annotations

import re
from typing import Any, final

import griffe

EXAMPLE = re.compile(r"(?:^|\n)(>>> .*?)(?=\n\s*\n|\Z)", re.DOTALL)


@final
class FencedExamples(griffe.Extension):
    """Puts each paragraph that begins with `>>>` between fences, before the docstring is parsed."""

    def on_object(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        if not obj.is_alias and obj.docstring is not None and "```" not in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(r"\n```pycon\n\1\n```", obj.docstring.value)
