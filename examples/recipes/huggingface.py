"""A Hugging Face dataset, read as a stream: `python huggingface.py agent.afnio messages.parquet answers`.

Killed and started again, it goes on: parts that are there are skipped, and the journal has the replies of the next one.
"""

import itertools
import sys
from pathlib import Path

from datasets import Dataset, Features, Value, load_dataset
from sentiment import columns, load

import afnio

ROWS = 100  # of a part
TEXT = Features({name: Value("string") for name in ("message", "answer", "error")})


def main(agent_file, source, target):
    agent, client = load(agent_file)
    folder = Path(target)
    folder.mkdir(exist_ok=True)
    done = ROWS * len(list(folder.glob("*.parquet")))
    # Or load_dataset("name/of-a-dataset", split="train", streaming=True)
    dataset = load_dataset("parquet", data_files=source, split="train", streaming=True)
    with afnio.journal(folder / "calls.journal"):
        results = agent.stream(dataset.select_columns(["message"]), client, start=done)
        while part := list(itertools.islice(results, ROWS)):
            answers, errors = columns(part)
            messages = [result.row["message"] for result in part]
            found = Dataset.from_dict(
                {"message": messages, "answer": answers, "error": errors}, features=TEXT
            )
            written = folder / f"{part[0].index:09}.tmp"
            found.to_parquet(str(written))
            written.rename(written.with_suffix(".parquet"))
    answered = load_dataset("parquet", data_files=f"{target}/*.parquet", split="train", streaming=True)
    print(next(iter(answered)))  # or answered.push_to_hub("name/of-answers")


if __name__ == "__main__":
    main(*sys.argv[1:])
