"""What the demo's tests share: the fixture's type, and the reason to skip without data."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import TypeAlias

import pytest

Demo: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]

needs_data = pytest.mark.skipif(
    not os.environ.get("AFNIO_DATA"),
    reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
)
