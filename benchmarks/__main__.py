"""Run every benchmark in its small form: `python -m benchmarks`."""

from __future__ import annotations

from benchmarks import launch, step

if __name__ == "__main__":
    launch.main()
    step.main([8, 32, 256], latency=1.0, repeats=1)
