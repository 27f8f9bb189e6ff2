"""Keys of endpoints in the operating system's keyring. Needs `afnio[keyring]`.

`afnio login` stores them. A key that is passed to a client or in the environment has precedence.
"""

from __future__ import annotations

from typing import Any, Final

from afnio.errors import KeyStoreError

SERVICE: Final = "afnio"
"""The service name of all keys in the keyring. The user name is the endpoint's base URL."""


def keep(url: str, key: str) -> None:
    """Store the key of the endpoint at `url`.

    Raises:
        KeyStoreError: if there is no keyring, or it refuses.
    """
    _ask("set_password", url, key)


def forget(url: str) -> bool:
    """Delete the key of the endpoint at `url`. Returns False if there was none."""
    if _ask("get_password", url) is None:
        return False
    _ask("delete_password", url)
    return True


def find(url: str) -> str | None:
    """Return the key of the endpoint at `url`, or None if there is no key or no keyring."""
    try:
        found: str | None = _ask("get_password", url)
    except KeyStoreError:
        return None
    return found


def _ask(what: str, *args: str) -> Any:
    try:
        import keyring
        from keyring.errors import NoKeyringError
    except ImportError as error:
        raise KeyStoreError(
            "the keyring package is not installed; run pip install 'afnio[keyring]'"
        ) from error
    try:
        return getattr(keyring, what)(SERVICE, *args)
    except NoKeyringError as error:
        raise KeyStoreError(
            "this machine has no keyring (containers and servers rarely do); set OPENAI_API_KEY in the environment "
            "instead"
        ) from error
    except Exception as error:  # each backend raises its own; leave out its text, which we don't control
        raise KeyStoreError(
            f"the keyring refused ({type(error).__name__}); unlock it, or set OPENAI_API_KEY"
        ) from None
