"""A driver of a Ray cluster: `python on_ray.py CLUSTER HOST COUNT URL JOURNAL` runs lanes that make calls.

Prints one JSON object. HOST is where its workers reach it; empty to leave that out.
"""

from __future__ import annotations

import functools
import json
import sys
import time

from kit import errands

import afnio
import afnio.ray
from afnio.errors import BatchError
from afnio.runtime.events import CallEnded, subscribed


def main() -> None:
    cluster, host, count, url, journal = sys.argv[1:]
    executor = functools.partial(afnio.ray.RayExecutor, cluster)
    workers = afnio.Workers(executor, host=host or None, max_in_flight=8)
    rows = [f"row {number}" for number in range(int(count))]
    ended: list[CallEnded] = []
    errors: set[str] = set()
    right = 0
    begun = time.monotonic()
    with (
        afnio.journal(journal),
        subscribed(lambda event: ended.append(event) if isinstance(event, CallEnded) else None),
    ):
        names: set[str] = set()
        for _ in range(10):  # until both hosts have a worker
            found = afnio.Variable(["where"] * 8).map(errands.host_name, executor=workers)
            names.update(str(name) for name in found.data)
            if len(names) > 1:
                break
        print("started", flush=True)
        try:
            found = afnio.Variable(rows).map(functools.partial(errands.ask_slowly, url), executor=workers)
            right = sum(row.upper() == output for row, output in zip(rows, found.data, strict=True))
        except BatchError as error:
            errors = {str(each) for each in error.exceptions}
    seconds = time.monotonic() - begun
    report = {"right": right, "errors": sorted(errors), "calls": len(ended), "seconds": seconds}
    print(json.dumps({**report, "hosts": sorted(names)}))
    sys.stdout.flush()
    afnio.runtime.close()


if __name__ == "__main__":
    main()
