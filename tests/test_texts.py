"""Named texts come back into tools, functions, models, schemas and skills, and nothing but the text changes."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model

import afnio
from afnio import texts

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where."},
        "when": {
            "type": "object",
            "description": "When.",
            "properties": {
                "day": {"type": "string", "description": "A date."},
                "description": {"type": "string"},
            },
        },
        "tags": {
            "type": "array",
            "items": {"anyOf": [{"type": "string", "description": "A word."}, {"type": "null"}]},
        },
    },
    "required": ["city"],
}
INNER = {"city": "Where.", "when": "When.", "when__day": "A date.", "tags__items__1": "A word."}
FORMS: dict[str, Any] = {
    "chat": [
        {
            "type": "function",
            "function": {"name": "look-up", "description": "Find.", "parameters": PARAMETERS},
        }
    ],
    "responses": [
        {"type": "web_search"},
        {
            "type": "function",
            "name": "look-up",
            "description": "Find.",
            "parameters": PARAMETERS,
            "strict": True,
        },
    ],
    "custom": [
        {"type": "custom", "custom": {"name": "look-up", "description": "Find.", "parameters": PARAMETERS}}
    ],
    "anthropic": [
        {"type": "bash_20250124", "name": "bash"},
        {"name": "look-up", "description": "Find.", "input_schema": PARAMETERS},
    ],
    "gemini": [
        {"google_search": {}},
        {"functionDeclarations": [{"name": "look-up", "description": "Find.", "parameters": PARAMETERS}]},
    ],
    "mcp": {"tools": [{"name": "look-up", "title": "Up", "description": "Find.", "inputSchema": PARAMETERS}]},
}
SOME = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@pytest.mark.parametrize("form", FORMS)
@given(st.lists(SOME, min_size=5, max_size=5))
def test_tools_of_each_api_come_back_byte_equal_but_for_the_text(form: str, new: list[str]) -> None:
    """And what was passed in isn't modified."""
    before = json.dumps(FORMS[form])
    named = texts.tools(FORMS[form])
    assert named == {"look_up": "Find.", **{f"look_up__{name}": text for name, text in INNER.items()}}
    changed = dict(zip(named, new, strict=True))
    there = texts.tools(FORMS[form], {**changed, "system": "of the agent"})
    assert texts.tools(there) == changed
    assert json.dumps(texts.tools(there, named)) == json.dumps(FORMS[form]) == before


def test_tools_as_an_sdks_objects() -> None:
    """As MCP's, whose schemas are dicts: copies, of the same class."""
    tool = create_model("Tool", name=(str, ...), description=(str, ...), inputSchema=(dict[str, Any], ...))
    result = create_model("ListToolsResult", tools=(list[tool], ...))  # type: ignore[valid-type]
    given = result(tools=[tool(name="find", description="Find.", inputSchema=PARAMETERS)])
    before = given.model_dump_json()
    changed = texts.tools(given, {"find": "Seek.", "find__city": "A town."})
    assert type(changed) is result
    assert (changed.tools[0].description, texts.tools(changed)["find__city"]) == ("Seek.", "A town.")
    assert given.model_dump_json() == texts.tools(changed, texts.tools(given)).model_dump_json() == before


def named_tool(name: str, text: Any = "A tool.") -> dict[str, Any]:
    return {
        "name": name,
        "description": text,
        "input_schema": {"properties": {"city": {"description": "Where."}}},
    }


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: texts.tools([named_tool("a-b"), named_tool("a_b")]),
            "got 'a_b' for two texts: 'A tool.' and 'A tool",
        ),
        (
            lambda: texts.tools([{"name": "bare"}]),
            "a tool must have a text to begin with (got none in 1 places)",
        ),
        (
            lambda: texts.tools("search"),
            "tools must be a list of tools, or MCP's result with one (got 'search')",
        ),
        (
            lambda: texts.tools([named_tool("a")], {"a__town": "t"}),
            "got 'a__town', which tool 'a' has no text for",
        ),
        (lambda: texts.tools([named_tool("a")], {"a": 3}), "changed must be texts by name (got 3 for 'a')"),
        (lambda: texts.tools([named_tool("a")], ["a"]), "changed must be texts by name (got ['a'])"),
        (
            lambda: texts.functions([print]),
            "functions must be functions or methods (got <built-in function print>)",
        ),
        (lambda: texts.fields(dict), "model must be a subclass of pydantic.BaseModel (got <class 'dict'>)"),
        (lambda: texts.schema({"type": "object"}), "a field must have a text to begin with"),
    ],
)
def test_what_has_no_texts_or_no_distinct_names_is_an_error(call: Any, said: str) -> None:
    """In one sentence, before anything is paid."""
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert said in str(raised.value)


