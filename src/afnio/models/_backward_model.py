"""The backward model: the client and the arguments for the calls that write feedback in `backward()`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import check_completion_args
from afnio.runtime._settings import Assignment, Setting

_model: Final[Setting[ChatModel | None]] = Setting("backward_model", None)


class set_backward_model_client(Assignment[ChatModel | None]):  # noqa: N801
    """Choose the model that writes feedback.

    A plain call sets the process default, a `with` block the model in its context.

    Args:
        model_path: "provider/model", such as "openai/gpt-5" or "azure/my-deployment"; or a client. None for no model:
            `backward()` then raises, as it does before the first call.
        client_args: arguments of the provider's client, such as base_url. Not used with a client.
        completion_args: arguments of every call, such as temperature. With a client, they must include the model.

    Raises:
        ValueError: for a path without a provider, an unknown provider, or a client without a model.
        TypeError: if `model_path` is neither a str, a client nor None.

    >>> from afnio.testing import ScriptedClient
    >>> with set_backward_model_client(ScriptedClient("Be brief."), completion_args={"model": "m"}):
    ...     get_backward_model_client().get_provider()
    'ScriptedClient'
    """

    def __init__(
        self,
        model_path: str | ChatClient | None = "openai/gpt-4o",
        client_args: Mapping[str, Any] | None = None,
        completion_args: Mapping[str, Any] | None = None,
    ) -> None:
        arguments = client_args or {}, completion_args or {}
        super().__init__(_model, None if model_path is None else chat_model(model_path, *arguments))


def get_backward_model_client() -> ChatModel:
    """Return the backward model of this context.

    Raises:
        RuntimeError: if none has been set.
    """
    model = _model.get()
    if model is None:
        raise RuntimeError(
            "no backward model has been set to write feedback; call "
            'afnio.set_backward_model_client("openai/<model>") before backward()'
        )
    return model


def backward_model() -> ChatModel | None:
    """Return the backward model of this context, or None."""
    return _model.get()


def backward_by(model: ChatModel) -> AbstractContextManager[ChatModel | None]:
    """Let `model` write the feedback of the block's context."""
    return _model.override(model)


def chat_model(
    path: str | ChatClient, client_args: Mapping[str, Any], completion_args: Mapping[str, Any]
) -> ChatModel:
    """Return the model that a "provider/model", or a client with its arguments, stands for."""
    if isinstance(path, ChatClient):
        if not completion_args.get("model"):
            raise ValueError(
                'completion_args must name the model of a client; pass completion_args={"model": "…"}'
            )
        return _checked(ChatModel(path, dict(completion_args)))
    if not isinstance(path, str):
        raise TypeError(f'model_path must be "provider/model", a model client or None (got {path!r})')
    provider, slash, model = path.partition("/")
    if not slash or not provider or not model:
        raise ValueError(f'model_path must be "provider/model", such as "openai/gpt-5" (got {path!r})')
    if provider not in ("openai", "azure"):
        raise ValueError(
            f"the provider must be openai or azure (got {provider!r}); use openai/… with client_args={{'base_url': …}} "
            "for a compatible endpoint, or pass a client"
        )
    from afnio.models.openai import AsyncAzureOpenAI, AsyncOpenAI

    client = (AsyncAzureOpenAI if provider == "azure" else AsyncOpenAI)(**client_args)
    return _checked(ChatModel(client, {"model": model, **completion_args}))


def _checked(model: ChatModel) -> ChatModel:
    check_completion_args(**model.completion_args)
    return model
