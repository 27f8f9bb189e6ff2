"""Named texts: prompts that stand in tools, docstrings, schemas and skill files.

A model reads more than its system prompt: what each tool says of itself, what a field of its reply means, how a skill
is used. Each function here gives these texts as a dict, which `afnio.optimize` takes as prompts, and puts others in
their places:

    texts.tools(TOOLS)                 {"lookup": "Find an order.", "lookup__number": "The order's number."}
    texts.tools(TOOLS, described)      the same list with the texts of `described`

Only texts change: order, types and everything else stay as they were, and what is passed in isn't modified. Names that
aren't in the list are ignored, so an agent can pass on all of its prompts (`**described`). An empty text isn't a place,
and neither is a missing one. Names are Python identifiers; two that are equal after cleaning are an error.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, MethodType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    NamedTuple,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    overload,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    ModelType = TypeVar("ModelType", bound=BaseModel)

__all__ = ["fields", "functions", "schema", "skill", "tools"]

T = TypeVar("T")
Texts: TypeAlias = Mapping[str, str]
# A name, and the keys that lead to its text.
Place: TypeAlias = tuple[str, tuple[Any, ...]]


@overload
def tools(tools: Any, changed: None = None) -> dict[str, str]: ...
@overload
def tools(tools: T, changed: Texts) -> T: ...
def tools(tools: Any, changed: Texts | None = None) -> Any:
    """Return the descriptions of tools and of their parameters by name, or the tools with other descriptions.

    A tool's description has the tool's name, a parameter's `<tool>__<parameter>`. Descriptions of parameters are
    prompts, too: leave out the names with `__` if only tools should change.

    Args:
        tools: a list of tools for OpenAI's chat completions or Responses, Anthropic or Gemini, or the result of MCP's
            `tools/list`, as JSON or as the SDK's objects.
        changed: texts by name; other names are ignored.

    Raises:
        ValueError: if there is no description, if two names are equal, or if `changed` has a parameter that its tool
            no longer has: the list has changed since the texts were made.

    >>> TOOLS = [{"type": "function", "name": "look-up", "description": "Find an order.", "parameters": {}}]
    >>> tools(TOOLS)
    {'look_up': 'Find an order.'}
    >>> tools(TOOLS, {"look_up": "Find an order by its number.", "system": "Be brief."})[0]["description"]
    'Find an order by its number.'
    """
    inside = () if _is_list(tools) else ("tools",)
    offered = _at(tools, "tools") if inside else tools
    if not _is_list(offered):
        raise TypeError(f"tools must be a list of tools, or MCP's result with one (got {_short(tools)})")
    places = [place for number, tool in enumerate(offered) for place in _in_tool(tool, (*inside, number))]
    named = _named(tools, places, "tool")
    for name in changed or ():
        tool = name.partition("__")[0]
        if tool != name and tool in named and name not in named:
            raise ValueError(
                f"tools must have the places that the texts were made for (got {name!r}, which tool {tool!r} has no "
                "text for); make the prompts anew by texts.tools"
            )
    return _read_or_put(tools, named, changed)


@overload
def functions(functions: Iterable[Callable[..., Any]], changed: None = None) -> dict[str, str]: ...
@overload
def functions(functions: Iterable[Callable[..., Any]], changed: Texts) -> list[Callable[..., Any]]: ...
def functions(functions: Iterable[Callable[..., Any]], changed: Texts | None = None) -> Any:
    """Return the docstrings of functions by the functions' names, or copies of the functions with other docstrings.

    For SDKs that make tools of functions. A copy has the same code, signature, defaults and closure. A function whose
    text isn't changed is returned as it is.

    Args:
        functions: functions or methods with docstrings.
        changed: texts by name; other names are ignored.

    Raises:
        TypeError: for something else, such as a partial.
        ValueError: if there is no docstring, or if two names are equal.

    >>> def look_up(number: int) -> str:
    ...     '''Find an order.'''
    >>> functions([look_up])
    {'look_up': 'Find an order.'}
    >>> [found] = functions([look_up], {"look_up": "Find an order by its number."})
    >>> found.__doc__, found is look_up
    ('Find an order by its number.', False)
    """
    passed = list(functions)
    for function in passed:
        if not isinstance(function, FunctionType | MethodType):
            raise TypeError(
                f"functions must be functions or methods (got {_short(function)}); wrap it in a def with a docstring"
            )
    docs = [inspect.getdoc(function) for function in passed]
    named = _named(
        docs, [(_cleaned(function.__name__), (number,)) for number, function in enumerate(passed)], "function"
    )
    if changed is None:
        return _read_or_put(docs, named, None)
    return [
        function if new == old else _documented(function, new)
        for function, old, new in zip(passed, docs, _read_or_put(docs, named, changed), strict=True)
    ]


def _documented(function: Any, text: str) -> Any:
    if isinstance(function, MethodType):
        return MethodType(_documented(function.__func__, text), function.__self__)
    made = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__annotations__ = function.__annotations__
    made.__dict__.update(function.__dict__)
    made.__module__, made.__qualname__, made.__doc__ = function.__module__, function.__qualname__, text
    return made


@overload
def schema(schema: Any, changed: None = None) -> dict[str, str]: ...
@overload
def schema(schema: T, changed: Texts) -> T: ...
def schema(schema: Any, changed: Texts | None = None) -> Any:
    """Return the descriptions in a schema of replies by name, or the schema with other descriptions.

    A field's description has the field's name, one inside of another `<outer>__<inner>`, and a shared definition its
    name in `$defs`. The description of the whole has the schema's title, or its name.

    Args:
        schema: a JSON schema, or the `response_format` (Responses: `text.format`) around one.
        changed: texts by name; other names are ignored.

    Raises:
        ValueError: if there is no description, or if two names are equal.

    >>> schema({"type": "object", "properties": {"urgency": {"type": "string", "description": "How soon?"}}})
    {'urgency': 'How soon?'}
    """
    path: tuple[Any, ...] = ()
    inner, places = schema, []
    for key in ("json_schema", "schema"):
        within = _at(inner, key)
        if isinstance(within, Mapping):
            places.append((_cleaned(str(_at(inner, "name") or "reply")), (*path, "description")))
            inner, path = within, (*path, key)
    title = _cleaned(str(_at(inner, "title") or _at(_at(schema, "json_schema"), "name") or "reply"))
    # The schema of a model that contains itself is a reference to one of its definitions.
    whole = f"{_cleaned(str(_at(inner, '$ref') or '').rpartition('/')[2])}__"
    places += [(name.removeprefix(whole), place) for name, place in _in_schema(inner, "", title, path)]
    return _read_or_put(schema, _named(schema, places, "field"), changed)


@overload
def fields(model: type[BaseModel], changed: None = None) -> dict[str, str]: ...
@overload
def fields(model: type[ModelType], changed: Texts) -> type[ModelType]: ...
def fields(model: Any, changed: Texts | None = None) -> Any:
    """Return the descriptions of a pydantic model's fields by name, or a subclass with other descriptions.

    The fields of `model` have their own names, those of a model inside of it `<Model>__<field>`, and the docstring of a
    class has the class's name: as in its JSON schema. The subclass has the same name, validators and JSON schema
    but for the texts, also if models contain each other, and its instances are instances of `model`.

    Args:
        model: a subclass of pydantic's `BaseModel`.
        changed: texts by name; other names are ignored.

    Raises:
        TypeError: for something else.
        ValueError: if there is no description, or if two names are equal.

    >>> from pydantic import BaseModel, Field
    >>> class Ticket(BaseModel):
    ...     urgency: str = Field(description="How soon?")
    >>> fields(Ticket)
    {'urgency': 'How soon?'}
    >>> fields(Ticket, {"urgency": "low, medium or high"}).model_fields["urgency"].description
    'low, medium or high'
    """
    from pydantic import BaseModel

    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError(f"model must be a subclass of pydantic.BaseModel (got {_short(model)})")
    models: dict[Any, None] = {}
    _gather(model, models)
    values: dict[Any, str | None] = {}
    places: list[Place] = []
    for one in models:
        name = _cleaned(one.__name__)
        values[one, None] = (
            None if one.__doc__ == BaseModel.__doc__ else one.__doc__ and inspect.cleandoc(one.__doc__)
        )
        places.append((name, ((one, None),)))
        for field, info in one.model_fields.items():
            values[one, field] = info.description
            places.append(
                (_cleaned(field) if one is model else f"{name}__{_cleaned(field)}", ((one, field),))
            )
    named = _named(values, places, "field")
    put = _read_or_put(values, named, changed)
    if changed is None or put == values:
        return put if changed is None else model
    copies = {one: type(one)(one.__name__, (one,), _namespace(one, put[one, None])) for one in models}
    for one, made in copies.items():
        for field, info in made.model_fields.items():
            info.description = put[one, field]
            info.annotation = _replaced(info.annotation, copies)
    for made in copies.values():
        made.model_rebuild(force=True)
    return copies[model]


def _namespace(model: Any, doc: str | None) -> dict[str, Any]:
    # Built below, once all of them have their texts: models that contain each other are built of each other's parts.
    named = {"__module__": model.__module__, "__qualname__": model.__qualname__, "__doc__": doc}
    return {**named, "model_config": {"defer_build": True}}


def _gather(kind: Any, models: dict[Any, None]) -> None:
    """Add the models in a type to `models`, each once, however they contain each other."""
    from pydantic import BaseModel

    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind not in models:
            models[kind] = None
            kind.model_rebuild()
            for info in kind.model_fields.values():
                _gather(info.annotation, models)
        return
    for inner in get_args(kind):
        _gather(inner, models)


def _replaced(kind: Any, copies: Mapping[Any, Any]) -> Any:
    """Return a type with its models replaced by their copies."""
    if isinstance(kind, type) and kind in copies:
        return copies[kind]
    if isinstance(kind, list):  # the arguments of a Callable
        return [_replaced(inner, copies) for inner in kind]
    old = get_args(kind)
    new = tuple(_replaced(inner, copies) for inner in old)
    if new == old:
        return kind
    if isinstance(kind, UnionType):
        return Union[new]  # noqa: UP007 - made of values
    if hasattr(kind, "__metadata__"):
        return get_origin(kind)[new]
    return kind.copy_with(new) if hasattr(kind, "copy_with") else get_origin(kind)[new]


# Files of coding agents


@overload
def skill(path: str | os.PathLike[str], changed: None = None) -> dict[str, str]: ...
@overload
def skill(path: str | os.PathLike[str], changed: Texts) -> str: ...
def skill(path: str | os.PathLike[str], changed: Texts | None = None) -> Any:
    """Return the texts of a SKILL.md or an AGENTS.md by name, or the file's text with others in their places.

    With a head in YAML, as a skill has it, the description there has the skill's name, and the text below it is
    `<name>__body`. Without one the whole text has the file's name, such as "AGENTS". Blank lines around the text stay.

    Args:
        path: the file; it isn't written. Write the text with `newline=""`, so that its line ends stay as they are.
        changed: texts by name; other names are ignored.

    Raises:
        ValueError: if the file isn't UTF-8, has no text, or describes itself by YAML other than a plain, quoted or
            folded text.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            whole = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8 (got {error}); save it as UTF-8") from None
    head = _HEAD.match(whole)
    parts: list[str | None] = [None, whole.strip()]
    name = _cleaned(Path(path).stem)
    described = None
    if head is not None:
        called = _called(head[0], "name", str(path))
        name = _cleaned(called.text if called else Path(path).resolve().parent.name)
        described = _called(head[0], "description", str(path))
        parts = [described and described.text, whole[head.end() :].strip()]
    places = [(name, (0,)), (name if head is None else f"{name}__body", (1,))]
    named = _named(parts, [place for place in places if parts[place[1][0]]], "file")
    if changed is None:
        return _read_or_put(parts, named, None)
    new = _read_or_put(parts, named, changed)
    begin = 0 if head is None else head.end()
    if new[1] != parts[1]:
        start = begin + len(whole[begin:]) - len(whole[begin:].lstrip())
        whole = whole[:start] + new[1] + whole[start + len(parts[1] or "") :]
    if described is not None and new[0] != parts[0]:
        whole = whole[: described.start] + _quoted(new[0]) + whole[described.end :]
    return whole


