"""Files of Afnio: a state as JSON, in a zip. `save`, `load`, agents, and the trainer's checkpoints.

`torch.save` pickles, and opening a pickle runs any code that someone put into it. Prompts and optimizer states are
texts and numbers, so JSON holds them, and opening it runs nothing:

1. `encoded` turns Variables, tuples and dicts with odd keys into JSON with marks such as `"__variable__"`; `decoded`
   turns them back.
2. `packed` writes named JSON documents into a zip. No time is noted, so equal states have equal bytes, and any unzip
   shows the contents.
3. `replace` writes the file under a temporary name and renames it. After a crash at any point the old file or the new
   one is there, never half of one. Only the user can read it, because prompts and feedback may be private.

A state is one document, "state". An agent is a state with the name of its class, in "agent". A checkpoint has one
document for each part of a training run (`documents_of`, `fields_of`), with digests of the parts that nothing else
would check after an edit.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import json
import os
import re
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from afnio.autodiff._variable import Variable
from afnio.cognitive._members import Members
from afnio.cognitive._template import Parameter
from afnio.errors import CheckpointError

STATE_FORMAT: Final = 1
_DOCUMENT: Final = "state"
_VARIABLE: Final = "__variable__"
_TUPLE: Final = "__tuple__"
_PAIRS: Final = "__pairs__"


def save(obj: Any, f: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write a state dict, or any structure of Variables, dicts, lists, tuples and plain values. Waits for Variables.

    A file at a path is replaced atomically, and only the user can read it.

    Args:
        f: a path, or a binary file that is open for writing.

    Raises:
        TypeError: for a value that JSON can't represent.
        OSError: if the file can't be written.

    >>> import io
    >>> file = io.BytesIO()
    >>> save({"prompt": Variable("Be brief.", role="prompt")}, file)
    >>> load(file)["prompt"].data
    'Be brief.'
    """
    content = packed({_DOCUMENT: {"format": STATE_FORMAT, "state": encoded(obj)}})
    if isinstance(f, str | os.PathLike):
        replace(Path(f), content)
    else:
        f.write(content)


def load(f: str | os.PathLike[str] | IO[bytes]) -> Any:
    """Read a file that `save` wrote, or a trainer's checkpoint. Unlike unpickling, this never runs code from the file.

    A checkpoint becomes a dict with "agent_state_dict", "optimizer_state_dict" (a list if the agent has several
    optimizers), "epoch", "metrics" and the other fields of `Checkpoint`.

    Args:
        f: a path, or a binary file that is open for reading.

    Raises:
        ValueError: if the file is damaged, of a newer format, or something else, such as a pickle.
        OSError: if the file can't be read.
    """
    name, content = _content(f)
    try:
        documents = unpacked(content)
    except ValueError as error:
        raise _foreign(name, error) from error
    if _DOCUMENT in documents:
        return _state(name, documents[_DOCUMENT])
    if "versions" not in documents:
        raise _foreign(name, f"it holds {', '.join(documents)}")
    return as_state(fields_of(name, documents))


def _content(f: str | os.PathLike[str] | IO[bytes]) -> tuple[str, bytes]:
    if isinstance(f, str | os.PathLike):
        return str(f), Path(f).read_bytes()
    if f.seekable():
        f.seek(0)  # after writing, the position is at the end
    return str(getattr(f, "name", "the file")), f.read()


