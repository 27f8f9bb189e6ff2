"""TextGrad on a task of ours, as its own prompt optimization runs: batches of 3, TGD, and a step that does worse
on the validation split is taken back."""

from __future__ import annotations

import random
from typing import Any

import textgrad as tg
from job import Job
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


def main() -> None:
    job = Job()
    spec = job.spec
    critic = Engine(job, spec["critic"])
    tg.set_backward_engine(critic, override=True)
    prompts = {
        step["name"]: tg.Variable(step["prompt"], requires_grad=True, role_description=step["role"])
        for step in spec["steps"]
    }
    engines = [Engine(job, {**spec["student"], **step["arguments"]}) for step in spec["steps"]]
    optimizer = tg.TGD(parameters=list(prompts.values()), engine=critic)
    loss = StringBasedFunction(
        lambda prediction, truth: int(job.score(job.read(prediction.value), truth.value) == 1),
        "exact match with the truth",
    )

    def judged(item: dict[str, Any]) -> tg.Variable:
        values = {
            name: tg.Variable(text, requires_grad=False, role_description=name)
            for name, text in item["inputs"].items()
        }
        for step, engine in zip(spec["steps"], engines, strict=True):
            fields = {name: values[name] for name in step["fields"]}
            call = FormattedLLMCall(
                engine=engine,
                format_string=step["template"],
                fields=dict.fromkeys(fields),
                system_prompt=prompts[step["name"]],
            )
            values[step["output"]] = call(inputs=fields, response_role_description=step["output"])
        truth = tg.Variable(item["target"], requires_grad=False, role_description="truth")
        return loss(inputs={"prediction": values[spec["steps"][-1]["output"]], "truth": truth})

    def texts() -> dict[str, str]:
        return {name: variable.value for name, variable in prompts.items()}

    def train() -> dict[str, str]:
        rng, waiting = random.Random(spec["seed"]), []
        best = sum(job.measured(texts(), spec["val"]))
        while not job.spent:
            if len(waiting) < BATCH:
                waiting += rng.sample(spec["train"], len(spec["train"]))
            batch, waiting = waiting[:BATCH], waiting[BATCH:]
            before = texts()
            optimizer.zero_grad()
            tg.sum([judged(item) for item in batch]).backward()
            optimizer.step()
            reached = sum(job.measured(texts(), spec["val"]))
            if reached < best:
                for name, variable in prompts.items():
                    variable.set_value(before[name])
            else:
                best = reached
        return texts()

    job.report(train)


if __name__ == "__main__":
    main()
