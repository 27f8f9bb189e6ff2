"""One tool of four without a description: what the critics blame, and whether it is mended."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest

import afnio
from afnio import texts
from afnio.runtime.events import CallEnded, subscribed
from afnio.testing import Provider

HERE = Path(__file__).parent
TOOLS = {
    "track_card": "Find a new card that was sent by post: arrived, delivery, received.",
    "exchange": "Exchange rates and fees: currency, abroad, convert.",
    "topup": "Top up: put cash or money into the account.",
    "block_card": "Block a card: lost, stolen.",
}


@pytest.mark.nightly
@pytest.mark.timeout(300)
@pytest.mark.parametrize("broken", TOOLS)
def test_a_broken_tool_is_mended(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """The page on tools has the figures. The critic blames the tool that was expected, whatever the others lack."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    described = {name: "A tool." if name == broken else text for name, text in TOOLS.items()}
    tools = [
        {
            "type": "function",
            "function": {"name": name, "description": text, "parameters": {"type": "object"}},
        }
        for name, text in described.items()
    ]
    with (HERE / "tickets.csv").open(newline="") as file:
        rows = [(row["text"], row["tool"]) for row in csv.DictReader(file)]
    blames: Counter[str] = Counter()

    def note(event: Any) -> None:
        if isinstance(event, CallEnded) and event.purpose == "backward":
            asked = json.dumps([message["content"] for message in event.request.messages])
            names = dict(re.findall(r'<variable id=\\"(\w+)\\"[^>]*? name=\\"(\w+)\\"', asked))
            for entry in json.loads(event.reply.content)["feedback"]:
                blames.update([names[entry["variable"]]] if entry["text"] else [])

    with Provider.process(lm="routing:Router") as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        client = openai.AsyncOpenAI()

        async def route(message: str, system: str, **changed: str) -> str:
            reply = await client.chat.completions.create(
                model="m",
                tools=texts.tools(tools, changed),
                messages=[{"role": "system", "content": system}, {"role": "user", "content": message}],
            )
            calls = reply.choices[0].message.tool_calls
            return calls[0].function.name if calls else "none"

        def right(output: str, expected: str) -> bool:
            return output == expected

        budget = afnio.budget(max_calls=2500)
        prompts = {"system": "Call the right tool.", **described}
        with subscribed(note):
            result = afnio.optimize(
                route, rows, right, prompts=prompts, critic="openai/m", budget=budget, dir=tmp_path
            )  # fmt: skip
        options: Any = {"draws": 3, "dir": tmp_path}
        before, after = (
            afnio.evaluate(route, result.test_rows, right, prompts=one, **options).by()[broken].mean
            for one in (prompts, result.prompts)
        )
    record_property("blames", dict(blames))
    record_property("share of its rows", (before, after))
    assert blames[broken] > 0
    assert result.gain is not None
    assert result.gain.is_clear
    assert result.prompts[broken] != prompts[broken]
    assert after > before
