"""A secret is found in every form, and nothing else is."""

from __future__ import annotations

import base64
import html
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import afnio.tellurio as te
from afnio.cli import main
from afnio.models import mask, secrets_in_headers

MASK = "<api key>"
SECRET = "sk-SeCrEt/Key+01&23=="
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)

ESCAPES = [
    lambda c: c,
    lambda c: "\\/" if c == "/" else c,
    lambda c: f"\\u{ord(c):04x}",
    lambda c: f"\\u{ord(c):04X}",
    lambda c: f"\\\\\\u{ord(c):04x}",
    lambda c: f"\\x{ord(c):02x}",
    lambda c: f"%{ord(c):02X}",
    lambda c: f"%{ord(c):02x}",
    lambda c: f"%25{ord(c):02X}",
    lambda c: f"&#{ord(c)};",
    lambda c: f"&#x{ord(c):X};",
]


@given(st.lists(st.sampled_from(ESCAPES), min_size=len(SECRET), max_size=len(SECRET)), TEXT, TEXT)
def test_any_character_may_be_escaped_in_any_way(escapes: list, before: str, after: str) -> None:
    """Each one in another way, whatever stands around it."""
    written = "".join(escape(character) for escape, character in zip(escapes, SECRET, strict=True))
    assert f"{before}|{MASK}|{after}".encode() == mask(f"{before}|{written}|{after}".encode(), (SECRET,))


@given(st.binary(max_size=20), st.binary(max_size=20), st.booleans())
def test_in_base64_it_may_be_a_part(before: bytes, after: bytes, for_urls: bool) -> None:
    """Such as of a header's user and password; what is left doesn't tell it."""
    encode = base64.urlsafe_b64encode if for_urls else base64.b64encode
    left = mask(encode(before + SECRET.encode() + after), (SECRET,)).decode()
    assert MASK in left
    core = base64.b64encode(SECRET.encode()).decode()
    assert not any(core[at : at + 8] in left for at in range(len(core) - 8))


@pytest.mark.parametrize(
    "written",
    [
        json.dumps(SECRET),
        json.dumps(json.dumps({"key": SECRET}).replace("/", "\\/")),
        json.dumps("".join(f"\\u{ord(character):04x}" for character in SECRET)),
        quote(quote(SECRET, safe=""), safe=""),
        quote(base64.b64encode(f"ann:{SECRET}".encode()).decode(), safe=""),
        "".join(f"&#{ord(character)};" for character in SECRET),
        html.escape(repr(SECRET)).replace("&amp;", "&#38;"),
    ],
)
def test_escaped_twice(written: str) -> None:
    """As an error that quotes an error does."""
    assert MASK in mask(written.encode(), (SECRET,)).decode()


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_long_token_is_masked_whole_and_soon(escape: Callable[[str], str]) -> None:
    """Such as one of Entra's, of 2,000 characters, which comes anew each hour."""
    token = f"eyJ{base64.urlsafe_b64encode(random.Random(7).randbytes(1500)).decode()}.sig/nature"
    started = time.process_time()
    written = "".join(map(escape, token))
    assert f"bad token {MASK}, sorry".encode() == mask(f"bad token {written}, sorry".encode(), (token,))
    assert time.process_time() - started < 20  # 2 ms here


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_in_other_encodings(encoding: str) -> None:
    """Of JSON: those of Unicode."""
    written = json.dumps({"message": SECRET}, ensure_ascii=False).encode(encoding)
    assert json.loads(mask(written, (SECRET,))) == {"message": MASK}


def test_what_cannot_be_cut_out_leaves_nothing() -> None:
    """Base64 whose letters are escaped."""
    encoded = base64.b64encode(SECRET.encode()).decode()
    assert MASK.encode() == mask("".join(f"%{ord(letter):x}" for letter in encoded).encode(), (SECRET,))


@given(TEXT)
def test_other_texts_stay(text: str) -> None:
    """Escapes among them."""
    for form in (text, json.dumps(text), quote(text), html.escape(text)):
        assert form.encode() == mask(form.encode(), (SECRET, "another secret", "short"))


@pytest.mark.parametrize("piece", [b"\\u0041", b"\\", b"%25", b"&#0", b"s", b"\\\\u0073"])
def test_hostile_texts_take_no_time(piece: bytes) -> None:
    """Escapes of nothing but escapes: a reply is read on the event loop."""
    text = piece * (8 * 2**20 // len(piece)) + b"\\u0041"
    started = time.process_time()
    mask(text, (SECRET, "another secret"))
    assert time.process_time() - started < 60  # half a second here; hours if it were quadratic
    assert SECRET.encode() not in mask(text + SECRET.encode(), (SECRET,))
    hidden = "".join(f"%{ord(character):02x}" for character in SECRET).encode()
    assert hidden not in mask(text + hidden, (SECRET,))


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--api-key", "abc", "x"], ["--api-key", MASK, "x"]),
        (["--api-key=two words"], [f"--api-key={MASK}"]),
        (["--openaiKey", "-v", "abc"], ["--openaiKey", "-v", "abc"]),
        (["OPENAI_API_KEY=abc", "MODEL=m"], [f"OPENAI_API_KEY={MASK}", "MODEL=m"]),
        (["-H", "Authorization: Bearer abc.def"], ["-H", f"Authorization: Bearer {MASK}"]),
        (["-H", "X-Api-Key: abc"], ["-H", f"X-Api-Key: {MASK}"]),
        (['{"token": "abc", "n": 1}'], ['{"token": "' + MASK + '", "n": 1}']),
        (["http://ann:hush@host/v1?key=abc&n=1"], [f"http://{MASK}@host/v1?key={MASK}&n=1"]),
        (["-k", "sk-proj-0123456789"], ["-k", MASK]),
        (["AKIAIOSFODNN7EXAMPLE", "ghp_0123456789abcdef"], [MASK, MASK]),
        (["--max-tokens", "500", "--key-column", "id"], ["--max-tokens", "500", "--key-column", "id"]),
        (["task-0123456789", "run.py", "--name=first"], ["task-0123456789", "run.py", "--name=first"]),
    ],
)
def test_arguments_that_are_keys(
    arguments: list[str],
    shown: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the name before them, or by their looks; the others stay. A run keeps its program's arguments."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "program.py", raising=False)
    monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
    with te.init("me", "emails", name="one", dir=tmp_path):
        pass
    assert main(["runs", "show", "one", "--dir", str(tmp_path), "--json"]) == 0
    assert shown == json.loads(capsys.readouterr().out)["identity"][2]


def test_headers_are_secret_by_name_or_looks() -> None:
    """A title or a referrer is none, as replies may well say it."""
    headers = {
        "X-Api-Key": "gateway-hush",
        "Cookie": "session=0123abcd; theme=dark",
        "Authorization": "Bearer 0123-4567",
        "X-Tenant": "7f9c24e8-3b12-4fef-91e0-1f2e3d4c5b6a",
        "X-Title": "Our mail sorter",
        "HTTP-Referer": "https://example.org/mails",
    }
    found = set(secrets_in_headers(headers))
    assert {"gateway-hush", "0123abcd", "0123-4567", headers["X-Tenant"]} <= found
    assert not [secret for secret in found if "example" in secret or "mail" in secret]
