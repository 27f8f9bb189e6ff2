"""End a cluster in mid-batch: `python gone.py what folder` prints one JSON object with what its lanes say."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from kit import errands

import afnio

OUTLIVED = 90
"""Seconds after the end of Ray's head at which the program must still run."""


def dask() -> tuple[Any, Any, Any]:
    """Return a client's executor, its scheduler's process and its workers'."""
    import distributed

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, _, port = address.partition(":")
    run = [sys.executable, "-m"]
    scheduler = subprocess.Popen(
        [*run, "distributed.cli.dask_scheduler", "--host", host, "--port", port, "--no-dashboard"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    workers = subprocess.Popen(
        [
            *run,
            "distributed.cli.dask_worker",
            address,
            "--nworkers",
            "2",
            "--nthreads",
            "1",
            "--no-dashboard",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = distributed.Client(address, timeout=60)
    client.wait_for_workers(2, timeout=120)
    return client.get_executor, scheduler, workers


def main() -> None:
    what, folder = sys.argv[1:]
    ours: list[subprocess.Popen[bytes]] = []
    if what in ("gcs_server", "raylet"):
        from afnio.ray import RayExecutor

        make: Any = RayExecutor
    else:
        make, *ours = dask()
    paths = [str(Path(folder, str(number))) for number in range(4)]
    ended: list[float] = []

    def end() -> None:
        while not list(Path(folder).iterdir()):
            time.sleep(0.05)
        if ours:
            doomed = psutil.Process(ours[what == "workers"].pid)
            for each in [doomed, *doomed.children(recursive=True)]:
                each.kill()
        else:
            for child in psutil.Process().children(recursive=True):
                if f"{what}/{what}" in child.cmdline()[0] or child.cmdline()[0].endswith(f"/{what}"):
                    child.kill()
        ended.append(time.monotonic())
        for path in paths:  # for those that run again
            Path(path).touch()

    with afnio.tolerate(quorum=0.01):
        assert afnio.Variable([1]).map(errands.double, executor=make).data == [2]
        ender = threading.Thread(target=end)
        ender.start()
        running = afnio.Variable(paths).map(errands.wait_for, executor=make)
        try:
            data, errors = running.data, running.errors.values()
        except afnio.errors.BatchError as error:
            data, errors = [], error.exceptions
        seconds = time.monotonic() - ended[0]
        try:
            later = afnio.Variable([1, 2]).map(errands.double, executor=make).data
        except afnio.errors.BatchError as error:
            later = str(error)
    if what == "gcs_server":  # Ray waits a minute for a head before it gives up
        time.sleep(max(0, ended[0] + OUTLIVED - time.monotonic()))
        later = afnio.Variable([1, 2]).map(errands.double, executor=make).data
    found = {
        "answered": sum(each is not None for each in data),
        "errors": [str(error) for error in errors],
        "seconds": seconds,
        "later": later,
    }
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    for process in ours:
        process.kill()
    afnio.runtime.close()


if __name__ == "__main__":
    main()
