"""`afnio optimize`: improve an agent's prompts on a file of rows; and `afnio skill`, which teaches coding agents how.

0  the new prompts are better, or with --check: it can start
1  it failed: too many rows did, or a model can't be reached
2  arguments, rows, the agent's file or the metric can't work
3  the old prompts stay, or the new ones aren't clearly better
4  the budget ended before the held-out rows were scored
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from afnio.cli._evaluate import (
    ENDED,
    UNUSABLE,
    WORSE,
    add_data,
    answered,
    exact,
    loaded,
    prompts_of,
    rows_of,
)
from afnio.cli._parser import Parser, say, say_next

if TYPE_CHECKING:
    from afnio.studies._check import Check
    from afnio.studies._result import Result

EPILOG: Final = """\
exit codes: 0 better (with --check: it can start), 1 failed, 2 wrong arguments or data,
            3 not clearly better, 4 the budget ended before the verdict

examples:
  afnio optimize agent.py:route tickets.csv --metric exact --prompts agent.py:PROMPTS \\
    --critic openai/gpt-5 --max-calls 700 --check
  afnio optimize agent.py:route tickets.csv --metric exact --prompts agent.py:PROMPTS \\
    --critic openai/gpt-5 --max-cost 5 --out prompts/ --json
"""


def optimize_main(argv: Sequence[str]) -> int:
    """Optimize, or check; print what was found, and return the exit code."""
    parser = Parser(
        prog="afnio optimize",
        description="Improve an agent's prompts on rows, and measure by how much. A killed one continues.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data(parser)
    parser.add_argument(
        "--critic", required=True, metavar="PROVIDER/MODEL", help="reads mistakes, writes prompts"
    )
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--max-calls", type=int, metavar="N", help="the most calls")
    limit.add_argument("--max-cost", type=float, metavar="DOLLARS", help="the most to spend")
    parser.add_argument(
        "--perfect", type=float, default=1.0, metavar="SCORE", help="the score of a right row"
    )
    parser.add_argument(
        "--constraint", action="append", default=[], metavar="TEXT", help="a rule for new prompts"
    )
    parser.add_argument(
        "--guards", type=Path, metavar="FILE", help="rows that must not break, with the columns of ROWS"
    )
    parser.add_argument("--max-chars", type=int, default=1_000, metavar="N", help="the most of a prompt")
    parser.add_argument("--draws", type=int, default=1, metavar="N", help="score each held-out row so often")
    parser.add_argument(
        "--cross-fit", action="store_true", help="train twice, and hold out each row once; for 20 to 95 rows"
    )
    parser.add_argument("--seed", type=int, help="of the split of the rows")
    parser.add_argument("--name", help="of the project in the store (default: the function's)")
    parser.add_argument("--dir", metavar="FOLDER", help="the folder of runs (default: AFNIO_HOME, or .afnio)")
    parser.add_argument("--check", action="store_true", help="say what it would do and cost; asks no model")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the prompts to files")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the result as a page")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    said, result = answered(lambda: _optimized(options))
    if options.json:
        sys.stdout.write(json.dumps(said, allow_nan=False) + "\n")
    elif result is None:
        sys.stderr.write(f"afnio: {said['error']}\n")
    else:
        say(str(result))
        if options.check:
            say_next(
                {"the same without --check": "to start"}
                if said["exit"] == 0
                else {"afnio skill": "how to mend it"}
            )
        else:
            say_next(
                {"afnio studio": "the run in a browser", f"afnio prompts export {said['run']}": "its prompts"}
            )
    return int(said["exit"])


def _optimized(options: argparse.Namespace) -> tuple[dict[str, Any], Check | Result]:
    import afnio
    from afnio.studies._result import UNTESTED
    from afnio.studies._scoring import takes_expected

    metric: Callable[..., Any] = exact if options.metric == "exact" else loaded(options.metric, "--metric")
    labelled = takes_expected(metric)
    guards = argparse.Namespace(**{**vars(options), "rows": options.guards})
    arguments: dict[str, Any] = {
        "agent": loaded(options.agent, "AGENT"),
        "rows": rows_of(options, labelled=labelled),
        "metric": metric,
        "prompts": prompts_of(options.prompts),
        "critic": options.critic,
        "budget": afnio.budget(max_calls=options.max_calls, max_cost=options.max_cost),
        "guards": None if options.guards is None else rows_of(guards, labelled=labelled),
        "constraints": options.constraint,
        "max_chars": options.max_chars,
        "draws": options.draws,
        "cross_fit": options.cross_fit,
        "perfect": options.perfect,
        "seed": options.seed,
        "name": options.name,
        "dir": options.dir,
    }
    if options.check:
        check = afnio.check(**arguments)
        return {"exit": 0 if check.ok else UNUSABLE, **check.to_json()}, check
    result = afnio.optimize(**arguments)
    if options.out is not None:
        result.save(options.out)
    if options.report is not None:
        result.report(options.report)
    clear = result.gain is not None and result.gain.is_clear and result.gain.difference > 0
    said = {
        "exit": ENDED if result.verdict == UNTESTED else 0 if clear else WORSE,
        "verdict": result.verdict,
        "prompts": dict(result.prompts),
        "start": dict(result.start),
        "before": None if result.before is None else result.before.mean,
        "after": None if result.after is None else result.after.mean,
        "gain": None if result.gain is None else [result.gain.difference, result.gain.low, result.gain.high],
        "rows": dict(result.splits),
        "calls": result.calls,
        "tokens": result.tokens,
        "cost": result.cost,
        "stopped": result.stopped,
        "notes": list(result.notes),
        "run": result.run,
    }
    return said, result


def skill_main(argv: Sequence[str]) -> int:
    """Write the skill, and return the exit code."""
    parser = Parser(
        prog="afnio skill",
        description="Write a SKILL.md by which a coding agent evaluates and optimizes prompts with Afnio.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="where the coding agent looks for skills, such as .claude/skills/afnio (default: print it)",
    )
    folder: Path | None = parser.parse_args(argv).folder
    text = resources.files("afnio.cli").joinpath("SKILL.md").read_text(encoding="utf-8")
    if folder is None:
        sys.stdout.write(text)
        return 0
    path = folder / "SKILL.md"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        sys.stderr.write(f"afnio: {path} exists and is another one; move it, or name another folder\n")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{path}\n")
    return 0
