"""Language models behind one request type and one response type."""

from __future__ import annotations

from afnio._public import show_in
from afnio.models._backward_model import get_backward_model_client, set_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import ChatRequest, ChatResponse, ToolCall
from afnio.runtime._limits import RateLimits
from afnio.runtime.events import Usage

__all__ = [
    "ChatClient",
    "ChatModel",
    "ChatRequest",
    "ChatResponse",
    "RateLimits",
    "ToolCall",
    "Usage",
    "get_backward_model_client",
    "set_backward_model_client",
]

show_in(__name__, globals(), __all__)
