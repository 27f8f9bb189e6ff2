"""Identity: which program this is, so that it can continue the run that it had not finished."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Final

from afnio.models._masking import mask_arguments
from afnio.tellurio.redaction import Redaction

ROUNDS: Final = 200_000
"""About 50 ms, so that a short password can't be found by trying many against a digest."""


def program_identity(redaction: Redaction) -> str | None:
    """Return folder, script and arguments of this program as JSON; None where a person types it in.

    Arguments that are keys are masked, and `redaction` is applied; a digest still tells programs with other
    arguments apart. A prompt's or a notebook's commands are no program that could be repeated from its start.
    """
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None)
    ipython = sys.modules.get("IPython")
    if script is None or hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None):
        return None
    program = [os.getcwd(), os.path.abspath(script), sys.argv[1:]]
    shown = redaction.value([*program[:2], mask_arguments(sys.argv[1:])])
    return json.dumps(shown if shown == program else [*shown, _digest(json.dumps(program))])


def _digest(program: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", program.encode(), b"afnio", ROUNDS).hex()
