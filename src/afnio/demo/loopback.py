"""Loopback: keep the calls of a demo that is to stay on this machine from leaving it."""

from __future__ import annotations

import os
from typing import Final

HOST: Final = "127.0.0.1"


def stay_on_this_machine() -> None:
    """Change this process's environment so that no setting of the user redirects or labels a call.

    Variables of the OpenAI SDK could add an organization's name or headers; a proxy would be asked for
    127.0.0.1 as well, unless it is excluded. Other addresses, such as a package index, keep their proxy.
    """
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        del os.environ[name]
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = f"{excluded},{HOST}" if excluded else HOST
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = value
