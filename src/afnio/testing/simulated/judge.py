"""The judge: holds a prediction against what was expected, as far as its prompt shows both."""

from __future__ import annotations

import json
import re
from typing import Final

from afnio.testing.simulated.lexicon import normalize

_PREDICTION: Final = re.compile(r"\b(?:prediction|answer|reply|response)\b[^\n:]*:\s*(.+)", re.IGNORECASE)
_TARGET: Final = re.compile(r"\b(?:target|expected|reference|truth|gold)\b[^\n:]*:\s*(.+)", re.IGNORECASE)


def judge(text: str) -> str:
    r"""Return the judge's JSON: score 1 if prediction and target have the same words, else 0.

    Each stands on a line of its own, after its name and a colon. Without a target any prediction that
    says something is good.

    >>> judge("Prediction: Seven.\nTarget: seven")
    '{"score": 1, "explanation": "exact match: predicted \\"Seven.\\", expected \\"seven\\", score 1."}'
    """
    said, wanted = _last(_PREDICTION, text), _last(_TARGET, text)
    if wanted is None:
        good = bool(said and normalize(said).strip())
        return json.dumps({"score": int(good), "explanation": "It answers." if good else "It says nothing."})
    score = int(normalize(said or "") == normalize(wanted))
    quoted = [json.dumps(value, ensure_ascii=False) for value in (said or "", wanted)]
    explanation = f"exact match: predicted {quoted[0]}, expected {quoted[1]}, score {score}."
    return json.dumps({"score": score, "explanation": explanation}, ensure_ascii=False)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return str(found[-1]).strip() if found else None
