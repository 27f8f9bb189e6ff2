"""The backward model: who writes feedback. A process default, with context-local overrides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import check_completion_args
from afnio.runtime._settings import Assignment, Setting

_model: Final[Setting[ChatModel | None]] = Setting("backward_model", None)


class set_backward_model_client(Assignment[ChatModel | None]):  # noqa: N801
    """Choose the model that writes feedback; as a `with` block, for the block's context alone.

    Args:
        model_path: "provider/model", such as "openai/gpt-5"; or a client of your own.
        client_args: arguments of the provider's client, such as base_url.
        completion_args: arguments of every call; with a client of your own they must name the model.

    Raises:
        ValueError: for a path without a provider, an unknown provider, a client without a model.
    """

    def __init__(
        self,
        model_path: str | ChatClient = "openai/gpt-4o",
        client_args: Mapping[str, Any] | None = None,
        completion_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(_model, _backward_model(model_path, client_args or {}, completion_args or {}))


def get_backward_model_client() -> ChatModel:
    """Return the backward model that holds here.

    Raises:
        RuntimeError: if none has been set.
    """
    model = _model.get()
    if model is None:
        raise RuntimeError(
            "no backward model has been set to write the feedback; call "
            'afnio.set_backward_model_client("openai/<model>") before backward()'
        )
    return model


def _backward_model(
    path: str | ChatClient, client_args: Mapping[str, Any], completion_args: Mapping[str, Any]
) -> ChatModel:
    if isinstance(path, ChatClient):
        if not completion_args.get("model"):
            raise ValueError('a client of your own needs a model; pass completion_args={"model": "…"}')
        return _checked(ChatModel(path, dict(completion_args)))
    if not isinstance(path, str):
        raise TypeError(f'a backward model is "provider/model" or a model client (got {path!r})')
    provider, slash, model = path.partition("/")
    if not slash or not provider or not model:
        raise ValueError(f'a model path is "provider/model" (got {path!r}), such as "openai/gpt-5"')
    if provider not in ("openai", "azure"):
        raise ValueError(
            f"unsupported provider {provider!r}; use openai/… or azure/… with client_args={{'base_url': …}}, or pass a "
            "client of your own"
        )
    from afnio.models.openai import AsyncAzureOpenAI, AsyncOpenAI

    client = (AsyncAzureOpenAI if provider == "azure" else AsyncOpenAI)(**client_args)
    return _checked(ChatModel(client, {"model": model, **completion_args}))


def _checked(model: ChatModel) -> ChatModel:
    check_completion_args(**model.completion_args)
    return model
