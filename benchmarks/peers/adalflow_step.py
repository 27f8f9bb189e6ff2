"""One training step of AdalFlow: `train_step` and `loss_step` of an `AdalComponent`, backward, one proposal.

Its trainer evaluates proposals besides; a step here ends with the first one, unevaluated.
"""

# ruff: noqa: E402, A002 - the tokenizer is replaced before it is imported; arguments have their names
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tiktoken

# Counts tokens by bytes: the tokenizer's table would come from the network, as it is imported.
_BYTES = tiktoken.Encoding(
    "bytes",
    pat_str=r"\w+|\W",
    mergeable_ranks={bytes([value]): value for value in range(256)},
    special_tokens={},
)
tiktoken.get_encoding = lambda name: _BYTES

import adalflow as adal
from adalflow.core.types import CompletionUsage, GeneratorOutput, ModelType
from adalflow.optim.text_grad.ops import sum_ops
from clock import FIRST, base_url, report
from openai import OpenAI

WORKERS = 4
"""Threads of the forward pass, the trainer's default."""
TEMPLATE = "<START_OF_SYSTEM_PROMPT>{{prompt}}<END_OF_SYSTEM_PROMPT>\n{{message}}"


@dataclass
class Sample:
    id: str
    message: str


class ChatClient(adal.ModelClient):
    """Chat completions, as its own client of OpenAI speaks the newer interface only."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.sync_client = OpenAI(base_url=url, api_key="any")

    def convert_inputs_to_api_kwargs(
        self, input: Any = None, model_kwargs: dict[str, Any] | None = None, model_type: Any = None
    ) -> dict[str, Any]:
        return {**(model_kwargs or {}), "messages": [{"role": "user", "content": input}]}

    def call(self, api_kwargs: dict[str, Any], model_type: Any = ModelType.LLM) -> Any:
        return self.sync_client.chat.completions.create(**api_kwargs)

    def parse_chat_completion(self, completion: Any) -> GeneratorOutput:
        usage = completion.usage
        counted = CompletionUsage(usage.completion_tokens, usage.prompt_tokens, usage.total_tokens)
        text = completion.choices[0].message.content
        return GeneratorOutput(data=None, raw_response=text, usage=counted)


class Task(adal.Component):
    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__()
        prompt = adal.Parameter(
            data=FIRST, role_desc="system prompt", requires_opt=True, param_type=adal.ParameterType.PROMPT
        )
        self.model = adal.Generator(
            **model, template=TEMPLATE, prompt_kwargs={"prompt": prompt}, use_cache=False
        )

    def bicall(self, message: str, id: str) -> Any:
        return self.model(prompt_kwargs={"message": message}, id=id)


class Job(adal.AdalComponent):
    def __init__(self, model: dict[str, Any]) -> None:
        loss = adal.EvalFnToTextLoss(eval_fn=lambda y, y_gt: float(y == y_gt), eval_fn_desc="exact match")
        options = {"backward_engine_model_config": model, "text_optimizer_model_config": model}
        super().__init__(task=Task(model), loss_fn=loss, **options)

    def prepare_task(self, sample: Sample) -> tuple[Any, dict[str, Any]]:
        return self.task.bicall, {"message": sample.message, "id": sample.id}

    def prepare_loss(self, sample: Sample, pred: Any) -> tuple[Any, dict[str, Any]]:
        expected = f"never {sample.id}"
        truth = adal.Parameter(name="y_gt", data=expected, eval_input=expected, requires_opt=False)
        pred.eval_input = pred.data
        return self.loss_fn, {"kwargs": {"y": pred, "y_gt": truth}, "id": sample.id, "gt": expected}


def main() -> None:
    job = Job({"model_client": ChatClient(base_url()), "model_kwargs": {"model": "simulated"}})
    (optimizer,) = job.configure_optimizers()
    job.configure_backward_engine()

    def step(numbers: Sequence[int]) -> str:
        batch = [Sample(str(number), f"message {number}") for number in numbers]
        optimizer.zero_grad()
        predicted = job.train_step(batch, 0, WORKERS)
        losses = job.loss_step(batch, predicted, 0, WORKERS)
        sum_ops(losses).backward()
        optimizer.propose()
        optimizer.step()
        return next(value.data for value in job._get_param_values())

    report(step)


if __name__ == "__main__":
    main()
