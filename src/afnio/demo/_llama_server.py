"""llama.cpp's server as a process: it prints its address as one JSON line and ends with its standard input.

python -m afnio.demo._llama_server MODEL.gguf NAME
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from http.client import HTTPConnection
from typing import Any, Final
from urllib.parse import urlsplit

SLOTS: Final = 4
SLOT_TOKENS: Final = 4096
"""Context of a slot. A message takes 350 tokens, but the optimizer reads the feedback on a whole batch."""
MAX_THREADS: Final = 8
HTTP_THREADS: Final = 64
"""More threads than client connections. With fewer, some connections wait for seconds."""
READY_WITHIN: Final = 60.0


def serve(path: str, name: str) -> None:
    """Serve the model until standard input ends."""
    server = importlib.import_module("xllamacpp").Server(_params(path, name))
    address = str(server.listening_address)
    _wait_until_ready(address)
    sys.stdout.write(json.dumps({"listening": address}) + "\n")
    sys.stdout.flush()
    while os.read(0, 4096):
        pass
    # llama.cpp's threads can't be stopped and joined.
    os._exit(0)


def _params(path: str, name: str) -> Any:
    params = importlib.import_module("xllamacpp").CommonParams()
    params.model.path = path
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS
    threads = _idle_cores()
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_threads_http = HTTP_THREADS
    params.fit_params = False
    params.offline = True
    params.ui = False
    params.cache_ram_mib = 0
    params.verbosity = 0
    return params


def _idle_cores() -> int:
    # llama.cpp's threads spin while they wait for each other. With a busy core, one thread less is faster.
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_THREADS, ours - round(os.getloadavg()[0])))


def _wait_until_ready(address: str) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        connection = HTTPConnection(urlsplit(address).netloc, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    sys.stderr.write(f"{address}/health gave no 200 within {READY_WITHIN:g} s\n")
    os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
