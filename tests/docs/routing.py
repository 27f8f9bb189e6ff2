"""A model for the page "A day with Afnio": it chooses tools by their descriptions, and criticizes and edits these.

It reads nothing but the requests. The student calls the tool whose description shares the most words with the message,
and guesses among equals, in each attempt anew. The critic blames the description of the tool that was expected, and
names the words of the message that it lacks; the editor adds the ones that most feedback names.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import Any

from afnio.testing.simulated import SimulatedLM, kind_of, read_blocks, read_section

COMMON = {
    "about",
    "again",
    "could",
    "please",
    "should",
    "there",
    "where",
    "which",
    "would",
    "your",
    "have",
    "with",
}


def words(text: str) -> set[str]:
    return {word[:6] for word in re.findall(r"[a-z]{4,}", text.lower().replace("_", " "))} - COMMON


class Router(SimulatedLM):
    def __call__(self, request: dict[str, Any], attempt: int = 1) -> Any:
        kind, prompt = kind_of(request), str(request["messages"][-1]["content"])
        if kind == "critic":
            return self.criticize(prompt)
        if kind == "editor":
            return self.edit(prompt)
        if "tools" not in request:
            return super().__call__(request, attempt)
        scores = {
            tool["function"]["name"]: len(
                words(prompt) & words(f"{tool['function']['name']} {tool['function']['description']}")
            )
            for tool in request["tools"]
        }
        best = [name for name, score in scores.items() if score == max(scores.values())]
        name = random.Random(f"{prompt} {attempt}").choice(best)
        call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": "{}"}}
        return {"tool_calls": [call]}

    def criticize(self, prompt: str) -> str:
        said = [
            block.text for block in read_blocks(prompt, "message") if block.attributes.get("role") == "user"
        ]
        expected = re.search(r'expected "(\w+)"', prompt)
        entries = []
        for variable in read_blocks(read_section(prompt, "variables"), "variable"):
            blamed = expected is not None and variable.attributes.get("name") == expected[1]
            lacking = sorted(words(said[-1]) - words(variable.text)) if said and blamed else []
            text = f"Name what it is about: {', '.join(lacking)}." if lacking else ""
            entries.append({"variable": variable.attributes["id"], "text": text})
        return json.dumps({"feedback": entries})

    def edit(self, prompt: str) -> str:
        places = read_blocks(read_section(prompt, "places"), "place")
        if places:
            return json.dumps({"edits": []})
        named: Counter[str] = Counter()
        for found in re.findall(r"Name what it is about: ([\w, ]+)\.", prompt):
            named.update(found.split(", "))
        chosen = [word for word, _ in named.most_common(3)]
        samples = [int(number) for number in re.findall(r'<(?:feedback|mistake) id="(\d+)"', prompt)][:1]
        text = f"Words: {', '.join(chosen)}."
        return json.dumps(
            {"edits": [{"op": "add", "block": 1, "text": text, "samples": samples}]}
            if chosen
            else {"edits": []}
        )
