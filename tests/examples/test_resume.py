"""Kill the tutorial's program anywhere, start it again: it ends as if it had never been killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from kit.programs import Program

from afnio.testing import Provider

PROGRAM = Path(__file__).parents[2] / "examples" / "optimization_loop.py"
IN_FLIGHT = 33
SEEDS = int(os.environ.get("AFNIO_KILL_SEEDS", "1"))
"""`make nightly` takes 20."""
KILLS = 3 if SEEDS == 1 else 10

pytestmark = [
    pytest.mark.skipif(
        "AFNIO_DATA" not in os.environ,
        reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
    ),
    pytest.mark.timeout(240),
]

# The program itself is not touched; what is left in it at its end is written out.
RUNNER = """
import json, pathlib, sys
import afnio
names = {"__name__": "__main__"}
exec(compile(pathlib.Path(sys.argv[1]).read_text(), sys.argv[1], "exec"), names)
state = names["optimizer"].state_dict()["state"][0]["momentum_buffer"]
end = {
    "prompt": names["agent"].sentiment_task.data,
    "momentum": [[before.data, [g.data for g in gradients]] for before, gradients in state],
}
pathlib.Path("end.json").write_text(json.dumps(end))
"""

SLOW = """
import json, pathlib
import anyio
import afnio, afnio.cognitive as cog, afnio.tellurio as te
from afnio.models.openai import AsyncOpenAI
from afnio.utils.agents import SentimentAnalyzer

async def main():
    afnio.set_backward_model_client("openai/m")
    client, agent, loss = AsyncOpenAI(), SentimentAnalyzer(), cog.ExactMatchEvaluator()
    optimizer = afnio.optim.TGD(agent.parameters(), client, momentum=2, model="m")
    scores = []
    async with te.init("me", "async") as run:
        for step in range(6):
            async with afnio.scope(name=f"step {step}"):
                texts = [f"Message {step}.{n}: I {'love' if n % 2 else 'schedule'} this." for n in range(16)]
                pred = agent(client, inputs={"message": texts}, model="m")
                pred = pred.map(lambda reply: json.loads(reply)["sentiment"])
                score, explanation = await loss(pred, ["neutral"] * 16)
                await explanation.backward()
                await optimizer.step()
                optimizer.clear_grad()
                scores.append(score.data)
                run.log("score", score.data)
    end = {"scores": scores, "prompt": (await agent.sentiment_task).data}
    pathlib.Path("end.json").write_text(json.dumps(end))

anyio.run(main)
"""


@pytest.mark.longer
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize(
    ("source", "arguments"), [(RUNNER, [str(PROGRAM)]), (SLOW, [])], ids=["tutorial", "async"]
)
def test_kill_and_start_again(tmp_path: Path, source: str, arguments: list[str], seed: int) -> None:
    """After kills at random points the program ends with the same bytes, and pays again for little."""
    chance = random.Random(seed)
    with Provider.process(latency=0.03) as provider:
        whole = Program(tmp_path / "whole", source, provider.base_url, *arguments)
        began = time.monotonic()
        expected = whole.finish()
        took = time.monotonic() - began
        alone = provider.stats()["requests"]
        killed = Program(tmp_path / "killed", source, provider.base_url, *arguments)
        kills = 0
        while kills < KILLS and not killed.ended():
            process = killed.start()
            try:
                process.communicate(timeout=chance.uniform(0.15, 0.8) * took)
            except subprocess.TimeoutExpired:
                process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
                process.communicate()
                kills += 1
        if not killed.ended():
            assert expected[0] == killed.finish()[0]
        paid_again = provider.stats()["requests"] - 2 * alone
    assert whole.end() == killed.end()
    # A kill after the run's own end, before the program's, rightly begins another run.
    assert paid_again <= kills * IN_FLIGHT + (killed.runs() - 1) * alone


def test_a_finished_program_starts_anew(tmp_path: Path) -> None:
    """After the end the next start is a new run, and says nothing."""
    with Provider.process() as provider:
        program = Program(tmp_path / "p", SLOW, provider.base_url)
        assert program.finish()[1] == ""
        before = provider.stats()["requests"]
        assert program.finish()[1] == ""
        assert 2 * before == provider.stats()["requests"]


def test_a_failed_program_says_how_to_go_on(tmp_path: Path) -> None:
    """A run that ended by its own exception starts anew, and the line that it printed continues it."""
    failing = SLOW.replace("optimizer.clear_grad()", "optimizer.clear_grad(); step == 3 and 1 / 0")
    with Provider.process() as provider:
        program = Program(tmp_path / "p", failing, provider.base_url)
        process = program.start()
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0
        line = next(text for text in err.splitlines() if text.startswith("afnio: run"))
        paid = provider.stats()["requests"]
        again = line.split("; ")[1].split(" continues")[0]
        (program.folder / "program.py").write_text(SLOW.replace('te.init("me", "async")', again))
        _, err = program.finish()
        assert "continuing run" in err
        assert provider.stats()["requests"] < 2 * paid
