"""Trainer: fit, validate, test and predict, in runs that can be left alone.

`Trainer` checks its arguments and its inputs, enters what holds around a run (`Session`), and hands a fit to `FitLoop`
and a pass to `EvaluationPass`. Each method has an asynchronous twin, which has the code; the synchronous one runs the
twin on a loop. A Trainer does one thing at a time.

`AgentSummary`, below, is what a fit prints first: the agent's modules, the texts that it learns, and the models that it
calls, with their limits and prices.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, final

import anyio
import anyio.to_thread
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from afnio.cognitive._members import Training
from afnio.cognitive._module import Module
from afnio.errors import CheckpointError
from afnio.models._client import ChatClient, ChatModel
from afnio.models._prices import price_of
from afnio.models._trace import CHARACTERS_PER_TOKEN
from afnio.optim._optimizer import Optimizer
from afnio.runtime._blocking import alone, run_blocking, stoppable, task_group
from afnio.runtime._control import gently
from afnio.runtime._limits import Limits, given_limits
from afnio.runtime._spending import Price
from afnio.runtime._tracebacks import folding
from afnio.trainer._callbacks import Callbacks, stopping
from afnio.trainer._checkpoints import Checkpoint, Checkpoints, LoopState, Phase, Plan, Stage, take_up
from afnio.trainer._estimate import Estimate, rehearse
from afnio.trainer._feed import length, limited, sample_count, seed_all
from afnio.trainer._loop import FitLoop, Schedule, TrainerState
from afnio.trainer._options import Outcome, Share, TrainerOptions, checked, seconds_of
from afnio.trainer._progress import Progress
from afnio.trainer._steps import STEPS, EvaluationPass

CHECKPOINTS: Final = "checkpoints"
_STAGES: Final[dict[str, Stage]] = {"val": "validate", "test": "test", "predict": "predict"}


@final
class Trainer(TrainerState):
    """Trains, validates and tests agents that have `training_step`, `validation_step` and so on.

    Each method has an asynchronous twin: `fit` and `afit`, `validate` and `avalidate`, `test` and `atest`, `predict`
    and `apredict`. "score" is the mean over samples. `mode` says if a larger one is better.

    Without a run of `te.init`, a `fit` keeps its calls in a journal in the folder of its checkpoints. After a kill
    at any point, `fit(..., ckpt_path="last")` continues and pays for no reply twice.

    Args:
        max_epochs: passes over the training batches at most; -1 for any number, until something else ends the
            training. By default 10 if nothing else limits it.
        min_epochs, min_steps: a callback can't stop the training earlier.
        max_steps: optimizer steps at most, over all epochs.
        max_time: of one `fit`: seconds, a timedelta, a dict of its arguments, or "DD:HH:MM:SS".
        max_cost: dollars that this Trainer may spend, over all clients. Spending in the journal counts.
        limit_train_batches, limit_val_batches, limit_test_batches, limit_predict_batches: batches of an epoch or
            pass at most, or a fraction up to 1.0.
        val_check_interval: validate within an epoch too, after this number of batches or each such fraction of it.
            `best` is chosen among the ends of epochs only.
        accumulate_grad_batches: batches whose feedback one step uses. They run side by side.
        quorum: the fraction of a step's or a pass's samples that must succeed. One of several may always fail, unless
            this is 1.0 or None. Failed ones are left out. A step or validation pass with more failures is cut short
            with a warning; three such steps in a row end the training.
        seed: seeds samplers, Python's generator and NumPy's.
        enable_checkpointing: write `checkpoints/last`, `best` and `epoch-N`.
        enable_progress_bar: show the progress: live in a terminal or a notebook, as lines in a log.
        enable_agent_summary: show the agent's modules, parameters and clients at the start of the progress.
        default_root_dir: the parent folder of `checkpoints`; by default the working folder.
        callbacks: objects with `on_…` methods, or functions that get the Trainer at the end of each epoch.
        fast_dev_run: run one batch of everything, to see if it works. Nothing is kept.
        monitor: the metric that `best` is chosen by; "val_score", or "train_score" without validation.
        mode: "max" if a larger value is better, else "min".
        save_top_k: how many `epoch-N` are kept, the best ones; -1 for all.

    Attributes:
        metrics: the newest value of each, such as "train_score" and "val_accuracy".
        history: an entry for each step, epoch and validation pass, with sums over samples.
        current_epoch, global_step: epochs and steps that have ended.
        best_score: the best value of the monitored validation metric.
        stopped: why the last fit ended.

    >>> trainer = Trainer(max_epochs=3, max_time="00:01:00:00")
    >>> trainer.options.max_time, trainer.ledger.total.calls
    (3600.0, 0)
    """

    def __init__(
        self,
        *,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int | None = None,
        min_steps: int | None = None,
        max_time: float | timedelta | dict[str, float] | str | None = None,
        max_cost: float | None = None,
        limit_train_batches: Share | None = None,
        limit_val_batches: Share | None = None,
        limit_test_batches: Share | None = None,
        limit_predict_batches: Share | None = None,
        val_check_interval: Share = 1.0,
        accumulate_grad_batches: int = 1,
        quorum: float | None = 0.9,
        seed: int | None = None,
        enable_checkpointing: bool = True,
        enable_progress_bar: bool = True,
        enable_agent_summary: bool = True,
        default_root_dir: str | os.PathLike[str] | None = None,
        callbacks: Any = None,
        fast_dev_run: bool = False,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        save_top_k: int = -1,
    ) -> None:
        options = checked(
            TrainerOptions(
                max_epochs=max_epochs,
                min_epochs=min_epochs,
                max_steps=max_steps,
                min_steps=min_steps,
                max_time=seconds_of(max_time),
                max_cost=max_cost,
                limit_train_batches=limit_train_batches,
                limit_val_batches=limit_val_batches,
                limit_test_batches=limit_test_batches,
                limit_predict_batches=limit_predict_batches,
                val_check_interval=val_check_interval,
                accumulate_grad_batches=accumulate_grad_batches,
                quorum=quorum,
                seed=seed,
                enable_checkpointing=enable_checkpointing,
                enable_progress_bar=enable_progress_bar,
                enable_agent_summary=enable_agent_summary,
                root=Path(default_root_dir or Path.cwd()),
                fast_dev_run=fast_dev_run,
                monitor=monitor,
                mode=mode,
                save_top_k=save_top_k,
            )
        )
        super().__init__(options, Callbacks(callbacks))
        self.optimizers: list[Optimizer] = []
        self._busy: str | None = None
        self._progress: Progress | None = None

    @property
    def stage(self) -> str | None:
        """The method that is running: "fit", "validate", "test", "predict", or None."""
        return self._busy

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints."""
        return self.options.root / CHECKPOINTS

    def tell(self, text: str) -> None:
        """Show a line that stays, with the progress of a `fit`. For callbacks; without progress it does nothing."""
        if self._progress is not None and self.options.enable_progress_bar:
            self._progress.message(text)

    # The methods

    @folding
    def fit(
        self,
        agent: Module,
        train_dataloader: Iterable[Any] | None = None,
        val_dataloader: Iterable[Any] | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
    ) -> None:
        """Train `agent`: run `afit` to its end, in a script, a thread or a notebook."""
        run_blocking(lambda: self.afit(agent, train_dataloader, val_dataloader, ckpt_path), "fit")

    @folding
    async def afit(
        self,
        agent: Module,
        train_dataloader: Iterable[Any] | None = None,
        val_dataloader: Iterable[Any] | None = None,
        ckpt_path: str | os.PathLike[str] | None = None,
    ) -> None:
        """Train `agent`.

        Args:
            val_dataloader: the batches to validate on, while the training continues.
            ckpt_path: continue from "last", "best" or a file. "last" begins if there is none yet.

        Raises:
            CheckpointError: if the folder is in use or can't be written, or the file isn't a checkpoint.
        """
        if train_dataloader is None:
            raise ValueError("fit needs a train_dataloader (got None)")
        _check_training(agent, train_dataloader, val_dataloader)
        if ckpt_path is not None and not isinstance(ckpt_path, str | os.PathLike):
            raise TypeError(f'ckpt_path must be "last", "best" or a path (got {ckpt_path!r})')
        with self._occupied("fit"):
            self.monitor = self.options.monitor or ("train_score" if val_dataloader is None else "val_score")
            await self._fit(agent, train_dataloader, val_dataloader, ckpt_path)

    @folding
    def validate(self, agent: Module, val_dataloader: Iterable[Any]) -> dict[str, float]:
        """Return the metrics of one pass over `val_dataloader`; see `atest`."""
        return run_blocking(lambda: self.avalidate(agent, val_dataloader), "validate")

    @folding
    async def avalidate(self, agent: Module, val_dataloader: Iterable[Any]) -> dict[str, float]:
        """Return the metrics of one pass over `val_dataloader`; see `atest`."""
        outcome, _ = await self._pass(agent, "val", val_dataloader)
        return outcome.flat()

    @folding
    def test(self, agent: Module, test_dataloader: Iterable[Any]) -> dict[str, float]:
        """Return the metrics of one pass over `test_dataloader`; see `atest`."""
        return run_blocking(lambda: self.atest(agent, test_dataloader), "test")

    @folding
    async def atest(self, agent: Module, test_dataloader: Iterable[Any]) -> dict[str, float]:
        """Return the metrics of one pass, without gradients.

        "score" is the mean score per sample, "score_sum" the total, and "failed" the number of samples without one. If
        each sample's value is 0 or 1, "score_low" and "score_high" are the bounds of Wilson's 95 % interval.
        """
        outcome, _ = await self._pass(agent, "test", test_dataloader)
        return outcome.flat()

    @folding
    def predict(self, agent: Module, dataloader: Iterable[Any]) -> list[Any]:
        """Return what `predict_step` gives for each batch, in order; see `apredict`."""
        return run_blocking(lambda: self.apredict(agent, dataloader), "predict")

    @folding
    async def apredict(self, agent: Module, dataloader: Iterable[Any]) -> list[Any]:
        """Return what `predict_step` gives for each batch, in order, its Variables done."""
        _, outputs = await self._pass(agent, "predict", dataloader)
        return outputs

    def estimate(
        self,
        agent: Module,
        train_dataloader: Iterable[Any],
        val_dataloader: Iterable[Any] | None = None,
        *,
        seconds_per_call: float = 2.0,
    ) -> Estimate:
        """Return what `fit` would ask for: calls, tokens, cost, time. Nothing is called; see `aestimate`."""
        return run_blocking(
            lambda: self.aestimate(
                agent, train_dataloader, val_dataloader, seconds_per_call=seconds_per_call
            ),
            "estimate",
        )

    async def aestimate(
        self,
        agent: Module,
        train_dataloader: Iterable[Any],
        val_dataloader: Iterable[Any] | None = None,
        *,
        seconds_per_call: float = 2.0,
    ) -> Estimate:
        """Return what `fit` would ask for; print it for a table.

        One step and one validation batch run with made-up replies. Side effects of the steps happen. Afterwards the
        agent and the loaders are in the same state as before.

        Args:
            seconds_per_call: the seconds that a call is assumed to take.
        """
        _check_training(agent, train_dataloader, val_dataloader)
        with self._occupied("estimate"):
            return await rehearse(
                agent, optimizers_of, self.options, train_dataloader, val_dataloader, seconds_per_call
            )

    # How a fit and a pass run

    async def _fit(
        self, agent: Module, train: Any, val: Any, ckpt_path: str | os.PathLike[str] | None
    ) -> None:
        progress = Progress(self.options.enable_progress_bar)
        checkpoints = None
        if self.options.checkpointing:
            checkpoints = Checkpoints(
                self.folder, self.monitor, self.mode, self.options.save_top_k, warn=progress.message
            )
        error: BaseException | None = None
        try:
            async with AsyncExitStack() as stack:
                if checkpoints is not None:
                    await stack.enter_async_context(checkpoints)
                resumed = await anyio.to_thread.run_sync(take_up, self.folder, checkpoints, ckpt_path)
                await self._fit_from(stack, agent, train, val, checkpoints, resumed, progress)
        except BaseException as raised:
            error = alone(raised)
        if error is not None:
            if checkpoints is not None and self.history and not isinstance(error, CheckpointError):
                self._say_how_to_go_on(error)
            raise error

    async def _fit_from(
        self, stack: AsyncExitStack, agent: Module, train: Any, val: Any,
        checkpoints: Checkpoints | None, resumed: Checkpoint | None, progress: Progress,
    ) -> None:  # fmt: skip
        self._reset()
        folder = None if checkpoints is None else checkpoints.folder
        path = await stack.enter_async_context(self._session.entered("fit", folder, resumed))
        if self.options.seed is not None:
            seed_all(self.options.seed)
        self.optimizers = optimizers_of(agent)
        object.__setattr__(agent, "_optimizers", self.optimizers)
        stack.callback(agent.__dict__.pop, "_optimizers", None)
        agent.train()
        loop = FitLoop(
            self, agent, self.optimizers, train, val, checkpoints, progress, path, self._session.seed
        )
        if resumed is not None:
            loop.restore(resumed)
            self._run_log.history(self.history)
        self._run_log.monitor(self.monitor, self.mode)
        progress.start(self._fit_plan(agent, loop.schedule, resumed))
        stack.callback(progress.stop)
        self._progress = progress
        stack.callback(setattr, self, "_progress", None)
        if self.options.enable_agent_summary and self.options.enable_progress_bar:
            # In a thread, as prices may be read from a file.
            summary = await anyio.to_thread.run_sync(AgentSummary.of, agent, self.optimizers)
            progress.message(str(summary))
        try:
            with stopping(self):
                await self.callbacks.call("on_fit_start", self, agent)
            async with stoppable(), task_group() as tasks:
                with gently(loop.stop):
                    await loop.run(tasks)
            await self.callbacks.call("on_fit_end", self, agent)
        except Exception as error:
            await self.callbacks.call("on_exception", self, agent, error)
            raise

    async def _pass(self, agent: Module, phase: Phase, loader: Any) -> tuple[Outcome, list[Any]]:
        stage = _STAGES[phase]
        check_agent(agent, STEPS[phase])
        check_loader("dataloader" if phase == "predict" else f"{phase}_dataloader", loader)
        batches = limited(length(loader), self.options.limit(phase), f"limit_{phase}_batches")
        progress = Progress(self.options.enable_progress_bar)
        started = time.monotonic()

        def tell(outcome: Outcome, done: int) -> None:
            progress.update(
                LoopState(
                    phase=phase, moment="batch", epoch=0, epochs=None, batch=done, batches=batches,
                    step=self.global_step, samples=outcome.samples, total=samples,
                    failed=outcome.failed, started=started, seconds=time.monotonic() - started, val=outcome.flat(),
                )
            )  # fmt: skip

        samples = sample_count(loader, batches)
        with self._occupied(stage):
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self._session.entered(stage, None, None))
                plan = Plan(
                    stage,
                    type(agent).__name__,
                    batches=batches,
                    samples=samples,
                    max_cost=self.options.max_cost,
                )
                progress.start(plan)
                stack.callback(progress.stop)
                hook = "validation" if phase == "val" else phase
                await self.callbacks.call(f"on_{hook}_start", self, agent)
                evaluation = EvaluationPass(agent, phase, loader, batches, tell)
                async with stoppable():
                    outcome = await evaluation.run()
                if phase != "predict":
                    self.metrics |= {f"{phase}_{name}": value for name, value in outcome.flat().items()}
                    self._run_log.result(phase, outcome, self.total_cost)
                await self.callbacks.call(f"on_{hook}_end", self, agent)
        return outcome, [evaluation.outputs[number] for number in sorted(evaluation.outputs)]

    def _fit_plan(self, agent: Module, schedule: Schedule, resumed: Checkpoint | None) -> Plan:
        options = self.options
        return Plan(
            "fit", type(agent).__name__, epochs=options.epochs, batches=schedule.batches, samples=schedule.samples,
            val_batches=schedule.val_batches, val_samples=schedule.val_samples,
            max_steps=options.max_steps, max_time=options.max_time, max_cost=options.max_cost, monitor=self.monitor,
            mode=self.mode, folder=str(self.folder) if options.checkpointing else None,
            resumed=None if resumed is None else f"epoch {self.current_epoch + 1}, step {self.global_step}",
        )  # fmt: skip

    def _say_how_to_go_on(self, error: BaseException) -> None:
        how = "was stopped" if not isinstance(error, Exception) else "failed"
        with suppress(
            OSError, ValueError, AttributeError
        ):  # standard error is closed or missing; that must not hide the error
            sys.stderr.write(
                f"afnio: the training {how} after step {self.global_step}, in epoch {self.current_epoch + 1}; "
                f'trainer.fit(..., ckpt_path="last") goes on from {self.folder} and pays for no reply again\n'
            )

    @contextmanager
    def _occupied(self, name: str) -> Iterator[None]:
        if self._busy is not None:
            raise RuntimeError(f"this Trainer is busy with {self._busy}; make another for {name}")
        self._busy = name
        try:
            yield
        finally:
            self._busy = None


