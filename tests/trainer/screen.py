"""Screen: a program in a real terminal (a pty), and what that terminal shows."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from typing import Self

import pyte


class Screen:
    """Runs `show.py` in a terminal of a size, until the block ends."""

    def __init__(self, columns: int, *arguments: str, **environment: str) -> None:
        self.raw = b""
        self._screen = pyte.Screen(columns, 30)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        self.resize(columns)
        off = termios.tcgetattr(slave)
        off[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, off)
        removed = ("CI", "NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
        kept = {name: value for name, value in os.environ.items() if name not in removed}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainer.show", *arguments],
            env={**kept, "TERM": "xterm-256color", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def resize(self, columns: int) -> None:
        self._screen.resize(30, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def enter(self) -> None:
        os.write(self._master, b"\n")

    def until(self, *texts: str) -> list[str]:
        """Return the lines once they have all of `texts`; a frame comes in parts, so name its end."""
        ends = time.monotonic() + 30
        while not all(text in "\n".join(self.lines()) for text in texts):
            assert time.monotonic() < ends, f"{texts} were never shown:\n" + "\n".join(self.lines())
            if select.select([self._master], [], [], 0.1)[0]:
                data = os.read(self._master, 65536)
                self.raw += data
                self._stream.feed(data)
        return self.lines()

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display if line.strip()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)
