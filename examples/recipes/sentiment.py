"""The agent of the recipes. Its prompt is in a file: `afnio.save(agent.state_dict(), "agent.afnio")`."""

import os

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI


class Sentiment(cog.Module):
    def __init__(self):
        super().__init__()
        self.prompt = cog.Parameter("Say the sentiment in one word.", role="system prompt")
        self.message = afnio.Variable("{message}", role="input template")
        self.chat = cog.ChatCompletion()

    def forward(self, client, message):
        messages = [
            {"role": "system", "content": [self.prompt]},
            {"role": "user", "content": [self.message]},
        ]
        return self.chat(client, messages, inputs={"message": message}, model="gpt-4.1-nano")


def load(path):
    """Return the agent and its client, whose address is OPENAI_BASE_URL: the provider's, or a gateway's."""
    agent = Sentiment()
    agent.load_state_dict(afnio.load(path))
    token = os.environ.get("AFNIO_GATEWAY_TOKEN")
    return agent, AsyncOpenAI(
        default_headers={"x-afnio-token": token} if token else None,
        limits=afnio.Limits(max_in_flight=64),  # a call's time-out runs while it waits in the gateway
    )


def columns(results):
    """Return the answers and the errors of rows as two lists; a row has one or the other."""
    results = list(results)
    return [each.value for each in results], [each.error and str(each.error) for each in results]
