"""`afnio login`: keep a provider's key in the operating system's keyring."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Sequence

EPILOG = """\
Nothing needs this: a key in OPENAI_API_KEY, or given as api_key=…, goes before.

examples:
  afnio login                                    asks for the key, checks it, keeps it
  afnio login --base-url https://host/v1 < FILE  of another endpoint, from a file
  afnio login --remove                           takes it out again
"""


def main(argv: Sequence[str]) -> int:
    """Run the command and return the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="afnio login",
        description="Check a provider's key and keep it in this machine's keyring, where Afnio's clients find it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base-url", help="the endpoint (default: OPENAI_BASE_URL, else OpenAI's own)")
    parser.add_argument("--remove", action="store_true", help="take the key out of the keyring")
    options = parser.parse_args(argv)
    from afnio.errors import AfnioError

    try:
        return _remove(options.base_url) if options.remove else _keep(options.base_url)
    except (AfnioError, ValueError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    except (KeyboardInterrupt, EOFError):
        sys.stderr.write("\nafnio: nothing was kept\n")
        return 130


def _keep(base_url: str | None) -> int:
    from afnio.models import openai
    from afnio.models.openai import AsyncOpenAI, endpoint_url
    from afnio.runtime._callables import run

    url = endpoint_url(base_url)
    openai.forget(url)  # before anybody types a key: is there a keyring at all?
    key = getpass.getpass(f"API key for {url}: ") if sys.stdin.isatty() else sys.stdin.readline()
    key = key.strip()
    if not key:
        sys.stderr.write("afnio: no key was given; nothing was kept\n")
        return 1
    models = run(AsyncOpenAI(api_key=key, base_url=url).list_models())
    openai.keep(url, key)
    sys.stdout.write(
        f"{url} takes the key ({len(models)} models); it is in the keyring of {getpass.getuser()}\n"
    )
    if os.environ.get("OPENAI_API_KEY"):
        sys.stdout.write("OPENAI_API_KEY is set and goes before it\n")
    return 0


def _remove(base_url: str | None) -> int:
    from afnio.models import openai
    from afnio.models.openai import endpoint_url

    url = endpoint_url(base_url)
    gone = openai.forget(url)
    sys.stdout.write(f"the key for {url} was taken out\n" if gone else f"there was no key for {url}\n")
    return 0
