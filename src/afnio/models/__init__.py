"""Language models behind one request type and one response type."""

from __future__ import annotations

from afnio.models.backward import get_backward_model_client as get_backward_model_client
from afnio.models.backward import set_backward_model_client as set_backward_model_client
from afnio.models.chat_model import ChatModel as ChatModel
from afnio.models.client import ChatClient as ChatClient
from afnio.models.request import ChatRequest as ChatRequest
from afnio.models.response import ChatResponse as ChatResponse
from afnio.models.response import ToolCall as ToolCall
from afnio.runtime.events import Usage as Usage
