"""What a program prints when it fails: the op, the reason, the user's own lines, and little else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import subprocess
import sys
import traceback

import pytest

import afnio
import afnio.cognitive as cog
from afnio.autodiff import Function
from afnio.errors import BatchError, FinalModelError
from afnio.runtime._tracebacks import fold
from afnio.testing import ScriptedClient

HEAD = """
import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import _call

_call.BACKOFF_MAX = 0
client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="any")
prompt = cog.Parameter("Answer.", role="prompt")
messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [afnio.Variable("{q}")]}]


def launch():
    reply = cog.functional.chat_completion(client, messages, {"q": ["a", "b"]}, model="m")
    return cog.functional.exact_match_evaluator(reply, ["a", "b"])


async def main():
    score, _ = await launch()
"""


def printed(tmp_path, end):
    """Return the lines of the traceback that a program ends with."""
    (tmp_path / "program.py").write_text(HEAD + end)
    command = [sys.executable, "-W", "error", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.partition("the runtime was closed")[0].splitlines()
    first = next(number for number, line in enumerate(lines) if "Traceback" in line)
    return lines[first:]


@pytest.mark.parametrize(
    ("end", "most"),
    [
        ("score, _ = launch()\nprint(score.data)\n", 12),
        pytest.param("_, explanation = launch()\nprint(explanation.data)\n", 12, marks=pytest.mark.nightly),
        pytest.param("with afnio.scope():\n    launch()\n", 12, marks=pytest.mark.nightly),
        ("afnio.run(main())\n", 14),
        ("import asyncio\nasyncio.run(main())\n", 22),
    ],
    ids=["read", "explanation", "scope", "afnio.run", "asyncio.run"],
)
def test_a_dead_server_is_one_screen(tmp_path, end, most):
    """The op that failed, why, and the line that asked: no frame of ours, of aiohttp or of anyio."""
    lines = printed(tmp_path, end)
    text = "\n".join(lines)
    assert len(lines) <= most, text
    (told,) = [line for line in lines if "BatchError" in line]
    assert re.search(r"2 of 2 samples of ChatCompletion launched at .*program.py:\d+ in launch failed \(sample 0, 1\): "
                     r"ProviderDownError: can't reach http://127.0.0.1:9", told)  # fmt: skip
    assert "program.py" in text
    assert not re.search(r"/(afnio|aiohttp|anyio)/", text), text


def test_a_missing_key_and_a_missing_backward_model_are_one_error_each(tmp_path):
    """Not a chain of them, and known at launch."""
    lines = printed(tmp_path, "import os\nos.environ.pop('OPENAI_API_KEY', None)\nAsyncOpenAI()\n")
    assert sum("Error" in line for line in lines if not line.startswith(" ")) == 1, lines
    assert lines[-1].startswith("afnio.errors.FinalModelError: no API key was given")
    lines = printed(tmp_path, "client = None\nfrom afnio.testing import ScriptedClient\nclient = ScriptedClient('a')\n"
                              "_, explanation = launch()\nexplanation.backward()\n")  # fmt: skip
    assert lines[-1].startswith("RuntimeError: no backward model has been set"), lines
    assert sum("Traceback" in line for line in lines) == 1


class Broken(Function):
    """An op of the user's with a typo, two calls deep."""

    @staticmethod
    def forward(ctx, text):
        return broken(text)

    @staticmethod
    def backward(ctx, feedback):
        return None


def broken(text):
    return text.uper() if len(text) < 7 else text[99]


def test_the_error_of_an_op_of_the_users_comes_first_and_whole():
    """It is named in the first line, told once, and shows each of the user's frames."""
    reply = Broken.apply(afnio.Variable([f"text {n}" for n in range(200)], role="text", requires_grad=True))
    score, _ = cog.functional.exact_match_evaluator(reply.map(str), "x")
    with pytest.raises(BatchError) as caught:
        _ = score.data
    error = caught.value
    assert (len(error.samples), len(error.errors)) == (200, 200)
    assert [type(part) for part in error.exceptions] == [AttributeError, IndexError]
    assert re.match(
        r"200 of 200 samples of Broken launched at .*test_fold.py:\d+ in \S+ failed: "
        r"IndexError: string index out of range \(sample 10, 11, .*, …\); "
        r"AttributeError: 'str' object has no attribute 'uper' \(sample 0, 1, 2, .*9\)$",
        str(error),
    )
    names = [[frame.name for frame in traceback.extract_tb(part.__traceback__)] for part in error.exceptions]
    assert names == [["forward", "broken"]] * 2
    assert error.errors[0] is error.exceptions[0]


