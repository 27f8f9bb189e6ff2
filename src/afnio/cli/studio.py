"""`afnio studio`: look at runs in a browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Serve the studio until Ctrl-C, and return the process's exit code."""
    from afnio.tellurio.studio._app import StudioError, serve
    from afnio.tellurio.studio._runs import home_folder

    parser = argparse.ArgumentParser(
        prog="afnio studio",
        description="Show runs as pages on 127.0.0.1, to whoever has the address that is printed first.",
    )
    parser.add_argument("--port", type=_port, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--dir", type=Path, help="folder of the stores (default: AFNIO_HOME, else .afnio)")
    options = parser.parse_args(argv)
    home = home_folder(options.dir)
    if not home.is_dir():
        sys.stderr.write(f"afnio: the folder [{home}] doesn't exist yet, so the studio starts without runs\n")
    try:
        serve(home, options.port)
    except StudioError as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535 (got {text})")
    return int(text)
