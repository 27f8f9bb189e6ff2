"""A language model simulated by rules, and readers of the prompts that it gets.

The readers are for scripts of your own: a `ScriptedClient` function that plays critic or optimizer finds the tagged
blocks of a prompt with `read_blocks` and `read_section`, and a prompt's cue sentences with `read_cues`.
"""

from __future__ import annotations

from afnio._public import show_in
from afnio.testing.simulated._language import (
    Kind,
    PromptBlock,
    kind_of,
    read_blocks,
    read_cues,
    read_section,
    unescape,
)
from afnio.testing.simulated._lm import FixedReply, SimulatedLM
from afnio.testing.simulated._student import SENTIMENTS, classify

__all__ = [
    "SENTIMENTS",
    "FixedReply",
    "Kind",
    "PromptBlock",
    "SimulatedLM",
    "classify",
    "kind_of",
    "read_blocks",
    "read_cues",
    "read_section",
    "unescape",
]

show_in(__name__, globals(), __all__)
