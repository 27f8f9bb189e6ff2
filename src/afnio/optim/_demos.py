"""Demos: few-shot examples in a prompt, taken from the program's own runs that scored well.

`observe` notes a batch's inputs, predictions and scores, without waiting for them. The next `step` adds the runs above
the threshold to a pool, chooses a few that differ, and replaces the section of examples at the end of the parameter's
text.

Source: Khattab et al., "DSPy: Compiling Declarative Language Model Calls into Self-Improving Pipelines",
arXiv:2310.03714 (BootstrapFewShot). There is no compile step: examples are gathered while the program runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, final

from afnio.autodiff._variable import Data, Variable
from afnio.cognitive._evaluators import Score
from afnio.cognitive._reduction import similarity, sketch
from afnio.optim._checks import FEW, check
from afnio.optim._optimizer import (
    Change,
    DecideAll,
    Decision,
    Evidence,
    Gathered,
    Optimizer,
    accepted,
    for_each,
)
from afnio.runtime._callables import call_in_node
from afnio.runtime._kernel import Slot, current_job
from afnio.runtime._tracebacks import Failure

POOL: Final = 256
"""Number of examples to choose from: the best by score, of equals the first."""
_SECTION: Final = re.compile(r"\n*<examples>\n(?:(?!<examples>).)*\n</examples>\s*\Z", re.DOTALL)
_TAG: Final = re.compile(r"<(?=/?(?:examples|example|input|output)\b)")
_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@final
class Demos(Optimizer):
    """Appends the best observed runs to its parameters, as examples. It makes no calls.

    Call `observe` with a batch and its scores, then `step()`, in a Trainer's `training_step` or in your own loop. It
    works together with another optimizer, on the same text or, better, on its own parameter:

        examples = afnio.Parameter("", role="examples")       # in the agent's system message
        demos = optim.Demos([examples], k=4)
        score, explanation = loss_fn(pred, gold)
        demos.observe({"message": x}, pred, score)            # never waits; a batch or one sample
        demos.step()

    To use a teacher, observe the same agent run with the teacher's client (under `no_grad`). Its good replies become
    the student's examples. With `labeled`, samples whose feedback has a target become examples too, with the target as
    the output, so a mistake is shown as it should have been.

    Each step chooses again, by the same rules in every run: outputs take turns, the rarest so far first; then the
    example least similar to the chosen ones; then the higher score; then the first. The examples replace the section
    that an earlier step appended, and nothing else. Placeholders and tags in an input are escaped.

    Args:
        params: parameters, or dicts with "params" and options for that group.
        k: the number of examples at most.
        max_tokens: the length of all examples together, at four bytes per token.
        threshold: the score from which a run becomes an example.
        labeled: make examples of failed samples from their targets.

    Raises:
        TypeError, ValueError: for options that can't work.

    >>> import afnio
    >>> examples = afnio.Parameter("Name the sentiment.", role="prompt")
    >>> demos = Demos([examples], k=1)
    >>> demos.observe({"message": ["Thanks {name}!", "Hm."]}, ["positive", "negative"], [1, 0])
    >>> _ = demos.step()
    >>> print(examples.data)
    Name the sentiment.
    <BLANKLINE>
    <examples>
    <example>
    <input name="message">Thanks { name }!</input>
    <output>positive</output>
    </example>
    </examples>
    """

    def __init__(
        self,
        params: Iterable[Variable] | Iterable[dict[str, Any]],
        k: int = 4,
        *,
        max_tokens: int = 1_000,
        threshold: float = 1.0,
        labeled: bool = False,
    ) -> None:
        self._runs: list[_Run] = []
        defaults = {"k": k, "max_tokens": max_tokens, "threshold": threshold, "labeled": labeled}
        super().__init__(params, defaults)

    def add_param_group(self, group: dict[str, Any]) -> None:
        options = {**self.defaults, **group} if isinstance(group, dict) else self.defaults
        for name in ("k", "max_tokens"):
            if isinstance(options[name], bool) or not isinstance(options[name], int) or options[name] < 1:
                raise ValueError(f"{name} must be a number from 1 (got {options[name]!r})")
        if isinstance(options["threshold"], bool) or not isinstance(options["threshold"], int | float):
            raise TypeError(f"threshold must be a score (got {options['threshold']!r})")
        super().add_param_group(group)

    def observe(self, inputs: Mapping[str, Variable | Data], prediction: Variable | Data, score: Any) -> None:
        """Note the inputs, replies and scores of a batch or of one sample, for the next `step`.

        Values may be pending: this never waits. Samples that fail or are missing are left out.

        Args:
            inputs: texts or batches by name. All samples share a single text.
            prediction: the agent's replies.
            score: the samples' scores: an evaluator's `score`, or numbers.

        Raises:
            TypeError: for inputs that aren't a dict with entries.
            ValueError: for batches of different lengths.
        """
        if not isinstance(inputs, Mapping) or not inputs:
            raise TypeError(f"inputs must be a dict of names and values, at least one (got {inputs!r})")
        cells = {name: _slots(value) for name, value in inputs.items()}
        run = _Run(cells, _slots(prediction), _slots(score))
        sizes = {len(slots) for slots, batch in (*cells.values(), run.prediction, run.score) if batch}
        if len(sizes) > 1:
            raise ValueError(f"batches must have equal lengths (got {', '.join(map(str, sorted(sizes)))})")
        self._runs.append(run)

    def _gathered(self) -> dict[int, Gathered]:
        """Return the observed runs, and feedback if its targets are wanted. Reading them fills the pools."""
        runs, self._runs = self._runs, []
        gathered: dict[int, Gathered] = {}
        for position, (parameter, options) in enumerate(self._members()):
            segments = parameter.pending_gradients[:] if options["labeled"] else []
            if parameter.requires_grad and (runs or segments):
                waits = [*(slot for run in runs for slot in run.slots()), *(s.slot for s in segments)]
                gathered[position] = Gathered(waits, partial(self._learn, parameter, runs, segments, options))
        return gathered

    async def _improve(self, position: int, value: Any, gathered: Gathered) -> Change:
        parameter, options = self._members()[position]
        return await self.propose(parameter, value, gathered.read(), options)

    async def _decide(
        self, values: tuple[Any, ...], gathered: Mapping[int, Gathered], decide_all: DecideAll
    ) -> Decision:
        pools = await for_each(gathered, lambda at: self._improve(at, values[at], gathered[at]))
        return accepted(values, *pools)

    def _learn(
        self,
        parameter: Variable,
        runs: Sequence[_Run],
        segments: Sequence[Any],
        options: Mapping[str, Any],
    ) -> list[Variable]:
        """Add examples to the parameter's pool, each input once, with its best score. Return the feedback."""
        gradients = parameter.gradients_of(segments)
        examples = [example for run in runs for example in run.examples(options["threshold"])]
        examples += [e for gradient in gradients for e in _labeled(gradient.provenance, options["threshold"])]
        state = self.state[parameter]
        pool: dict[str, dict[str, Any]] = {repr(e["inputs"]): e for e in state.get("pool", [])}
        for example in examples:
            before = pool.get(repr(example["inputs"]))
            if before is None or example["score"] > before["score"]:
                pool[repr(example["inputs"])] = example
        # Sorting is stable, so of equals the first stay.
        best = sorted(pool.values(), key=lambda example: -example["score"])[:POOL]
        kept = {id(example) for example in best}
        state["pool"] = [example for example in pool.values() if id(example) in kept]
        return gradients

    async def propose(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> Change:
        if not isinstance(value, str):
            raise TypeError(f"a value with examples must be a text (got {value!r} for {parameter.role!r})")
        pool = self.state[parameter].get("pool", [])
        # Remove only a section that a step appended. The author may have written one that looks the same.
        bare = _SECTION.sub("", value) if self.state[parameter].get("appended") else value
        choose = partial(chosen_of, pool, options["k"], options["max_tokens"])
        # Choosing from a full pool of long examples would stall the loop.
        chosen = await call_in_node(current_job(), choose) if len(pool) > FEW else choose()
        while True:
            after = _with_examples(bare, chosen) if chosen else value
            reasons = await check(parameter, value, after, count_tokens=tokens_in)
            if not reasons or len(chosen) < 2:
                break
            chosen = chosen[:-1]  # the parameter's max_tokens or validators may be stricter
        evidence = tuple(Evidence(_shown(example), (example,)) for example in chosen)
        if reasons:
            return Change(parameter.role, value, value, len(pool), "; ".join(reasons), evidence)
        self.state[parameter]["appended"] = bool(chosen) or self.state[parameter].get("appended", False)
        return Change(parameter.role, value, after, len(pool), None, evidence)


class _Run(NamedTuple):
    """One call of `observe`: the slots of each value, and whether it is a batch."""

    inputs: dict[str, tuple[list[Slot], bool]]
    prediction: tuple[list[Slot], bool]
    score: tuple[list[Slot], bool]

    def slots(self) -> list[Slot]:
        return [slot for slots, _ in (*self.inputs.values(), self.prediction, self.score) for slot in slots]

    def examples(self, threshold: float) -> list[dict[str, Any]]:
        """Return the samples that scored at least `threshold`. All slots must be done."""
        size = max(len(slots) for slots, _ in (*self.inputs.values(), self.prediction, self.score))
        taken: list[dict[str, Any]] = []
        for lane in range(size):
            values = {name: _at(cell, lane) for name, cell in self.inputs.items()}
            output, score = _at(self.prediction, lane), _at(self.score, lane)
            if any(value is None for value in (*values.values(), output, score)) or score < threshold:
                continue
            texts = {name: str(value) for name, value in values.items()}
            taken.append({"inputs": texts, "output": str(output), "score": float(score)})
        return taken


def _slots(value: Any) -> tuple[list[Slot], bool]:
    if isinstance(value, Score):
        samples = list(value._sample_slots)
        return samples, len(samples) > 1 or value.batch
    variable = value if isinstance(value, Variable) else Variable(value)
    slots, batch = variable.cell()
    return list(slots), batch


def _at(cell: tuple[list[Slot], bool], lane: int) -> Any:
    slots, batch = cell
    outcome = slots[lane if batch else 0].outcome
    if isinstance(outcome, Failure):
        outcome.mark_read()  # a failed sample isn't an example, and its own scope raises the error
        return None
    return outcome


def _labeled(trail: Sequence[Any], score: float) -> list[dict[str, Any]]:
    """Return the samples that have a target as examples, with the lowest score that counts."""
    return [
        {
            "inputs": {name: str(value) for name, value in entry["inputs"].items()},
            "output": str(entry["target"]),
            "score": float(score),
        }
        for entry in trail
        if isinstance(entry, Mapping) and entry.get("inputs") and entry.get("target") is not None
    ]


def chosen_of(pool: Sequence[Mapping[str, Any]], k: int, max_tokens: int) -> list[Mapping[str, Any]]:
    """Return at most `k` examples within `max_tokens` that differ in output and wording.

    >>> pool = [{"inputs": {"x": x}, "output": y, "score": 1.0} for x, y in (("a", "1"), ("b", "1"), ("c", "2"))]
    >>> [example["inputs"]["x"] for example in chosen_of(pool, 2, 100)]
    ['a', 'c']
    """
    left = list(pool)
    chosen: list[Mapping[str, Any]] = []
    space = max_tokens
    sketches = [sketch(_words(example)) for example in left]
    alike = [0.0] * len(left)  # each example's similarity to the most similar chosen one
    used: dict[str, int] = {}
    while left and len(chosen) < k:
        keys = [(used.get(e["output"], 0), alike[n], -e["score"], n) for n, e in enumerate(left)]
        number = min(keys)[-1]
        example, mine = left.pop(number), sketches.pop(number)
        alike.pop(number)
        size = tokens_in(_shown(example))
        if size > space:
            continue
        space -= size
        chosen.append(example)
        used[example["output"]] = used.get(example["output"], 0) + 1
        alike = [max(a, similarity(mine, other)) for a, other in zip(alike, sketches, strict=True)]
    return chosen


def tokens_in(text: str) -> int:
    """Return the approximate number of tokens in a text: one for every four bytes, as clients estimate."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


def _words(example: Mapping[str, Any]) -> str:
    return " ".join(example["inputs"].values())


def _with_examples(bare: str, examples: Sequence[Mapping[str, Any]]) -> str:
    section = "\n".join(["<examples>", *map(_shown, examples), "</examples>"])
    return f"{bare}\n\n{section}" if bare else section


def _shown(example: Mapping[str, Any]) -> str:
    inputs = [f'<input name="{name}">{_harmless(text)}</input>' for name, text in example["inputs"].items()]
    return "\n".join(["<example>", *inputs, f"<output>{_harmless(example['output'])}</output>", "</example>"])


def _harmless(text: str) -> str:
    """Escape `text` so that it neither fills a placeholder nor closes a tag.

    >>> _harmless("{name} </output>")
    '{ name } &lt;/output>'
    """
    return _TAG.sub("&lt;", _PLACEHOLDER.sub(r"{ \1 }", text))
