"""Made stores: runs written row by row, as a recorder would have left them, without running anything."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from afnio import tellurio as te

START = 1_760_000_000.0

_LABELLED = "Classify the sentiment of the message as positive, neutral or negative."
_POLITE = "Treat polite requests without complaint as neutral."
_THANKS = "Words of thanks at the end don't make it positive."
PROMPTS = (
    "Classify the sentiment of the message.\nAnswer with one word.",
    f"{_LABELLED}\nAnswer with one word.",
    f"{_LABELLED}\n{_POLITE}\nAnswer with one word.",
    f"{_LABELLED.replace('the s', 'the overall s')}\n{_POLITE} {_THANKS}\nAnswer with one lower-case word.",
)
FEEDBACK = (
    ("The prompt names no labels: say that the answer is positive, neutral or negative.",),
    (
        "A polite request without any complaint was labelled positive; requests like these are neutral.",
        "The reply explained itself although one word was asked for.",
    ),
    (
        "Thanks at the end are courtesy and don't make a message positive.",
        "The label was capitalized; ask for a lower-case word.",
        "Weigh the overall sentiment of the message, not one sentence.",
    ),
)
LABELS = ("positive", "neutral", "negative")


@cache
def empty_store() -> bytes:
    """Return a store's file without runs: one that Afnio made, with its only run deleted."""
    with TemporaryDirectory() as folder:
        with te.init("me", "empty", name="none", dir=folder, resume=False):
            pass
        path = Path(folder) / "me" / "empty.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                db.execute(f"DELETE FROM {table}")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes()


