"""A fit in small for displays to show: some calls are tried again, one always fails; the program prints and logs.

Run as a program it waits for a line of input three times, so that a test can look at the display.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from trainer import scenarios

from afnio.errors import FinalModelError, TransientModelError
from afnio.models import ChatRequest
from afnio.runtime.events import CircuitOpened, emit
from afnio.testing import ScriptedClient
from afnio.trainer import Callback, Trainer


def replies() -> Callable[[ChatRequest], Any]:
    """Refuse each message that ends in 7 once, and one always."""
    refused: set[str] = set()

    def reply(request: ChatRequest) -> Any:
        text = str(request.messages[-1]["content"])
        if text == "m30":
            return FinalModelError("400 the message is too long")
        if text.startswith("m") and text.endswith("7") and text not in refused:
            refused.add(text)
            return TransientModelError("429 Too Many Requests: slow down", retry_after=0.01)
        return scenarios.replies(request)

    return reply


class Program(Callback):
    """Pauses at the start, in the middle of the first epoch, and in the middle of the second, which is the last."""

    def __init__(self, pause: Callable[[], object]) -> None:
        self.pause = pause

    def on_fit_start(self, trainer: Trainer, agent: Any) -> None:
        self.pause()

    def on_train_batch_start(self, trainer: Trainer, agent: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            return
        if trainer.current_epoch == 0:
            print("printed by the program", flush=True)
            logging.getLogger("program").warning("logged by the program")
            if "--down" in sys.argv:
                emit(CircuitOpened("https://host", 20, "refused\n by peer"))
        else:
            trainer.stop()
        self.pause()


def show(pause: Callable[[], object], **options: Any) -> None:
    """Train for an epoch and a half."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=5, seed=1, default_root_dir=folder, enable_checkpointing=False,
            enable_agent_summary=False, callbacks=[Program(pause)], **options,
        )  # fmt: skip
        agent = scenarios.Agent(ScriptedClient(replies()))
        scenarios.fitted(agent, trainer, scenarios.loader(66, 33), scenarios.loader(60, 33))


def main() -> None:
    logging.basicConfig(level=logging.WARNING)  # its handler is made before the display is there
    show(sys.stdin.readline, **({"max_cost": 1.0} if "--budget" in sys.argv else {}))
    sys.stdin.readline()


if __name__ == "__main__":
    main()
