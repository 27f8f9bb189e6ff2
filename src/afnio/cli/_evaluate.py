"""`afnio evaluate`: score an agent on a file of rows, for a person, a script or a CI job.

    0  it is done
    1  it failed: more than a tenth of the rows did, or a model can't be reached
    2  arguments, rows, the agent's file or the metric can't work
    3  the score is below --fail-under, or the agent is worse than --baseline beyond noise
    4  the budget ended

What the agent's code prints goes to standard error, so that `--json` prints one object in every case.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from afnio.cli._parser import Parser, say

if TYPE_CHECKING:
    from afnio.studies._evaluation import Evaluation

T = TypeVar("T")
FAILED, UNUSABLE, WORSE, ENDED = 1, 2, 3, 4
# Above this share of failed rows a score says little.
MOST_FAILED: Final = 0.1

EPILOG: Final = """\
exit codes: 0 done, 1 failed, 2 wrong arguments or data, 3 below --fail-under or worse than --baseline,
            4 the budget ended

examples:
  afnio evaluate agent.py:route tickets.csv --metric exact --expected tool --prompts agent.py:PROMPTS
  afnio evaluate agent.py:route tickets.csv --metric agent.py:right --expected tool --draws 3 --out before.json
  afnio evaluate agent.py:route tickets.csv --metric exact --expected tool --fresh --baseline before.json --json
