"""Modules and the ops of agents."""

from __future__ import annotations

from afnio.cognitive import functional as functional
from afnio.cognitive.chat_completion import Completion as Completion
from afnio.cognitive.containers import ModuleDict as ModuleDict
from afnio.cognitive.containers import ModuleList as ModuleList
from afnio.cognitive.containers import Sequential as Sequential
from afnio.cognitive.evaluator import Evaluation as Evaluation
from afnio.cognitive.evaluator import Score as Score
from afnio.cognitive.functional import add as add
from afnio.cognitive.functional import chat_completion as chat_completion
from afnio.cognitive.functional import deterministic_evaluator as deterministic_evaluator
from afnio.cognitive.functional import exact_match_evaluator as exact_match_evaluator
from afnio.cognitive.functional import lm_judge_evaluator as lm_judge_evaluator
from afnio.cognitive.functional import split as split
from afnio.cognitive.functional import sum as sum  # noqa: A004
from afnio.cognitive.layers import Add as Add
from afnio.cognitive.layers import ChatCompletion as ChatCompletion
from afnio.cognitive.layers import DeterministicEvaluator as DeterministicEvaluator
from afnio.cognitive.layers import ExactMatchEvaluator as ExactMatchEvaluator
from afnio.cognitive.layers import LMJudgeEvaluator as LMJudgeEvaluator
from afnio.cognitive.layers import Split as Split
from afnio.cognitive.layers import Sum as Sum
from afnio.cognitive.module import Module as Module
from afnio.cognitive.parameter import Parameter as Parameter