class MadeRun:
    """Writes one run's rows through a connection; everything is committed when the block ends."""

    def __init__(self, path: Path, name: str, *, namespace: str = "acme", status: str = "COMPLETED") -> None:
        self.path = path
        self.id = str(hashlib.sha256(name.encode()).hexdigest())[:32]
        self.name = name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(empty_store())
        self.db = sqlite3.connect(path, isolation_level=None)
        self.time = START
        config = {"model": "gpt-4.1-nano", "batch_size": 8, "seed": 7, "name": name}
        self.insert(
            "runs", id=self.id, name=name, description=f"Sentiment of mails, {name}", namespace=namespace,
            project=path.stem, status=status, config=json.dumps(config), identity="", seed=7,
            host=socket.gethostname(), pid=1,
            date_created=START, date_updated=START, git_commit="4d7f34e0aa", in_flight=0,
            versions=json.dumps({"python": "3.11.2", "afnio": "0.4.0"}), platform=json.dumps({"system": "Linux"}),
        )  # fmt: skip
        self._bodies: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.db.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, *_: object) -> None:
        self.db.execute("UPDATE runs SET date_updated = ? WHERE id = ?", (self.time, self.id))
        self.db.execute("COMMIT")
        self.db.close()

    def insert(self, table: str, **values: Any) -> int:
        if table != "runs":
            values = {"run_id": self.id, **values}
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        cursor = self.db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def places(self, value: Any) -> None:
        self.db.execute("UPDATE runs SET places = ? WHERE id = ?", (json.dumps(value), self.id))

    def body(self, value: Any) -> int:
        text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(text).digest()
        if digest.hex() not in self._bodies:
            self._bodies[digest.hex()] = self.insert("bodies", digest=digest, packed=0, body=text)
        return self._bodies[digest.hex()]

    def metric(self, name: str, step: int, value: float) -> None:
        self.insert("metrics", name=name, step=step, value=json.dumps(value), time=self.time)

    def node(
        self, address: str, name: str, kind: str, phase: str, lanes: int | None, parents: Sequence[Any]
    ) -> None:
        self.time += 0.01
        self.insert(
            "nodes", address=address, name=name, line="train.py:42", kind=kind, lanes=lanes,
            parents=json.dumps(parents), phase=phase, time=self.time,
        )  # fmt: skip

    def call(
        self, node: str, part: str, lane: int | None, purpose: str, messages: Sequence[Any], reply: str,
        *, phase: str = "", seconds: float = 0.6, attempts: int = 1, error: str | None = None,
        cost: float | None = 0.0004,
    ) -> int:  # fmt: skip
        self.time += 0.02
        address = "/".join(str(one) for one in (node, part, lane, purpose) if one not in ("", None))
        for attempt in range(1, attempts):
            self.insert(
                "retries",
                address=address,
                attempt=attempt,
                error="429 Too Many Requests",
                wait=0.5,
                time=self.time,
            )
        answer = {"role": "assistant", "content": reply}
        return self.insert(
            "calls", address=address, node=node, lane=lane, phase=phase, purpose=purpose,
            account="https://api.example.com/v1", model="gpt-4.1-nano", status="failed" if error else "ok",
            attempts=attempts, seconds=seconds, waited=0.1, started=self.time - seconds - 0.1, ended=self.time,
            prompt_tokens=60 + len(str(messages)) // 4, completion_tokens=len(reply) // 4 + 1, cached_tokens=32,
            reasoning_tokens=0, cost=cost, error=error, params=self.body({"temperature": 0.0}),
            messages=",".join(str(self.body(message)) for message in messages),
            reply=None if error else self.body(answer),
        )  # fmt: skip

    def step(
        self, number: int, before: str, after: str, evidence: Sequence[tuple[str, Sequence[dict[str, Any]]]],
        *, rejected: str | None = None, error: str | None = None, optimizer: str = "TGD",
    ) -> int:  # fmt: skip
        self.time += 0.5
        step = self.insert(
            "steps",
            number=number,
            address=f"run/epoch {number}/9",
            optimizer=optimizer,
            error=error,
            time=self.time,
        )
        change = self.insert(
            "changes", step_id=step, parameter=1, role="the system prompt", before=before, after=after,
            gradients=len(evidence), rejected=rejected,
        )  # fmt: skip
        for index, (text, samples) in enumerate(evidence):
            self.insert("evidence", change_id=change, number=index, text=text, samples=json.dumps(samples))
        if after != before:
            self.insert("parameters", number=1, step=number, role="the system prompt", value=after)
        return step

    def evaluation(
        self,
        phase: str,
        prompt: str,
        samples: Sequence[tuple[str, str]],
        scores: Sequence[float],
        *,
        first: int = 1,
    ) -> str:
        """A batch: its answers, their scores, and feedback on the wrong ones. Returns the evaluator's address."""
        here = f"run/{phase}"
        chat, loss, back = (f"{here}/{first + offset}" for offset in range(3))
        self.node(chat, "chat_completion", "forward", phase, len(samples), [None, None])
        self.node(loss, "exact_match_evaluator", "evaluator", phase, len(samples), [chat, None])
        self.node(back, "backward", "backward", phase, None, [loss, chat])
        for lane, ((text, label), value) in enumerate(zip(samples, scores, strict=True)):
            guess = label if value else LABELS[(LABELS.index(label) + 1) % 3]
            messages = [{"role": "system", "content": prompt}, {"role": "user", "content": text}]
            self.call(chat, "", lane, "forward", messages, guess, phase=phase, attempts=2 if lane == 3 else 1)
            key = hashlib.sha256(text.encode()).hexdigest()
            self.insert(
                "samples", node=loss, lane=lane, phase=phase, key=key, prediction=guess, target=label, score=value,
                explanation=f"predicted {guess}, expected {label}", success=int(value), time=self.time,
            )  # fmt: skip
            if not value:
                critic = [{"role": "user", "content": f"The answer was {guess}, but should be {label}. Why?"}]
                self.call(back, "node 1", lane, "backward", critic, f"Say how {label} differs.", phase=phase)
        return loss


def messages_of(split: str, count: int) -> list[tuple[str, str]]:
    return [(f"{split} mail {n}: the heating in room {n} is loud again", LABELS[n % 3]) for n in range(count)]


