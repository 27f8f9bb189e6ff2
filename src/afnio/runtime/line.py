"""Line: where in the user's code a launch happened."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_PROGRAMS = _PACKAGE + "demo" + os.sep
"""Programs that come with the package; to the engine they are users."""


class Line(NamedTuple):
    """A place in the user's code, shown as `file:number in function`."""

    file: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number} in {self.function}"


def caller_line() -> Line:
    """Return the innermost line of the call stack that is not Afnio's own."""
    frame = sys._getframe(1)
    while frame.f_back is not None and is_engine(frame.f_code.co_filename):
        frame = frame.f_back
    code = frame.f_code
    return Line(code.co_filename, frame.f_lineno, code.co_name)


def is_engine(file: str) -> bool:
    """Whether `file` is of the package, and none of the programs that come with it."""
    return file.startswith(_PACKAGE) and not file.startswith(_PROGRAMS)
