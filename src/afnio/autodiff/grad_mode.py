"""Grad mode: whether ops record the graph. Local to a context, so one task's `no_grad` is its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar, Token
from typing import Any, Final, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

_enabled: Final[ContextVar[bool]] = ContextVar("afnio_grad_enabled", default=True)


def is_grad_enabled() -> bool:
    """Whether ops that are launched here record the graph."""
    return _enabled.get()


class _GradMode:
    """A context manager, and a decorator for functions, coroutines and generators of both kinds."""

    def __init__(self, enabled: bool) -> None:
        self._mode = enabled
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> None:
        self._tokens.append(_enabled.set(self._mode))

    def __exit__(self, *exc: object) -> None:
        _enabled.reset(self._tokens.pop())

    def __call__(self, function: F) -> F:
        mode = self._mode
        wrapper: Any
        if inspect.isasyncgenfunction(function):
            wrapper = _async_generator(function, mode)
        elif inspect.isgeneratorfunction(function):
            wrapper = _generator(function, mode)
        elif inspect.iscoroutinefunction(function):

            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                with _GradMode(mode):
                    return await function(*args, **kwargs)

            wrapper = coroutine
        else:

            def plain(*args: Any, **kwargs: Any) -> Any:
                with _GradMode(mode):
                    return function(*args, **kwargs)

            wrapper = plain
        return cast("F", functools.wraps(function)(wrapper))


class no_grad(_GradMode):  # noqa: N801
    """Record no graph in the block, or in the decorated function.

    >>> import afnio
    >>> prompt = afnio.Variable("a", requires_grad=True)
    >>> with no_grad():
    ...     (prompt + afnio.Variable("b")).requires_grad
    False
    """

    def __init__(self) -> None:
        super().__init__(enabled=False)


class enable_grad(_GradMode):  # noqa: N801
    """Record the graph in the block, or in the decorated function, inside `no_grad` too."""

    def __init__(self) -> None:
        super().__init__(enabled=True)


class set_grad_enabled(_GradMode):  # noqa: N801
    """Turn recording on or off for this context; as a `with` block, until its end.

    >>> with set_grad_enabled(False):
    ...     is_grad_enabled()
    False
    """

    def __init__(self, mode: bool) -> None:
        super().__init__(mode)
        self._plain: Token[bool] | None = _enabled.set(mode)

    def __enter__(self) -> None:
        # The call itself has set the mode already; the block restores what was before the call.
        if self._plain is not None:
            self._tokens.append(self._plain)
            self._plain = None
        else:
            super().__enter__()

    def __call__(self, function: F) -> F:
        if self._plain is not None:
            _enabled.reset(self._plain)
            self._plain = None
        return super().__call__(function)


def _generator(function: Callable[..., Any], mode: bool) -> Callable[..., Generator[Any, Any, Any]]:
    # The mode holds while the generator's own code runs, not while its consumer's does.
    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inner = function(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(next, inner)
        while True:
            try:
                with _GradMode(mode):
                    value = step()
            except StopIteration as stop:
                return stop.value
            try:
                sent = yield value
            except GeneratorExit:
                with _GradMode(mode):
                    inner.close()
                raise
            except BaseException as error:
                step = functools.partial(inner.throw, error)
            else:
                step = functools.partial(inner.send, sent)

    return generator


def _async_generator(function: Callable[..., Any], mode: bool) -> Callable[..., AsyncGenerator[Any, Any]]:
    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        step: Callable[[], Any] = inner.__anext__
        while True:
            try:
                with _GradMode(mode):
                    value = await step()
            except StopAsyncIteration:
                return
            try:
                sent = yield value
            except GeneratorExit:
                with _GradMode(mode):
                    await inner.aclose()
                raise
            except BaseException as error:
                step = functools.partial(inner.athrow, error)
            else:
                step = functools.partial(inner.asend, sent)

    return generator
