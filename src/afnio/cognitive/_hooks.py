"""Hooks of modules: functions called before and after a module's `forward`, which may replace what goes in or out.

A module without hooks pays nothing for them: its call is `forward` itself. With hooks, a call is a `HookedCall`. Hooks
of a `def forward` must be `def`s, those of an `async def forward` may be either.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Coroutine
from typing import Any, NamedTuple, final

from afnio.autodiff._graph import Hook, Hooks, RemovableHandle, checked_hook
from afnio.runtime._callables import is_async


class _Registered(NamedTuple):
    """A forward hook and its options."""

    hook: Hook
    with_kwargs: bool
    always_call: bool = False


@final
class ModuleHooks:
    """The hooks before and after a module's forward."""

    def __init__(self) -> None:
        self.pre: Hooks[_Registered] = Hooks()
        self.post: Hooks[_Registered] = Hooks()

    @property
    def idle(self) -> bool:
        return not (self.pre or self.post)

    def add_pre(self, hook: Hook, *, prepend: bool, with_kwargs: bool) -> RemovableHandle:
        return self.pre.add(_Registered(checked_hook(hook), with_kwargs), prepend=prepend)

    def add_post(self, hook: Hook, *, prepend: bool, with_kwargs: bool, always_call: bool) -> RemovableHandle:
        return self.post.add(_Registered(checked_hook(hook), with_kwargs, always_call), prepend=prepend)

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleHooks:
        """Copy the lists of hooks but not the callables, so that a copied module's handles are its own."""
        copied = ModuleHooks()
        for registered in self.pre:
            copied.pre.add(registered)
        for registered in self.post:
            copied.post.add(registered)
        return copied


@final
class HookedCall:
    """One call of a module with hooks: pre-hooks, forward, hooks."""

    __slots__ = ("_hooks", "_module")

    def __init__(self, module: Any, hooks: ModuleHooks) -> None:
        self._module = module
        self._hooks = hooks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_async(self._module.forward):
            return self._call_async(args, kwargs)
        try:
            for registered in list(self._hooks.pre):
                returned = self._checked(registered, self._ask(registered, args, kwargs))
                args, kwargs = _replaced(registered, returned, args, kwargs)
            output = self._module.forward(*args, **kwargs)
        except BaseException:
            self._report_failure(args, kwargs)
            raise
        if inspect.iscoroutine(output):  # a `def` that returns the coroutine of an `async def`
            return self._await_output(output, args, kwargs)
        for registered in list(self._hooks.post):
            returned = self._checked(registered, self._ask(registered, args, kwargs, output))
            output = output if returned is None else returned
        return output

    async def _call_async(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            for registered in list(self._hooks.pre):
                returned = await _awaited(self._ask(registered, args, kwargs))
                args, kwargs = _replaced(registered, returned, args, kwargs)
            output = self._module.forward(*args, **kwargs)
        except BaseException:
            self._report_failure(args, kwargs)
            raise
        return await self._await_output(output, args, kwargs)

    async def _await_output(
        self, output: Coroutine[Any, Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            result = await output
        except BaseException:
            self._report_failure(args, kwargs)
            raise
        for registered in list(self._hooks.post):
            returned = await _awaited(self._ask(registered, args, kwargs, result))
            result = result if returned is None else returned
        return result

    def _ask(
        self, registered: _Registered, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any
    ) -> Any:
        """Call a hook: `(module, args)`, with `kwargs` if it wants them, with the output if there is one."""
        if registered.with_kwargs:
            return registered.hook(self._module, args, kwargs, *output)
        return registered.hook(self._module, args, *output)

    def _checked(self, registered: _Registered, returned: Any) -> Any:
        """Return what a hook of a `def forward` returned; a coroutine is an error, because no one would await it."""
        if inspect.iscoroutine(returned):
            returned.close()
            raise TypeError(
                f"{type(self._module).__name__}.forward is a `def`, so its hooks must be too (got the `async def` "
                f"{registered.hook!r}); change values as they arrive with output.map(fn)"
            )
        return returned

    def _report_failure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call the hooks that are called after a failed forward too, with an output of None."""
        for registered in list(self._hooks.post):
            if not registered.always_call:
                continue
            try:
                self._checked(registered, self._ask(registered, args, kwargs, None))
            except Exception as error:
                warnings.warn(
                    f"a hook of {type(self._module).__name__} failed after forward had raised: {error!r}",
                    stacklevel=3,
                )


async def _awaited(returned: Any) -> Any:
    return await returned if inspect.iscoroutine(returned) else returned


def _replaced(
    registered: _Registered, returned: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of `forward` after a pre-hook has returned."""
    if returned is None:
        return args, kwargs
    if not registered.with_kwargs:
        return (returned if isinstance(returned, tuple) else (returned,)), kwargs
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(
            f"a forward pre-hook with kwargs must return None or (args, kwargs) (got {returned!r})"
        )
    return tuple(returned[0]), dict(returned[1])
