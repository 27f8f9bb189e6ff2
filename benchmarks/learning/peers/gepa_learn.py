"""GEPA on a task of ours: its engine, its selection, its acceptance; an adapter runs the steps.

Options: `minibatch` samples of a reflection instead of GEPA's three; `proposals` from one parent side by side; a
`limit` in words, at the end of GEPA's reflection template.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gepa
from gepa import EvaluationBatch
from gepa.strategies.instruction_proposal import InstructionProposalSignature
from gepa.strategies.proposal_sampling import SameParentSampling
from job import Job, report


class Adapter:
    """Runs the steps on a batch and shows each step's prompt what happened there."""

    propose_new_texts = None

    def __init__(self, job: Job) -> None:
        self.job = job

    def evaluate(
        self, batch: list[dict[str, Any]], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch:
        return self.batch_evaluate([(candidate, batch)], capture_traces)[0]

    def batch_evaluate(
        self, items: list[tuple[dict[str, str], list[dict[str, Any]]]], capture_traces: bool = True
    ) -> list[EvaluationBatch]:
        pairs = [(candidate, item) for candidate, batch in items for item in batch]
        with ThreadPoolExecutor(self.job.spec["threads"]) as pool:
            runs = iter(list(pool.map(lambda pair: self.job.run(*pair), pairs)))
        return [self._judged(batch, [next(runs) for _ in batch], capture_traces) for _, batch in items]

    def _judged(
        self, batch: list[dict[str, Any]], runs: list[tuple[Any, str]], capture_traces: bool
    ) -> EvaluationBatch:
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


class Reflection:
    """The critic, asked about several candidates at once where GEPA proposes several."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, prompt: Any) -> str:
        return self.job.reflect([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)

    def batch_complete(self, messages: list[list[dict[str, str]]], **_: Any) -> list[str]:
        with ThreadPoolExecutor(len(messages)) as pool:
            return list(pool.map(self.job.reflect, messages))


def limited(limit: str) -> str:
    """Return GEPA's own template with a limit as its last sentence."""
    return f"{InstructionProposalSignature.default_prompt_template.rstrip()} {limit}"


def train(job: Job) -> dict[str, str]:
    """Return the best candidate's prompts."""
    options = job.spec["options"]

    def stop(state: Any) -> bool:
        scores = state.program_full_scores_val_set
        job.remember(state.program_candidates[scores.index(max(scores))])
        return job.spent

    result = gepa.optimize(
        seed_candidate={step["name"]: step["prompt"] for step in job.spec["steps"]},
        trainset=job.spec["train"],
        valset=job.spec["val"],
        adapter=Adapter(job),
        reflection_lm=Reflection(job),
        reflection_minibatch_size=options.get("minibatch"),
        sampling_strategy=SameParentSampling(options["proposals"]) if "proposals" in options else None,
        reflection_prompt_template=limited(options["limit"]) if "limit" in options else None,
        stop_callbacks=[stop],
        logger=type("Quiet", (), {"log": lambda self, *said: None})(),
        seed=job.spec["seed"],
    )
    return dict(result.best_candidate)


if __name__ == "__main__":
    report(train)
