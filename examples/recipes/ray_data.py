"""Ray Data over a saved agent: `python ray_data.py agent.afnio messages.parquet answers`.

Start `afnio gateway --once --journal calls.journal` before it. Limits then hold for all workers together, and rows that
Ray runs again, or you do, are paid for once.
"""

import sys
from pathlib import Path

import afnio.ray


class Answer:
    """One in each worker: it loads the agent once."""

    def __init__(self, agent_file):
        from sentiment import load

        self.agent, self.client = load(agent_file)

    def __call__(self, batch):
        from sentiment import columns

        rows = [{"message": str(message)} for message in batch["message"]]
        answers, errors = columns(self.agent.stream(rows, self.client))
        texts = [text or "" for text in answers]  # "" and not None: all batches need the same types
        return {"message": batch["message"], "answer": texts, "error": [text or "" for text in errors]}


def main(agent_file, source, target):
    afnio.ray.RayExecutor()  # a cluster on this machine, on loopback only; or pass the address of yours
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    workers = ray.data.ActorPoolStrategy(size=2)
    arguments = [str(Path(agent_file).resolve())]
    rows = ray.data.read_parquet(str(Path(source).resolve()), override_num_blocks=4)
    answers = rows.map_batches(
        Answer, fn_constructor_args=arguments, compute=workers, num_cpus=0.5, batch_size=100
    )
    answers.write_parquet(str(Path(target).resolve()), mode="overwrite")


if __name__ == "__main__":
    main(*sys.argv[1:])
