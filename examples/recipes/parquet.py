"""Parquet in, Parquet out: `python parquet.py agent.afnio messages.parquet answers`.

Killed and started again, it goes on: parts that are there are skipped, and the journal has the replies of the next one.
"""

import itertools
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sentiment import columns, load

import afnio

ROWS = 100  # of a part


def rows(source):
    for batch in pq.ParquetFile(source).iter_batches(columns=["message"]):
        yield from batch.to_pylist()


def main(agent_file, source, target):
    agent, client = load(agent_file)
    folder = Path(target)
    folder.mkdir(exist_ok=True)
    done = sum(pq.read_metadata(part).num_rows for part in folder.glob("*.parquet"))
    with afnio.journal(folder / "calls.journal"):
        results = agent.stream(rows(source), client, start=done)
        while part := list(itertools.islice(results, ROWS)):
            answers, errors = columns(part)
            messages = [result.row["message"] for result in part]
            text = pa.string()
            table = pa.table({
                "message": messages, "answer": pa.array(answers, text), "error": pa.array(errors, text)
            })  # fmt: skip
            written = folder / f"{part[0].index:09}.tmp"
            pq.write_table(table, written)
            written.rename(written.with_suffix(".parquet"))  # a part is there as a whole, or not at all


if __name__ == "__main__":
    main(*sys.argv[1:])
