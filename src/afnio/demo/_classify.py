import openai

import afnio
from afnio.utils.datasets import FacilitySupport

client = openai.AsyncOpenAI()


async def classify(message, system):  # your agent, as it is
    reply = await client.chat.completions.create(
        model="gpt-5-nano",
        messages=[{"role": "system", "content": system}, {"role": "user", "content": message}],
    )
    return reply.choices[0].message.content


if __name__ == "__main__":
    emails = [email for split in ("train", "val", "test") for email in FacilitySupport(split)]
    result = afnio.optimize(
        classify,
        [(message, sentiment) for message, (_, sentiment, _) in emails],
        lambda output, expected: output == expected,
        prompts={"system": "Say the sentiment: positive, neutral or negative."},
        critic="openai/gpt-5",  # reads the mistakes and writes the prompts
        budget=afnio.budget(max_calls=700),  # or dollars: budget=5.00
    )
    print(result)
    result.report("optimize.html")