_HEAD: Final = re.compile(r"\ufeff?---[ \t]*\r?\n(?:.*\r?\n)*?---[ \t]*(?:\r?\n|\Z)")
_FOLD: Final = re.compile(r"[ \t]*\r?\n((?:[ \t]*\r?\n)*)[ \t]*")


class _Scalar(NamedTuple):
    text: str
    start: int
    end: int


def _called(head: str, key: str, path: str) -> _Scalar | None:
    """Return the value of a key of a YAML head, and where it stands; without a library, for texts alone."""
    match = re.search(
        rf"^{key}[ \t]*:(?:[ \t]+|(?=\r?$))(.*(?:\r?\n(?:[ \t]+.*|(?=[ \t]*\r?\n)))*)", head, re.MULTILINE
    )
    if match is None:
        return None
    start, raw = match.start(1), match[1]
    block = re.match(r"([|>])([+-]?)([1-9]?)([+-]?)[ \t]*(?:#.*)?\r?\n", raw)
    if block is not None:
        text = _block(raw[block.end() :], block[1] == ">", block[2] or block[4], block[3])
        return _Scalar(text, start, start + len(raw.rstrip()))
    start, raw = start + len(raw) - len(raw.lstrip()), raw.lstrip()  # it may begin on the next line
    quoted = re.match(r"'(?:[^']|'')*'|\"(?:[^\"\\]|\\[\s\S])*\"", raw)
    if quoted is not None:
        folded = _FOLD.sub(lambda m: "\n" * m[1].count("\n") or " ", quoted[0][1:-1])
        if raw[0] == "'":
            return _Scalar(folded.replace("''", "'"), start, start + quoted.end())
        try:
            return _Scalar(json.loads(f'"{folded}"', strict=False), start, start + quoted.end())
        except ValueError:
            raise _unread(path, key, raw) from None
    plain = re.split(r"[ \t]+#|(?:^|\n)[ \t]*#", raw.rstrip(), maxsplit=1)[0].rstrip()
    if plain[:1] in "&*!{}[]%@`|>,?'\"" and plain:
        raise _unread(path, key, raw)
    return _Scalar(_FOLD.sub(lambda m: "\n" * m[1].count("\n") or " ", plain), start, start + len(plain))


