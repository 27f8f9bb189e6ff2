"""State dicts: load the texts of a module by their dotted names, all or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from afnio.autodiff._variable import Variable
from afnio.cognitive._template import Parameter
from afnio.models._client import ChatClient


class Stateful(Protocol):
    """A Module, as far as its state goes."""

    def named_modules(self) -> Iterator[tuple[str, Any]]: ...


EXTRA = "_extra_state"


def load(
    module: Stateful,
    state: Mapping[str, Any],
    strict: bool,
    assign: bool,
    model_clients: Mapping[str, Any],
) -> tuple[list[str], list[str]]:
    """Load `state` into `module`, all of it or nothing; return the missing and the unexpected names."""
    own: dict[str, Variable] = {}
    owners: dict[str, Any] = {}
    wanted_extras: list[str] = []
    for prefix, part in module.named_modules():
        for name, variable in part._own_state():
            own[f"{prefix}.{name}" if prefix else name] = variable
        owners[prefix] = part
        if part.get_extra_state() is not None:
            wanted_extras.append(f"{prefix}.{EXTRA}" if prefix else EXTRA)
    extras = {name: value for name, value in state.items() if name.rpartition(".")[2] == EXTRA}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own and name not in extras]
    unexpected += [name for name in extras if name.rpartition(".")[0] not in owners]
    missing += [name for name in wanted_extras if name not in extras]
    problems = [
        problem
        for name, variable in own.items()
        if name in state
        if (problem := _misfit(name, variable, state[name]))
    ]
    problems += [
        problem for name, client in model_clients.items() if (problem := _unfit(name, client, owners))
    ]
    if strict and missing:
        problems.append(f"missing: {', '.join(missing)}")
    if strict and unexpected:
        problems.append(f"unexpected: {', '.join(unexpected)}")
    if problems:
        raise RuntimeError(f"the state dict doesn't fit {type(module).__name__}: {'; '.join(problems)}")
    values = {name: state[name].data for name in own if name in state}  # wait first: a read may fail
    for name, value in values.items():
        if assign:
            _assign(owners, name, own[name], state[name])
        else:
            own[name].data = value
            own[name].role = state[name].role or own[name].role
    for name, client in model_clients.items():
        owners[name.rpartition(".")[0]]._members["models"][name.rpartition(".")[2]] = client
    for name, extra in extras.items():
        owner = owners.get(name.rpartition(".")[0])
        if owner is not None:
            owner.set_extra_state(extra)
    return missing, unexpected


def _misfit(name: str, variable: Variable, given: Any) -> str | None:
    if not isinstance(given, Variable):
        return f"{name} must be a Variable (got {given!r})"
    (slots, batch), (new_slots, new_batch) = variable.cell(), given.cell()
    if slots[0].outcome is None if not batch else not slots:
        return None  # an empty Variable takes a value of any shape
    if batch != new_batch:
        return f"{name} is {'a batch' if batch else 'one value'} here and not in the state"
    if batch and len(slots) != len(new_slots):
        return f"{name} has {len(slots)} samples here and {len(new_slots)} in the state"
    return None


def _unfit(name: str, client: Any, owners: Mapping[str, Any]) -> str | None:
    """Return the reason why a client can't be attached under a name, None if it can."""
    if not isinstance(client, ChatClient):
        return f"model_clients[{name!r}] must be a model client (got {client!r})"
    prefix, _, last = name.rpartition(".")
    if prefix in owners and last in owners[prefix]._members["models"]:
        return None
    known = [
        f"{owner}.{own}" if owner else own
        for owner, part in owners.items()
        for own in part._members["models"]
    ]
    return f"it holds no model client {name!r} (its clients: {', '.join(known) or 'none'})"


def _assign(owners: Mapping[str, Any], name: str, variable: Variable, given: Variable) -> None:
    """Put the state's Variable in the place of the module's."""
    prefix, _, last = name.rpartition(".")
    members = owners[prefix]._members
    if last in members["parameters"] and not isinstance(given, Parameter):
        # state_dict() returns plain Variables, but optimizers only find Parameters.
        given = Parameter(given.data, given.role)
    if isinstance(given, Parameter) and isinstance(variable, Parameter):
        # Checks of values belong to the program, not to the state.
        given.max_tokens, given.validators = variable.max_tokens, variable.validators
    given.requires_grad_(variable.requires_grad)
    members["parameters" if last in members["parameters"] else "buffers"][last] = given
