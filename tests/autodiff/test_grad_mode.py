"""Grad mode is local to a context, and decorates functions of every kind."""

from __future__ import annotations

import anyio

import afnio


def test_decorators() -> None:
    """no_grad holds in functions, coroutines and generators of both kinds, and not around them."""
    enabled = afnio.is_grad_enabled

    @afnio.no_grad()
    def plain() -> bool:
        return enabled()

    @afnio.no_grad()
    async def coroutine() -> bool:
        await anyio.lowlevel.checkpoint()
        return enabled()

    @afnio.no_grad()
    def generator():
        got = yield enabled()
        yield enabled(), got
        return enabled()

    @afnio.no_grad()
    async def async_generator():
        try:
            got = yield enabled()
            yield enabled(), got
        finally:
            closed.append(enabled())

    closed: list[bool] = []

    async def main() -> list[object]:
        values = async_generator()
        seen: list[object] = [await coroutine(), await anext(values), enabled()]
        seen.append(await values.asend("x"))
        await values.aclose()
        return seen

    values = generator()
    seen = [plain(), next(values), enabled(), values.send("x")]
    assert seen == [False, False, True, (False, "x")]
    assert anyio.run(main) == [False, False, True, (False, "x")]
    assert closed == [False]


async def test_tasks_are_apart() -> None:
    """no_grad in one task says nothing about another."""
    seen: list[bool] = []

    async def quiet() -> None:
        with afnio.no_grad():
            await anyio.lowlevel.checkpoint()
            seen.append(afnio.is_grad_enabled())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(quiet)
        await anyio.lowlevel.checkpoint()
        assert afnio.is_grad_enabled()
    assert seen == [False]


def test_set_grad_enabled() -> None:
    """A plain call sets the mode; a block takes it back; a decorator doesn't touch it."""
    with afnio.set_grad_enabled(False):
        assert not afnio.is_grad_enabled()
        with afnio.enable_grad():
            assert afnio.is_grad_enabled()
    assert afnio.is_grad_enabled()
    afnio.set_grad_enabled(False)
    assert not afnio.is_grad_enabled()
    afnio.set_grad_enabled(True)

    @afnio.set_grad_enabled(False)
    def inner() -> bool:
        return afnio.is_grad_enabled()

    assert afnio.is_grad_enabled()
    assert not inner()
