"""One training step of Trace: a traced call of the model for each sample, one `backward`, `OptoPrime`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from clock import FIRST, base_url, report


def main() -> None:
    os.environ |= {  # how Trace is pointed at an endpoint; it reads them as it is imported
        "TRACE_DEFAULT_LLM_BACKEND": "CustomLLM",
        "TRACE_CUSTOMLLM_URL": base_url(),
        "TRACE_CUSTOMLLM_API_KEY": "any",
        "TRACE_CUSTOMLLM_MODEL": "simulated",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or its import asks the network for prices
    }
    from opto.optimizers import OptoPrime
    from opto.trace import bundle, node
    from opto.utils.llm import LLM

    llm = LLM()
    prompt = node(FIRST, name="prompt", trainable=True)
    optimizer = OptoPrime([prompt], llm=llm)

    @bundle()
    def answer(prompt: str, message: str) -> str:
        """Ask the model with a system prompt and a message."""
        messages = [{"role": "system", "content": prompt}, {"role": "user", "content": message}]
        return llm(messages=messages).choices[0].message.content

    @bundle()
    def joined(*replies: str) -> str:
        """Join the replies of a batch."""
        return "\n".join(replies)

    def step(numbers: Sequence[int]) -> str:
        replies = [answer(prompt, f"message {number}") for number in numbers]
        batch = joined(*replies)
        feedback = "\n".join(f"ID {number}: wrong, expected never {number}" for number in numbers)
        optimizer.zero_feedback()
        optimizer.backward(batch, feedback)
        optimizer.step()
        return prompt.data

    report(step)


if __name__ == "__main__":
    main()
