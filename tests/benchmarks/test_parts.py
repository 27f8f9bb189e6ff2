"""Each part of the benchmarks, tiny: the shape of its table and its file, and figures that can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    batches,
    calls,
    executors,
    launch,
    quota,
    replicas,
    report,
    scale,
    step,
    streams,
    tail,
    tls,
    trainer,
)
from benchmarks.endpoint import endpoint
from benchmarks.peers import environment


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Send the files to a folder of the test; returns how to read one."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)

    def read(name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
        assert document["benchmark"] == name
        assert {"python", "cores", "versions", "commit", "load"} <= set(document["machine"])
        return document

    return read


def test_calls(results: Callable[[str], dict[str, Any]]) -> None:
    claims = calls.compare({8: 1}, calls=24, latency=0.02, journal=False)
    rows = results("calls")["rows"]
    assert [row["caller"] for row in rows] == ["afnio, no journal", "AsyncOpenAI", "aiohttp"]
    for row in rows:
        assert 10 < row["calls/s"] <= 8 / 0.02
        assert row["p50 ms"] >= 20
        assert 0 < row["CPU ms/call"] < 100
        assert row["range"] == " to ".join([report.shown(row["x AsyncOpenAI"])] * 2)
    assert [claim.what for claim in claims] == ["afnio, no journal: CPU ms/call at 8"]


def test_calls_over_tls(results: Callable[[str], dict[str, Any]]) -> None:
    with endpoint() as server:
        claims = tls.pools(server, {8: 1}, latency=0.02)
    plain, secure = results("calls-tls")["rows"]
    assert (plain["by"], secure["by"], plain["resumed"], plain["x HTTP"]) == ("HTTP", "HTTPS", 0, 1.0)
    cold, opened = map(int, secure["opened"].split(" of "))
    assert 1 < cold <= opened <= 8
    assert secure["resumed"] == opened - 1
    assert [claim.what for claim in claims] == ["HTTPS / HTTP, calls/s, warm at 8, journal on"]


@pytest.mark.nightly
def test_large_calls_and_their_memory(results: Callable[[str], dict[str, Any]]) -> None:
    with endpoint() as server:
        (claim,) = tls.bodies(server, {200: 4}, repeats=1, waves=2, latency=0.02)
        tls.memory(server, 20)
    rows = results("calls-bodies")["rows"]
    assert [(row["kB"], row["by"], row["journal"]) for row in rows] == [
        (200, "HTTP", "no"),
        (200, "HTTPS", "no"),
        (200, "HTTPS", "yes"),
    ]
    assert claim.value == rows[1]["CPU ms/call"]
    memory = {row["by"]: row["kB/call"] for row in results("calls-memory")["rows"]}
    assert 5 < memory["HTTP"] < memory["HTTPS"] < 1000


def test_step(results: Callable[[str], dict[str, Any]]) -> None:
    (claim,) = step.grow([4], latency=0.05, repeats=1)
    (row,) = results("step")["rows"]
    assert row["calls"] == 2 * 4 + 1
    assert row["peak in flight"] == 4
    assert row["latencies"] >= 3
    assert claim.reach == 1.10


def test_a_peer_that_cannot_be_run_is_named_with_the_reason(
    results: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "textgrad").mkdir()
    (tmp_path / "textgrad" / ".installed").touch()
    monkeypatch.setattr(environment, "CACHE", tmp_path)
    monkeypatch.setattr(step, "PEERS", environment.PEERS[:1])
    (claim,) = step.compare(2, latency=0.01, repeats=1)
    assert claim.met is None
    document = results("step-peers")
    assert [row["who"] for row in document["rows"]] == ["afnio"]
    assert any(note.startswith("TextGrad was not run: its step failed:") for note in document["notes"])


def test_tail(results: Callable[[str], dict[str, Any]]) -> None:
    (claim,) = tail.compare(samples=8, middle=0.005, seeds=1)
    (row,) = results("tail")["rows"]
    assert row["lanes s"] > 0.005
    assert claim.value == row["x faster"]
    assert 1.8 < tail.ideal(256, rounds=50) < 2.05


def test_quota_is_measured_or_the_reason_said(
    results: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "_missing", lambda: "afnio.Limits has no such thing")
    (claim,) = quota.compare(calls=10, in_window=10)
    assert claim.met is None
    assert claim.why == "afnio.Limits has no such thing"
    assert results("quota")["rows"] == []
    windows = [
        {"window": number, "requests": came, "refused": refused}
        for number, came, refused in [(0, 9, 0), (1, 10, 2), (3, 1, 0)]
    ]
    assert quota.used_share(windows, "requests", 10) == 0.4
    assert quota.used_share(windows[1:], "requests", 10) is None


@pytest.mark.nightly
def test_batches(results: Callable[[str], dict[str, Any]]) -> None:
    cpu, memory = batches.compare([200], repeats=1)
    assert [row["calls"] for row in results("batches")["rows"]] == [200]
    assert cpu.value is not None
    assert memory.value is not None
    assert 20 < cpu.value < 20_000
    assert 0.5 < memory.value < 200


@pytest.mark.nightly
def test_scale(results: Callable[[str], dict[str, Any]]) -> None:
    growth, memory = scale.compare([10, 100], queued=300, repeats=1, samples=100)
    rows = results("scale")["rows"]
    assert [row["samples"] for row in rows] == [10, 100]
    assert all(0 < row["CPU ms/sample"] < 20 for row in rows)
    assert growth.value == 1.0
    assert memory.value is not None
    assert 0.5 < memory.value < 200


def test_launch(results: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "COUNT", 50)
    launched, read = launch.main()
    assert 0 < launched.value < 1e6  # type: ignore[operator]
    assert 0 < read.value < 1e6  # type: ignore[operator]
    # By the best of the repeats: 50 launches take 10 ms, so other processes can turn the medians round.
    best = [row["best µs"] for row in results("launch")["rows"]]
    assert len(best) == 2
    assert best[0] < best[1]


def test_a_claim_is_met_from_its_side_and_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    short = report.Claim("calls/s", 4.0, 5.0, at_least=True, why="the server is busy")
    assert (short.met, report.Claim("ms", 0.5, 0.6).met, report.Claim("ms", None, 0.6).met) == (
        False,
        True,
        None,
    )
    report.show("shown", ["what", "n"], [["a", 1234.5], ["b", None]], claims=[short])
    printed = capsys.readouterr().out
    assert "NO" in printed
    assert "calls/s: the server is busy" in printed
    assert "1,234" in printed or "1,235" in printed


@pytest.mark.nightly
def test_trainer(results: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAMPLES", 4)
    monkeypatch.setattr(trainer, "EPOCHS", 2)
    reach, extra = trainer.compare(batch_sizes=[4], latency=0.05, repeats=1)
    rows = results("trainer")["rows"]
    assert [row["kept and shown"] for row in rows] == ["everything", "nothing"]
    assert [row["calls"] for row in rows] == [2 * (2 * 4 + 1 + 4)] * 2
    assert all(row["latencies"] >= 7 for row in rows)
    assert (reach.reach, extra.reach) == (1.10, 0.05)


@pytest.mark.nightly
def test_streams(results: Callable[[str], dict[str, Any]]) -> None:
    rate, growth, journaled = streams.compare(rows=12_000)
    rows = results("streams")["rows"]
    assert [row["journal"] for row in rows] == ["no", "yes"]
    assert all(row["rows/s"] > 10 and 20 < row["CPU µs/row"] < 5_000 for row in rows)
    assert rows[0]["bytes/row"] == 0 < rows[1]["bytes/row"] < 1_000
    assert 1.0 <= growth.value < 1.1  # type: ignore[operator]
    assert (rate.value, journaled.value) == (rows[0]["rows/s"], rows[1]["rows/s"])


@pytest.mark.nightly
def test_replicas(results: Callable[[str], dict[str, Any]]) -> None:
    even, light, dead, killed = replicas.main()
    rows = results("replicas")["rows"]
    assert [row["first"] + row["second"] for row in rows] == [2_000] * 4
    assert (dead.value, killed.value) == (0, 0)
    assert 1 <= even.value <= 2  # type: ignore[operator]
    assert 1 <= light.value <= 2  # type: ignore[operator]


@pytest.mark.nightly
def test_executors(results: Callable[[str], dict[str, Any]]) -> None:
    served = executors.serve(evaluations=20)
    assert all(claim.value > executors.LATENCY for claim in served)  # type: ignore[operator]
    rows = results("executors: serving")["rows"]
    assert [row["evaluators in"] for row in rows][:2] == ["threads", "spawn"]
    executors.gain(lanes=20, repeats=1)
    driver, *_ = executors.overhead(lanes=50, repeats=1)
    rows = results("executors: overhead")["rows"]
    assert driver.value == rows[1]["driver, CPU ms/lane"] <= rows[1]["all processes"]