def _block(raw: str, folded: bool, chomp: str, digit: str) -> str:
    """Return the text of a block scalar, `|` or `>`."""
    lines = raw.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    width = (
        int(digit) if digit else next((len(one) - len(one.lstrip(" ")) for one in lines if one.strip()), 0)
    )
    cut = [one[width:] for one in lines]
    while cut and not cut[-1].strip():
        cut.pop()
    text = ""
    for number, line in enumerate(cut):
        loose = not folded or not line or line[0] in " \t"  # kept as it is
        text += line
        if number + 1 < len(cut):
            after = cut[number + 1]
            if loose or after[:1] in {" ", "\t"}:
                text += "\n"
            elif after:
                text += " "
    return text if chomp == "-" or not text else f"{text}\n"


def _unread(path: str, key: str, raw: str) -> ValueError:
    return ValueError(
        f"{path} must have a plain, quoted or folded text as its {key} (got {_short(raw)}); write it in quotes"
    )


def _quoted(text: str) -> str:
    """Return a text in YAML's double quotes."""
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub(
        r"[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]", lambda m: f"\\u{ord(m[0]):04x}", quoted
    )


# Places


_PARAMETERS: Final = (
    "parameters", "input_schema", "inputSchema", "parametersJsonSchema", "parameters_json_schema",
)  # fmt: skip
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "defs")
_LISTED: Final = ("anyOf", "any_of", "oneOf", "allOf", "prefixItems", "prefix_items")
_SINGLE: Final = ("items", "additionalProperties", "additional_properties")


