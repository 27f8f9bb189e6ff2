"""Afnio: an async-first actor engine for large-batch optimization of agents whose parameters are text.

Calls launch, reads wait, `await` waits without blocking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio import autodiff as autodiff
from afnio import cognitive as cognitive
from afnio import errors as errors
from afnio import models as models
from afnio._public import lazily as _lazily
from afnio.autodiff import Variable as Variable
from afnio.autodiff import bind as bind
from afnio.autodiff import enable_grad as enable_grad
from afnio.autodiff import is_grad_enabled as is_grad_enabled
from afnio.autodiff import no_grad as no_grad
from afnio.autodiff import resolve as resolve
from afnio.autodiff import set_grad_enabled as set_grad_enabled
from afnio.cognitive import Parameter as Parameter
from afnio.models import get_backward_model_client as get_backward_model_client
from afnio.models import set_backward_model_client as set_backward_model_client
from afnio.runtime import Limits as Limits
from afnio.runtime import Pending as Pending
from afnio.runtime import batch_api as batch_api
from afnio.runtime import budget as budget
from afnio.runtime import journal as journal
from afnio.runtime import priority as priority
from afnio.runtime import run as run
from afnio.runtime import scope as scope
from afnio.runtime import set_sync_mode as set_sync_mode
from afnio.runtime import set_threads as set_threads
from afnio.runtime import to_thread as to_thread
from afnio.runtime import tolerate as tolerate

if TYPE_CHECKING:
    from afnio import bridge as bridge
    from afnio import optim as optim
    from afnio import ray as ray
    from afnio import stats as stats
    from afnio import tellurio as tellurio
    from afnio import testing as testing
    from afnio import texts as texts
    from afnio import traces as traces
    from afnio import trainer as trainer
    from afnio import utils as utils
    from afnio.cognitive._archive import load as load
    from afnio.cognitive._archive import load_agent as load_agent
    from afnio.cognitive._archive import save as save
    from afnio.runtime._executors import Workers as Workers
    from afnio.studies._check import Check as Check
    from afnio.studies._check import check as check
    from afnio.studies._evaluate import evaluate as evaluate
    from afnio.studies._evaluated import EvaluatedRow as EvaluatedRow
    from afnio.studies._evaluation import Comparison as Comparison
    from afnio.studies._evaluation import Evaluation as Evaluation
    from afnio.studies._headroom import Headroom as Headroom
    from afnio.studies._headroom import headroom as headroom
    from afnio.studies._optimize import optimize as optimize
    from afnio.studies._result import Result as Result
    from afnio.studies._stores import load_prompts as load_prompts

__version__ = "0.4.0"
__all__ = [
    "Check",
    "Comparison",
    "EvaluatedRow",
    "Evaluation",
    "Headroom",
    "Limits",
    "Parameter",
    "Pending",
    "Result",
    "Variable",
    "Workers",
    "batch_api",
    "bind",
    "budget",
    "check",
    "enable_grad",
    "evaluate",
    "get_backward_model_client",
    "headroom",
    "is_grad_enabled",
    "journal",
    "load",
    "load_agent",
    "load_prompts",
    "no_grad",
    "optimize",
    "priority",
    "resolve",
    "run",
    "save",
    "scope",
    "set_backward_model_client",
    "set_grad_enabled",
    "set_sync_mode",
    "set_threads",
    "to_thread",
    "tolerate",
]

# Names that only some programs need are imported at their first use.
__getattr__, __dir__ = _lazily(
    __name__,
    globals(),
    {
        "afnio.cognitive._archive": "load load_agent save",
        "afnio.studies._check": "Check check",
        "afnio.studies._evaluate": "evaluate",
        "afnio.studies._evaluated": "EvaluatedRow",
        "afnio.studies._evaluation": "Comparison Evaluation",
        "afnio.studies._headroom": "Headroom headroom",
        "afnio.studies._optimize": "optimize",
        "afnio.studies._result": "Result",
        "afnio.studies._stores": "load_prompts",
        "afnio.runtime._executors": "Workers",
    },
    modules="bridge optim ray stats tellurio testing texts traces trainer utils",
)