def test_a_schema_that_contains_itself_ends() -> None:
    """JSON can't, a dict of Python's can."""
    schema: dict[str, Any] = {"properties": {"a": {"description": "A."}}}
    schema["items"] = schema["properties"]["a"]["items"] = schema
    assert texts.schema(schema) == {"a": "A."}


async def seek(number: int, *, place: str = "here") -> str:
    """Find an order.

    Slowly.
    """
    return f"{number} {place}"


class Desk:
    def ask(self, number: int) -> str:
        """Ask the desk."""
        return f"{number} {type(self).__name__}"


def test_functions_are_copied_with_other_docstrings() -> None:
    """With signature, defaults and self; a function whose text stays is the same one."""
    ask = Desk().ask
    assert texts.functions([seek, ask]) == {"seek": "Find an order.\n\nSlowly.", "ask": "Ask the desk."}
    assert texts.functions([seek, ask], {"other": "x"}) == [seek, ask]
    made, asked = texts.functions([seek, ask], {"seek": "Seek.", "ask": "Ask."})
    assert (made.__doc__, asked.__doc__, ask.__doc__) == ("Seek.", "Ask.", "Ask the desk.")
    assert (made.__name__, inspect.signature(made)) == ("seek", inspect.signature(seek))
    assert (asyncio.run(made(3)), asked(4)) == ("3 here", "4 Desk")


class Address(BaseModel):
    """Where somebody lives."""

    street: str = Field(description="With number.")


class Person(BaseModel):
    """A person.

    Or a company.
    """

    name: Annotated[str, Field(description="In full.", max_length=50)]
    friends: list[Person] | None = Field(None, description="Others.")
    address: Address | None = None
    known: dict[str, Address] = Field(default_factory=dict, description="By name.")
    kind: Literal["a", "b"] = "a"


class Left(BaseModel):
    right: Right | None = Field(None, description="Right.")


class Right(BaseModel):
    lefts: list[Left] = Field(description="Lefts.")


@pytest.mark.parametrize("model", [Person, Left, Address])
@given(st.lists(SOME, min_size=6, max_size=6))
@example(["x"] * 6)
def test_fields_of_a_model_that_contains_itself(model: type[BaseModel], new: list[str]) -> None:
    """The JSON schema is equal but for the text, and it has the same names."""
    before = json.dumps(model.model_json_schema())
    named = texts.fields(model)
    assert texts.schema(model.model_json_schema()) == named
    changed = {name: inspect.cleandoc(text) or "y" for name, text in zip(named, new, strict=False)}
    made = texts.fields(model, changed)
    assert texts.fields(made) == changed
    assert made.__name__ == model.__name__
    assert json.dumps(texts.schema(made.model_json_schema(), named)) == before
    assert json.dumps(texts.fields(made, named).model_json_schema()) == before
    assert json.dumps(model.model_json_schema()) == before


def test_instances_of_a_changed_model_are_instances_of_the_model() -> None:
    """All the way down, and validated as before."""
    made = texts.fields(Person, {"name": "Short.", "Address__street": "Without."})
    found = made.model_validate({"name": "A", "friends": [{"name": "B", "address": {"street": "s"}}]})
    assert isinstance(found, Person)
    assert isinstance(found.friends[0].address, Address)
    with pytest.raises(ValueError, match="at most 50 characters"):
        made(name="A" * 51)
    assert texts.fields(Person, {"other": "x"}) is Person