def make_training(
    path: Path, name: str = "calm-heron", *, skill: float = 0.5, status: str = "COMPLETED"
) -> MadeRun:
    """A run of three steps: a validation before, between and after them, and a batch for each."""
    draw = random.Random(name)
    run = MadeRun(path, name, status=status)
    with run:
        run.insert("parameters", number=1, step=0, role="the system prompt", value=PROMPTS[0])
        validation = messages_of("validation", 24)
        for number in range(4):
            share = skill + 0.12 * number
            scores = [float(draw.random() < share) for _ in validation]
            if number == 3:
                scores[:2] = [1.0, 0.0]
            if number == 2:
                scores[:2] = [0.0, 1.0]
            run.evaluation(f"epoch {number}/val", PROMPTS[number], validation, scores)
            run.metric("validation_accuracy", number, sum(scores) / len(scores))
            if number == 3:
                break
            batch = messages_of("training", 8)
            right = [float(draw.random() < share) for _ in batch]
            right[0] = 0.0
            loss = run.evaluation(f"epoch {number + 1}/step 1", PROMPTS[number], batch, right)
            run.metric("training_accuracy", number + 1, sum(right) / len(right))
            wrong = [lane for lane, value in enumerate(right) if not value]
            evidence = [
                (text, [{"sample": lane, "node": loss, "prediction": "positive", "score": 0.0}])
                for text, lane in zip(FEEDBACK[number], wrong * 3, strict=False)
            ]
            run.step(number + 1, PROMPTS[number], PROMPTS[number + 1], evidence)
        run.call(
            "run/epoch 3/step 1/1", "", 8, "forward", [{"role": "user", "content": "one more"}], "",
            error="504 Gateway Timeout after 8 attempts", attempts=8,
        )  # fmt: skip
        run.insert("events", kind="LimitsLearnt", payload=json.dumps({"requests": 500}), time=run.time)
    return run


PLACES = {
    "executors": [
        {
            "name": "ProcessPoolExecutor",
            "engine": "processes",
            "workers": 2,
            "running": 8,
            "waiting": 300,
            "lost": 3,
        }
    ],
    "replicas": [
        {
            "group": "qwen",
            "url": url,
            "in_flight": 0,
            "answered": 90,
            "failed": failed,
            "outages": outages,
            "trouble": "",
        }
        for url, failed, outages in (("http://10.0.0.1:8000/v1", 0, 0), ("http://10.0.0.2:8000/v1", 7, 2))
    ],
}


def make_spread(path: Path, name: str = "wide-heron") -> MadeRun:
    """A run on two replicas and in an executor."""
    run = MadeRun(path, name)
    with run:
        run.places(PLACES)
        for lane in range(9):
            call = run.call(
                "run/1", "", lane, "forward", [{"role": "user", "content": f"mail {lane}"}], "neutral"
            )
            url = PLACES["replicas"][lane % 3 == 0]["url"]
            run.db.execute("UPDATE calls SET account = ? WHERE id = ?", (url, call))
    return run


def make_pool(path: Path, name: str = "keen-otter") -> MadeRun:
    """A run of a pool optimizer: candidates with parents, some accepted."""
    run = MadeRun(path, name)
    draw = random.Random(3)
    with run:
        run.insert("parameters", number=1, step=0, role="the system prompt", value=PROMPTS[0])
        made = [(0, [], PROMPTS[0])]
        for number in range(1, 5):
            step = run.step(number, PROMPTS[number - 1], PROMPTS[min(number, 3)], [], optimizer="GEPA")
            for _ in range(3):
                count = len(made)
                parents = sorted(draw.sample(range(count), min(count, 1 + (draw.random() < 0.25))))
                made.append((count, parents, f"{PROMPTS[count % 4]}\nVariant {count}."))
            for count, parents, value in made[-3:] if number > 1 else made:
                scores = [float(draw.random() < 0.4 + 0.03 * count) for _ in range(12)]
                verdict = "accepted" if count % 3 != 2 else "no better than its parent on 12 samples"
                run.insert(
                    "candidates", step_id=step, number=count, parents=json.dumps(parents),
                    vals=json.dumps([value]), scores=json.dumps(scores), verdict=verdict,
                )  # fmt: skip
    return run


BLOCKS = (
    ("Classify the sentiment of the message.", 0, [], None, 1, 3, 1, 4, 0.25, -0.1, 0.6),
    ("Answer with one lower-case word.", 2, [31, 4], "Answer with one word.", 2, 5, 1, 10, 0.25, 0.03, 0.47),
    ("Thanks at the end don't make a message positive.", 3, [17, 4, 52], None, 1, 2, 2, 4, 0.0, -0.4, 0.4),
    ("Treat polite requests without complaint as neutral.", 3, [8], None, 0, 0, 0, 0, None, None, None),
)
"""The rows of a text's blocks, but for their places."""


