"""Identity: which program this is, so that it can continue the run that it had not finished."""

from __future__ import annotations

import json
import os
import sys


def program_identity() -> str | None:
    """Return folder, script and arguments of this program as JSON; None where a person types it in.

    A prompt's or a notebook's commands are no program that could be repeated from its start.
    """
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None)
    ipython = sys.modules.get("IPython")
    if script is None or hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None):
        return None
    return json.dumps([os.getcwd(), os.path.abspath(script), sys.argv[1:]])