def test_a_response_format_comes_back_around_its_schema() -> None:
    """OpenAI's chat, Responses and Anthropic's."""
    schema = Address.model_json_schema()
    for form in (
        {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": schema}},
        {"type": "json_schema", "name": "place", "schema": schema},
        {"type": "json_schema", "schema": schema},
    ):
        assert texts.schema(form) == {"Address": "Where somebody lives.", "street": "With number."}
        changed = texts.schema(form, {"street": "Only a number."})
        assert texts.schema(changed)["street"] == "Only a number."
        assert json.dumps(texts.schema(changed, {"street": "With number."})) == json.dumps(form)


# Skills

HEADS = {
    "plain": ("description: Reads:files, x#y # not this\r\n", "Reads:files, x#y"),
    "lines": ("description: Reads\n  PDF files\n\n  slowly.\n", "Reads PDF files\nslowly."),
    "single": ("description: 'It''s\n  two' # why\n", "It's two"),
    "double": ('description: "a \\"b\\"\\n\\u00e9"\n', 'a "b"\né'),
    "folded": ("description: >-\n  Reads\n  files.\n\n  All:\n    - one\n    - two\n  of them.\n", None),
    "literal": ("description: |\n  Reads\n   files.\n\n", None),
    "kept": ("description: >+\n  Reads\n  files.\n", None),
    "after": ("description:\n  Reads\n  files.\n", None),
}


@pytest.mark.parametrize("kind", HEADS)
@given(SOME, SOME)
@example("quote \" colon: # 'x' \\ é \u2028\x85", "y")
def test_a_skill_comes_back_byte_equal_but_for_the_text(
    tmp_path_factory: pytest.TempPathFactory, kind: str, description: str, body: str
) -> None:
    """A YAML reader reads what we read and write; comments, other keys and mixed line ends stay."""
    head, said = HEADS[kind]
    whole = f"---\nname: pdf-files # its name\n{head}license: MIT\r\n---\r\n\n# PDF\r\n\nDo this.\n \n"
    path = tmp_path_factory.mktemp("skill") / "SKILL.md"
    path.write_bytes(whole.encode())
    named = texts.skill(path)
    read = yaml.safe_load(whole.split("---")[1])
    assert named == {"pdf_files": said or read["description"], "pdf_files__body": "# PDF\r\n\nDo this."}
    assert named["pdf_files"] == read["description"]
    assert texts.skill(path, named) == whole
    body = body.strip()
    changed = texts.skill(path, {"pdf_files": description, "pdf_files__body": body})
    path.write_bytes(changed.encode())
    assert yaml.safe_load(changed.split("\n---\r\n")[0][4:]) == {**read, "description": description}
    assert texts.skill(path)["pdf_files__body"] == body
    back = texts.skill(path, {"pdf_files__body": named["pdf_files__body"]})
    assert back.partition("license")[2] == whole.partition("license")[2]


def test_a_file_without_a_head_is_one_text(tmp_path: Path) -> None:
    """As AGENTS.md; a head of another kind of YAML, or of other bytes, is an error that names the file."""
    path = tmp_path / "AGENTS.md"
    path.write_text("\n# Rules\n\nBe brief.\n")
    assert texts.skill(path) == {"AGENTS": "# Rules\n\nBe brief."}
    assert texts.skill(path, {"AGENTS": "Be long."}) == "\nBe long.\n"
    path.write_text("---\ndescription: [a, b]\n---\nx")
    with pytest.raises(ValueError, match="must have a plain, quoted or folded text as its description"):
        texts.skill(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"AGENTS\.md must be UTF-8"):
        texts.skill(path)


async def test_a_tool_may_have_the_name_of_a_module_s_method() -> None:
    """Its text is a prompt like others, and the agent's method stays one."""
    names = ["train", "eval", "forward", "parameters", "state_dict", "fn"]
    described = texts.tools([{"name": name, "description": f"The tool {name}."} for name in names])

    async def agent(message: str, **tools: str) -> str:
        return message + tools["train"]

    made = afnio.cognitive.Agent(agent, prompts=described)
    assert [name for name, _ in made.named_parameters()] == names
    assert (await made.train()("Go: ")).data == "Go: The tool train."
    other = copy.deepcopy(made)
    dict(other.named_parameters())["train"].data = "Another."
    assert (await other("Go: ")).data == "Go: Another."
    made.load_state_dict(other.state_dict())
    assert (await made("Go: ")).data == "Go: Another."
