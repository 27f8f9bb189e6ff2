"""Study: a job on an agent, rows and a metric, in the checked form of what a user asked for.

A study is a job, as a training is. It blocks where it may, and is awaited where it may not (`job`): whoever writes
`optimize(…)` in a script wants the result on the next line, and on an event loop waiting would stop everything else.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import Any, TypeVar, cast, final

from afnio.models._backward_model import chat_model
from afnio.models._client import ChatClient, ChatModel
from afnio.models._installed import limits_here
from afnio.runtime._blocking import run_blocking
from afnio.runtime._budget import Budget
from afnio.runtime._limits import Limits, give_limits, given_limits, tightest
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import may_block
from afnio.runtime.events import CallEnded, CallReplayed, subscribed
from afnio.studies._needs import CallCount
from afnio.studies._scoring import Scoring
from afnio.studies._subject import Subject

T = TypeVar("T")


class Study(Scoring):
    """The parts that all studies have: an agent, a metric, a critic, a budget, a seed and limits.

    Attributes:
        start: the prompts to begin with.
        count: the calls so far, as a subscriber to events.
        asked: why the user wants the study to end early, or None.
    """

    def __init__(
        self,
        subject: Subject,
        metric: Callable[..., Any],
        *,
        perfect: Any,
        critic: Any,
        budget: Any,
        seed: Any,
        limits: Any,
        makes_calls: Any,
    ) -> None:
        super().__init__(subject, metric, perfect)
        if not isinstance(limits, Limits | None):
            raise TypeError(f"limits must be an afnio.Limits (got {limits!r})")
        if not isinstance(makes_calls, bool):
            raise TypeError(f"makes_calls must be True or False (got {makes_calls!r})")
        self.critic, self.budget, self.seed = critic_of(critic), budget_of(budget), seed_of(seed)
        self.limits, self.makes_calls = limits, makes_calls
        self.start = subject.texts
        self.count = CallCount()
        self.asked: str | None = None

    def tell(self, text: str) -> None:
        """Show a line to whoever watches the program."""
        with suppress(OSError, ValueError, AttributeError):  # standard error is closed or missing
            sys.stderr.write(f"afnio: {text}\n")

    @contextmanager
    def bridge(self) -> Iterator[None]:
        """Take in the calls of HTTP clients, with the limits of this study and those of the blocks around it."""
        account = self.critic.client.account
        limits = tightest(given_limits(account), tightest(limits_here(), self.limits))
        if self.limits is not None and limits is not None and limits != given_limits(account):
            give_limits(account, limits)
        if self.subject.function is None:
            yield
            return
        from afnio import bridge

        with bridge.installed(limits=self.limits):
            yield

    @contextmanager
    def seeing(self, rows: int) -> Iterator[None]:
        """Raise if the agent made no call in the block that the engine sees: budget and limits wouldn't hold.

        The metric's calls, such as a judge's, say nothing about the agent.

        Args:
            rows: the number of rows that the block scores, for the error.
        """
        seen: set[str] = set()

        def note(event: Any) -> None:
            if isinstance(event, CallEnded | CallReplayed) and event.reply is not None:
                seen.add(event.address)

        with subscribed(note):
            yield
        metric = tuple(self.metric_places)
        if self.makes_calls and all(address.startswith(metric) for address in seen):
            raise ValueError(
                f"the agent must make calls that Afnio sees, or budget and limits don't hold for them (got none on "
                f"{rows} rows, so no critic was asked); give its SDK a client of afnio.bridge, its subprocess or "
                "another language the address of afnio.bridge.url(), register an unknown API by "
                "afnio.bridge.register, or pass makes_calls=False if it makes none"
            )


def job(run: Callable[[], Awaitable[T]], name: str, gently: Callable[[], object] | None = None) -> T:
    """Run a study to its end where a blocking wait is allowed; elsewhere return what can be awaited.

    Args:
        name: of the public function.
        gently: what the first Ctrl-C calls, to let the study end early with a result.
    """
    return run_blocking(run, name, gently) if may_block() else cast("T", Unawaited(run, name))


@final
class Unawaited:
    """What `optimize` and `headroom` return on a running event loop: await it."""

    def __init__(self, run: Callable[[], Any], function: str) -> None:
        self._run = run
        self._function = function

    @folding
    def __await__(self) -> Generator[Any, None, Any]:
        return (yield from cast("Generator[Any, None, Any]", self._run().__await__()))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"afnio.{self._function}(…) must be awaited on an event loop before .{name} can be read; write "
            f"`result = await afnio.{self._function}(…)`"
        )


def critic_of(critic: Any) -> ChatModel:
    """Return the critic that a user names.

    Raises:
        TypeError, ValueError: if it is none.
    """
    if isinstance(critic, ChatModel):
        return critic
    client, arguments = critic, None
    if isinstance(critic, tuple):
        if len(critic) != 2 or not isinstance(critic[0], ChatClient):
            raise TypeError(f'critic must be "provider/model" or (client, model) (got {critic!r})')
        client, arguments = critic
        arguments = {"model": arguments} if isinstance(arguments, str) else dict(arguments)
    return chat_model(client, {}, arguments or {})


def budget_of(limit: Any) -> Budget:
    """Return the budget that a user gives, as dollars or as an `afnio.budget`.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(limit, Budget):
        return limit
    if isinstance(limit, bool) or not isinstance(limit, int | float | Decimal) or not limit > 0:
        raise TypeError(
            f"budget must be dollars above 0 or afnio.budget(max_calls=…) and so on (got {limit!r})"
        )
    return Budget(max_cost=limit)


def seed_of(seed: Any) -> int:
    """Return a user's seed; 0 by default.

    Raises:
        TypeError: if it isn't a whole number.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | None):
        raise TypeError(f"seed must be a whole number (got {seed!r})")
    return seed or 0
