"""TextGrad on a task of ours, as its own prompt optimization runs: batches of 3, TGD, and a step that does worse
on the validation split is taken back.

Options: `minibatch` samples of a step instead of its three; a `limit` in words, as a constraint of its optimizer.

A reply without its tags ends a TextGrad run with an IndexError. Here it costs the step, as it does with ours.
"""

from __future__ import annotations

import random
from typing import Any

import textgrad as tg
from job import Job, report
from textgrad.autograd.llm_ops import FormattedLLMCall
from textgrad.autograd.string_based_ops import StringBasedFunction
from textgrad.engine import EngineLM

BATCH = 3


class Engine(EngineLM):
    """The endpoint, counted."""

    def __init__(self, job: Job, arguments: dict[str, Any]) -> None:
        self.job, self.arguments, self.model_string = job, arguments, arguments["model"]

    def generate(self, prompt: str, system_prompt: str | None = None, **_: Any) -> str:
        told = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return self.job.ask([*told, {"role": "user", "content": prompt}], self.arguments)

    __call__ = generate


class Program:
    """The steps as TextGrad's variables and calls."""

    def __init__(self, job: Job) -> None:
        self.job, spec = job, job.spec
        self.prompts = {
            step["name"]: tg.Variable(step["prompt"], requires_grad=True, role_description=step["role"])
            for step in spec["steps"]
        }
        self.engines = [Engine(job, {**spec["student"], **step["arguments"]}) for step in spec["steps"]]
        self.loss = StringBasedFunction(
            lambda prediction, truth: int(job.score(job.read(prediction.value), truth.value) == 1),
            "exact match with the truth",
        )

    @property
    def texts(self) -> dict[str, str]:
        return {name: variable.value for name, variable in self.prompts.items()}

    def judged(self, item: dict[str, Any]) -> tg.Variable:
        """Return the loss of one item."""
        values = {
            name: tg.Variable(text, requires_grad=False, role_description=name)
            for name, text in item["inputs"].items()
        }
        steps = self.job.spec["steps"]
        for step, engine in zip(steps, self.engines, strict=True):
            fields = {name: values[name] for name in step["fields"]}
            call = FormattedLLMCall(
                engine=engine,
                format_string=step["template"],
                fields=dict.fromkeys(fields),
                system_prompt=self.prompts[step["name"]],
            )
            values[step["output"]] = call(inputs=fields, response_role_description=step["output"])
        truth = tg.Variable(item["target"], requires_grad=False, role_description="truth")
        return self.loss(inputs={"prediction": values[steps[-1]["output"]], "truth": truth})


def train(job: Job) -> dict[str, str]:
    """Return the prompts after as many steps as the budget allows."""
    spec, program, critic = job.spec, Program(job), Engine(job, job.spec["critic"])
    tg.set_backward_engine(critic, override=True)
    options = spec["options"]
    size = options.get("minibatch", BATCH)
    limits = [options["limit"]] if "limit" in options else []
    optimizer = tg.TGD(parameters=list(program.prompts.values()), engine=critic, constraints=limits)
    rng, waiting = random.Random(spec["seed"]), []
    best = sum(job.measured(program.texts, spec["val"]))
    steps = lost = 0
    job.remember(program.texts)
    while not job.spent:
        while len(waiting) < size:
            waiting += rng.sample(spec["train"], len(spec["train"]))
        batch, waiting = waiting[:size], waiting[size:]
        before = program.texts
        optimizer.zero_grad()
        tg.sum([program.judged(item) for item in batch]).backward()
        steps += 1
        try:
            optimizer.step()
        except IndexError:
            lost += 1
            job.note = f"{lost} of {steps} steps changed nothing: the optimizer's reply had none of its tags"
            job.remember(program.texts)
            continue
        reached = sum(job.measured(program.texts, spec["val"]))
        if reached < best:
            for name, variable in program.prompts.items():
                variable.set_value(before[name])
        best = max(best, reached)
        job.remember(program.texts)
    return program.texts


if __name__ == "__main__":
    report(train)
