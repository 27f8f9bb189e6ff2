"""Optimizers: they gather feedback, propose new values, check and commit them."""

from __future__ import annotations

from afnio.optim.functional import tgd as tgd
from afnio.optim.optimizer import Change as Change
from afnio.optim.optimizer import Optimizer as Optimizer
from afnio.optim.tgd import TGD as TGD
