"""`afnio report`: one run as one HTML file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Write the report and return the process's exit code."""
    from afnio.errors import AfnioError
    from afnio.tellurio.studio._report import write_report
    from afnio.tellurio.studio._runs import home_folder

    parser = argparse.ArgumentParser(
        prog="afnio report",
        description="Write one run as one HTML file, with its prompts, samples and curves, that needs no server.",
    )
    parser.add_argument("run", help="a name, an id, namespace/project/name, or the beginning of one")
    parser.add_argument("-o", "--output", type=Path, help="the file (default: named after the run, here)")
    parser.add_argument("--dir", type=Path, help="folder of the stores (default: AFNIO_HOME, else .afnio)")
    options = parser.parse_args(argv)
    try:
        path = write_report(home_folder(options.dir), options.run, options.output)
    except (AfnioError, OSError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0
