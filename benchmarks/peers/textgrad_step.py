"""One training step of TextGrad: `BlackboxLLM`, a string loss for each sample, `tg.sum`, `TGD`."""

from __future__ import annotations

from collections.abc import Sequence

import textgrad as tg
from clock import FIRST, base_url, report
from openai import OpenAI
from textgrad.autograd.string_based_ops import StringBasedFunction
from textgrad.engine.local_model_openai_api import ChatExternalClient


def main() -> None:
    engine = ChatExternalClient(OpenAI(base_url=base_url(), api_key="any"), model_string="simulated")
    tg.set_backward_engine(engine, override=True)
    prompt = tg.Variable(FIRST, requires_grad=True, role_description="system prompt")
    model = tg.BlackboxLLM(engine, system_prompt=prompt)
    optimizer = tg.TGD(parameters=[prompt], engine=engine)
    loss = StringBasedFunction(
        lambda prediction, truth: int(prediction == truth), "exact match with the truth"
    )

    def wrong(number: int) -> tg.Variable:
        message = tg.Variable(f"message {number}", requires_grad=False, role_description="message")
        truth = tg.Variable(f"never {number}", requires_grad=False, role_description="truth")
        return loss(inputs={"prediction": model(message), "truth": truth})

    def step(numbers: Sequence[int]) -> str:
        optimizer.zero_grad()
        tg.sum([wrong(number) for number in numbers]).backward()
        optimizer.step()
        return prompt.value

    report(step)


if __name__ == "__main__":
    main()
