"""A provider in a separate process: its options as command-line arguments, and the parent's side of it.

The process prints one JSON line with its `base_url`, and ends when its standard input ends: so it can't outlive the
program that started it, even if that is killed.

    python -m afnio.testing.provider --latency lognormal:0.2,1.0 --faults transient:0.2 --seed 7
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final, Self, final
from urllib.parse import urlsplit

from afnio.testing.provider._faults import FaultPlan, Latency
from afnio.testing.provider._quota import Quota

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

MINUTE: Final = 60.0


class ProviderProcess:
    """Runs `python -m afnio.testing.provider` while its `with` block lasts.

    >>> from afnio.testing.provider._process import ProviderOptions
    >>> with ProviderProcess(ProviderOptions(reply="ok")) as provider:
    ...     provider.stats()["requests"]
    0
    """

    def __init__(self, options: ProviderOptions) -> None:
        self._command = [sys.executable, "-m", "afnio.testing.provider", *options.arguments()]
        self._process: subprocess.Popen[bytes] | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._stop()
            raise RuntimeError(
                f"the provider must print its address (got exit code {code} before it served); see stderr"
            )
        self.base_url = json.loads(line)["base_url"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The PID, for measuring the provider's CPU time."""
        if self._process is None:
            raise RuntimeError("the provider must be running (it isn't); enter its `with` block first")
        return self._process.pid

    def stats(self) -> dict[str, Any]:
        """Return the same counts as `Provider.stats`."""
        return self._ask("GET", "/stats")

    def scale_quota(self, factor: float) -> None:
        """Multiply the limits of all accounts by `factor` from now on."""
        self._ask("POST", "/admin/quota", json.dumps({"scale": factor}))

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        # urllib would use a proxy from the environment.
        connection = HTTPConnection(urlsplit(self.base_url).netloc, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer: dict[str, Any] = json.load(response)
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(answer["error"]["message"])
        return answer

    def _stop(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # the process ends with its standard input
        try:
            return process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            process.stdout.close()


@final
@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """The arguments of `Provider.process`.

    >>> ProviderOptions(seed=7).arguments()
    ['--port=0', '--latency=constant:0.0', '--seed=7']
    """

    port: int = 0
    latency: Latency = field(default_factory=lambda: Latency.constant(0.0))
    api_key: str | None = None
    reply: str | None = None
    context: int | None = None
    faults: FaultPlan | None = None
    quota: Quota | None = None
    seed: int = 0
    window: float | None = None

    @classmethod
    def parse(cls, argv: Sequence[str] | None, prog: str) -> ProviderOptions:
        """Return the options in command-line arguments. For wrong ones, print an error and exit, as argparse does."""
        parser = _parser(prog)
        args = parser.parse_args(argv)
        try:
            return cls(
                port=args.port,
                latency=Latency.parse(args.latency),
                api_key=args.api_key,
                reply=args.reply,
                context=args.context,
                faults=_plan(args),
                quota=_quota(args),
                seed=args.seed,
                window=args.window,
            )
        except ValueError as error:
            parser.error(str(error))

    def arguments(self) -> list[str]:
        """Return the command-line arguments from which `parse` makes these options."""
        given: dict[str, object] = {"port": self.port, "latency": self.latency, "seed": self.seed}
        given |= {"api-key": self.api_key, "reply": self.reply, "context": self.context}
        given["window"] = self.window if self.quota is None else self.quota.window
        if self.faults is not None:
            plan = self.faults
            given |= {"faults": plan, "faults-in-a-row": plan.in_a_row}
            given |= {"retry-after": plan.retry_after, "drip": plan.drip}
        flags = []
        if self.quota is not None:
            quota = self.quota
            given |= {"rpm": quota.requests, "tpm": quota.tokens, "quota-shape": quota.shape}
            given |= {"halve-after": quota.halve_after, "quota-retry-after": quota.retry_after}
            flags = ["--quota-per-model"] if quota.per_model else []
            flags += [] if quota.headers else ["--no-quota-headers"]
        return [f"--{name}={value}" for name, value in given.items() if value is not None] + flags


_EXAMPLE: Final = """\
example, a very bad endpoint that behaves the same at each start:
  %(prog)s --latency lognormal:0.2,1.0 --faults reset:0.05,html:0.05 --seed 7 \\
    --rpm 600 --tpm 100000 --window 2

kinds of faults:
"""


def _parser(prog: str) -> argparse.ArgumentParser:
    kinds = "".join(f"  {group}: {' '.join(names)}\n" for group, names in FaultPlan.GROUPS.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve OpenAI's chat completions API on this machine, with the limits and faults that you choose.",
        epilog=_EXAMPLE + kinds,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="0 takes a free port")
    add("--api-key", help="the key that requests must carry; any key by default")
    add("--reply", help="a fixed reply instead of the simulated LM")
    add("--context", type=int, help="number of characters that the simulated LM reads of each text")
    add("--seed", type=int, default=0, help="seed of latencies and faults")
    add(
        "--latency",
        default="0",
        help="seconds before each reply: 0.2, constant:0.2, lognormal:MEDIAN,SIGMA "
        "or pareto:LEAST,ALPHA[,MOST]",
    )
    faults = parser.add_argument_group("faults, drawn for each attempt of each request")
    add = faults.add_argument
    add(
        "--faults", metavar="KIND:SHARE,…", help="probability of each kind, or of a group of them (see below)"
    )
    add("--faults-in-a-row", type=int, metavar="N", help="the most faults in a row for one request")
    add("--retry-after", type=float, metavar="S", help="seconds that the drawn 429s ask to wait")
    add("--drip", type=float, metavar="S", help="seconds that a dripping reply takes")
    quota = parser.add_argument_group("quota, for each API key")
    add = quota.add_argument
    add("--rpm", type=int, metavar="N", help="requests in one window")
    add("--tpm", type=int, metavar="N", help="tokens in one window: prompt and max_completion_tokens")
    add(
        "--window",
        type=float,
        metavar="S",
        help="seconds of a window, for the quota and in /stats (default 60)",
    )
    add("--quota-shape", choices=("bucket", "sliding"), help="bucket takes a burst, sliding is strict")
    add("--quota-per-model", action="store_true", help="each model has a separate quota")
    add(
        "--quota-retry-after",
        type=float,
        metavar="S",
        help="seconds that a refusal asks to wait, instead of the true time",
    )
    add("--no-quota-headers", action="store_true", help="replies have no x-ratelimit headers")
    add(
        "--halve-after",
        type=int,
        metavar="N",
        help="the quota halves after N requests; at any time by "
        """POST /admin/quota {"scale": 0.5}""",
    )
    return parser


def _plan(args: argparse.Namespace) -> FaultPlan | None:
    if args.faults is None:
        if args.faults_in_a_row is not None or args.retry_after is not None or args.drip is not None:
            raise ValueError("--faults must be given with options of faults; give it, or leave them out")
        return None
    given = {"in_a_row": args.faults_in_a_row, "retry_after": args.retry_after, "drip": args.drip}
    return FaultPlan.parse(args.faults, **{name: value for name, value in given.items() if value is not None})


def _quota(args: argparse.Namespace) -> Quota | None:
    if args.rpm is None and args.tpm is None:
        given = (args.quota_shape, args.halve_after, args.quota_retry_after)
        if any(value is not None for value in given) or args.quota_per_model or args.no_quota_headers:
            raise ValueError(
                "--rpm or --tpm must be given with options of a quota; give one, or leave them out"
            )
        return None
    return Quota(
        requests=args.rpm,
        tokens=args.tpm,
        window=MINUTE if args.window is None else args.window,
        shape=args.quota_shape or "bucket",
        halve_after=args.halve_after,
        per_model=args.quota_per_model,
        headers=not args.no_quota_headers,
        retry_after=args.quota_retry_after,
    )
