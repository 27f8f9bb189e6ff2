"""All three targets of FacilitySupport in one agent: sentiment, urgency and categories, with two prompts to learn.

Each message takes two concurrent calls. Each of the three scores sends its own feedback to the prompt that answered,
and both prompts are rewritten in the same step. Set OPENAI_BASE_URL to run it against any OpenAI-compatible server. A
run that was killed continues when the program is started again.
"""

import json
import os

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.trainer import Trainer
from afnio.utils.data import DataLoader
from afnio.utils.datasets import FacilitySupport

os.environ.setdefault("OPENAI_API_KEY", "sk-...")

MODEL = "gpt-4.1-nano"
CATEGORIES = [
    "routine_maintenance_requests", "customer_feedback_and_complaints", "training_and_support_requests",
    "quality_and_safety_concerns", "sustainability_and_environmental_practices", "cleaning_services_scheduling",
    "specialized_cleaning_services", "emergency_repair_services", "facility_management_issues", "general_inquiries",
]  # fmt: skip


def response_format(name, properties):
    schema = {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


TONE = response_format(
    "tone",
    {
        "sentiment": {"type": "string", "enum": ["positive", "neutral", "negative"]},
        "urgency": {"type": "string", "enum": ["low", "medium", "high"]},
    },
)
TOPICS = response_format("topics", {name: {"type": "boolean"} for name in CATEGORIES})


def share_right(prediction, target):
    """How many of the ten categories are right, from 0 to 1."""
    predicted, wanted = json.loads(prediction), json.loads(target)
    return sum(predicted.get(name) == wanted[name] for name in CATEGORIES) / len(CATEGORIES)


class FacilityAgent(cog.Module):
    """Reads an email twice: for its tone, and for its topics."""

    def __init__(self, client):
        super().__init__()
        self.client = client
        self.tone = cog.Parameter(
            "Determine the sentiment and the urgency of the message.",
            role="system prompt for sentiment and urgency",
        )
        self.topics = cog.Parameter(
            "Determine which categories the message belongs to.", role="system prompt for the categories"
        )
        self.message = afnio.Variable("**Message:**\n\n{message}", role="input template")
        self.ask_tone, self.ask_topics = cog.ChatCompletion(), cog.ChatCompletion()
        self.exact, self.share = cog.ExactMatchEvaluator(), cog.DeterministicEvaluator()

    def forward(self, messages):
        def ask(chat, prompt, shape):
            turns = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [self.message]}]
            return chat(self.client, turns, inputs={"message": messages}, response_format=shape, model=MODEL)

        return ask(self.ask_tone, self.tone, TONE), ask(self.ask_topics, self.topics, TOPICS)

    def judge(self, batch):
        messages, (urgencies, sentiments, categories) = batch
        tone, topics = self(messages)
        each = {"reduction_fn": None, "reduction_fn_purpose": None}  # a score for each message
        sentiment = self.exact(tone.map(lambda reply: json.loads(reply)["sentiment"]), sentiments, **each)
        urgency = self.exact(tone.map(lambda reply: json.loads(reply)["urgency"]), urgencies, **each)
        category = self.share(
            topics, categories, share_right, "share of the ten categories that are right",
            success_fn=lambda scores: min(scores) == 1, **each,
        )  # fmt: skip
        return {
            "score": (
                cog.functional.sum([sentiment.score, urgency.score, category.score]),
                cog.functional.sum([sentiment.explanation, urgency.explanation, category.explanation]),
            ),
            "sentiment": sentiment,
            "urgency": urgency,
            "categories": category,
        }

    async def training_step(self, batch, batch_idx):
        return self.judge(batch)

    async def validation_step(self, batch, batch_idx):
        return self.judge(batch)

    async def test_step(self, batch, batch_idx):
        return self.judge(batch)

    def configure_optimizers(self):
        return afnio.optim.TGD(
            self.parameters(),
            model_client=self.client,
            constraints=["Use at most 1000 characters."],
            momentum=3,
            model="gpt-5",
        )


def main():
    loaders = {
        split: DataLoader(FacilitySupport(split=split, root="data"), batch_size=33, shuffle=split == "train")
        for split in ("train", "val", "test")
    }
    afnio.set_backward_model_client("openai/gpt-5", completion_args={"max_completion_tokens": 32000})
    agent = FacilityAgent(AsyncOpenAI())
    trainer = Trainer(max_epochs=3, seed=42)
    trainer.fit(agent, loaders["train"], loaders["val"], ckpt_path="last")  # continues a killed run
    found = trainer.test(agent, loaders["test"])
    for name in ("sentiment", "urgency", "categories"):
        print(f"{name}: {found[name]:.1%}")
    print(f"score: {found['score']:.2f} of 3")
    for name, parameter in agent.named_parameters():
        print(f"{name}: {parameter.data}")


if __name__ == "__main__":
    main()
