"""The ops as modules, for agents that keep them as attributes and for hooks.

Each has the signature and the documentation of one function of `afnio.cognitive.functional`, and no state.
`forward = staticmethod(function)` writes that signature once: type checkers read the types of `module(...)` from it.
"""

from __future__ import annotations

from typing import final

from afnio.cognitive import functional
from afnio.cognitive._module import Module


@final
class Add(Module):
    """The sum of two Variables per sample; see `afnio.cognitive.add`."""

    forward = staticmethod(functional.add)


@final
class Sum(Module):
    """The sum of many Variables per sample; see `afnio.cognitive.sum`."""

    forward = staticmethod(functional.sum)


@final
class Split(Module):
    """The parts of each text; waits for it. See `afnio.cognitive.split`."""

    forward = staticmethod(functional.split)


@final
class ChatCompletion(Module):
    """A model's reply to the filled messages, one for each sample; see `afnio.cognitive.chat_completion`."""

    forward = staticmethod(functional.chat_completion)


@final
class ExactMatchEvaluator(Module):
    """1 per sample that equals its target, else 0; see `afnio.cognitive.exact_match_evaluator`.

    >>> from afnio import Variable
    >>> score, explanation = ExactMatchEvaluator()(Variable(["a", "b"]), ["a", "c"])
    >>> score.data, score.samples
    (1, [1, 0])
    """

    forward = staticmethod(functional.exact_match_evaluator)


@final
class DeterministicEvaluator(Module):
    """The score that a function of yours gives each sample; see `afnio.cognitive.deterministic_evaluator`.

    A sample is right, and sends no feedback, if its score is True or `max_score`, or if `success_fn` decides so.
    """

    forward = staticmethod(functional.deterministic_evaluator)


@final
class LMJudgeEvaluator(Module):
    """The score that a model gives each sample; see `afnio.cognitive.lm_judge_evaluator`.

    A sample is right, and sends no feedback, if its score is True or `max_score`, or if `success_fn` decides so.
    """

    forward = staticmethod(functional.lm_judge_evaluator)
