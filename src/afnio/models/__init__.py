"""Language models behind one request type and one response type.

`mask`, `secrets_in_headers` and `read_limits` are for clients of other providers. They are imported at their first use,
because `import afnio` must not import what reads replies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from afnio._public import lazily, show_in
from afnio.models._backward_model import get_backward_model_client, set_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import ChatRequest, ChatResponse, ToolCall
from afnio.models._prices import price_of
from afnio.models._trace import Trace, rehearsing, tracing
from afnio.runtime._kernel import Runtime
from afnio.runtime._limits import RateLimits
from afnio.runtime._settings import on_open
from afnio.runtime.events import Usage

if TYPE_CHECKING:
    from afnio.models._masking import mask, secrets_in_headers
    from afnio.models._replies import read_limits

__all__ = [
    "ChatClient",
    "ChatModel",
    "ChatRequest",
    "ChatResponse",
    "RateLimits",
    "ToolCall",
    "Trace",
    "Usage",
    "get_backward_model_client",
    "mask",
    "price_of",
    "read_limits",
    "rehearsing",
    "secrets_in_headers",
    "set_backward_model_client",
    "tracing",
]

__getattr__, __dir__ = lazily(
    __name__,
    globals(),
    {"afnio.models._masking": "mask secrets_in_headers", "afnio.models._replies": "read_limits"},
    modules="openai",
)
show_in(__name__, globals(), [name for name in __all__ if name in globals()])


def _lane_calls() -> Any:
    import aiohttp.web  # noqa: F401 - the address needs it, and its import would block the loop

    from afnio.models._loopback import LaneAddress

    return LaneAddress


def _watch() -> None:
    from afnio.models._installed import watch

    watch()


Runtime.lane_calls = staticmethod(_lane_calls)
on_open.append(
    _watch
)  # calls outside of the engine are named where a budget or a journal should hold for them
