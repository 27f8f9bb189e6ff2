"""Masking: replace secrets in texts, in every form in which a server or a user may have written them.

Error messages, logs and run records quote what providers send, and providers quote the request: a key in an error
body would end up in a store, a report, a chat. There are two ways to find it:

* `mask` knows the client's secrets. It finds them verbatim, escaped (JSON, URLs, HTML, several times over) and in
  base64. Text in which it can't rule out a hidden secret is replaced as a whole.
* `mask_keys` and `mask_arguments` don't know the secrets. They recognize them by their form ("sk-…", "Bearer …") or
  by the name in front of them ("api_key=…"), as in a command line.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

MASK: Final = "<api key>"
# Shorter secrets aren't masked: they would match ordinary words.
SHORTEST: Final = 8

_NAME: Final = (
    "(?:(?<![A-Za-z])|(?=[A-Z][a-z]))"  # a separate word, as in `api-key` and `apiKey`
    "(?i:apikey|auth|authorization|bearer|cookie|credentials?|jwt|key|pass|passphrase|passwd|password|pat|pwd"
    "|secret|signature|token)"
)
_ENDS_IN_NAME: Final = re.compile(f"{_NAME}$")
# `"api_key": "…"`, `api-key=…`, `X-Api-Key: …`, `?key=…`. Not the scheme before a token: `Bearer …`
_NAMED: Final = re.compile(rf"""({_NAME}["']?\s*[=:]\s*["']?)(?!(?i:bearer|basic)\b)[^\s"'&;,{{}}\[\]]+""")
_LOOKS: Final = re.compile(
    r"""(?x)
    (?<![A-Za-z0-9]) (?:
        (?: sk | pk | rk | gsk | hf | xai | pplx | tvly | glpat | nvapi | r8 ) [-_] [\w-]{8,}
      | gh[opsur]_ \w{8,} | github_pat_ \w{8,}
      | A[KS]IA [0-9A-Z]{12,}
      | AIza [\w-]{20,}
      | xox[a-z]- [\w-]{8,}
      | eyJ [\w-]{8,} \. [\w-]+ (?: \. [\w-]* )?
    )
    | (?i: (?<= bearer[ ] ) | (?<= basic[ ] ) ) [^\s"',;]+
    | (?<= :// ) [^\s/@]+ (?= @ )
    """
)
_LIKE_A_KEY: Final = re.compile(r"(?=\D*\d)(?=[^A-Za-z]*[A-Za-z])[\w.~+/=-]{20,}")
# The first characters of all escapes, and the first one alone, which is found thirty times as fast if it is
# absent.
#
# A text without escapes can only contain a secret verbatim.
_ESCAPES: Final = ((b"\\", (b"\\u00", b"\\x", b"\\/")), (b"%", (b"%",)), (b"&", (b"&#",)))
_ESCAPED: Final = re.compile(
    rb"\\[ux](?:00)?([2-7][0-9A-Fa-f])|%([2-9A-Fa-f][0-9A-Fa-f])|&#[xX]0{0,5}([2-7][0-9A-Fa-f]);|&#0{0,5}([1-9]\d{1,2});"
)
# The most layers of escapes that are undone.
ROUNDS: Final = 4
# A text with more escapes is masked as a whole. Each costs the event loop 0.5 µs, and no real reply has as
# many.
MOST_ESCAPES: Final = 200_000
# Bytes. A longer text with an escaped secret is masked as a whole.
LONGEST: Final = 2**20
# Characters of an escaped secret that are matched; see `_pattern`.
HEAD: Final = 64


def mask(text: bytes, secrets: tuple[str, ...]) -> bytes:
    r"""Return `text` with `MASK` in place of each secret of at least `SHORTEST` characters.

    A secret is found verbatim, with any of its characters escaped as in JSON, URLs or HTML, and in base64, also as a
    part of a longer encoded text. Text in UTF-16 or UTF-32 is returned in UTF-8.

    >>> mask(rb"no such key: sk-0123\/\u0034567, c2stMDEyMy80NTY3", ("sk-0123/4567",))
    b'no such key: <api key>, <api key>'
    """
    finder = _finder(secrets)
    if finder is None:
        return text
    if b"\0" in text[:4]:
        text = text.decode(json.detect_encoding(text), "replace").encode("utf-8", "replace")
    for spelling in finder.spellings:
        if spelling in text:
            text = text.replace(spelling, MASK.encode())
    escapes = sum(text.count(escape) for first, kind in _ESCAPES if first in text for escape in kind)
    if not escapes:
        return text
    if max(escapes, text.count(b"\\") // 8) > MOST_ESCAPES:
        return MASK.encode()
    if not _is_hidden_in(text, finder):
        return text
    text = text if len(text) > LONGEST else _pattern(secrets).sub(MASK.encode(), text)
    return MASK.encode() if _is_hidden_in(text, finder) else text


def mask_keys(text: str) -> str:
    """Return `text` with `MASK` in place of everything that looks like a key or follows a name such as `api_key=`.

    >>> mask_keys("--api-key=abc --user=ann"), mask_keys("ask with sk-0123456789")
    ('--api-key=<api key> --user=ann', 'ask with <api key>')
    """
    return _LOOKS.sub(MASK, _NAMED.sub(rf"\1{MASK}", text))


def names_secret(name: str) -> bool:
    """Return True if a header, option or variable of this name holds a secret, judged by its last word.

    >>> [names_secret(name) for name in ("OPENAI_API_KEY", "X-Auth", "accessToken", "max-tokens", "key-column")]
    [True, True, True, False, False]
    """
    return _ENDS_IN_NAME.search(name) is not None


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a program's arguments, with keys masked. They are recognized by form or by the option before them.

    >>> mask_arguments(["--api-key", "abc", "--epochs", "3", "TOKEN=abc", "-v"])
    ['--api-key', '<api key>', '--epochs', '3', 'TOKEN=<api key>', '-v']
    """
    shown = []
    secret = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        option = argument.startswith("-")
        if secret and not option:
            shown.append(MASK)
        elif equals and re.fullmatch(r"[\w.-]+", name) and names_secret(name):
            shown.append(f"{name}={MASK}")
        else:
            shown.append(mask_keys(argument))
        secret = option and not equals and names_secret(argument)
    return shown


def secrets_in_url(url: str) -> Iterator[str]:
    """Yield the credentials in a URL: the password, and "user:password" as in a basic authorization header.

    >>> list(secrets_in_url("https://ann:pa%3Ass@example.org"))
    ['pa:ss', 'ann:pa:ss']
    """
    parts = urlsplit(url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if user or password:
        yield password or user
        yield f"{user}:{password}"


def secrets_in_headers(headers: Mapping[str, object]) -> Iterator[str]:
    """Yield the values, and the parts of values, that are secret by their header's name or look like keys.

    >>> list(secrets_in_headers({"Cookie": "session=0123abcd", "X-Title": "Mail sorter"}))
    ['session=0123abcd', '0123abcd']
    """
    for name, value in headers.items():
        if isinstance(value, str):
            whole = [value] if names_secret(name) else []
            parts = [*whole, *re.split(r"[\s;,]+", value)]
            parts += [part.partition("=")[2] for part in parts if "=" in part.rstrip("=")]
            for part in dict.fromkeys(parts):
                if len(part) >= SHORTEST and (whole or _LIKE_A_KEY.fullmatch(part) or _LOOKS.search(part)):
                    yield part


class _Finder(NamedTuple):
    """The forms of a client's secrets.

    Attributes:
        spellings: verbatim and as in JSON. The longest is first, because one secret may be part of another.
        bare: the same without backslashes.
    """

    spellings: tuple[bytes, ...]
    bare: tuple[bytes, ...]


@lru_cache(maxsize=64)
def _finder(secrets: tuple[str, ...]) -> _Finder | None:
    forms = [form for secret in secrets if len(secret) >= SHORTEST for form in (secret, *_in_base64(secret))]
    if not forms:
        return None
    longest_first = sorted(set(forms), key=lambda form: (-len(form), form))
    in_json = (json.dumps(form, ensure_ascii=False)[1:-1] for form in longest_first)
    plain = dict.fromkeys(form.encode() for form in (*longest_first, *in_json))
    bare = dict.fromkeys(form.encode().replace(b"\\", b"") for form in longest_first)
    return _Finder(tuple(plain), tuple(bare))


def _in_base64(secret: str) -> Iterator[str]:
    data = secret.encode()
    for offset in range(3):
        # Base64 encodes groups of three bytes. For each position in a group, take the characters that depend on the
        # secret alone.
        encoded = base64.b64encode(bytes(offset) + data).decode()
        core = encoded[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
        yield core
        yield core.replace("+", "-").replace("/", "_")


def _is_hidden_in(text: bytes, finder: _Finder) -> bool:
    bare = _unescaped(text)
    return any(spelling in bare for spelling in finder.bare)


@lru_cache(maxsize=8)
def _pattern(secrets: tuple[str, ...]) -> re.Pattern[bytes]:
    """Return a pattern of escaped secrets. Made only if a text contains one, because it takes milliseconds."""
    patterns = {}
    for secret in secrets:
        if len(secret) >= SHORTEST:
            # Match the start of a long token only: a pattern of thousands of characters would take seconds.
            rest = rb"""(?:&#\w+;|[^\s"',;<>])*""" if len(secret) > HEAD else b""
            patterns[secret] = b"".join(map(_character, secret[:HEAD])) + rest
            for form in _in_base64(secret):
                # No encoder escapes letters and digits of base64.
                letters = (letter.encode() if letter.isalnum() else _character(letter) for letter in form)
                patterns[form] = b"".join(letters)
    return re.compile(b"|".join(patterns[form] for form in sorted(patterns, key=len, reverse=True)))


def _character(character: str) -> bytes:
    """Return a pattern of a character, verbatim or escaped up to `ROUNDS` times."""
    data = character.encode()
    in_url = b"".join(rb"%%(?:25){0,%d}%b" % (ROUNDS, _hex(byte)) for byte in data)
    if len(data) > 1:
        return b"(?:%b|%b)" % (data, in_url)
    code = data[0]
    in_json = rb"\\\\{0,15}(?:%b|u00%b|x%b)" % (re.escape(data), _hex(code), _hex(code))
    in_html = rb"&#(?:[xX]0{0,5}%b|0{0,5}%d);" % (_hex(code), code)
    return b"(?:%b|%b|%b|%b)" % (re.escape(data), in_json, in_url, in_html)


def _hex(byte: int) -> bytes:
    lower, upper = b"%02x" % byte, b"%02X" % byte
    return lower if lower == upper else b"(?:%b|%b|%b|%b)" % (
        lower, upper, lower[:1] + upper[1:], upper[:1] + lower[1:],
    )  # fmt: skip


def _unescaped(text: bytes) -> bytes:
    """Return `text` with escapes of printable characters undone, and without backslashes."""
    for _ in range(ROUNDS):
        before, text = text, _ESCAPED.sub(_plain, text)
        if text == before:
            break
    return text.replace(b"\\", b"")


def _plain(match: re.Match[bytes]) -> bytes:
    in_hex = match[1] or match[2] or match[3]
    code = int(in_hex, 16) if in_hex else int(match[4])
    return bytes([code]) if code < 256 else match[0]
