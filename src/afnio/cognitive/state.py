"""State: how a Module takes a state dict, all of it or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from afnio.autodiff._variable import Variable
from afnio.cognitive.parameter import Parameter
from afnio.models._client import ChatClient

if TYPE_CHECKING:
    from afnio.cognitive.module import Module

EXTRA = "_extra_state"


def load(
    module: Module,
    state: Mapping[str, Any],
    strict: bool,
    assign: bool,
    model_clients: Mapping[str, Any],
) -> tuple[list[str], list[str]]:
    """Load `state` into `module` and return the missing and the unexpected names."""
    own: dict[str, Variable] = {}
    owners: dict[str, Module] = {}
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
    values = {name: state[name].data for name in own if name in state}  # waits before anything is changed
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
        return None  # nothing is there yet that could differ
    if batch != new_batch:
        return f"{name} is {'a batch' if batch else 'one value'} here and not in the state"
    if batch and len(slots) != len(new_slots):
        return f"{name} has {len(slots)} samples here and {len(new_slots)} in the state"
    return None


def _unfit(name: str, client: Any, owners: Mapping[str, Module]) -> str | None:
    """Return why a client can't be attached under a name, None if it can."""
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


def _assign(owners: Mapping[str, Module], name: str, variable: Variable, given: Variable) -> None:
    """Put the state's own Variable in the place of the module's; in a chat it lends its value."""
    prefix, _, last = name.rpartition(".")
    members = owners[prefix]._members if prefix in owners else {}
    for kind in ("parameters", "buffers"):
        if last in members.get(kind, ()):
            if kind == "parameters" and not isinstance(given, Parameter):
                # What state_dict() returns has lost its class, and only a Parameter is learned.
                given = Parameter(given.data, given.role)
            if isinstance(given, Parameter) and isinstance(variable, Parameter):
                # What its values must pass belongs to the program, not to the state.
                given.max_tokens, given.validators = variable.max_tokens, variable.validators
            given.requires_grad_(variable.requires_grad)
            members[kind][last] = given
            return
    variable.data = given.data
    variable.role = given.role or variable.role
