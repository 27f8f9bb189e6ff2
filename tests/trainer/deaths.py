"""A small training that dies at a hook; as a program too, so that a test can kill it.

Every reply depends on all that was asked, so a training that visits other batches, or in another order, ends with
another prompt.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import afnio
import afnio.cognitive as cog
from afnio.testing import ScriptedClient
from afnio.trainer import Trainer
from afnio.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
)

ROWS: Final = [(f"m{number}", "odd") for number in range(10)]
BATCHES: Final = [([text for text, _ in ROWS[n : n + 4]], ["odd"] * len(ROWS[n : n + 4])) for n in (0, 4, 8)]
EPOCHS: Final = 3
HOOKS: Final = (
    "on_fit_start", "on_train_epoch_start", "on_train_batch_start", "training_step", "on_train_batch_end",
    "on_train_epoch_end", "on_validation_start", "validation_step", "on_validation_end", "function", "on_fit_end",
)  # fmt: skip
"""The callbacks' hooks, the agent's own steps, and a function that is called after each epoch."""


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(ROWS)


class Unsized(Sampler):
    """An order without a length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(ROWS)))

    __len__ = None  # type: ignore[assignment]


class Rest:
    """A loader that is taken up once where its state was taken; each later pass starts at the first batch."""

    def __init__(self) -> None:
        self.position = self.start = 0

    def __len__(self) -> int:
        return len(BATCHES)

    def __iter__(self) -> Iterator[Any]:
        start, self.start = self.start, 0
        for self.position in range(start + 1, len(BATCHES) + 1):
            yield BATCHES[self.position - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Any) -> None:
        self.position = self.start = state["position"]


class Rewinding:
    """A loader that goes on where it stands, and goes back to the first batch at the end of a pass."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < len(BATCHES):
            self.position += 1
            yield BATCHES[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: Any) -> None:
        self.position = state["position"]


class SizedRewinding(Rewinding):
    def __len__(self) -> int:
        return len(BATCHES)


class Reading:
    """An iterator; it ends after each three batches and can be read on."""

    def __init__(self) -> None:
        self.read = 0
        self.ended = True

    def __iter__(self) -> Reading:
        return self

    def __next__(self) -> Any:
        self.ended = not self.ended and self.read % len(BATCHES) == 0
        if self.ended:
            raise StopIteration
        self.read += 1
        return BATCHES[(self.read - 1) % len(BATCHES)]

    def state_dict(self) -> dict[str, Any]:
        return {"read": self.read, "ended": self.ended}

    def load_state_dict(self, state: Any) -> None:
        self.read, self.ended = state["read"], state["ended"]


LOADERS: Final[dict[str, Callable[[], Any]]] = {
    "list": lambda: list(BATCHES),
    "ordered": lambda: DataLoader(ROWS, batch_size=4),
    "shuffled": lambda: DataLoader(ROWS, batch_size=4, shuffle=True),
    "dropping": lambda: DataLoader(ROWS, batch_size=4, shuffle=True, drop_last=True),
    "batch sampler": lambda: DataLoader(ROWS, batch_sampler=BatchSampler(RandomSampler(ROWS), 4)),
    "stream": lambda: DataLoader(Stream(), batch_size=4),
    "unsized": lambda: DataLoader(ROWS, batch_size=4, sampler=Unsized()),
    "rest": Rest,
    "rewinding": Rewinding,
    "sized rewinding": SizedRewinding,
    "iterator": Reading,
}


class Death(Exception):
    """What a callback dies of."""


class Dying:
    """Dies when a hook is reached for the nth time."""

    critical = True

    def __init__(self, hook: str, nth: int, die: Callable[[], None]) -> None:
        self._left = nth
        self._die = die
        self.hook = hook
        if hook.startswith("on_"):
            setattr(self, hook, lambda *args: self.reached())
        else:
            self.on_test_start = lambda *args: None

    def reached(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._die()


def replies(request: Any) -> str:
    """Play student, critic and optimizer."""
    asked = json.dumps([request.messages, request.params], default=str, sort_keys=True)
    mark = hashlib.sha256(asked.encode()).hexdigest()[:6]
    shape = (request.params.get("response_format") or {}).get("json_schema")
    if shape is None:
        return "odd" if int(mark, 16) % 2 else f"not {mark}"
    if shape["name"] == "afnio_feedback":
        return json.dumps({"feedback": [{"variable": "v1", "text": f"feedback {mark}"}]})
    return json.dumps({"value": f"prompt {mark}"})


class Agent(cog.Module):
    def __init__(self, dying: Dying | None) -> None:
        super().__init__()
        self.client = ScriptedClient(replies)
        self.prompt = cog.Parameter("start", role="prompt")
        self.template = afnio.Variable("{text}", role="text")
        self.chat = cog.ChatCompletion()
        self.loss = cog.ExactMatchEvaluator()
        self.dying = dying

    def forward(self, text: Any) -> afnio.Variable:
        messages = [
            {"role": "system", "content": [self.prompt]},
            {"role": "user", "content": [self.template]},
        ]
        return self.chat(self.client, messages, inputs={"text": text}, model="m")

    async def training_step(self, batch: Any, batch_idx: int) -> Any:
        self._reached("training_step")
        return self.loss(self(batch[0]), batch[1])

    async def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self._reached("validation_step")
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return afnio.optim.TGD(self.parameters(), self.client, model="m", momentum=2)

    def _reached(self, step: str) -> None:
        if self.dying is not None and self.dying.hook == step:
            self.dying.reached()


def fitted(
    folder: Path, loader: str, validates: bool, dying: Dying | None = None, extra: Any = (), **options: Any
) -> list[Any]:
    """Train, going on from what is in `folder`; return what must be the same however often it died."""
    train = LOADERS[loader]()
    agent = Agent(dying)
    callbacks = [*extra] if dying is None else [*extra, dying]
    if dying is not None and dying.hook == "function":

        def after_epoch(trainer: Any) -> None:
            dying.reached()

        after_epoch.critical = True  # type: ignore[attr-defined]
        callbacks.append(after_epoch)
    trainer = Trainer(
        max_epochs=EPOCHS,
        default_root_dir=folder,
        enable_progress_bar=False,
        seed=1,
        callbacks=callbacks,
        **options,
    )
    with afnio.set_backward_model_client(agent.client, completion_args={"model": "m"}):
        trainer.fit(agent, train, LOADERS[loader]() if validates else None, ckpt_path="last")
    end = [agent.prompt.data, trainer.current_epoch, trainer.global_step, trainer.metrics, trainer.history]
    return list(json.loads(json.dumps(end)))


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    folder, loader, hook, nth, how, options = sys.argv[1:]
    dying = Dying(hook, int(nth), killed if how == "killed" else interrupted) if hook else None
    print(json.dumps(fitted(Path(folder), loader, True, dying, **json.loads(options))))
