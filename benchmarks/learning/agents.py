"""Agents: one prompt and one call, and a system of three prompts of which one is at fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afnio import cognitive as cog
from afnio.autodiff import Variable
from afnio.models import ChatClient


class Answerer(cog.Module):
    """One prompt to learn, one call for each message."""

    def __init__(self, prompt: str, response_format: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.prompt = cog.Parameter(prompt, role="system prompt of an assistant")
        self.template = Variable("{message}", role="message template")
        self.complete = cog.ChatCompletion()
        self.form = {} if response_format is None else {"response_format": response_format}

    def forward(self, client: ChatClient, inputs: Mapping[str, Any], **completion_args: Any) -> Variable:
        """Return the replies to `inputs["message"]`."""
        messages = [
            {"role": "system", "content": [self.prompt]},
            {"role": "user", "content": [self.template]},
        ]
        return self.complete(client, messages, inputs, **self.form, **completion_args)


class Clerk(cog.Module):
    """Answers from notes in three steps, each with a prompt to learn: retrieve, draft, judge."""

    def __init__(self, prompts: Mapping[str, str]) -> None:
        super().__init__()
        self.retrieve = cog.Parameter(prompts["retrieve"], role="system prompt that retrieves notes")
        self.draft = cog.Parameter(prompts["draft"], role="system prompt that drafts an answer")
        self.judge = cog.Parameter(prompts["judge"], role="system prompt that judges the draft")
        self.notes = Variable("Question: {question}\nNotes:\n{notes}", role="retrieval template")
        self.found = Variable("Question: {question}\nRetrieved:\n{retrieved}", role="drafting template")
        self.drafted = Variable(
            "Question: {question}\nRetrieved:\n{retrieved}\nDraft: {draft}", role="judging template"
        )
        self.complete = cog.ChatCompletion()

    def forward(self, client: ChatClient, inputs: Mapping[str, Any], **completion_args: Any) -> Variable:
        """Return the judge's answers to `inputs["question"]` from `inputs["notes"]`."""

        def step(prompt: Variable, template: Variable, values: Mapping[str, Any]) -> Variable:
            messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [template]}]
            return self.complete(client, messages, values, **completion_args)

        question = {"question": inputs["question"]}
        retrieved = step(self.retrieve, self.notes, {**question, "notes": inputs["notes"]})
        draft = step(self.draft, self.found, {**question, "retrieved": retrieved})
        return step(self.judge, self.drafted, {**question, "retrieved": retrieved, "draft": draft})


class Hopper(cog.Module):
    """Answers from facts in two steps, each with a prompt to learn: find the first fact, then answer."""

    def __init__(self, prompts: Mapping[str, str]) -> None:
        super().__init__()
        self.find = cog.Parameter(prompts["find"], role="system prompt that finds a fact")
        self.answer = cog.Parameter(prompts["answer"], role="system prompt that answers the question")
        self.facts = Variable("Question: {question}\nFacts:\n{facts}", role="finding template")
        self.found = Variable(
            "Question: {question}\nFacts:\n{facts}\nFound: {found}", role="answering template"
        )
        self.complete = cog.ChatCompletion()

    def forward(self, client: ChatClient, inputs: Mapping[str, Any], **completion_args: Any) -> Variable:
        """Return the answers to `inputs["question"]` from `inputs["facts"]`."""
        values = {"question": inputs["question"], "facts": inputs["facts"]}
        steps = ((self.find, self.facts, "found"), (self.answer, self.found, "answer"))
        for prompt, template, name in steps:
            messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [template]}]
            values[name] = self.complete(client, messages, dict(values), **completion_args)
        return values["answer"]
