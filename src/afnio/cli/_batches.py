"""The command `afnio batches`: what a program has left at its providers, without the program."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afnio.cli._parser import Parser
from afnio.errors import AfnioError

if TYPE_CHECKING:
    from afnio.runtime._batch_api import BatchApi
    from afnio.runtime._parcels import Parcel

_EXAMPLES = """\
examples:
  afnio batches list run.journal      show the batches that a program has left, and what is done
  afnio batches cancel run.journal    cancel them; what is done is paid for, and can be read
  afnio batches fetch run.journal     keep the results of ended ones beside the journal, before they expire

The keys are those of the environment: OPENAI_API_KEY, ANTHROPIC_API_KEY. A program that is started again reads its
batches by itself.
"""


def batches_main(argv: Sequence[str]) -> int:
    """List, cancel or fetch the open batches of a journal, and return the exit code."""
    parser = Parser(
        prog="afnio batches",
        description="List, cancel or fetch the batches that a program has left at its providers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("list", "cancel", "fetch"))
    parser.add_argument("journal", type=Path, help="the journal file of the program, which must have ended")
    options = parser.parse_args(argv)
    from afnio.runtime._journal import Journal

    try:
        if not options.journal.is_file():
            raise FileNotFoundError(
                f"there is no journal {options.journal}; name the file of afnio.journal(…)"
            )
        with Journal.open(options.journal) as journal:
            return _on_runtime(lambda: _handle(journal, options.command))
    except (AfnioError, OSError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1


def _on_runtime(work: Callable[[], Awaitable[int]]) -> int:
    """Run `work` on the loop of the engine, which has the connections, and return its result."""
    from afnio.runtime import Pending
    from afnio.runtime._kernel import Job, Launch, Slot

    launch = Launch("batches")
    slot = Slot(launch)

    async def body(job: Job, values: list[Any]) -> list[int]:
        return [await work()]

    launch.add(body, [], [slot])
    launch.start()
    return Pending(slot, int).wait()


async def _handle(journal: Any, command: str) -> int:
    from afnio.runtime._kernel import current_runtime
    from afnio.runtime._parcels import Depot, Group, Parcel

    rows, code = journal.parcels(), 0
    if not rows:
        sys.stdout.write("no batch is open\n")
    for row in rows:
        try:
            group = Group(Depot.of(current_runtime()), _api(row), journal)
            said = await _act(Parcel(group, row), command)
        except AfnioError as error:
            said, code = str(error), 1
        minutes = (time.time() - row["created"]) / 60
        name = row["remote"] or f"(planned as {row['name']})"
        about = f"{name}  {len(row['ids']):,} calls of {row['model']} at {row['url']}, {minutes:,.0f} min old"
        sys.stdout.write(f"{about}: {said}\n")
    return code


async def _act(parcel: Parcel, command: str) -> str:
    """Do what the command says with one batch, and return how it stands."""
    if not await parcel.is_at_provider():
        return "the provider doesn't have it; its calls are sent again by the program"
    if command == "cancel":
        await parcel.group.api.cancel(parcel.remote)
        return "it is being cancelled; start the program again to read what was done"
    if command == "fetch" and await parcel.fetch():
        return f"its results are in {parcel.results.name}; start the program again to use them"
    done, total = parcel.status.completed, len(parcel.ids)
    ended = {"": "it goes on", "done": "it has ended", "failed": "it was refused"}[parcel.status.ended]
    return f"{ended}, {done:,} of {total:,} done"


def _api(row: dict[str, Any]) -> BatchApi:
    """Return the API of a batch, with the keys of the environment.

    Raises:
        FinalModelError: if there is no key.
    """
    from afnio.models._accounts import account_of
    from afnio.models._apis import ANTHROPIC
    from afnio.models._batch_apis import AnthropicBatches
    from afnio.models.openai import AsyncOpenAI

    if row["endpoint"] != "/v1/messages":
        return AsyncOpenAI(base_url=row["url"]).batch_api(row["endpoint"], row["model"])
    key = os.environ.get("ANTHROPIC_API_KEY", "")
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}

    async def given() -> dict[str, str]:
        return headers

    account = account_of(row["url"], headers)
    return AnthropicBatches(account, row["endpoint"], row["model"], given, (key,), ANTHROPIC)
