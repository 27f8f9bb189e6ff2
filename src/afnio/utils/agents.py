"""SentimentAnalyzer: a ready-made agent that labels a message positive, neutral or negative."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from afnio import cognitive as cog
from afnio.autodiff._variable import Variable
from afnio.models._client import ChatClient

RESPONSE_FORMAT: Final[dict[str, Any]] = {
    "type": "json_schema",
    "json_schema": {
        "name": "sentiment_response_schema",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "sentiment": {"type": "string", "enum": ["positive", "neutral", "negative"]},
            },
            "required": ["sentiment"],
            "additionalProperties": False,
        },
    },
}


class SentimentAnalyzer(cog.Module):
    """Labels messages with one call each. Its system prompt is a `Parameter`, so an optimizer can improve it.

    The replies are JSON with the key "sentiment".

    >>> from afnio.testing import ScriptedClient
    >>> client = ScriptedClient({"sentiment": "neutral"})
    >>> SentimentAnalyzer()(client, inputs={"message": "When do you open?"}, model="any").data
    '{"sentiment": "neutral"}'
    """

    def __init__(self) -> None:
        super().__init__()
        self.sentiment_task = cog.Parameter(
            "Read the provided message and determine the sentiment.",
            role="system prompt for sentiment classification",
        )
        self.sentiment_user = Variable(
            "**Message:**\n\n{message}\n\n", role="input template to sentiment classifier"
        )
        self.sentiment_classifier = cog.ChatCompletion()

    def forward(
        self, fwd_model: ChatClient, inputs: Mapping[str, Any] | None = None, **completion_args: Any
    ) -> cog.Completion:
        """Return the replies to `inputs["message"]`, one lane for each message.

        Args:
            completion_args: arguments of the call, such as `model` and `temperature`.
        """
        messages = [
            {"role": "system", "content": [self.sentiment_task]},
            {"role": "user", "content": [self.sentiment_user]},
        ]
        return self.sentiment_classifier(
            fwd_model, messages, inputs=inputs, response_format=RESPONSE_FORMAT, **completion_args
        )
