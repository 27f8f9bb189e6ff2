"""Functions that tests run in worker processes, which import them from here."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def double(x: Any) -> Any:
    return x * 2


def match(prediction: str, target: str) -> tuple[float, str]:
    return float(prediction == target), f"worker: {prediction}/{target}"


async def later(x: Any) -> Any:
    return x + 1


class OddError(Exception):
    def __init__(self, text: str, *, number: int) -> None:
        super().__init__(text)
        self.number = number


class PlainError(Exception):
    pass


def fail(x: Any) -> Any:
    if x == 1:
        raise PlainError("one is wrong")
    if x == 2:
        raise OddError("two is odd", number=2)
    return x


def unpicklable(x: Any) -> Any:
    import threading

    return threading.Lock() if x == 1 else x


def poison(x: Any) -> Any:
    """Kill the worker for a negative number."""
    if isinstance(x, int) and x < 0:
        os._exit(3)
    return x * 2


def once(folder: str, number: str) -> str:
    """Kill the worker, once for each folder and number."""
    mark = Path(folder) / number
    if not mark.exists():
        mark.touch()
        os._exit(3)
    return number


def raised(x: float, exponent: int) -> float:
    return x**exponent


def counted(path: str, prediction: str, target: str) -> tuple[bool, str]:
    """Score, and write one character for each run."""
    with Path(path).open("a") as file:
        file.write("x")
    return prediction == target, f"{prediction} for {target}"


def as_set(x: Any) -> Any:
    return {x}


def pid(x: Any) -> str:
    return str(os.getpid())


def wait_for(path: str) -> str:
    """Wait until there is a file."""
    Path(path + ".started").touch()
    while not Path(path).exists():
        time.sleep(0.01)
    return path
