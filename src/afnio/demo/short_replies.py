"""Short replies: the engine's reply formats, tightened for a model that doesn't know when to stop.

A server that decodes by a grammar, as llama.cpp does, then can't write an entry too many, or text until it
is cut off in the middle of the JSON.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from afnio.cognitive._prompts import CRITIC_SCHEMA
from afnio.optim._prompts import TGD_SCHEMA

FEEDBACK_CHARACTERS: Final = 240
VALUE_CHARACTERS: Final = 800


def feedback_format() -> dict[str, Any]:
    """Return the critic's format for one text, the prompt, with feedback of limited length."""
    form = copy.deepcopy(CRITIC_SCHEMA)
    entries = form["json_schema"]["schema"]["properties"]["feedback"]
    entries["minItems"] = entries["maxItems"] = 1
    entries["items"]["properties"]["text"]["maxLength"] = FEEDBACK_CHARACTERS
    return form


def value_format() -> dict[str, Any]:
    """Return the optimizer's format, with a value of limited length."""
    form = copy.deepcopy(TGD_SCHEMA)
    form["json_schema"]["schema"]["properties"]["value"]["maxLength"] = VALUE_CHARACTERS
    return form