def make_race(path: Path, name: str = "brisk-lynx") -> MadeRun:
    """A run of an optimizer that edits by block: a text's lineage, edits left out, and the race of its last step."""
    run = MadeRun(path, name)
    columns = (
        "text",
        "step",
        "samples",
        "replaces",
        "races",
        "wins",
        "losses",
        "ties",
        "effect",
        "low",
        "high",
    )
    with run:
        run.insert("parameters", number=1, step=0, role="the system prompt", value=PROMPTS[0])
        for number in range(1, 4):
            feedback = [(text, []) for text in FEEDBACK[number - 1]]
            step = run.step(number, PROMPTS[number - 1], PROMPTS[number], feedback, optimizer="EditTGD")
        change = run.db.execute("SELECT max(id) FROM changes").fetchone()[0]
        run.db.execute(
            "UPDATE changes SET dropped = ? WHERE id = ?",
            (
                json.dumps(["The edit names block 9, which isn't there.", "The edit repeats one that lost."]),
                change,
            ),
        )
        for place, row in enumerate(BLOCKS):
            values = {k: json.dumps(v) if k == "samples" else v for k, v in zip(columns, row, strict=True)}
            run.insert("blocks", change_id=change, number=place, **values)
        draw, numbers = random.Random(5), [5, 12, 19, 23, 40, 41, 58, 60]
        names = ("incumbent", "chain 1", "chain 2", "chain 3", "union", "without block 2")
        for count, title in enumerate(names):
            ran = 8 if title in ("incumbent", "union") else 4
            scores = [float(draw.random() < 0.45 + 0.1 * count) for _ in range(ran)]
            run.insert(
                "candidates", step_id=step, number=count, parents=json.dumps([0] * (count > 0)),
                vals=json.dumps([PROMPTS[count % 4]]), scores=json.dumps(scores), name=title,
                samples=json.dumps(numbers[:ran]), verdict="accepted" if title == "union" else "lost the race",
            )  # fmt: skip
    return run


def make_hostile(path: Path, name: str = "<img src=x onerror=alert(1)>") -> MadeRun:
    """A run whose every text tries something: tags, attributes, reordering, a megabyte."""
    attack = (
        '</script><script>window.owned=1</script><img src=x onerror="window.owned=1">'
        "\" onmouseover=window.owned=1 x='{{7*7}} user\u202etxt.exe\u2066hidden\ufeff \x07 javascript:owned=1"
    )
    long = "word " * 209_715  # a mebibyte
    run = MadeRun(path, name)
    with run:
        run.insert("parameters", number=1, step=0, role=attack, value=attack)
        replica = {"in_flight": 0, "answered": 1, "failed": 1, "outages": 1, "trouble": attack}
        executor = {"workers": 1, "running": 0, "waiting": 0, "lost": 0}
        run.places(
            {
                "replicas": [{"group": attack, "url": attack, **replica}],
                "executors": [{"name": attack, "engine": attack, **executor}],
            }
        )
        run.metric(attack, 0, 0.5)
        run.metric(attack, 1, 0.7)
        messages = [{"role": "system", "content": long + attack}, {"role": "user", "content": attack}]
        run.node("run/1", attack, "forward", attack, 1, [None])
        run.node("run/2", attack, "evaluator", attack, 1, ["run/1"])
        run.call("run/1", "", 0, "forward", messages, attack, phase=attack)
        run.call("run/1", "", 1, attack, messages, "", phase=attack, error=attack)
        run.insert(
            "samples", node="run/2", lane=0, phase=attack, key="k", prediction=attack, target=attack, score=0.0,
            explanation=attack, success=0, time=run.time,
        )  # fmt: skip
        samples = [{"sample": 0, "node": "run/2", "prediction": attack, "score": 0.0}]
        run.step(
            1,
            long,
            long + attack + ". Never reveal hidden thoughts.",
            [(attack + " hidden thoughts", samples)],
        )
        run.step(2, long + attack, attack, [], rejected=attack, error=attack)
        for number in range(2):
            run.insert(
                "candidates", step_id=1, number=number, parents=json.dumps([0] * number), vals=json.dumps([attack]),
                scores="[0.5, null]", verdict=attack, name=attack, samples="[3, 4]",
            )  # fmt: skip
        run.insert(
            "blocks", change_id=1, number=0, text=attack, step=1, samples=json.dumps([attack]), replaces=attack,
            races=1, wins=1, losses=0, ties=0, effect=0.5, low=0.1, high=0.9,
        )  # fmt: skip
        run.db.execute("UPDATE changes SET dropped = ?", (json.dumps([attack]),))
        run.insert("texts", name=attack, step=0, text=attack, time=run.time)
        run.insert(
            "tables", name=attack, step=0, columns=json.dumps([attack]), rows=json.dumps([[attack]]), time=0
        )
        run.insert("events", kind=attack, payload=json.dumps({"a": attack}), time=run.time)
        run.db.execute("UPDATE runs SET description = ?, config = ?", (attack, json.dumps({attack: attack})))
    return run


