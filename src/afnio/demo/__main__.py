"""The demo's command: `python -m afnio.demo`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from afnio.demo._endpoint import Endpoint
from afnio.demo._options import DemoOptions, RefusedError, read_options, sentence
from afnio.errors import AfnioError

if TYPE_CHECKING:
    from afnio.demo._options import Splits

NAMESPACE: Final = "demo"
PROJECT: Final = "facility-support"
PAGE: Final = Path("demo.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the process's exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    options = read_options(argv)
    console, errors = Console(), Console(stderr=True)
    from afnio.demo._watch import say

    try:
        run(options, console)
    except KeyboardInterrupt:
        say(errors, "Interrupted; nothing of the demo is left running.")
        return 130
    except RefusedError as error:
        say(errors, f"Not started: {error}.")
        return 2
    except BaseException as error:
        said = sentence(error)
        if said is None:
            raise
        say(errors, f"The demo failed: {said}")
        return 1
    return 0


def run(options: DemoOptions, console: Console) -> None:
    """Run the job and report it."""
    # Imported here, so that Ctrl-C during the imports ends in one line as well.
    from afnio import tellurio as te
    from afnio.demo._job import FILE, DemoJob, DemoTally, ask, check_folder, figures, print_report, write
    from afnio.demo._options import load_splits
    from afnio.demo._watch import DemoProgress, say
    from afnio.runtime.events import subscribed
    from afnio.tellurio._queries import MONITOR
    from afnio.tellurio._store import store_path

    check_folder()
    splits = load_splits(options.messages)
    with ExitStack() as stack:
        endpoint = stack.enter_context(open_endpoint(options, console))
        introduce(console, endpoint, splits)
        if endpoint.kind == "live":
            ask(console, endpoint, splits, options)
        started = time.monotonic()
        # Only what was paid for is worth continuing; a server of the demo's own is another one each time.
        resume = None if endpoint.kind == "live" else False
        tracked = stack.enter_context(
            te.init(NAMESPACE, PROJECT, config={"lm": endpoint.kind}, resume=resume)
        )
        tracked.record(MONITOR, {"metric": "validation_accuracy", "mode": "max", "unit": "epoch"})
        say(console, f"Recorded as run {tracked.name} in {store_path(NAMESPACE, PROJECT)}")
        say(console)
        with DemoProgress(console) as progress:
            tally = DemoTally(progress.call_ended, progress.retried)
            job = DemoJob(endpoint, splits, options, progress)
            progress.expect(job.forward_calls)
            with subscribed(tally):
                result = job.run()
        seconds = time.monotonic() - started
        te.log({"baseline": result.baseline.share or 0.0, "final": result.final.share or 0.0})
    print_report(console, endpoint, result, tally, seconds)
    write(figures(endpoint, options, splits, result, tally, seconds))
    say(console, f"All figures: {FILE}")
    say(console, page(tracked.id))


def page(run: str) -> str:
    """Write the run as a page and return the line that names it, or says why there is none."""
    from afnio.tellurio._queries import home_folder
    from afnio.tellurio.studio._report import write_report

    try:
        return f"The run as a page: {write_report(home_folder(), run, PAGE)}"
    except (AfnioError, OSError) as error:
        return f"The run as a page could not be written: {error}"


def introduce(console: Console, endpoint: Endpoint, splits: Splits) -> None:
    """Say who is asked, and with what data, before anything else."""
    from afnio.demo._watch import say

    sizes = splits.sizes
    for note in endpoint.notes:
        say(console, note)
    say(
        console,
        f"FacilitySupport: {sizes['train']} training, {sizes['validation']} validation, "
        f"{sizes['test']} test messages.",
    )
    say(console, f"Endpoint: {endpoint.base_url}")


def open_endpoint(options: DemoOptions, console: Console) -> AbstractContextManager[Endpoint]:
    """Return the endpoint that the options ask for, to be used as a `with` block."""
    if options.live:
        from afnio.demo._endpoint import live_endpoint

        return live_endpoint(options)
    if options.local:
        from afnio.demo._endpoint import local_endpoint

        return local_endpoint(console)
    from afnio.demo._endpoint import simulated_endpoint

    return simulated_endpoint()


if __name__ == "__main__":
    sys.exit(main())