def _in_tool(tool: Any, path: tuple[Any, ...]) -> Iterator[Place]:
    for key in ("functionDeclarations", "function_declarations"):
        declared = _at(tool, key)
        if _is_list(declared):
            for number, one in enumerate(declared):
                yield from _in_tool(one, (*path, key, number))
            return
    for key in ("function", "custom"):
        if _at(_at(tool, key), "name") is not None:
            tool, path = _at(tool, key), (*path, key)
    name = _at(tool, "name")
    if not isinstance(name, str):
        return  # a tool of the provider's own, such as a web search
    yield _cleaned(name), (*path, "description")
    for key in _PARAMETERS:
        yield from _below(_at(tool, key), f"{_cleaned(name)}__", _cleaned(name), (*path, key))


def _in_schema(
    schema: Any, prefix: str, own: str, path: tuple[Any, ...], around: tuple[Any, ...] = ()
) -> Iterator[Place]:
    if isinstance(_at(schema, "description"), str):
        yield own, (*path, "description")
    yield from _below(schema, prefix, own, path, around)


def _below(
    schema: Any, prefix: str, own: str, path: tuple[Any, ...], around: tuple[Any, ...] = ()
) -> Iterator[Place]:
    if schema is None or isinstance(schema, str | int) or any(schema is one for one in around):
        return  # the last for one that contains itself, as a Python object can
    around = (*around, schema)
    for key in _NAMED:
        group = _at(schema, key)
        for name, inner in group.items() if isinstance(group, Mapping) else ():
            called = prefix + _cleaned(str(name))
            yield from _in_schema(inner, f"{called}__", called, (*path, key, name), around)
    for key in _LISTED:
        group = _at(schema, key)
        for number, inner in enumerate(group) if _is_list(group) else ():
            yield from _in_schema(inner, prefix, f"{own}__{number + 1}", (*path, key, number), around)
    for key in _SINGLE:
        yield from _in_schema(_at(schema, key), prefix, f"{own}__items", (*path, key), around)