def test_a_group_can_be_taken_apart():
    """What `except*` gets has the samples of its own errors."""
    reply = Broken.apply(afnio.Variable(["a", "a long text", "b"], role="text"))
    with pytest.raises(BatchError) as caught:
        _ = reply.data
    part, rest = caught.value.split(AttributeError)
    assert (part.samples, rest.samples) == ((0, 2), (1,))
    assert set(part.errors) == {0, 2}


def test_samples_of_several_ops_say_which_failed_where():
    """The op that is read is named, and each reason has its own."""
    client = ScriptedClient(lambda r: FinalModelError("refused") if "b" in r.messages[0]["content"] else "ok")
    reply = cog.functional.chat_completion(
        client, [{"role": "user", "content": [afnio.Variable("{q}")]}], {"q": ["a", "b", "c"]}, model="m"
    )
    merged = reply.map(lambda text: text) + afnio.Variable(["x", "y", "z"]).map(lambda t: {"x": t, "y": t}[t])
    with pytest.raises(BatchError) as caught:
        _ = merged.data
    assert re.match(
        r"2 of 3 samples of Add launched at .* failed: FinalModelError: refused "
        r"\(sample 1 of ChatCompletion launched at .*\); KeyError: 'z' \(sample 2 of Map launched at .*\)$",
        str(caught.value),
    )


@pytest.mark.parametrize(("cause", "kept"), [(OSError("refused"), False), (OSError("no route"), True)])
def test_a_cause_that_says_nothing_new_is_not_shown(cause, kept):
    """A library's error that Afnio's own repeats; one that says more is."""

    def quote():
        """Raise as the engine's transport does, without a frame of the user's."""
        try:
            concurrent.futures.Future.result(failed)
        except OSError as error:
            raised.__cause__ = error.with_traceback(error.__traceback__.tb_next)
        raise raised

    failed: concurrent.futures.Future[None] = concurrent.futures.Future()
    failed.set_exception(cause)
    raised = FinalModelError("can't reach it (refused)")
    with pytest.raises(FinalModelError):
        quote()
    fold(raised)
    assert kept == (raised.__cause__ is cause)
    assert raised.__suppress_context__


def test_reading_twice_prints_the_same():
    """A traceback doesn't grow with each read."""
    pred = afnio.Variable(["a"]).map(lambda text: text.uper())
    seen = []
    for _ in range(3):
        try:
            _ = pred.data
        except BatchError as error:
            seen.append(
                [(f.name, f.filename) for f in traceback.extract_tb(error.exceptions[0].__traceback__)]
            )
    assert seen[0] == seen[1] == seen[2]
    assert seen[0] == [("<lambda>", __file__)]


def test_an_error_of_the_engines_keeps_its_frames():
    """No frame of the user's, none of Afnio's own errors: what is left must explain it."""
    with pytest.raises(TypeError, match="forward|holds") as caught:
        _ = afnio.Variable("a").map(lambda text: object()).data
    assert any("afnio" in frame.filename for frame in traceback.extract_tb(caught.value.__traceback__))


def test_awaiting_shows_no_frames_of_ours():
    """Nor does a backward pass, or `client.chat`."""

    async def main():
        await afnio.Variable("a").map(lambda text: text.uper())

    with pytest.raises(AttributeError) as caught:
        asyncio.run(main())
    files = {frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)}
    assert not any("/afnio/" in file or "/anyio/" in file for file in files)
    with pytest.raises(FinalModelError) as refused:
        ScriptedClient(FinalModelError("no")).chat(messages=[{"role": "user", "content": "a"}], model="m")
    assert {frame.filename for frame in traceback.extract_tb(refused.value.__traceback__)} == {__file__}
