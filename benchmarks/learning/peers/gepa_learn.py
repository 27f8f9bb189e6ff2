"""GEPA on a task of ours: its engine, its selection, its acceptance; an adapter runs the steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gepa
from gepa import EvaluationBatch
from job import THREADS, Job, report


class Adapter:
    """Runs the steps on a batch and shows each step's prompt what happened there."""

    propose_new_texts = None

    def __init__(self, job: Job) -> None:
        self.job = job

    def evaluate(
        self, batch: list[dict[str, Any]], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch:
        with ThreadPoolExecutor(THREADS) as pool:
            runs = list(pool.map(lambda item: self.job.run(candidate, item), batch))
        scores = [self.job.score(run[1], item["target"]) for run, item in zip(runs, batch, strict=True)]
        traces = [
            (item, seen, answer, score)
            for item, (seen, answer), score in zip(batch, runs, scores, strict=True)
        ]
        return EvaluationBatch([run[1] for run in runs], scores, traces if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> dict[str, list[dict[str, Any]]]:
        names = [step["name"] for step in self.job.spec["steps"]]
        return {
            name: [
                {
                    "Inputs": seen[names.index(name)][0],
                    "Generated Outputs": seen[names.index(name)][1],
                    "Feedback": self.job.feedback(answer, item["target"]),
                }
                for item, seen, answer, _ in eval_batch.trajectories
            ]
            for name in components_to_update
        }


def train(job: Job) -> dict[str, str]:
    """Return the best candidate's prompts."""
    result = gepa.optimize(
        seed_candidate={step["name"]: step["prompt"] for step in job.spec["steps"]},
        trainset=job.spec["train"],
        valset=job.spec["val"],
        adapter=Adapter(job),
        reflection_lm=lambda prompt: job.reflect([{"role": "user", "content": prompt}]),
        stop_callbacks=[lambda state: job.spent],
        logger=type("Quiet", (), {"log": lambda self, *said: None})(),
        seed=job.spec["seed"],
    )
    return dict(result.best_candidate)


if __name__ == "__main__":
    report(train)
