"""The demo's command line: options, and one line for everything that can go wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: the arguments, by default those of the process.

    Returns:
        The exit code: 0, 1 if the run failed, 2 if it wasn't started, 130 after Ctrl-C.

    Raises:
        SystemExit: with code 2 for wrong options, with code 0 after `--help`.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a model may write any character
    options = parsed(argv)
    try:
        # Imported here, so that Ctrl-C during the imports ends in one line too.
        from afnio.demo._run import RefusedError, run, sentence

        try:
            run(options)
        except RefusedError as error:
            return _fail(2, f"Not started: {error}.")
        except Exception as error:
            text = sentence(error)
            if text is None:  # a bug of ours: show where
                raise
            return _fail(1, f"The demo failed: {text}")
    except KeyboardInterrupt:
        return _fail(130, "Interrupted; the demo has stopped all that it started.")
    return 0


def _fail(code: int, text: str) -> int:
    print(text, file=sys.stderr)
    return code


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m afnio.demo",
        description="Run the tutorial's job with a simulated LM: feedback improves the prompt of a classifier.",
    )
    add = parser.add_argument
    add("--epochs", type=_count, default=5, help="default: %(default)s")
    add("--batch-size", type=_count, default=33, help="default: %(default)s")
    add("--messages", type=_count, help="of each split (default: all)")
    add("--seed", type=int, default=0, help="of the training order (default: %(default)s)")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 (got {text})")
    return value


if __name__ == "__main__":
    sys.exit(main())
