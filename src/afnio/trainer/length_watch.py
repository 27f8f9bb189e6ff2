"""Length watch: say so, or stop, when a prompt grows too long."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, final

from afnio.trainer.callback import Callback

if TYPE_CHECKING:
    from afnio.cognitive._module import Module
    from afnio.trainer.trainer import Trainer


@final
class LengthWatch(Callback):
    """Watch the length of every parameter after each step.

    Args:
        max_tokens: the most that is fine, a token counted for every four bytes of UTF-8.
        action: "warn" says so once for each parameter, "stop" ends the training.

    >>> LengthWatch(max_tokens=500).lengths
    {}
    """

    def __init__(self, max_tokens: int = 2000, action: Literal["warn", "stop"] = "warn") -> None:
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f"max_tokens must be a number of tokens, 1 or more (got {max_tokens!r})")
        if action not in ("warn", "stop"):
            raise ValueError(f"action must be 'warn' or 'stop' (got {action!r})")
        self.max_tokens = max_tokens
        self.action = action
        self.lengths: dict[str, int] = {}
        self._told: list[str] = []

    def on_train_batch_end(
        self, trainer: Trainer, agent: Module, metrics: Mapping[str, float], batch: Any, batch_idx: int
    ) -> None:
        for name, parameter in agent.named_parameters():
            length = -(-len(str(parameter.data).encode("utf-8", "replace")) // 4)
            self.lengths[name] = length
            if length <= self.max_tokens:
                continue
            text = (
                f"parameter {name} has grown to about {length} tokens, more than max_tokens={self.max_tokens}"
            )
            if self.action == "stop":
                trainer.stop(text)
            elif name not in self._told:
                self._told.append(name)
                logging.getLogger("afnio").warning("%s", text)

    def state_dict(self) -> dict[str, Any]:
        return {"lengths": dict(self.lengths), "told": list(self._told)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lengths, self._told = dict(state["lengths"]), list(state["told"])
