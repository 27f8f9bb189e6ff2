"""A program for several hosts: its functions run on Ray's workers, and their calls go through this process.

It needs OPENAI_BASE_URL (the gateway's, or the provider's), OPENAI_API_KEY, MODEL, and DRIVER_HOST: the address of this
host by which workers reach it. RAY_ADDRESS names the cluster, if there is no node of it on this machine.
"""

import functools
import os

import afnio
import afnio.ray
import afnio.tellurio as te


def review(message):
    """Heavy code of yours, which asks twice, as an agent does. It knows neither the gateway's address nor its token."""
    import openai

    with openai.OpenAI() as client:

        def ask(text):
            messages = [{"role": "user", "content": text}]
            reply = client.chat.completions.create(model=os.environ.get("MODEL", "m"), messages=messages)
            return reply.choices[0].message.content

        return ask(f"Check this answer: {ask(message)}")


def main():
    cluster = functools.partial(afnio.ray.RayExecutor, os.environ.get("RAY_ADDRESS", "auto"))
    workers = afnio.Workers(cluster, host=os.environ["DRIVER_HOST"])
    messages = [f"Message {number}: the lift has stopped again." for number in range(100)]
    with te.init("me", "several-hosts") as run, afnio.budget(max_calls=1_000), afnio.tolerate(quorum=0.9):
        found = afnio.Variable(messages).map(review, executor=workers)
        answered = sum(answer is not None for answer in found.data)
        print(f"run {run.name}: {answered} of {len(messages)} answered")
        for error in {str(each) for each in found.errors.values()}:
            print(f"failed: {error}")


if __name__ == "__main__":
    main()
