"""Modules and the ops of agents."""

from __future__ import annotations

from afnio._public import show_in
from afnio.cognitive import functional as functional
from afnio.cognitive._agent import Agent, agent
from afnio.cognitive._chat import Completion
from afnio.cognitive._evaluators import Judgement, Score
from afnio.cognitive._module import Module, ModuleDict, ModuleList, Sequential
from afnio.cognitive._prompts import prompts
from afnio.cognitive._stream import Stream
from afnio.cognitive._template import Parameter
from afnio.cognitive.functional import (
    ChatCompletion,
    DeterministicEvaluator,
    ExactMatchEvaluator,
    LMJudgeEvaluator,
)

__all__ = [
    "Agent",
    "ChatCompletion",
    "Completion",
    "DeterministicEvaluator",
    "ExactMatchEvaluator",
    "Judgement",
    "LMJudgeEvaluator",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "Score",
    "Sequential",
    "Stream",
    "agent",
    "prompts",
]

show_in(__name__, globals(), __all__)
