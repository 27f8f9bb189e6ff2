"""An OpenAI-compatible provider for tests, with quotas, latencies and faults."""
