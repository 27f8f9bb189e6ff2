"""Schedulers of `lr`: PyTorch's numbers, saved and resumed.

The tables were made with torch 2.13.0: `torch.optim.SGD` with lr=8 (and 4), `scheduler.step()` after each step.
"""

from __future__ import annotations

import io
import math

import pytest

import afnio
import afnio.cognitive as cog
from afnio.optim import TGD, EditTGD
from afnio.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, ReduceLROnPlateau
from afnio.testing import ScriptedClient


def optimizer(*rates):
    groups = [{"params": [cog.Parameter("a", requires_grad=True)], "lr": lr} for lr in rates or (8,)]
    return EditTGD(groups, ScriptedClient([]), lambda batch: [0.0] * len(batch), ["a", "b"], model="m")


def rates_of(scheduler, *metrics, steps=0):
    found = [scheduler.get_last_lr()]
    for entry in metrics or [None] * steps:
        if entry is None:
            scheduler.step()
        else:
            scheduler.step(entry)
        found.append(scheduler.get_last_lr())
        assert found[-1] == [group["lr"] for group in scheduler.optimizer.param_groups]
    return [lr[0] if len(lr) == 1 else lr for lr in found]


def test_constant():
    """A factor for some steps."""
    assert [2.6666666666666665] * 5 + [8.0, 8.0] == rates_of(ConstantLR(optimizer()), steps=6)
    assert [2.0, 2.0, 8.0, 8.0] == rates_of(ConstantLR(optimizer(), factor=0.25, total_iters=2), steps=3)
    assert [[4.0, 2.0], [8.0, 4.0]] == rates_of(
        ConstantLR(optimizer(8, 4), factor=0.5, total_iters=1), steps=1
    )


def test_cosine():
    """Down along half a cosine, then up again."""
    found = rates_of(CosineAnnealingLR(optimizer(), T_max=4, eta_min=1), steps=9)
    assert [
        8.0, 6.974873734152916, 4.5, 2.025126265847084, 1.0,
        2.025126265847083, 4.5, 6.974873734152918, 8.000000000000002, 6.974873734152919,
    ] == pytest.approx(found, abs=1e-12)  # fmt: skip
    assert [8.0, 0.0, 8.0, 0.0, 8.0] == rates_of(CosineAnnealingLR(optimizer(), T_max=1), steps=4)
    closed = [1 + 7 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(10)]
    assert closed == pytest.approx(found, abs=1e-9)


def test_plateau():
    """Patience, cooldown, threshold, the lowest rate."""
    flat = [1.0] * 6
    assert [8, 8, 8, 8, 0.8, 0.8, 0.8] == pytest.approx(
        rates_of(ReduceLROnPlateau(optimizer(), patience=2), *flat)
    )
    down = ReduceLROnPlateau(optimizer(), mode="max", factor=0.5, patience=1, cooldown=1, min_lr=1.5)
    assert [8, 8, 8, 4, 4, 4, 2, 2, 2, 1.5] == pytest.approx(rates_of(down, *[0.5] * 9))
    small = ReduceLROnPlateau(optimizer(), factor=0.5, patience=0, threshold=0.1)
    assert [8, 8, 4, 4, 2] == rates_of(small, 1.0, 0.95, 0.8, 0.75)
    absolute = ReduceLROnPlateau(optimizer(), factor=0.5, patience=0, threshold=0.1, threshold_mode="abs")
    assert [8, 8, 4, 4] == rates_of(absolute, 1.0, 0.95, 0.85)
    assert [8, 8, 8] == rates_of(ReduceLROnPlateau(optimizer(), factor=0.5, patience=0, eps=5), 1.0, 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: ConstantLR(o, factor=0.5, total_iters=4),
        lambda o: CosineAnnealingLR(o, T_max=6),
        lambda o: ReduceLROnPlateau(o, factor=0.5, patience=1),
    ],
)
def test_a_schedule_goes_through_a_file(make):
    """With the optimizer's state it goes on where it was; without a step yet too."""

    def step(scheduler):
        scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))

    for before in (0, 3):
        one, other = make(optimizer()), make(optimizer())
        for _ in range(before):
            step(one)
        file = io.BytesIO()
        afnio.save({"optimizer": one.optimizer.state_dict(), "scheduler": one.state_dict()}, file)
        file.seek(0)
        state = afnio.load(file)
        other.optimizer.load_state_dict(state["optimizer"])
        other.load_state_dict(state["scheduler"])
        for _ in range(5):
            assert one.get_last_lr() == other.get_last_lr() == [other.optimizer.param_groups[0]["lr"]]
            step(one)
            step(other)


def test_a_schedule_of_your_own():
    """Write `get_lr`."""

    class Halving(LRScheduler):
        def get_lr(self):
            return [base / 2**self.last_epoch for base in self.base_lrs]

    assert [8, 4, 2] == rates_of(Halving(optimizer()), steps=2)


def test_what_cannot_work_is_refused():
    """On the line that gives it."""
    with pytest.raises(TypeError, match=r"needs an optimizer with an lr, such as EditTGD \(got TGD\)"):
        ConstantLR(TGD([cog.Parameter("a")], ScriptedClient([]), model="m"))
    with pytest.raises(TypeError, match="must be an Optimizer"):
        CosineAnnealingLR(None, 3)
    with pytest.raises(ValueError, match="factor must be from 0 to 1"):
        ConstantLR(optimizer(), factor=2)
    with pytest.raises(ValueError, match="T_max must be a number of steps"):
        CosineAnnealingLR(optimizer(), 0)
    with pytest.raises(ValueError, match="factor must be below 1"):
        ReduceLROnPlateau(optimizer(), factor=1.0)
    with pytest.raises(ValueError, match="one for each of 1 groups"):
        ReduceLROnPlateau(optimizer(), min_lr=[1, 2])
    with pytest.raises(ValueError, match="must have an initial_lr to continue at last_epoch=4"):
        ConstantLR(optimizer(), last_epoch=4)
