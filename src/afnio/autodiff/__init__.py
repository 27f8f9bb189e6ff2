"""Variables, the graph, and the backward pass. It knows no models and no prompts."""

from __future__ import annotations

from afnio._public import show_in
from afnio.autodiff._backward import backward, grad, resolve
from afnio.autodiff._function import Context, Function
from afnio.autodiff._graph import (
    Feedback,
    enable_grad,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from afnio.autodiff._variable import Variable, bind

__all__ = [
    "Context",
    "Feedback",
    "Function",
    "Variable",
    "backward",
    "bind",
    "enable_grad",
    "grad",
    "is_grad_enabled",
    "no_grad",
    "resolve",
    "set_grad_enabled",
]

show_in(__name__, globals(), __all__)