# Inputs, checked before anything is called


def optimizers_of(agent: Module) -> list[Optimizer]:
    """Return the agent's optimizers, from `configure_optimizers`, as a list.

    Raises:
        TypeError: for something else.
    """
    configured = agent.configure_optimizers()
    optimizers = list(configured) if isinstance(configured, list | tuple) else [configured]
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"configure_optimizers must return an optimizer or a list of some (got {optimizer!r})"
            )
    return optimizers


def check_agent(agent: Any, *needed: str) -> None:
    """Raise unless `agent` is a Module that has the methods `needed`."""
    if not isinstance(agent, Module):
        raise TypeError(f"agent must be a cognitive.Module (got {agent!r})")
    for name in needed:
        if getattr(type(agent), name) is getattr(Training, name) and name not in agent.__dict__:
            raise AttributeError(f"{type(agent).__name__} has no {name}; write `def {name}(self, ...)`")


def check_loader(name: str, loader: Any) -> None:
    """Raise unless `loader` can be iterated over. `name` is the caller's argument."""
    if not isinstance(loader, Iterable):
        raise TypeError(f"{name} must be a DataLoader, or something else to iterate over (got {loader!r})")


# The summary of an agent


# Columns of the text, unless the terminal has fewer.
WIDTH: Final = 110


