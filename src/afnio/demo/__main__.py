"""The demo's command line: options, and one line for everything that can go wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

LIVE_ONLY: Final = ("model", "backward_model", "optim_model", "base_url", "max_in_flight", "yes")


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
        from afnio.demo._endpoint import RefusedError
        from afnio.demo._run import run, sentence

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
    """Return the options, with the defaults of their mode filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m afnio.demo",
        description="Run the tutorial's job: improve the prompt of a sentiment classifier by feedback.",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--live", action="store_true", help="call your endpoint, after an estimate")
    mode.add_argument("--lm", choices=["simulated", "local"], default="simulated", help="the LM to use")
    live = parser.add_argument_group("with --live")
    live.add_argument("--yes", action="store_true", help="start without asking about the estimate")
    live.add_argument("--base-url", help="endpoint (default: OPENAI_BASE_URL, else OpenAI)")
    live.add_argument("--model", help="whose prompt is optimized (default at OpenAI: gpt-4.1-nano)")
    live.add_argument("--backward-model", help="who writes the feedback (default at OpenAI: gpt-5)")
    live.add_argument("--optim-model", help="who rewrites the prompt (default: the backward model)")
    live.add_argument("--max-in-flight", type=_count, help="most calls at a time (default: adapts)")
    job = parser.add_argument_group("the job")
    job.add_argument("--epochs", type=_count, help="default: 5, local 2")
    job.add_argument("--batch-size", type=_count, default=33, help="default: %(default)s")
    job.add_argument("--messages", type=_count, help="of each split (default: all, local 24)")
    job.add_argument("--seed", type=int, default=0, help="of the training order (default: %(default)s)")
    options = parser.parse_args(argv)
    given = [name for name in LIVE_ONLY if getattr(options, name)]
    if given and not options.live:
        parser.error(f"--{given[0].replace('_', '-')} is about your endpoint; add --live (make demo LIVE=1)")
    local = options.lm == "local"
    options.epochs = options.epochs or (2 if local else 5)
    options.messages = options.messages or (24 if local else None)
    return options


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
