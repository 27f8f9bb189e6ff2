"""A result of `afnio.optimize` without a run behind it."""

from __future__ import annotations

import afnio

RESULT = afnio.Result(
    verdict="Better: +40.0 points.", prompts={"system": "new"}, start={"system": "old"}, before=None, after=None,
    gain=None, on="", failed=0, stopped="", steps=1, calls=1, tokens=1, cost=None, minutes=0.0, run="r",
)  # fmt: skip