"""


def evaluate_main(argv: Sequence[str]) -> int:
    """Evaluate, print what was found, and return the exit code."""
    options = _parser().parse_args(argv)
    said, evaluation = answered(lambda: _evaluated(options))
    if options.json:
        sys.stdout.write(json.dumps(said, allow_nan=False) + "\n")
    elif evaluation is None:
        sys.stderr.write(f"afnio: {said['error']}\n")
    else:
        say(_text(evaluation, said))
    return int(said["exit"])


def answered(work: Callable[[], tuple[dict[str, Any], T]]) -> tuple[dict[str, Any], T | None]:
    """Do a command's work. Returns what to print as JSON, with the exit code, and what was found, if it succeeded.

    What the user's code prints goes to standard error.
    """
    from afnio.errors import AfnioError, BudgetExceeded, MetricError, UnknownPriceError

    said: dict[str, Any]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return work()
    except BudgetExceeded as error:
        said = {"exit": ENDED, "error": f"{error}; the same command with a larger budget continues"}
    except (
        TypeError,
        ValueError,
        LookupError,
        OSError,
        ImportError,
        MetricError,
        UnknownPriceError,
    ) as error:
        said = {"exit": UNUSABLE, "error": str(error) or repr(error)}
    except AfnioError as error:
        said = {"exit": FAILED, "error": str(error)}
    return said, None


def _parser() -> Parser:
    parser = Parser(
        prog="afnio evaluate",
        description="Score an agent on rows. Replies that were paid for are used again.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data(parser)
    parser.add_argument("--draws", type=int, default=1, metavar="N", help="run each row so often")
    parser.add_argument(
        "--max-cost", type=float, metavar="DOLLARS", help="the most to spend, earlier starts included"
    )
    parser.add_argument("--max-calls", type=int, metavar="N", help="the most calls, earlier starts included")
    parser.add_argument(
        "--perfect", type=float, default=1.0, metavar="SCORE", help="the score of a right row"
    )
    parser.add_argument("--name", help="of the project in the store (default: the function's)")
    parser.add_argument("--dir", metavar="FOLDER", help="the folder of runs (default: AFNIO_HOME, or .afnio)")
    parser.add_argument("--fresh", action="store_true", help="ask everything anew")
    parser.add_argument("--fail-under", type=float, metavar="SCORE", help="exit 3 if the mean score is lower")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="exit 3 if worse than this evaluation")
    parser.add_argument("--out", type=Path, metavar="FILE", help="save the evaluation, to be a baseline")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def add_data(parser: Parser) -> None:
    """Add the arguments that name an agent, its prompts, its rows and a metric."""
    parser.add_argument("agent", metavar="AGENT", help="file.py:name, or package.module:name")
    parser.add_argument(
        "rows", metavar="ROWS", type=Path, help="a .csv, .tsv, .json or .jsonl file of rows with columns"
    )
    parser.add_argument(
        "--metric", required=True, help="exact, or file.py:name of a function of output and expected"
    )
    parser.add_argument("--expected", metavar="COLUMN", default="expected", help="default: expected")
    parser.add_argument(
        "--inputs",
        metavar="COLUMNS",
        help="the agent's inputs, with commas between (default: all other columns)",
    )
    parser.add_argument(
        "--prompts", metavar="SOURCE", help="file.py:NAME of a dict, or a folder of Result.save"
    )


def _evaluated(options: argparse.Namespace) -> tuple[dict[str, Any], Evaluation]:
    """Return what to print as JSON, and the evaluation."""
    import afnio
    from afnio.studies._evaluation import Evaluation
    from afnio.studies._scoring import takes_expected

    baseline = None if options.baseline is None else Evaluation.load(options.baseline)
    metric: Callable[..., Any] = exact if options.metric == "exact" else loaded(options.metric, "--metric")
    agent = loaded(options.agent, "AGENT")
    budget = None
    if options.max_cost is not None or options.max_calls is not None:
        budget = afnio.budget(max_cost=options.max_cost, max_calls=options.max_calls)
    evaluation = afnio.evaluate(
        agent,
        rows_of(options, labelled=takes_expected(metric)),
        metric,
        prompts=prompts_of(options.prompts),
        budget=budget,
        draws=options.draws,
        name=options.name,
        dir=options.dir,
        perfect=options.perfect,
        fresh=options.fresh,
    )
    if options.out is not None:
        evaluation.save(options.out)
    score = evaluation.score
    said: dict[str, Any] = {
        "exit": 0,
        "name": evaluation.name,
        "score": {"mean": score.mean, "low": score.low, "high": score.high},
        "rows": len(evaluation.rows),
        "draws": evaluation.draws,
        "failed": len(evaluation.failed),
        "flaky": len(evaluation.flaky),
        "calls": evaluation.calls,
        "replayed": evaluation.replayed,
        "tokens": evaluation.tokens,
        "cost": evaluation.cost,
        "notes": list(evaluation.notes),
        "run": evaluation.run,
        "worst": [str(row) for row in evaluation.worst(5)],
    }
    if options.fail_under is not None:
        said["fail_under"] = {
            "below": score.mean < options.fail_under,
            "within_noise": score.low is not None and score.low <= options.fail_under <= (score.high or 0.0),
        }
    if baseline is not None:
        compared = baseline.compare(evaluation)
        gain = compared.gain
        said["baseline"] = {
            "verdict": compared.verdict,
            "gain": gain.difference,
            "low": gain.low,
            "high": gain.high,
            "rows": gain.rows,
            "worse": gain.is_loss,
            **dict(compared.figures()),
        }
    if len(evaluation.failed) > MOST_FAILED * len(evaluation.rows):
        said |= {"exit": FAILED, "error": f"{len(evaluation.failed)} of {len(evaluation.rows)} rows failed"}
    elif said.get("fail_under", {}).get("below") or said.get("baseline", {}).get("worse"):
        said["exit"] = WORSE
    return said, evaluation


def _text(evaluation: Evaluation, said: Mapping[str, Any]) -> str:
    lines = [str(evaluation)]
    if worst := evaluation.worst(5):
        lines += ["", str(worst)]
    if under := said.get("fail_under"):
        noise = ", but its interval contains the threshold" if under["within_noise"] else ""
        lines += ["", f"The score is {'below' if under['below'] else 'not below'} the threshold{noise}."]
    if compared := said.get("baseline"):
        lines += ["", f"{compared['verdict']} (baseline against now)"]
    if "error" in said:
        lines += ["", f"failed: {said['error']}"]
    return "\n".join(lines)


def exact(output: Any, expected: Any) -> bool:
    """Return True if both are the same text but for blanks at the ends."""
    return str(output).strip() == str(expected).strip()


def prompts_of(source: str | None) -> dict[str, str] | None:
    from afnio.studies._stores import load_prompts

    if source is None:
        return None
    if ":" not in source:
        return load_prompts(source)
    texts = loaded(source, "--prompts")
    if not isinstance(texts, Mapping):
        raise TypeError(f"--prompts must be a dict of texts by name (got {type(texts).__name__} at {source})")
    return dict(texts)


def loaded(spec: str, argument: str) -> Any:
    """Return the object that a user names as `file.py:name` or `package.module:name`.

    Raises:
        ValueError: if there is none, or if its file fails.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ValueError(f"{argument} must be file.py:name or package.module:name (got {spec!r})")
    path = Path(where)
    try:
        module = _from_file(path) if path.suffix == ".py" else importlib.import_module(where)
    except FileNotFoundError:
        raise ValueError(f"{argument} must name a file that exists (got {where})") from None
    except Exception as error:
        raise ValueError(
            f"{argument}: {where} can't be imported ({type(error).__name__}: {error})"
        ) from error
    if not hasattr(module, name):
        names = ", ".join(sorted(one for one in vars(module) if not one.startswith("_")))
        raise ValueError(f"{argument} must name something in {where} (got {name!r}; it has {names})")
    return getattr(module, name)


