"""An OpenAI-compatible provider for tests, with quotas, latencies and faults.

`afnio.testing` exports what most tests need. Here are its parts as well, for tests of a client or of a rate limiter:
`Bucket` and `SlidingWindow` are the two kinds of limits as plain objects with an injected clock, `AccountBalance` is
what an account has left of a `Quota`, and `request_digest` is the key of a request in `stats()["attempts"]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio._public import lazily

if TYPE_CHECKING:
    from afnio.testing.provider._batches import Batches
    from afnio.testing.provider._faults import Fault, FaultPlan, Latency
    from afnio.testing.provider._provider import Provider, ProviderOptions, ProviderProcess
    from afnio.testing.provider._quota import (
        AccountBalance,
        Accounts,
        Bucket,
        ProviderLedger,
        Quota,
        QuotaError,
        SlidingWindow,
        WorstWindow,
        duration,
    )
    from afnio.testing.simulated._student import request_digest

__all__ = [
    "AccountBalance",
    "Accounts",
    "Batches",
    "Bucket",
    "Fault",
    "FaultPlan",
    "Latency",
    "Provider",
    "ProviderLedger",
    "ProviderOptions",
    "ProviderProcess",
    "Quota",
    "QuotaError",
    "SlidingWindow",
    "WorstWindow",
    "duration",
    "request_digest",
]

__getattr__, __dir__ = lazily(
    __name__,
    globals(),
    {
        "afnio.testing.provider._batches": "Batches",
        "afnio.testing.provider._faults": "Fault FaultPlan Latency",
        "afnio.testing.provider._provider": "Provider ProviderOptions ProviderProcess",
        "afnio.testing.provider._quota": """AccountBalance Accounts Bucket ProviderLedger Quota QuotaError
            SlidingWindow WorstWindow duration""",
        "afnio.testing.simulated._student": "request_digest",
    },
)
