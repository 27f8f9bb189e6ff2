"""Who gets pages and who gets nothing."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from studio.visitor import Answer, Studio

from afnio.cli import main


@pytest.fixture(scope="module", name="studio")
def empty_studio(start: Callable[..., Studio], tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return start(tmp_path_factory.mktemp("home"))


def nothing(answer: Answer, status: int) -> bool:
    """One sentence of plain text, and no cookie."""
    return (
        answer.status == status
        and answer.headers["content-type"].startswith("text/plain")
        and len(answer.text) < 120
        and "set-cookie" not in answer.headers
    )


def test_the_first_line_is_the_address(studio: Studio) -> None:
    """With a token nobody guesses, on this machine alone."""
    assert studio.address == f"http://127.0.0.1:{studio.port}/?token={studio.token}"
    assert len(studio.token) >= 40
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == studio.port] == ["127.0.0.1"]


@pytest.mark.nightly
def test_it_starts_within_two_seconds(studio: Studio) -> None:
    assert studio.seconds < 2


def test_the_token_moves_to_a_cookie(studio: Studio) -> None:
    """The address loses it, scripts can't read it, other sites can't send it; the rest of the query stays."""
    moved = studio.get(f"/?token={studio.token}&q=a%26b")
    assert (moved.status, moved.headers["location"]) == (303, "/?q=a%26b")
    cookie = moved.headers["set-cookie"].lower()
    assert cookie.startswith(f"afnio_studio_{studio.port}=")
    assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/"))
    assert studio.page("/").status == 200
    # Two slashes at the start would be another host.
    assert studio.get(f"//evil.example/?token={studio.token}").headers["location"] == "/evil.example/"


@pytest.mark.parametrize(
    "path", ["/", "/static/studio.css", "/nowhere", "/?token=", "/?token=wrong", "/?token=%ff"]
)
def test_without_the_token(studio: Studio, path: str) -> None:
    """Nothing, wherever it is asked for and whatever is in its place."""
    assert nothing(studio.get(path), 401)
    assert nothing(studio.get(path, Cookie=f"afnio_studio_{studio.port}={studio.token[:-1]}"), 401)
    assert nothing(studio.get(path, Cookie=f"afnio_studio_1={studio.token}; \x01=;;"), 401)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": ""},
        {"Host": "127.0.0.1:80@evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_host_or_origin(studio: Studio, headers: dict[str, str]) -> None:
    """Nothing, even with the token or the cookie: rebound names, other sites, other ports of this machine."""
    studio.page("/")
    assert studio.cookie is not None
    assert nothing(studio.get(f"/?token={studio.token}", **headers), 403)
    assert nothing(studio.get("/", Cookie=studio.cookie, **headers), 403)


def test_it_only_reads(studio: Studio) -> None:
    """Whoever sends something is refused."""
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert nothing(studio.get(f"/?token={studio.token}", method), 405)


@pytest.mark.parametrize(
    "path", ["/", "/nowhere", "/static/studio.css", "/?token=wrong", "/static/../app.py"]
)
def test_every_answer_is_locked_down(studio: Studio, path: str) -> None:
    """Pages, files, errors and refusals alike."""
    for answer in (studio.page(path), studio.get(path)):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers


def test_files_outside_are_not_served(studio: Studio) -> None:
    """Neither by dots nor by their codes."""
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
        assert studio.page(path).status == 404


def test_two_studios(studio: Studio, start: Callable[..., Studio], tmp_path: Path) -> None:
    """Side by side: another port, another token, a cookie of another name; neither opens the other."""
    other = start(tmp_path)
    assert other.page("/").status == studio.page("/").status == 200
    assert studio.cookie is not None
    assert other.cookie is not None
    assert other.get("/", Cookie=f"{studio.cookie}; {other.cookie}").status == 200
    assert nothing(other.get("/", Cookie=studio.cookie), 401)
    assert nothing(other.get(f"/?token={studio.token}"), 401)


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error is one sentence with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["studio", "--dir", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 1
    assert "omit --port to use a free one" in capsys.readouterr().err