def _from_file(path: Path) -> Any:
    """Import a file once, as Python does for the program itself: with its folder first in the path."""
    path = path.resolve(strict=True)
    module = sys.modules.get(path.stem)
    if module is not None and getattr(module, "__file__", None) == str(path):
        return module
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(options: argparse.Namespace, *, labelled: bool) -> list[Any]:
    """Return the rows of a file as `afnio.evaluate` takes them. One input column is passed by position.

    Raises:
        ValueError: if it isn't a table, or lacks a column.
    """
    path: Path = options.rows
    table = _table(path)
    if not table:
        raise ValueError(f"ROWS must have rows (got none in {path})")
    columns = list(table[0])
    inputs = (
        [name for name in columns if name != options.expected]
        if options.inputs is None
        else options.inputs.split(",")
    )
    needed = [*(("--expected", options.expected),) * labelled, *(("--inputs", name) for name in inputs)]
    for number, row in enumerate(table):
        for argument, column in needed:
            if column not in row:
                raise ValueError(
                    f"{argument} must be a column of {path} (got {column!r}; row {number} has {', '.join(row)})"
                )

    def given(row: Mapping[str, Any]) -> Any:
        alone = len(inputs) == 1 and not isinstance(
            row[inputs[0]], Mapping
        )  # a dict would be arguments by name
        return row[inputs[0]] if alone else {name: row[name] for name in inputs}

    return [{"inputs": given(row), "expected": row.get(options.expected)} for row in table]


def _table(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".json", ".jsonl"):
        raise ValueError(f"ROWS must be a .csv, .tsv, .json or .jsonl file (got {path})")
    csv.field_size_limit(2**31 - 1)  # its own limit is less than a long document
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if kind in (".csv", ".tsv"):
                table: Any = list(csv.DictReader(file, delimiter="," if kind == ".csv" else "\t"))
            elif kind == ".json":
                table = json.load(file)
            else:
                table = [json.loads(line) for line in file if line.strip()]
    except (ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"ROWS must be {kind[1:].upper()} in UTF-8 (got {error} in {path})") from error
    ragged = kind in (".csv", ".tsv") and [n for n, row in enumerate(table) if None in (*row, *row.values())]
    if ragged:
        raise ValueError(f"each row of {path} must have a value for each column (row {ragged[0]} has not)")
    if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
        raise ValueError(f"ROWS must be a list of objects (got something else in {path})")
    return table
