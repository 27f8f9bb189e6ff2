"""The entry points of tracking: start a run, log into the active one."""

from __future__ import annotations

import getpass
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final, overload

from afnio.tellurio import active
from afnio.tellurio.run import MISSING, Run

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

ADJECTIVES: Final = ("amber", "brisk", "calm", "gentle", "keen", "patient", "quiet", "swift")
ANIMALS: Final = ("badger", "crane", "falcon", "heron", "lynx", "otter", "raven", "tern")


def init(
    namespace: str,
    project: str,
    name: str | None = None,
    description: str | None = None,
    config: Mapping[str, Any] | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 (the usual name among trackers)
) -> Run:
    """Start a run, recorded in `.afnio/<namespace>/<project>.db` of the working folder.

    AFNIO_HOME names another folder in place of `.afnio`, and `dir` overrides both. Called plainly,
    the run is the process's until `finish` or the interpreter's exit; with `with` or `async with`
    it is the block's. A name that is taken gets a numeric suffix. A folder that can't be written
    costs one warning; a file of a newer Afnio is refused.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with init("me", "emails", name="first", dir=folder) as run:
    ...         log("accuracy", 0.5)
    ...     print(run)
    <Run first of me/emails, COMPLETED>
    """
    if name is None:
        name = f"{secrets.choice(ADJECTIVES)}-{secrets.choice(ANIMALS)}"
    run = Run(namespace, project, name, description, config, dir)
    active.start(run)
    return run


@overload
def log(name: str, value: Any, step: int | None = None) -> None: ...
@overload
def log(name: Mapping[str, Any], *, step: int | None = None) -> None: ...
def log(name: Any, value: Any = MISSING, step: int | None = None) -> None:
    """Record a metric in the active run: `log("loss", 0.3)`, or `log({"loss": 0.3}, step=5)`."""
    active.get_active_run().log(name, value, step)


def login(api_key: str | None = None, relogin: bool = False) -> dict[str, str]:
    """Return the local user; there is nothing to log in to, for runs are kept in local files.

    The arguments are there for programs that pass them; nothing is read from, kept or sent.
    """
    logging.getLogger("afnio").info(
        "There is nothing to log in to: runs are kept in local files, and no key is needed."
    )
    try:
        username = getpass.getuser()
    except (ImportError, KeyError, OSError):
        # A container's user may have no name.
        username = "local"
    return {"username": username}