def _named(value: Any, places: Iterable[Place], kind: str) -> dict[str, tuple[Any, ...]]:
    """Return the places that have a text, by name."""
    named: dict[str, tuple[Any, ...]] = {}
    count = 0
    for name, path in places:
        count += 1
        text = _get(value, path)
        if not isinstance(text, str) or not text.strip():
            continue
        if name in named:
            raise ValueError(
                f"names must differ once they are cleaned to letters, digits and _ (got {name!r} for two texts: "
                f"{_short(_get(value, named[name]))} and {_short(text)}); rename one"
            )
        named[name] = path
    if not named:
        raise ValueError(f"a {kind} must have a text to begin with (got none in {count} places); write one")
    return named


def _read_or_put(value: Any, named: Mapping[str, tuple[Any, ...]], changed: Texts | None) -> Any:
    if changed is None:
        return {name: _get(value, path) for name, path in named.items()}
    if not isinstance(changed, Mapping):
        raise TypeError(f"changed must be texts by name (got {_short(changed)})")
    for name, path in named.items():
        text = changed.get(name, None)
        if text is None:
            continue
        if not isinstance(text, str):
            raise TypeError(f"changed must be texts by name (got {_short(text)} for {name!r})")
        if text != _get(value, path):
            value = _with(value, path, text)
    return value


def _at(value: Any, key: Any) -> Any:
    """Return an entry of a dict or a list, or an attribute of an SDK's object; None without one."""
    if isinstance(value, Mapping):
        return value.get(key)
    if _is_list(value):
        return value[key] if isinstance(key, int) else None
    return getattr(value, key, None) if isinstance(key, str) and key.isidentifier() else None


def _get(value: Any, path: Sequence[Any]) -> Any:
    for key in path:
        value = _at(value, key)
    return value


def _with(value: Any, path: Sequence[Any], text: str) -> Any:
    """Return `value` with another text; what lies on the way to it is copied, everything else is shared."""
    if not path:
        return text
    new = _with(_at(value, path[0]), path[1:], text)
    if isinstance(value, tuple):
        return (*value[: path[0]], new, *value[path[0] + 1 :])
    made = copy.copy(value)
    if isinstance(made, Mapping | list):
        made[path[0]] = new  # type: ignore[index]
    else:
        setattr(made, path[0], new)
    return made


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _cleaned(name: str) -> str:
    """Return a name as a Python identifier."""
    cleaned = re.sub(r"\W", "_", name)
    return cleaned if cleaned.isidentifier() else f"_{cleaned}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