@final
@dataclass(frozen=True, slots=True)
class TextRow:
    """A Parameter or a buffer.

    Attributes:
        tokens: about how many it has, at four characters each, or None while its value is pending.
        learned: True if it gathers feedback.
        kind: Parameter or buffer.
    """

    name: str
    kind: str
    role: str
    tokens: int | None
    learned: bool


@final
@dataclass(frozen=True, slots=True)
class SummaryNode:
    """A module, its texts and its children."""

    name: str
    kind: str
    texts: Sequence[TextRow]
    children: Sequence[SummaryNode]

    def all_texts(self) -> Iterator[TextRow]:
        yield from self.texts
        for child in self.children:
            yield from child.all_texts()


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A client, its use, and its model.

    Attributes:
        model: None if each call names its own.
        limits: those that were given for the account, or None.
        price: None if it is unknown.
    """

    used_for: str
    client: str
    url: str
    model: str | None
    limits: Limits | None
    price: Price | None


@final
@dataclass(frozen=True, slots=True)
class AgentSummary:
    """The summary of an agent. `str()` of it is a text, and rich can print it.

    >>> import afnio.cognitive as cog
    >>> agent = cog.Module()
    >>> agent.task = cog.Parameter("Be brief and kind.", role="system prompt")
    >>> print(str(AgentSummary.of(agent)).splitlines()[1].rstrip())
    └── task  Parameter  4 tokens  learned  system prompt
    """

    root: SummaryNode
    clients: Sequence[Asked]

    @classmethod
    def of(cls, agent: Module, optimizers: Sequence[Optimizer] = ()) -> AgentSummary:
        """Return the summary of `agent`, of the backward model and of the optimizers' models.

        It waits for nothing. The first look-up of a price reads a file or imports a package.
        """
        seen: set[int] = set()
        return cls(_node("", agent, seen), [_asked(*client) for client in _clients(agent, optimizers)])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield self._tree(Tree(Text(self.root.kind, "bold")), self.root)
        yield Text(self._total())
        if self.clients:
            yield self._table()

    def __str__(self) -> str:
        text = io.StringIO()
        columns = shutil.get_terminal_size((WIDTH, 24)).columns
        Console(file=text, width=min(columns, WIDTH), color_system=None, highlight=False).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _tree(self, tree: Tree, node: SummaryNode) -> Tree:
        for text in node.texts:
            tokens = "pending" if text.tokens is None else f"{text.tokens:,} tokens"
            kept = "learned" if text.learned else "kept"
            tree.add(
                Text("  ".join(part for part in (text.name, text.kind, tokens, kept, text.role) if part))
            )
        for child in node.children:
            self._tree(tree.add(Text(f"{child.name}  {child.kind}")), child)
        return tree

    def _total(self) -> str:
        parameters = [text for text in self.root.all_texts() if text.kind == "Parameter"]
        learned = [text for text in parameters if text.learned]
        tokens = sum(text.tokens or 0 for text in parameters)
        count = "1 parameter" if len(parameters) == 1 else f"{len(parameters):,} parameters"
        return (
            f"{count}, {len(learned):,} learned, {tokens:,} tokens in all "
            f"(at {CHARACTERS_PER_TOKEN} characters each)"
        )

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for heading in ("asked for", "client", "model", "limits", "$/M in, out"):
            table.add_column(heading, overflow="fold")
        for asked in self.clients:
            price = "unknown" if asked.price is None else f"{asked.price.input}, {asked.price.output}"
            table.add_row(
                asked.used_for,
                f"{asked.client} {asked.url}",
                asked.model or "at each call",
                _limits(asked.limits),
                "" if asked.model is None else price,
            )
        return table


def _node(name: str, module: Module, seen: set[int]) -> SummaryNode:
    texts = []
    for kind, named in (("Parameter", module.named_parameters), ("buffer", module.named_buffers)):
        for own, variable in named(recurse=False):
            if id(variable) not in seen:
                seen.add(id(variable))
                learned = kind == "Parameter" and variable.requires_grad
                texts.append(TextRow(own, kind, variable.role, _tokens(variable), learned))
    children = [_node(own, child, seen) for own, child in module.named_children()]
    return SummaryNode(name, type(module).__name__, texts, children)


def _tokens(variable: Any) -> int | None:
    if variable.pending:
        return None
    value = variable.data
    values = value if isinstance(value, list) else [value]
    return sum(len(str(one)) for one in values if one is not None) // CHARACTERS_PER_TOKEN


def _clients(agent: Module, optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, ChatClient, str | None]]:
    """Yield clients with their use and model: the agent's own, the critic's, the optimizers'."""
    for name, client in agent.named_models():
        yield name, client, None
    backward = _backward_model()
    if backward is not None:
        yield "backward", backward.client, backward.completion_args.get("model")
    seen: set[tuple[int, Any]] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            asked = group.get("model_client")
            model = (group.get("completion_args") or {}).get("model")
            if isinstance(asked, ChatClient) and (id(asked), model) not in seen:
                seen.add((id(asked), model))
                yield type(optimizer).__name__, asked, model


def _check_training(agent: Module, train: Any, val: Any) -> None:
    check_agent(agent, "training_step", "configure_optimizers")
    check_loader("train_dataloader", train)
    if val is not None:
        check_loader("val_dataloader", val)
        check_agent(agent, "validation_step")


def _backward_model() -> ChatModel | None:
    from afnio.models._backward_model import get_backward_model_client

    try:
        return get_backward_model_client()
    except RuntimeError:  # there is none
        return None


def _asked(used_for: str, client: ChatClient, model: str | None) -> Asked:
    account = client.account
    price = None if model is None else price_of(model, account.url)
    return Asked(used_for, client.provider, account.url, model, given_limits(account), price)


def _limits(limits: Limits | None) -> str:
    if limits is None:
        return "learnt"
    parts = (
        (limits.max_in_flight, "in flight"),
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
    )
    return ", ".join(f"{value:,} {unit}" for value, unit in parts if value is not None) or "learnt"
