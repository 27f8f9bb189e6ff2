"""Summary: an agent at a glance: its modules, what it learns, whom it asks and for how much."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from afnio.cognitive._module import Module
from afnio.models._client import CHARACTERS_PER_TOKEN, ChatClient, ChatModel
from afnio.models._prices import price_of
from afnio.optim._optimizer import Optimizer
from afnio.runtime._limits import Limits, given_limits
from afnio.runtime._spending import Price

WIDTH: Final = 110
"""Columns of the text, where the terminal has no fewer."""


@final
@dataclass(frozen=True, slots=True)
class TextRow:
    """A Parameter, or a Variable that is kept beside the parameters.

    Attributes:
        tokens: about how many it has, at four characters each; None while its value is pending.
        learned: whether feedback is gathered for it.
        kind: Parameter or buffer.
    """

    name: str
    kind: str
    role: str
    tokens: int | None
    learned: bool


@final
@dataclass(frozen=True, slots=True)
class Node:
    """A module, its texts and its children."""

    name: str
    kind: str
    texts: Sequence[TextRow]
    children: Sequence[Node]

    def all_texts(self) -> Iterator[TextRow]:
        yield from self.texts
        for child in self.children:
            yield from child.all_texts()


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A client, what it is for, and what is known of its model.

    Attributes:
        model: None where it is named at each call.
        limits: those that were given for the account.
        price: None where nobody says.
    """

    used_for: str
    client: str
    url: str
    model: str | None
    limits: Limits | None
    price: Price | None


@final
@dataclass(frozen=True, slots=True)
class AgentSummary:
    """The summary of an agent; `str()` of it is a text; rich can print it, too.

    >>> import afnio.cognitive as cog
    >>> agent = cog.Module()
    >>> agent.task = cog.Parameter("Be brief and kind.", role="system prompt")
    >>> print(str(AgentSummary.of(agent)).splitlines()[1].rstrip())
    └── task  Parameter  4 tokens  learned  system prompt
    """

    root: Node
    clients: Sequence[Asked]

    @classmethod
    def of(cls, agent: Module, optimizers: Sequence[Optimizer] = ()) -> AgentSummary:
        """Return the summary of `agent`, of the backward model and of the optimizers' models.

        It waits for nothing. Prices are looked up, which reads a file or imports a package the first time.
        """
        seen: set[int] = set()
        return cls(_node("", agent, seen), [_asked(*found) for found in _clients(agent, optimizers)])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield self._tree(Tree(Text(self.root.kind, "bold")), self.root)
        yield Text(self._total())
        if self.clients:
            yield self._table()

    def __str__(self) -> str:
        text = io.StringIO()
        columns = shutil.get_terminal_size((WIDTH, 24)).columns
        Console(file=text, width=min(columns, WIDTH), color_system=None, highlight=False).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _tree(self, tree: Tree, node: Node) -> Tree:
        for text in node.texts:
            tokens = "pending" if text.tokens is None else f"{text.tokens:,} tokens"
            kept = "learned" if text.learned else "kept"
            tree.add(
                Text("  ".join(part for part in (text.name, text.kind, tokens, kept, text.role) if part))
            )
        for child in node.children:
            self._tree(tree.add(Text(f"{child.name}  {child.kind}")), child)
        return tree

    def _total(self) -> str:
        parameters = [text for text in self.root.all_texts() if text.kind == "Parameter"]
        learned = [text for text in parameters if text.learned]
        tokens = sum(text.tokens or 0 for text in parameters)
        count = "1 parameter" if len(parameters) == 1 else f"{len(parameters):,} parameters"
        return (
            f"{count}, {len(learned):,} learned, {tokens:,} tokens in all "
            f"(at {CHARACTERS_PER_TOKEN} characters each)"
        )

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for heading in ("asked for", "client", "model", "limits", "$/M in, out"):
            table.add_column(heading, overflow="fold")
        for asked in self.clients:
            price = "unknown" if asked.price is None else f"{asked.price.input}, {asked.price.output}"
            table.add_row(
                asked.used_for,
                f"{asked.client} {asked.url}",
                asked.model or "at each call",
                _limits(asked.limits),
                "" if asked.model is None else price,
            )
        return table


def _node(name: str, module: Module, seen: set[int]) -> Node:
    texts = []
    for kind, named in (("Parameter", module.named_parameters), ("buffer", module.named_buffers)):
        for own, variable in named(recurse=False):
            if id(variable) not in seen:
                seen.add(id(variable))
                learned = kind == "Parameter" and variable.requires_grad
                texts.append(TextRow(own, kind, variable.role, _tokens(variable), learned))
    children = [_node(own, child, seen) for own, child in module.named_children()]
    return Node(name, type(module).__name__, texts, children)


def _tokens(variable: Any) -> int | None:
    if variable.pending:
        return None
    value = variable.data
    values = value if isinstance(value, list) else [value]
    return sum(len(str(one)) for one in values if one is not None) // CHARACTERS_PER_TOKEN


def _clients(agent: Module, optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, ChatClient, str | None]]:
    """Yield clients with what they are for and their model: the agent's, who criticizes, who rewrites."""
    models = {
        name: config["model"] for name, config in agent.named_completion_configs() if config.get("model")
    }
    # One model for all calls of the agent can't be told from the configurations of several.
    only = next(iter(models.values())) if len(set(models.values())) == 1 else None
    for name, client in agent.named_models():
        yield name, client, only
    backward = _backward_model()
    if backward is not None:
        yield "backward", backward.client, backward.completion_args.get("model")
    told: set[tuple[int, Any]] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            asked = group.get("model_client")
            model = (group.get("completion_args") or {}).get("model")
            if isinstance(asked, ChatClient) and (id(asked), model) not in told:
                told.add((id(asked), model))
                yield type(optimizer).__name__, asked, model


def _backward_model() -> ChatModel | None:
    from afnio.models._backward_model import get_backward_model_client

    try:
        return get_backward_model_client()
    except RuntimeError:  # none has been set
        return None


def _asked(used_for: str, client: ChatClient, model: str | None) -> Asked:
    account = client.account
    price = None if model is None else price_of(model, account.url)
    return Asked(used_for, client.provider, account.url, model, given_limits(account), price)


def _limits(limits: Limits | None) -> str:
    if limits is None:
        return "learnt"
    parts = (
        (limits.max_in_flight, "in flight"),
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
    )
    return ", ".join(f"{value:,} {unit}" for value, unit in parts if value is not None) or "learnt"
