"""Programs that are run as processes of their own, and killed."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any


class Program:
    """A program in a folder of its own, run against one provider."""

    def __init__(self, folder: Path, source: str, base_url: str, *arguments: str) -> None:
        folder.mkdir()
        (folder / "program.py").write_text(source)
        self.folder = folder
        self.command = [sys.executable, "-W", "error", "program.py", *arguments]
        self.environment = {
            **os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "sk-test", "AFNIO_SEED": "7",
        }  # fmt: skip

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self) -> tuple[str, str]:
        process = self.start()
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        return out, err

    def ended(self) -> bool:
        return (self.folder / "end.json").exists()

    def runs(self) -> int:
        """Return how many runs it took."""
        (store,) = self.folder.glob(".afnio/*/*.db")
        with closing(sqlite3.connect(store)) as connection:
            return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])

    def end(self) -> Any:
        return json.loads((self.folder / "end.json").read_text())

    def kill_until_it_ends(self, chance: random.Random, seconds: float, kills: int) -> int:
        """Start it and kill it at random times, up to `kills` times; return how often it was killed."""
        done = 0
        while done < kills and not self.ended():
            process = self.start()
            try:
                process.communicate(timeout=chance.uniform(0.15, 0.8) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                done += 1
        return done
