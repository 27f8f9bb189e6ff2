"""Optimizers: they gather feedback, propose new values, check and commit them."""

from __future__ import annotations

from afnio.optim.change import Candidate as Candidate
from afnio.optim.change import Change as Change
from afnio.optim.change import Evidence as Evidence
from afnio.optim.demos import Demos as Demos
from afnio.optim.functional import tgd as tgd
from afnio.optim.improves import Improves as Improves
from afnio.optim.optimizer import Optimizer as Optimizer
from afnio.optim.pareto_tgd import ParetoTGD as ParetoTGD
from afnio.optim.reduce import Reduced as Reduced
from afnio.optim.reduce import reduce as reduce
from afnio.optim.step import Acceptance as Acceptance
from afnio.optim.tgd import TGD as TGD
