"""A driver: `python batch.py COUNT BASE_URL…` asks each of COUNT questions, and prints a JSON object."""

from __future__ import annotations

import json
import sys
import time

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError
from afnio.models.openai import AsyncOpenAI


def main() -> None:
    count, *urls = sys.argv[1:]
    client = AsyncOpenAI(base_url=urls[0]) if len(urls) == 1 else AsyncOpenAI(base_url=urls, name="m")
    texts = [f"question {number}" for number in range(int(count))]
    messages = [{"role": "user", "content": [afnio.Variable("{text}", role="template")]}]
    begun = time.monotonic()
    errors: set[str] = set()
    right = 0
    try:
        with afnio.tolerate(quorum=0.01):
            reply = cog.ChatCompletion()(client, messages, inputs={"text": afnio.Variable(texts)}, model="m")
            right = sum(text.upper() == answer for text, answer in zip(texts, reply.data, strict=True))
            errors = {str(error) for error in reply.errors.values()}
    except BatchError as error:
        errors = {str(each) for each in error.exceptions}
    seconds = time.monotonic() - begun
    print(json.dumps({"right": right, "errors": sorted(errors), "seconds": seconds}))


if __name__ == "__main__":
    main()
