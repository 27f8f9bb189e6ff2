"""What the simulated LM knows of language: words of courtesy, affect and intent.

The lists hold common English wordings, chosen with business letters in mind and in view of training
data only.
"""

from __future__ import annotations

import re
from typing import Final

from afnio.testing.simulated.topics import TOPICS


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


COURTESY: Final = frozenset(
    _listed("""
        hope, thank, thanks, appreciate, appreciated, grateful, gratitude, commend, commendable,
        pleased, pleasure, kind, kindly, wonderful, excellent, great, delighted, best, regards,
        sincerely, warm, welcome, forward
    """)
)
"""Words that a naive reader takes for a good mood."""

COMPLAINTS: Final = frozenset(
    _listed("""
        unacceptable, terrible, awful, horrible, worst, furious, outraged, angry, appalling,
        disgusted, disappointed, frustrated, disheartened, unhappy, ridiculous, hate
    """)
)
"""Words that even a naive reader takes for a bad mood."""

PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "positive": _listed("""
        exceptional, outstanding, fantastic, wonderful, amazing, impressed, impressive,
        thrilled, delighted, love, loved, enjoy, enjoyed, enjoying, happy, glad, pleasure,
        admire, confident, highly, top notch, truly appreciate, sincerely appreciate, deeply
        appreciate, thank you so much, grateful, heartfelt, remarkable, superb, brilliant,
        perfect, excited, pleasantly, praise, kudos, compliment, testament, invaluable,
        dedication, expertise, went above, above and beyond, exceeded, professionalism, warm
        regards, keep up, great job, satisfied client, satisfied customer, trust your, seamless,
        pleased with
    """),
    "neutral": _listed("""
        inquire, inquiry, inquiring, information about, information on, information regarding,
        more information, detailed information, additional information, more details, details
        on, details about, interested in, curious, would like to know, learn more, available,
        availability, options, pricing, schedule, scheduling, scheduled, adjust, arrange,
        routine, request, requesting, guidance, recommendations, could you provide, please
        provide, could you please, provide me, clarify, clarification, considering, exploring,
        wanted to, would appreciate it if, at this time, if possible, next week, how your, how
        to, appointment, upcoming, flexible, reach out, look into
    """),
    "negative": _listed("""
        frustrated, frustrating, frustration, disappointed, disappointing, disappointment,
        unacceptable, disheartened, disheartening, dissatisfied, dissatisfaction, displeasure,
        unhappy, angry, upset, annoyed, annoying, appalled, appalling, terrible, awful,
        horrible, worst, poor, poorly, fed up, failed, fails, failure, failing, lack of,
        lacking, ignored, neglected, neglect, dismissive, unprofessional, unreliable,
        unresponsive, ridiculous, subpar, inadequate, insufficient, must admit, unfortunately,
        fell short, falls short, let down, expected better, not impressed, far from, undermines,
        reconsider, skeptical, vague, haphazard, careless, negligence, incompetent, complaint,
        distressing, unsatisfactory, rectify, intolerable, unbearable, no response, multiple
        times, yet again, still not, waste of
    """),
    **TOPICS,
}
"""Wordings that speak for a label, roughly the most telling first."""

_TYPOGRAPHIC: Final = "\u2019"  # the apostrophe that word processors write
_WORD: Final = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def normalize(text: str) -> str:
    """Return the lower-case words of `text` with one space around each, to look phrases up in.

    >>> " top notch " in normalize("Truly TOP-notch!")
    True
    """
    words = _WORD.findall(text.lower().replace(_TYPOGRAPHIC, "'"))
    return f" {' '.join(words)} "
