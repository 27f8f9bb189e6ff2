"""Run text: runs as data for JSON and as lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from afnio.cli.run_choice import Chosen
from afnio.tellurio._compare import compare
from afnio.tellurio._queries import MISSING, Spending, kept, ranked

SHOWN_METRICS: Final = 3
SHOWN_TEXT: Final = 2_000


def summary(chosen: Chosen) -> dict[str, Any]:
    """What a list says of a run."""
    reader, run = chosen
    metrics = {one.name: one.value for one in reader.last_metrics(run.id)}
    headline = reader.headline(run.id)
    return {
        "id": run.id,
        "name": run.name,
        "namespace": run.namespace,
        "project": run.project,
        "status": run.status,
        "description": run.description,
        "date_created": run.date_created,
        "date_updated": run.date_updated,
        "git_commit": run.git_commit,
        "config": run.config,
        "headline": None if headline is None else asdict(headline),
        "metrics": metrics,
        **_totals(reader.spending(run.id)),
        "store": str(run.store),
    }


def details(chosen: Chosen) -> dict[str, Any]:
    """What `show` says of a run."""
    reader, run = chosen
    return {
        **summary(chosen),
        "versions": run.versions,
        "platform": run.platform,
        "identity": run.identity,
        "in_flight": run.in_flight,
        "waiting": run.waiting,
        "dropped": run.dropped,
        "purposes": {purpose: asdict(spent) for purpose, spent in reader.spending(run.id).items()},
        "phases": reader.phases(run.id),
        "parameters": [asdict(one) for one in reader.parameters(run.id)],
        "steps": [
            {
                "number": step.number,
                "optimizer": step.optimizer,
                "error": step.error,
                "changed": [change.role for change in step.changes if change.before != change.after],
                "rejected": {change.role: change.rejected for change in step.changes if change.rejected},
                "kept": [
                    {"roles": roles, "reason": reason}
                    for roles, reason in kept((change.role, change.rejected) for change in step.changes)
                ],
                "evidence": sum(len(change.evidence) for change in step.changes),
                "candidates": len(step.candidates),
            }
            for step in reader.steps(run.id)
        ],
    }


def compared(first: Chosen, second: Chosen) -> dict[str, Any]:
    """Two runs side by side, and the paired differences of what both evaluated."""
    found = compare(first.reader.scores(first.run.id), second.reader.scores(second.run.id))
    return {
        "first": summary(first),
        "second": summary(second),
        "last": found.last._asdict(),
        "phases": [{**asdict(one), "paired": one.paired._asdict()} for one in found.kinds],
    }


def list_text(runs: Sequence[Mapping[str, Any]], home: Path) -> str:
    if not runs:
        return f"No runs in {home}{'.' if home.exists() else f': {MISSING}'}"
    rows = [("RUN", "STATUS", "STARTED", "CALLS", "COST", "METRICS")]
    for run in runs:
        names = _shown(run)
        metrics = [f"{name} {_metric(run, name)}" for name in names[:SHOWN_METRICS]]
        more = len(names) - len(metrics)
        rows.append(
            (
                printable(f"{run['namespace']}/{run['project']}/{run['name']}"),
                run["status"],
                _date(run["date_created"]),
                f"{run['calls']:,}",
                _dollars(run["cost"]),
                printable(", ".join(metrics)) + (f", {more} more" if more else ""),
            )
        )
    widths = [max(len(row[place]) for row in rows) for place in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip()
        for row in rows
    )


def show_text(run: Mapping[str, Any]) -> str:
    lines = [
        printable(f"{run['namespace']}/{run['project']}/{run['name']}  {run['status']}"),
        f"  id        {run['id']}",
        f"  started   {_date(run['date_created'])}, last written {_date(run['date_updated'])}",
        f"  commit    {run['git_commit'] or '-'}",
        f"  store     {run['store']}",
    ]
    if run["description"]:
        lines.append(f"  about     {printable(run['description'])}")
    if run["config"]:
        settings = ", ".join(f"{name}={value!r}" for name, value in run["config"].items())
        lines.append(f"  config    {printable(settings)}")
    if run["dropped"]:
        lines.append(f"  left out  {run['dropped']:,} events, as the disk couldn't follow")
    lines += [
        f"  {printable(name):<30} {_metric(run, name)}{_interval(run['metrics'], name)}"
        for name in _shown(run)
    ]
    for purpose, spent in run["purposes"].items():
        lines.append(
            f"  {purpose:<10} {spent['calls']:>8,} calls  {spent['failed']:>5,} failed  "
            f"{spent['replayed']:>6,} replayed  {spent['prompt_tokens']:>11,} in  "
            f"{spent['completion_tokens']:>10,} out  {_dollars(spent['cost'])}"
            + (f"  {spent['cancelled']:,} cancelled" if spent["cancelled"] else "")
        )
    for step in run["steps"]:
        changed = ", ".join(step["changed"]) or "nothing"
        parts = [f"  step {step['number']} ({step['optimizer']}) changed {changed}"]
        parts += [f"kept {', '.join(one['roles'])}: {one['reason']}" for one in step["kept"]]
        if step["error"]:
            parts.append(f"failed: {step['error']}")
        lines.append(printable("; ".join(parts)))
    last = {one["number"]: one for one in run["parameters"]}
    for one in last.values():
        text = one["value"] if len(one["value"]) <= SHOWN_TEXT else one["value"][:SHOWN_TEXT] + " …"
        indented = printable(text).replace("\n", "\n    ")
        lines += [printable(f"  {one['role']}, since step {one['step']}:"), f"    {indented}"]
    return "\n".join(lines)


def compare_text(found: Mapping[str, Any]) -> str:
    first, second = found["first"], found["second"]
    lines = [
        printable(
            f"{first['name']} ({first['status']}, {first['calls']:,} calls, {_dollars(first['cost'])})"
        ),
        printable(
            f"{second['name']} ({second['status']}, {second['calls']:,} calls, {_dollars(second['cost'])})"
        ),
    ]
    shared = [name for name in _shown(first) if name in second["metrics"]]
    lines += [
        f"  {printable(name):<30} {_value(first['metrics'][name]):>10}  {_value(second['metrics'][name]):>10}"
        for name in shared
    ]
    if not found["last"]["samples"]:
        lines.append("  no sample was evaluated in both runs, so no scores can be paired")
    elif not found["phases"]:
        lines.append("  no phase of one run was evaluated in the other one too")
    for phase in found["phases"]:
        lines.append(
            printable(f"  {phase['first'] or 'no phase'} vs {phase['second'] or 'no phase'}")
            + f": {_mean(phase['means'][0])} → {_mean(phase['means'][1])}; {_paired(phase['paired'])}"
        )
    if found["last"]["samples"]:
        lines.append(f"  last evaluation of each sample: {_paired(found['last'])}")
    return "\n".join(lines)


def printable(text: str) -> str:
    """The text with what could play tricks on a terminal made visible; lines stay lines.

    >>> printable("a\\x1b[2Jb\\u202ec")
    'a\\\\x1b[2Jb\\\\u202ec'
    """
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text
    )


def _totals(spending: Mapping[str, Spending]) -> dict[str, Any]:
    parts = list(spending.values())
    known = [spent.cost for spent in parts if spent.cost is not None]
    return {
        "calls": sum(spent.calls for spent in parts),
        "failed": sum(spent.failed for spent in parts),
        "cancelled": sum(spent.cancelled for spent in parts),
        "replayed": sum(spent.replayed for spent in parts),
        "tokens": sum(spent.prompt_tokens + spent.completion_tokens for spent in parts),
        "cost": sum(known) if known else None,
        "unpriced": sum(spent.unpriced for spent in parts),
    }


def _shown(run: Mapping[str, Any]) -> list[str]:
    """The metrics that a person is told of, the headline first."""
    headline = run["headline"]
    return ranked(run["metrics"], None if headline is None else headline["metric"])


def _metric(run: Mapping[str, Any], name: str) -> str:
    text, headline = _value(run["metrics"][name]), run["headline"]
    if headline is None or headline["metric"] != name or headline["best"] is None:
        return text
    return f"{text} (best {_value(headline['best'])} at {headline['unit']} {headline['step']})"


def _interval(metrics: Mapping[str, Any], name: str) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f"  95 %: {_value(low)} to {_value(high)}"


def _paired(paired: Mapping[str, Any]) -> str:
    interval = "no interval"
    if paired["low"] is not None:
        interval = f"{paired['low']:+.3f} to {paired['high']:+.3f} (95 %)"
    return (
        f"{paired['samples']} samples of both: {paired['won']} won, {paired['lost']} lost, "
        f"{paired['difference']:+.3f}, {interval}"
    )


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return printable(text if len(text) <= 40 else text[:39] + "…")


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _dollars(cost: float | None) -> str:
    return "-" if cost is None else f"${cost:.4f}"


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
