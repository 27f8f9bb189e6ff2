"""Options: what a provider in a process of its own is told, as a value and as command line arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, final

from afnio.testing.fault_kind import GROUPS
from afnio.testing.fault_plan import FaultPlan
from afnio.testing.latency import Latency
from afnio.testing.provider import MINUTE, Provider
from afnio.testing.quota import Quota
from afnio.testing.simulated import FixedReply, SimulatedLM

_EXAMPLE: Final = """\
example, an endpoint as bad as they get, the same one at each start:
  %(prog)s --latency lognormal:0.2,1.0 --faults reset:0.05,html:0.05 --seed 7 \\
    --rpm 600 --tpm 100000 --window 2

kinds of faults:
"""


@final
@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of `Provider.process`.

    >>> Options(seed=7).arguments()
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
    def parse(cls, argv: Sequence[str] | None, prog: str) -> Options:
        """Return the options that the arguments name; wrong ones end the process with a sentence."""
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
        """Return the arguments that `parse` makes these options from."""
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

    def provider(self) -> Provider:
        """Return the provider that they describe."""
        context = {} if self.context is None else {"context": self.context}
        return Provider(
            port=self.port,
            latency=self.latency,
            api_key=self.api_key,
            lm=FixedReply(self.reply) if self.reply is not None else SimulatedLM(**context, seed=self.seed),
            faults=self.faults,
            quota=self.quota,
            seed=self.seed,
            window=self.window,
        )


def _parser(prog: str) -> argparse.ArgumentParser:
    kinds = "".join(f"  {group}: {' '.join(names)}\n" for group, names in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve OpenAI's chat completions on this machine, with limits and faults at wish.",
        epilog=_EXAMPLE + kinds,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="0 takes a free port")
    add("--api-key", help="the key that requests must carry; without it any will do")
    add("--reply", help="a fixed reply instead of the simulated LM")
    add("--context", type=int, help="how many characters of each text the simulated LM reads")
    add("--seed", type=int, default=0, help="of latencies and faults")
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
    add("--faults-in-a-row", type=int, metavar="N", help="at most so many in a row for one request")
    add("--retry-after", type=float, metavar="S", help="seconds that the drawn 429s ask to wait")
    add("--drip", type=float, metavar="S", help="seconds that a dripping reply takes")
    quota = parser.add_argument_group("quota, for each API key")
    add = quota.add_argument
    add("--rpm", type=int, metavar="N", help="requests in one window")
    add("--tpm", type=int, metavar="N", help="tokens in one window: prompt and max_completion_tokens")
    add("--window", type=float, metavar="S", help="seconds of a window, also of those in /stats (default 60)")
    add("--quota-shape", choices=("bucket", "sliding"), help="bucket takes a burst, sliding is strict")
    add("--quota-per-model", action="store_true", help="each model has a quota of its own")
    add(
        "--quota-retry-after",
        type=float,
        metavar="S",
        help="seconds that a refusal asks to wait, true or not",
    )
    add("--no-quota-headers", action="store_true", help="replies don't say what is left of it")
    add(
        "--halve-after",
        type=int,
        metavar="N",
        help="the quota halves after so many requests; at any time by "
        """POST /admin/quota {"scale": 0.5}""",
    )
    return parser


def _plan(args: argparse.Namespace) -> FaultPlan | None:
    if args.faults is None:
        if args.faults_in_a_row is not None or args.retry_after is not None or args.drip is not None:
            raise ValueError("Options of faults need [--faults]; give it, or leave them out.")
        return None
    given = {"in_a_row": args.faults_in_a_row, "retry_after": args.retry_after, "drip": args.drip}
    return FaultPlan.parse(args.faults, **{name: value for name, value in given.items() if value is not None})


def _quota(args: argparse.Namespace) -> Quota | None:
    if args.rpm is None and args.tpm is None:
        given = (args.quota_shape, args.halve_after, args.quota_retry_after)
        if any(value is not None for value in given) or args.quota_per_model or args.no_quota_headers:
            raise ValueError("Options of a quota need [--rpm] or [--tpm]; give one, or leave them out.")
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
