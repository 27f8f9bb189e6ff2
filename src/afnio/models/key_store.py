"""Key store: provider keys in the operating system's keyring, for who put one there with `afnio login`.

Nothing needs it: a key that is given, or in the environment, goes before. Needs `afnio[keyring]`.
"""

from __future__ import annotations

from typing import Any, Final

from afnio.errors import AfnioError

SERVICE: Final = "afnio"
"""Under which name keys are kept, each for the base URL of its endpoint."""


class KeyStoreError(AfnioError):
    """There is no keyring that could keep a key."""


def keep(url: str, key: str) -> None:
    """Keep the key of the endpoint at `url`.

    Raises:
        KeyStoreError: where there is no keyring, or it refuses.
    """
    _ask("set_password", url, key)


def forget(url: str) -> bool:
    """Take a key out; returns whether there was one."""
    if _ask("get_password", url) is None:
        return False
    _ask("delete_password", url)
    return True


def find(url: str) -> str | None:
    """Return the key of the endpoint at `url`; None where there is none, or no keyring."""
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
            "keys are kept by a package that is not installed; pip install 'afnio[keyring]'"
        ) from error
    try:
        return getattr(keyring, what)(SERVICE, *args)
    except NoKeyringError as error:
        raise KeyStoreError(
            "this machine has no keyring (containers and servers rarely do); set OPENAI_API_KEY in the environment "
            "instead"
        ) from error
    except Exception as error:  # backends raise what they like; the text of none of them holds the key
        raise KeyStoreError(
            f"the keyring refused ({type(error).__name__}); unlock it, or set OPENAI_API_KEY"
        ) from None
