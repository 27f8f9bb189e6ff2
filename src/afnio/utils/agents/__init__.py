"""Ready-made agents."""

from __future__ import annotations

from afnio.utils.agents.sentiment_analyzer import SentimentAnalyzer as SentimentAnalyzer
