"""Variables, the graph, and the backward pass. It knows no models and no prompts."""

from __future__ import annotations

from afnio.autodiff.basic_ops import Add as Add
from afnio.autodiff.basic_ops import Split as Split
from afnio.autodiff.basic_ops import Sum as Sum
from afnio.autodiff.bind import bind as bind
from afnio.autodiff.context import Context as Context
from afnio.autodiff.feedback import Feedback as Feedback
from afnio.autodiff.function import Function as Function
from afnio.autodiff.grad_mode import enable_grad as enable_grad
from afnio.autodiff.grad_mode import is_grad_enabled as is_grad_enabled
from afnio.autodiff.grad_mode import no_grad as no_grad
from afnio.autodiff.grad_mode import set_grad_enabled as set_grad_enabled
from afnio.autodiff.graph import GradientEdge as GradientEdge
from afnio.autodiff.graph import Node as Node
from afnio.autodiff.map import Map as Map
from afnio.autodiff.sweep import backward as backward
from afnio.autodiff.sweep import grad as grad
from afnio.autodiff.variable import Variable as Variable
