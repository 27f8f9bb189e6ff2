"""Spark over a saved agent: `python spark.py agent.afnio messages.parquet answers`.

Start `afnio gateway --once --journal calls.journal` before it. Limits then hold for all workers together, and rows that
Spark runs again, or you do, are paid for once.
"""

import sys
from pathlib import Path

from pyspark import SparkFiles
from pyspark.sql import SparkSession


def answer(batches):
    from sentiment import columns, load

    agent, client = load(SparkFiles.get("agent.afnio"))
    for batch in batches:
        rows = [{"message": message} for message in batch["message"]]
        answers, errors = columns(agent.stream(rows, client))
        yield batch.assign(answer=answers, error=errors)


def main(agent_file, source, target):
    builder = SparkSession.builder.master("local[2]")  # or spark://host:7077
    here = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    options = {**here, "spark.ui.enabled": "false", "spark.sql.files.maxPartitionBytes": "1m"}
    spark = builder.config(map=options).getOrCreate()
    spark.sparkContext.addPyFile(str(Path(__file__).with_name("sentiment.py")))
    spark.sparkContext.addFile(agent_file)
    rows = spark.read.parquet(source).repartition(4)
    schema = "message string, answer string, error string"
    rows.select("message").mapInPandas(answer, schema).write.mode("overwrite").parquet(target)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
