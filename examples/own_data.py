"""Your own data: a CSV with one column for the inputs and one for the expected outputs.

Trains on twelve rows and tests on eight. Run it as `python examples/own_data.py`; see offline.py.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

from offline import MODEL, endpoint

import afnio
import afnio.cognitive as cog
from afnio.models import ChatClient
from afnio.utils.data import DataLoader, Dataset

FILE = Path(__file__).with_name("messages.csv")


class Rows(Dataset[tuple[str, str]]):
    """The rows of a CSV file as `(message, sentiment)`."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows = rows

    @classmethod
    def split(cls, path: Path, train: int, seed: int = 0) -> tuple[Rows, Rows]:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        random.Random(seed).shuffle(rows)
        return cls(rows[:train]), cls(rows[train:])

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self.rows[index]["message"], self.rows[index]["sentiment"]

    def __len__(self) -> int:
        return len(self.rows)


class Classifier(cog.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prompt = cog.Parameter(
            "Read the message and say its sentiment: positive, neutral or negative.", role="system prompt"
        )
        self.message = afnio.Variable("{message}", role="input template")

    def forward(self, client: ChatClient, message: list[str]) -> cog.Completion:
        messages = [
            {"role": "system", "content": [self.prompt]},
            {"role": "user", "content": [self.message]},
        ]
        return cog.functional.chat_completion(client, messages, {"message": message}, model=MODEL)


def count_right(agent: Classifier, client: ChatClient, data: Rows) -> int:
    right = 0
    with afnio.no_grad():
        for message, sentiment in DataLoader(data, batch_size=8):
            right += cog.functional.exact_match_evaluator(agent(client, message), sentiment).score.data
    return right


def main() -> None:
    train, test = Rows.split(FILE, train=12)
    with endpoint() as client:
        agent = Classifier()
        before = count_right(agent, client, test)
        optimizer = afnio.optim.TGD(
            agent.parameters(), client, model=MODEL, constraints=["Use at most 1000 characters."]
        )
        for _ in range(2):
            for message, sentiment in DataLoader(train, batch_size=6, shuffle=True, seed=1):
                optimizer.clear_grad()
                _, explanation = cog.functional.exact_match_evaluator(agent(client, message), sentiment)
                explanation.backward()
                optimizer.step()
        after = count_right(agent, client, test)
        print(f"right before {before}/{len(test)}, after {after}/{len(test)}")
        print(agent.prompt.data)


if __name__ == "__main__":
    main()