def _state(name: str, document: Any) -> Any:
    version = document.get("format") if isinstance(document, dict) else None
    if version != STATE_FORMAT:
        raise ValueError(f"{name} must have format {STATE_FORMAT} (got {version!r}); update Afnio to open it")
    try:
        return decoded(document["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(name, error) from error


def _foreign(name: str, error: object) -> ValueError:
    return ValueError(
        f"{name} must be an undamaged file that afnio.save wrote ({error}); pickles are not opened"
    )


# Agents

_AGENT: Final = "agent"
_IMPORTABLE: Final = re.compile(r"\w+(\.\w+)*")


def save_agent(agent: Any, path: str | os.PathLike[str]) -> None:
    """Write a module's state with the name of its class."""
    kind = type(agent)
    if "<locals>" in kind.__qualname__:
        raise TypeError(
            f"the class of an agent must be at the top of its module, so that it can be imported (got "
            f"{kind.__qualname__}); move it out of the function, or save its state_dict()"
        )
    state = {"format": STATE_FORMAT, "state": encoded(agent.state_dict())}
    replace(Path(path), packed({_DOCUMENT: state, _AGENT: [kind.__module__, kind.__qualname__]}))


def load_agent(path: str | os.PathLike[str], /, *args: Any, **kwargs: Any) -> Any:
    """Return the agent that `Module.save` wrote, in evaluation mode, ready to call.

    It imports the agent's class, makes the module as `Class(*args, **kwargs)`, and loads its texts. The optimizer, the
    critic and the data of the training aren't needed. Importing runs the code of the class's module, so load only
    files of which you would run the code; the file itself has none.

    Args:
        path: the file.
        *args: arguments of the class, such as its client; files have no clients and no keys.
        **kwargs: likewise, by name.

    Raises:
        ValueError: if the file is damaged, of a newer format, or has no agent.
        TypeError: if the class takes other arguments.
        ImportError: if there is no such class any more.
        RuntimeError: if the texts aren't those of the class.
        OSError: if the file can't be read.

    >>> import tempfile
    >>> from afnio.utils.agents import SentimentAnalyzer
    >>> agent = SentimentAnalyzer()
    >>> agent.sentiment_task.data = "Be quick."
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     agent.save(f"{folder}/agent.afnio")
    ...     load_agent(f"{folder}/agent.afnio").sentiment_task.data
    'Be quick.'
    """
    name, content = _content(path)
    try:
        documents = unpacked(content)
    except ValueError as error:
        raise _foreign(name, error) from error
    match documents.get(_AGENT):
        case [str(module), str(qualname)] if _DOCUMENT in documents and _IMPORTABLE.fullmatch(module):
            state = _state(name, documents[_DOCUMENT])
        case _:
            raise ValueError(
                f"{name} must have an agent (got {', '.join(documents)}); write it by agent.save(path)"
            )
    kind: Any = importlib.import_module(module)
    for part in qualname.split("."):
        kind = getattr(kind, part, None)
    is_agent = isinstance(kind, type) and issubclass(kind, Members)
    if not is_agent:
        raise ImportError(
            f"{module} must have the agent's class {qualname} (got {kind!r}); load it where it has"
        )
    try:
        inspect.signature(kind).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"afnio.load_agent must get what {qualname}{inspect.signature(kind)} takes (got {error}); write "
            f"afnio.load_agent({name!r}, …)"
        ) from None
    agent: Any = kind(*args, **kwargs)
    agent.load_state_dict(state)
    return agent.eval()


# A state as JSON.


def encoded(value: Any) -> Any:
    """Return `value` in JSON's types; `decoded` reverses it. Waits for Variables."""
    if isinstance(value, Variable):
        provenance = {"provenance": encoded(list(value.provenance))} if value.provenance else {}
        return {
            _VARIABLE: "Parameter" if isinstance(value, Parameter) else "Variable",
            "data": value.data,
            "role": value.role,
            "requires_grad": value.requires_grad,
            **provenance,
        }
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: encoded(item) for key, item in value.items()}
        return {_PAIRS: [[encoded(key), encoded(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [encoded(item) for item in value]}
    if isinstance(value, list):
        return [encoded(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    fix = "; save its state_dict()" if hasattr(value, "state_dict") else ""
    raise TypeError(
        f"saved values must be Variables or plain values (got {value!r}, a {type(value).__name__}){fix}"
    )


def decoded(value: Any) -> Any:
    """Return the value that `encoded` turned into this JSON."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _VARIABLE in value:
        if not isinstance(value["role"], str) or not isinstance(value["requires_grad"], bool):
            raise TypeError(f"a Variable's role must be a str (got {value['role']!r})")
        made = Parameter if value[_VARIABLE] == "Parameter" else Variable
        variable = made(value["data"], value["role"], value["requires_grad"])
        variable._provenance = tuple(decoded(value.get("provenance", [])))
        return variable
    if _TUPLE in value:
        return tuple(decoded(item) for item in value[_TUPLE])
    if _PAIRS in value:
        return {decoded(key): decoded(item) for key, item in value[_PAIRS]}
    return {key: decoded(item) for key, item in value.items()}


# JSON documents in a zip, and the file.

# The most bytes that a file may unpack to. A zip bomb of a few kilobytes can claim terabytes.
LARGEST: Final = 2**30
# Suffix of temporary names, `.NAME.xxxxxxxx.tmp`: leftovers of a killed process can be found and deleted.
TEMPORARY: Final = ".tmp"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
# Mode of files: prompts and feedback may be private.
_PRIVATE: Final = 0o600


def packed(documents: Mapping[str, Any]) -> bytes:
    """Return the bytes of an archive with one JSON member for each document.

    Raises:
        TypeError: for a value that JSON can't represent.

    >>> unpacked(packed({"loop": {"epoch": 3}}))
    {'loop': {'epoch': 3}}
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, document in documents.items():
            text = json.dumps(document, ensure_ascii=False, indent=1)
            member = zipfile.ZipInfo(f"{name}.json", _EPOCH)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, _PRIVATE << 16
            # A broken reply may contain half a surrogate pair. UTF-8 can't encode that, but JSON can escape it.
            archive.writestr(member, text.encode("utf-8", "backslashreplace"))
    return file.getvalue()


def unpacked(content: bytes) -> dict[str, Any]:
    """Return the documents by name.

    Raises:
        ValueError: for anything but an undamaged archive; pickles too.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".json")]
            if sum(member.file_size for member in members) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
            documents = {
                member.filename.removesuffix(".json"): json.loads(archive.read(member)) for member in members
            }
    except Exception as error:  # zipfile and its decompressors raise nearly anything for damaged bytes
        raise ValueError(str(error) or type(error).__name__) from error
    if not documents:
        raise ValueError("it holds no JSON")
    return documents


def replace(path: Path, content: bytes) -> None:
    """Write `content` to the file at `path` atomically: a crash leaves the old file or the new one.

    Only the user may read the file, regardless of the umask and of the old file's mode.

    Raises:
        OSError: if the disk is full, or the folder is missing or read-only.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, _PRIVATE)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Sync the folder, so that the rename survives a power cut. Windows can't open folders and doesn't need it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Checkpoints of the trainer.

CHECKPOINT_FORMAT: Final = 1
_VERSIONS: Final = "versions"
_KIND: Final = "afnio checkpoint"
# The fields in each document. If an older file lacks a document, its fields are missing from the result.
_LAYOUT: Final = {
    "parameters": ("agent",),
    "optimizer": ("optimizers",),
    "loop": ("counters", "metrics", "history", "sampler"),
    "rng": ("rng",),
    "ledger": ("ledger",),
    "callbacks": ("callbacks",),
}
# Documents with a digest in versions.json. Without it an edit would only surface in the middle of a run.
_SEALED: Final = ("optimizer", "rng", "callbacks")
_LISTS: Final = ("optimizers", "history")


def documents_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the documents of a checkpoint with these fields, "versions" included. Waits for Variables.

    Raises:
        TypeError: for a value that JSON can't represent.
    """
    documents: dict[str, Any] = {
        document: {name: encoded(fields[name]) for name in names} for document, names in _LAYOUT.items()
    }
    digests = {document: _digest(documents[document]) for document in _SEALED}
    documents[_VERSIONS] = {
        "kind": _KIND,
        "format": CHECKPOINT_FORMAT,
        "digests": digests,
        **fields[_VERSIONS],
    }
    return documents


def fields_of(name: object, documents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a checkpoint of this format or an older one.

    Args:
        name: the file's name, for errors.

    Raises:
        CheckpointError: if the documents are of another kind, damaged, or of a newer format.
    """
    versions = documents.get(_VERSIONS)
    if not isinstance(versions, dict) or versions.get("kind") != _KIND:
        raise foreign(name, "it has no versions.json of one")
    version = versions.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version > CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"the checkpoint {name} must have format {CHECKPOINT_FORMAT} or older "
            f"(got {version!r} of Afnio {versions.get('afnio')}); update Afnio to open it"
        )
    fields: dict[str, Any] = {
        _VERSIONS: {key: versions[key] for key in versions if key not in ("kind", "format", "digests")}
    }
    digests = versions.get("digests", {})
    for document in _SEALED if isinstance(digests, dict) else ():
        if digests.get(document) not in (None, _digest(documents.get(document))):
            raise foreign(name, f"its {document}.json was edited")
    try:
        for document, names in _LAYOUT.items():
            content = decoded(documents.get(document, {}))
            fields |= {field: content[field] for field in names if field in content}
    except Exception as error:  # an edited document can hold anything
        raise foreign(name, error) from error
    if "agent" not in fields:
        raise foreign(name, "it has no agent")
    for field, value in fields.items():
        kind = list if field in _LISTS else dict
        if not isinstance(value, kind) and not (field == "sampler" and value is None):
            raise foreign(name, f"its {field} are {str(value)[:80]!r}")
    return fields


def as_state(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields, with the names that PyTorch users expect added, for `afnio.load`."""
    optimizers, counters = fields.get("optimizers", []), fields.get("counters", {})
    return {
        **fields,
        "epoch": counters.get("epoch"),
        "batch": counters.get("batch"),
        "agent_state_dict": fields["agent"],
        "optimizer_state_dict": optimizers[0] if len(optimizers) == 1 else optimizers,
    }


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def foreign(name: object, reason: object) -> CheckpointError:
    """Return the error for a file that isn't a checkpoint."""
    return CheckpointError(
        f"{name} must be an undamaged checkpoint that a Trainer wrote ({' '.join(str(reason).split())}); pickles "
        "are not opened, name another file"
    )
