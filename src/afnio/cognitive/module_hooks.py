"""ModuleHooks: the hooks of one Module, and a call that goes past them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Coroutine
from typing import Any, NamedTuple, final

from afnio.autodiff._backward import Boundary
from afnio.autodiff._graph import Hook, Hooks, RemovableHandle, checked_hook
from afnio.runtime._callables import is_async


class _Registered(NamedTuple):
    """A forward hook and how it wants to be called."""

    hook: Hook
    with_kwargs: bool
    always_call: bool = False


@final
class ModuleHooks:
    """What is called before and after a module's forward, and when feedback has been through it."""

    def __init__(self) -> None:
        self.pre: Hooks[_Registered] = Hooks()
        self.post: Hooks[_Registered] = Hooks()
        self.backward: Hooks[Hook] = Hooks()

    @property
    def idle(self) -> bool:
        return not (self.pre or self.post or self.backward)

    def add_pre(self, hook: Hook, *, prepend: bool, with_kwargs: bool) -> RemovableHandle:
        return self.pre.add(_Registered(checked_hook(hook), with_kwargs), prepend=prepend)

    def add_post(self, hook: Hook, *, prepend: bool, with_kwargs: bool, always_call: bool) -> RemovableHandle:
        return self.post.add(_Registered(checked_hook(hook), with_kwargs, always_call), prepend=prepend)

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleHooks:
        """Return hooks of their own for a copied module: the same callables."""
        copied = ModuleHooks()
        for registered in self.pre:
            copied.pre.add(registered)
        for registered in self.post:
            copied.post.add(registered)
        for hook in self.backward:
            copied.backward.add(hook)
        return copied


@final
class Call:
    """`module(...)` where the module has hooks."""

    __slots__ = ("_hooks", "_module")

    def __init__(self, module: Any, hooks: ModuleHooks) -> None:
        self._module = module
        self._hooks = hooks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_async(self._module.forward):
            return self._awaited(args, kwargs)
        try:
            boundary, args, kwargs = self._before(args, kwargs)
            output = self._module.forward(*args, **kwargs)
        except BaseException:
            self._tell_failure(args, kwargs)
            raise
        if inspect.iscoroutine(output):  # a `def` that hands on what an `async def` returned
            return self._after_awaiting(output, args, kwargs, boundary)
        for registered in list(self._hooks.post):
            said = registered.hook(*self._shown(registered, args, kwargs), output)
            output = output if said is None else self._plain(said, registered.hook)
        return output if boundary is None else boundary.left(output)

    async def _awaited(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            for registered in list(self._hooks.pre):
                said = await _settled(registered.hook(*self._shown(registered, args, kwargs)))
                args, kwargs = _arguments(registered, said, args, kwargs)
            boundary, args = self._enter(args)
            output = self._module.forward(*args, **kwargs)
        except BaseException:
            self._tell_failure(args, kwargs)
            raise
        return await self._after_awaiting(output, args, kwargs, boundary)

    async def _after_awaiting(
        self,
        output: Coroutine[Any, Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        boundary: Boundary | None,
    ) -> Any:
        try:
            result = await output
        except BaseException:
            self._tell_failure(args, kwargs)
            raise
        for registered in list(self._hooks.post):
            said = await _settled(registered.hook(*self._shown(registered, args, kwargs), result))
            result = result if said is None else said
        return result if boundary is None else boundary.left(result)

    def _before(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Boundary | None, tuple[Any, ...], dict[str, Any]]:
        for registered in list(self._hooks.pre):
            said = self._plain(registered.hook(*self._shown(registered, args, kwargs)), registered.hook)
            args, kwargs = _arguments(registered, said, args, kwargs)
        boundary, args = self._enter(args)
        return boundary, args, kwargs

    def _enter(self, args: tuple[Any, ...]) -> tuple[Boundary | None, tuple[Any, ...]]:
        if not self._hooks.backward:
            return None, args
        boundary = Boundary(self._module, self._hooks.backward)
        return boundary, boundary.entered(args)

    def _shown(
        self, registered: _Registered, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        return (self._module, args, kwargs) if registered.with_kwargs else (self._module, args)

    def _plain(self, said: Any, hook: Hook) -> Any:
        """Return what a hook of a `def forward` said; there, nobody would await a coroutine."""
        if inspect.iscoroutine(said):
            said.close()
            raise TypeError(
                f"{type(self._module).__name__}.forward is a `def`, so the hook {hook!r} must be one too; "
                "change values as they arrive with output.map(fn)"
            )
        return said

    def _tell_failure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for registered in list(self._hooks.post):
            if not registered.always_call:
                continue
            try:
                said = registered.hook(*self._shown(registered, args, kwargs), None)
                self._plain(said, registered.hook)
            except Exception as error:
                warnings.warn(
                    f"a hook of {type(self._module).__name__} failed after forward had raised: {error!r}",
                    stacklevel=3,
                )


async def _settled(said: Any) -> Any:
    return await said if inspect.iscoroutine(said) else said


def _arguments(
    registered: _Registered, said: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments after a pre-hook said something about them."""
    if said is None:
        return args, kwargs
    if not registered.with_kwargs:
        return (said if isinstance(said, tuple) else (said,)), kwargs
    if not isinstance(said, tuple) or len(said) != 2:
        raise TypeError(f"a forward pre-hook with kwargs returns None or (args, kwargs) (got {said!r})")
    return tuple(said[0]), dict(said[1])
