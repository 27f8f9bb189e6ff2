"""A run in small, for displays to show: real calls of scripted clients, and what a loop would tell.

Run as a program it waits for a line of input after each stage, so that a test can look at it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import afnio
from afnio.errors import FinalModelError, TransientModelError
from afnio.models import ChatRequest
from afnio.testing import ScriptedClient
from afnio.trainer._checkpoints import LoopState, Plan
from afnio.trainer._progress import Progress, make_progress

PLAN = Plan(
    "fit", "SentimentAnalyzer", epochs=5, batches=2, samples=66, val_batches=2, val_samples=66,
    max_cost=1.0, monitor="val_loss", folder="runs/checkpoints",
)  # fmt: skip


def state(phase: str, moment: str, epoch: int, samples: int, seconds: float, **more: object) -> LoopState:
    fields = {
        "phase": phase, "moment": moment, "epoch": epoch, "epochs": 5, "batch": samples // 33, "batches": 2,
        "step": 2 * epoch - 2 + samples // 33, "samples": samples, "total": 66, "failed": 0,
        "seconds": seconds, "started": time.monotonic() - seconds,
        "train": {"loss": 0.4242, "accuracy": 0.4242}, "val": {},
    }  # fmt: skip
    return LoopState(**{**fields, **more})  # type: ignore[arg-type]


def ask(client: ScriptedClient, count: int, word: str) -> None:
    """Make that many calls at once."""
    texts = afnio.Variable([f"{word} {number}" for number in range(count)])
    messages = [{"role": "user", "content": [afnio.Variable("{text}")]}]
    with afnio.tolerate(0.5):
        reply = afnio.cognitive.ChatCompletion()(client, messages, inputs={"text": texts}, model="m")
        reply.data


def replies() -> Callable[[ChatRequest], str | Exception]:
    """Refuse each message that ends in 7 once, and one for good."""
    refused: set[str] = set()

    def reply(request: ChatRequest) -> str | Exception:
        text = str(request.messages[-1]["content"])
        if text.endswith("7") and text not in refused:
            refused.add(text)
            return TransientModelError("429 Too Many Requests: slow down", retry_after=0.01)
        return FinalModelError("400 the message is too long") if text == "a 30" else "ok"

    return reply


def show(progress: Progress, pause: Callable[[str], object]) -> None:
    """Go through an epoch and a half of a run."""
    client = ScriptedClient(replies())
    log = logging.getLogger("program")
    progress.start(PLAN)
    pause("started")
    ask(client, 33, "a")
    progress.update(state("train", "batch", 1, 33, 14.0, failed=1))
    print("printed by the program", flush=True)
    log.warning("logged by the program")
    pause("training")
    ask(client, 33, "b")
    progress.update(state("train", "batch", 1, 66, 29.0, failed=1))
    validated = {"loss": 0.6667, "accuracy": 0.6667}
    progress.update(state("train", "epoch", 1, 66, 30.0, failed=1))
    for samples in (33, 66):  # beside the next step
        progress.update(state("val", "batch", 1, samples, 45.0, val=validated))
    progress.update(state("val", "validation", 2, 33, 45.0, val=validated, best=0.6667))
    progress.message("A message of the loop: the checkpoint [best] is of epoch 1 now.")
    progress.update(state("train", "batch", 2, 33, 60.0, val=validated, best=0.6667))
    pause("epoch")
    progress.stop()
    progress.stop()
    pause("stopped")


def main() -> None:
    logging.basicConfig(level=logging.WARNING)  # its handler is made before the display is there
    shown = make_progress()

    def pause(stage: str) -> None:
        sys.stdin.readline()

    with afnio.budget(max_cost=1.0) if "--budget" in sys.argv else afnio.budget():
        show(shown, pause)


if __name__ == "__main__":
    main()
