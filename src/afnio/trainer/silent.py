"""Silent: the display of a Trainer that was asked for none."""

from __future__ import annotations

import logging
from typing import final

from afnio.trainer.state import LoopState, Plan


@final
class Silent:
    """Shows nothing of the progress; messages, which say what went wrong, are logged."""

    def start(self, plan: Plan) -> None: ...

    def update(self, state: LoopState) -> None: ...

    def message(self, text: str) -> None:
        logging.getLogger("afnio").warning("%s", text)

    def stop(self) -> None: ...
