"""The table of calls and tokens of each phase."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from afnio.demo.tally import Phase


def phase_table(phases: Mapping[str, Phase], total: Phase) -> Table:
    """Return the table, with columns for retries and failures only where there were some."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    columns = {
        "calls": [phase.calls for phase in [*phases.values(), total]],
        "retries": [phase.retries for phase in [*phases.values(), total]],
        "failed": [phase.failed for phase in [*phases.values(), total]],
        "tokens in": [phase.prompt_tokens for phase in [*phases.values(), total]],
        "tokens out": [phase.completion_tokens for phase in [*phases.values(), total]],
    }
    for name in ("retries", "failed"):
        if not any(columns[name]):
            del columns[name]
    table.add_column("phase", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for name, *counts in zip([*phases, "all"], *columns.values(), strict=True):
        table.add_row(name, *(f"{count:,}" for count in counts), style="bold" if name == "all" else "")
    return table