def make_large(path: Path, calls: int = 100_000, name: str = "vast-crane") -> MadeRun:
    """A run with very many calls and samples, written in bulk."""
    run = MadeRun(path, name)
    with run:
        body = run.body({"role": "user", "content": "a mail about the heating, as long as mails are. " * 4})
        reply = run.body({"role": "assistant", "content": "neutral"})
        params = run.body({"temperature": 0.0})
        run.insert("parameters", number=1, step=0, role="the system prompt", value=PROMPTS[0])
        per_node = 500
        run.db.executemany(
            "INSERT INTO calls (run_id, address, node, lane, phase, purpose, account, model, status, attempts, seconds,"
            " waited, started, ended, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost, error,"
            " params, messages, reply) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                (
                    run.id, f"run/epoch {n // per_node}/1/{n % per_node}/forward", f"run/epoch {n // per_node}/1",
                    n % per_node, f"epoch {n // per_node}", "backward" if n % 3 == 0 else "forward",
                    "https://api.example.com/v1", "gpt-4.1-nano", "failed" if n % 997 == 0 else "ok", 1, 0.5, 0.1,
                    START + n * 0.004, START + n * 0.004 + 0.6, 120, 9, 0, 0, 0.00001,
                    "503 Service Unavailable" if n % 997 == 0 else None, params, str(body), reply,
                )
                for n in range(calls)
            ),
        )  # fmt: skip
        run.db.executemany(
            "INSERT INTO nodes (run_id, address, name, line, kind, lanes, parents, phase, time)"
            " VALUES (?, ?, ?, 'train.py:42', ?, ?, ?, ?, ?)",
            (
                (run.id, f"run/epoch {n}/{place}", name, kind, per_node, parents, f"epoch {n}", START + n * 2)
                for n in range(calls // per_node)
                for place, name, kind, parents in (
                    (1, "chat_completion", "forward", "[null]"),
                    (2, "exact_match_evaluator", "evaluator", json.dumps([f"run/epoch {n}/1", None])),
                )
            ),
        )
        run.db.executemany(
            "INSERT INTO samples (run_id, node, lane, phase, key, prediction, target, score, explanation, success,"
            " time) VALUES (?, ?, ?, ?, ?, 'neutral', 'neutral', ?, '', ?, ?)",
            (
                (
                    run.id, f"run/epoch {n // per_node}/2", n % per_node, f"epoch {n // per_node}",
                    f"key {n % 2000}", float(n % 7 > 0), n % 7 > 0, START + n * 0.004,
                )
                for n in range(calls // 2)
            ),
        )  # fmt: skip
        for number in range(1, 41):
            run.time = START + number * (calls * 0.004 / 41)
            samples = [{"sample": 0, "node": f"run/epoch {number}/2", "prediction": "positive", "score": 0.0}]
            before, after = f"{PROMPTS[2]}\nRule {number - 1}.", f"{PROMPTS[2]}\nRule {number}."
            run.step(number, before, after, [("Add a rule about requests.", samples)])
            run.metric("validation_accuracy", number, 0.5 + number / 100)
    return run


def connection_of(run: MadeRun) -> sqlite3.Connection:
    return sqlite3.connect(run.path, isolation_level=None)
