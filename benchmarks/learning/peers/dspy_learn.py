"""DSPy on a task of ours: MIPROv2, which proposes instructions and searches them by minibatches. No examples are added
to prompts, as the other methods add none.

Each of our steps is a predictor whose instructions are its prompt; it sends the same messages as everyone's. The number
of trials follows the budget, which MIPROv2 doesn't know; the student answers nothing beyond it.
"""

from __future__ import annotations

import logging
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError
from job import Job, filled, report
from openai.types.chat import ChatCompletion

MINIBATCH = 25
FULL_EVERY = 5
CANDIDATES = 6
PROPOSING = 60
"""Calls for examples, summaries and six instructions, about."""

JOBS: list[Job] = []
"""The job at hand; DSPy copies what a module holds."""


class PromptModel(dspy.BaseLM):
    """The endpoint as DSPy's prompt model, counted."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(model=arguments["model"], cache=False)
        self.arguments = arguments

    def forward(self, prompt: str | None = None, messages: Any = None, **_: Any) -> ChatCompletion:
        reply = JOBS[-1].ask(messages or [{"role": "user", "content": prompt}], self.arguments)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}  # the job counts them
        return ChatCompletion.model_validate(
            {
                "id": "0", "object": "chat.completion", "created": 0, "model": self.model, "choices": [choice],
                "usage": usage,
            }
        )  # fmt: skip


class Step(dspy.Predict):  # type: ignore[misc]
    """One of our steps, with its prompt as the instructions."""

    def __init__(self, step: dict[str, Any]) -> None:
        fields: dict[str, Any] = {name: (str, dspy.InputField()) for name in step["fields"]}
        fields[step["output"]] = (str, dspy.OutputField())
        super().__init__(dspy.Signature(fields, step["prompt"]))
        self.step = step

    def forward(self, **inputs: Any) -> Any:
        job = JOBS[-1]
        told = [
            {"role": "system", "content": self.signature.instructions},
            {"role": "user", "content": filled(self.step["template"], inputs)},
        ]
        # MIPROv2 can't be told to stop. What it scores after the budget is wrong, and so never the best.
        reply = "" if job.spent else job.ask(told, {**job.spec["student"], **self.step["arguments"]})
        found = dspy.Prediction(**{self.step["output"]: reply})
        if dspy.settings.trace is not None:
            dspy.settings.trace.append((self, inputs, found))
        return found


class Predictors(dspy.Module):
    """All steps."""

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        super().__init__()
        for number, step in enumerate(steps):
            setattr(self, f"step{number}", Step(step))

    def forward(self, **inputs: Any) -> Any:
        values = dict(inputs)
        for number, step in enumerate(JOBS[-1].spec["steps"]):
            found = getattr(self, f"step{number}")(**{name: values[name] for name in step["fields"]})
            values[step["output"]] = found[step["output"]]
        return dspy.Prediction(answer=JOBS[-1].read(values[step["output"]]))

    @property
    def prompts(self) -> dict[str, str]:
        return {one.step["name"]: one.signature.instructions for one in self.predictors()}


def train(job: Job) -> dict[str, str]:
    """Return the best program's prompts."""
    JOBS.append(job)
    spec = job.spec
    program, critic = Predictors(spec["steps"]), PromptModel(spec["critic"])
    parts = [
        [
            dspy.Example(**item["inputs"], target=item["target"]).with_inputs(*item["inputs"])
            for item in spec[part]
        ]
        for part in ("train", "val")
    ]
    size = min(MINIBATCH, len(parts[1]))
    each = len(spec["steps"])
    full = len(parts[1]) * each
    trials = int((spec["budget"] - PROPOSING - 2 * full) / (size * each + full / FULL_EVERY))
    job.remember(program.prompts)
    optimizer = dspy.MIPROv2(
        metric=lambda example, prediction, trace=None: job.score(prediction.answer, example.target),
        prompt_model=critic,
        task_model=critic,
        max_bootstrapped_demos=0,
        max_labeled_demos=0,
        auto=None,
        num_candidates=CANDIDATES,
        num_threads=spec["threads"],
        seed=spec["seed"] + 1,
    )
    if trials < 1:
        job.note = f"{spec['budget']} calls don't pay for a trial"
        return program.prompts
    logging.disable(logging.CRITICAL)
    try:
        best = optimizer.compile(
            program, trainset=parts[0], valset=parts[1], num_trials=trials, minibatch_size=size,
            minibatch_full_eval_steps=FULL_EVERY,
        )  # fmt: skip
    except AdapterParseError as error:
        job.note = f"the critic's reply can't be read, so nothing was changed: {str(error)[:100]}"
        return program.prompts
    job.remember(best.prompts)
    return dict(best.prompts)


if __name__ == "__main__":
    report(train)
