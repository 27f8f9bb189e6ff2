"""Conformance checks for optimizers, with a scripted model and without a network.

Proposing is the easy part of an optimizer. The checks are about the rest: a proposal that fails or is cancelled keeps
the value, steps that are launched in a row follow each other, a saved state continues exactly, and a journal answers a
repeated run. Each check is a function whose docstring states what must hold; `optimizer_conformance` runs them all.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, final

import anyio
import anyio.to_thread

from afnio.autodiff._variable import Variable
from afnio.cognitive._archive import load, save
from afnio.cognitive._template import Parameter
from afnio.errors import FinalModelError
from afnio.models._client import ChatClient
from afnio.models._messages import ChatRequest
from afnio.optim._optimizer import Optimizer
from afnio.runtime._callables import run
from afnio.runtime._waiting import journal, scope
from afnio.testing._scripted import ScriptedClient

MakeOptimizer = Callable[[list[Any], ChatClient], Optimizer]
# Time limit of a step that must end by itself.
SECONDS: Final = 30.0


def optimizer_conformance(
    make_optimizer: MakeOptimizer,
    *,
    reply: Callable[[ChatRequest], Any] | None = None,
    skip: Collection[str] = (),
) -> list[str]:
    """Check an optimizer. Return the names of the checks that it passed.

    * no_feedback: without feedback there is no call and no change.
    * feedback: feedback from many samples gives texts that can be learned further.
    * groups: parameters in groups, without feedback, and frozen.
    * failing, cancelled: a proposal that fails or is cancelled keeps the values.
    * chained: steps launched in a row, and two optimizers on one parameter.
    * closure: closures, `def` and `async def`.
    * state: a state that was saved and loaded continues as the original.
    * resume: a journal gives the same values without a call.

    Call it in a plain test function, because it runs its own event loops.

    Args:
        make_optimizer: Called with parameters, or groups of them, and the client that proposes. Returns the optimizer.
            Fix all seeds.
        reply: Returns the client's reply. It must depend on the request alone. By default it returns {"value": text}
            with a text made from the request.
        skip: Names of checks to leave out.

    Raises:
        AssertionError: with the name of the check that failed and the reason.
        ValueError: for an unknown name in `skip`.

    >>> import afnio
    >>> passed = optimizer_conformance(lambda params, client: afnio.optim.TGD(params, client, model="m"))
    >>> passed[:3]
    ['no_feedback', 'feedback', 'groups']
    """
    unknown = [name for name in skip if name not in CHECKS]
    if unknown:
        raise ValueError(f"skip must name checks among {', '.join(CHECKS)} (got {unknown[0]!r})")
    bench = _Bench(make_optimizer, reply or _reply)
    passed: list[str] = []
    for name, check in CHECKS.items():
        if name in skip:
            continue
        try:
            with scope(name=f"conformance {name}"):
                check(bench)
        except Exception as error:
            raise AssertionError(f"{name}: {_words(error)}") from error
        passed.append(name)
    return passed


@final
class _Bench:
    """Makes the parameters, clients and optimizers for the checks."""

    def __init__(self, make: MakeOptimizer, reply: Callable[[ChatRequest], Any]) -> None:
        self._make, self.reply = make, reply

    def parameters(self, count: int, feedback: int = 0) -> list[Parameter]:
        made = [Parameter(f"text {number}", role=f"text {number}") for number in range(count)]
        for parameter in made:
            teach(parameter, feedback)
        return made

    def client(self, script: Any = None) -> ScriptedClient:
        return ScriptedClient(self.reply if script is None else script)

    def optimizer(self, params: Sequence[Any], client: ChatClient) -> Optimizer:
        optimizer = self._make(list(params), client)
        expect(
            isinstance(optimizer, Optimizer), f"make_optimizer must return an Optimizer (got {optimizer!r})"
        )
        return optimizer


def teach(parameter: Parameter, count: int, text: str = "sample {} went wrong") -> None:
    """Give a parameter `count` gradients."""
    for number in range(count):
        parameter.append_grad(Variable(text.format(number), role=f"feedback to {parameter.role}"))


def expect(condition: bool, otherwise: str) -> None:
    """Raise an AssertionError unless `condition` holds."""
    if not condition:
        raise AssertionError(otherwise)


def _reply(request: ChatRequest) -> dict[str, Any]:
    text = json.dumps(list(request.messages), sort_keys=True, default=str)
    return {"value": f"text {hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"}


def _words(error: Exception) -> str:
    if isinstance(error, AssertionError):
        return str(error)
    first: BaseException = error
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return f"{type(first).__name__}: {first}"


def _readable(parameters: Sequence[Parameter]) -> list[Any]:
    values = [parameter.data for parameter in parameters]
    for parameter, value in zip(parameters, values, strict=True):
        expect(isinstance(value, str) and bool(value), f"a step left {parameter.role!r} with {value!r}")
        expect(parameter.is_leaf and parameter.requires_grad, f"{parameter.role!r} can't be learnt any more")
    return values


def no_feedback(bench: _Bench) -> None:
    """No sample failed: nothing changes, and no call is made."""
    parameters, client = bench.parameters(2), bench.client()
    optimizer = bench.optimizer(parameters, client)
    if not optimizer.needs_feedback:
        return
    optimizer.step().wait()
    expect(_readable(parameters) == ["text 0", "text 1"], "a step without feedback changed a value")
    expect(not client.requests, f"a step without feedback made {len(client.requests)} calls")


def feedback(bench: _Bench) -> None:
    """Every sample failed: the proposer is called, values stay texts, and feedback stays until it is cleared."""
    parameters, client = bench.parameters(2, 64), bench.client()
    optimizer = bench.optimizer(parameters, client)
    work = optimizer.step()
    work.wait()
    expect(work.done, "the step's Pending isn't done after wait()")
    _readable(parameters)
    expect(bool(client.requests), "a step with feedback made no call")
    expect([len(p.grad) for p in parameters] == [64, 64], "a step changed the gradients of its parameters")
    optimizer.clear_grad()
    expect([len(p.grad) for p in parameters] == [0, 0], "clear_grad left gradients")


def groups(bench: _Bench) -> None:
    """Parameters in groups, one without feedback and one frozen."""
    parameters, client = bench.parameters(4, 2), bench.client()
    parameters[1].clear_grad()
    parameters[2].requires_grad_(False)
    a, b, c, d = parameters
    optimizer = bench.optimizer([{"params": [a]}, {"params": [b, c, d]}], client)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    expect(sizes == [1, 3], f"groups of 1 and 3 parameters became groups of {sizes}")
    optimizer.step().wait()
    expect(c.data == "text 2", "a parameter that requires no grad was changed")
    _readable([a, b, d])


def failing(bench: _Bench) -> None:
    """A proposer that fails: only the Pending raises. Once it answers again, steps succeed."""
    parameters, down = bench.parameters(2, 2), [True]

    def script(request: ChatRequest) -> Any:
        return FinalModelError("the proposer is down", status=401) if down else bench.reply(request)

    client = bench.client(script)
    optimizer = bench.optimizer(parameters, client)
    raised: list[BaseException] = []
    try:
        optimizer.step().wait()
    except Exception as error:
        raised.append(error)
    expect(not client.requests or bool(raised), "the proposer failed and the step did not raise")
    expect(_readable(parameters) == ["text 0", "text 1"], "a failed step changed a value")
    down.clear()
    optimizer.step().wait()
    _readable(parameters)


def cancelled(bench: _Bench) -> None:
    """A step that is cancelled while it waits for the proposer keeps the values, and its calls end."""

    async def main() -> None:
        asked, ended = threading.Event(), threading.Semaphore(0)

        async def script(request: ChatRequest) -> Any:
            asked.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.release()

        parameters, client = bench.parameters(2, 2), bench.client(script)
        optimizer = bench.optimizer(parameters, client)
        try:
            async with scope(name="to be cancelled"):
                optimizer.step()
                arrived = await anyio.to_thread.run_sync(asked.wait, SECONDS)
                expect(arrived, "a step with feedback made no call")
                raise _StopTest
        except _StopTest:
            pass
        with anyio.fail_after(SECONDS):
            for parameter in parameters:
                await parameter
        for _ in client.requests:
            left = await anyio.to_thread.run_sync(lambda: ended.acquire(timeout=SECONDS))
            expect(left, "a call of a cancelled step continues")
        expect(_readable(parameters) == ["text 0", "text 1"], "a cancelled step changed a value")

    run(main())


class _StopTest(Exception):  # noqa: N818 - not an error: it ends the block
    pass


def chained(bench: _Bench) -> None:
    """Steps that are launched without waiting follow each other, even of two optimizers on one parameter."""

    async def main() -> None:
        parameters, client = bench.parameters(2, 2), bench.client()
        one, other = bench.optimizer(parameters, client), bench.optimizer(parameters[:1], client)
        with anyio.fail_after(SECONDS):
            for work in [one.step(), other.step(), one.step()]:
                await work
            for parameter in parameters:
                await parameter
        _readable(parameters)

    run(main())


def closure(bench: _Bench) -> None:
    """A closure is called once, before the step, which returns its result. An `async def` too."""
    (parameter,), calls = bench.parameters(1), list[str]()
    optimizer = bench.optimizer([parameter], bench.client())

    def plain() -> str:
        optimizer.clear_grad()
        teach(parameter, 2)
        calls.append("plain")
        return "loss"

    async def deferred() -> str:
        value = (await parameter).data
        expect(isinstance(value, str), f"an async closure reads {value!r} from the parameter")
        return plain()

    for given in (plain, deferred):
        result = optimizer.step(given).wait()
        expect(result == "loss", f"step(closure) returned {result!r} and not the closure's result")
    expect(len(calls) == 2, f"two closures were called {len(calls)} times")
    _readable([parameter])


def state(bench: _Bench) -> None:
    """A state that was saved to a file and loaded continues as the original."""
    originals, copies = bench.parameters(2, 3), bench.parameters(2)
    one = bench.optimizer(originals, bench.client())
    one.step().wait()
    file = io.BytesIO()
    save(one.state_dict(), file)
    other = bench.optimizer(copies, bench.client())
    for parameter, original in zip(copies, originals, strict=True):
        parameter.data = original.data
    file.seek(0)
    other.load_state_dict(load(file))
    for number in range(2):
        for optimizer, parameters in ((one, originals), (other, copies)):
            optimizer.clear_grad()
            for parameter in parameters:
                teach(parameter, 2, f"step {number}, sample {{}}")
            optimizer.step().wait()
        mine, theirs = _readable(originals), _readable(copies)
        expect(
            mine == theirs, f"step {number + 1} after loading gave {theirs} where the original gave {mine}"
        )
    expect(_plain(one.state_dict()) == _plain(other.state_dict()), "the states differ after the same steps")


def resume(bench: _Bench) -> None:
    """A journal gives the same values and state, with a proposer that is down."""
    histories: list[tuple[Any, str]] = []
    dead = bench.client(FinalModelError("no call must be made", status=401))
    with tempfile.TemporaryDirectory() as folder:
        for client in (bench.client(), dead):
            parameters = bench.parameters(2)
            optimizer = bench.optimizer(parameters, client)
            with journal(Path(folder) / "calls.journal"):
                for number in range(3):
                    optimizer.clear_grad()
                    for parameter in parameters:
                        teach(parameter, 2, f"step {number}, sample {{}}")
                    optimizer.step().wait()
            histories.append((_readable(parameters), _plain(optimizer.state_dict())))
    expect(not dead.requests, f"{len(dead.requests)} calls were not answered from the journal")
    (first, one), (again, other) = histories
    expect(first == again, f"the journal gave {again} where the run gave {first}")
    expect(one == other, "the states differ after a run and its replay")


def _plain(value: Any) -> str:
    """Return a state as JSON, with Variables by their values."""
    return json.dumps(value, default=lambda entry: entry.data if isinstance(entry, Variable) else repr(entry))


CHECKS: Final[dict[str, Callable[[_Bench], None]]] = {
    check.__name__: check
    for check in (no_feedback, feedback, groups, failing, cancelled, chained, closure, state, resume)
}
