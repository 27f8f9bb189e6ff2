"""The OpenAI client against a provider on a real socket."""

from __future__ import annotations

import base64
import email.utils
import json
import socket
import time
from typing import NamedTuple
from urllib.parse import quote

import anyio
import kit
import openai
import pytest
from kit.hostile import HostileServer, Way, reply
from kit.wire import OneAttempt, http

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError, ModelError, RateLimitedError, TransientModelError, UnreachableError
from afnio.models.openai import AsyncOpenAI
from afnio.runtime.events import CallRetried
from afnio.testing import Fault, Provider

KEY = "sk-secret-0123456789"
HELLO = [{"role": "user", "content": "hello"}]


def say(text):
    return lambda request: text


def client(provider, key=KEY, **options):
    return AsyncOpenAI(api_key=key, base_url=provider.base_url, **options)


def first(*faults):
    """Let the first requests go wrong."""
    return lambda request, index: faults[index] if index < len(faults) else None


async def ask(lm, **args):
    return await lm.achat(messages=HELLO, model="m", **args)


async def test_a_reply_with_its_usage():
    """Text, model and tokens."""
    async with Provider(lm=say("hi there"), api_key=KEY) as provider:
        lm = client(provider)
        reply = await ask(lm, temperature=0)
        assert (str(reply), reply.model, reply.finish_reason) == ("hi there", "m", "stop")
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 2)
        assert (lm.get_usage()["calls"], lm.get_usage()["total_tokens"]) == (1, 4)


async def test_usage_is_counted_per_phase():
    """Forward, backward and step of one round, each with its tokens."""
    async with Provider() as provider:
        lm = client(provider)
        prompt = cog.Parameter("Say the sentiment.", role="prompt")
        messages = [
            {"role": "system", "content": [prompt]},
            {"role": "user", "content": [afnio.Variable("{m}")]},
        ]
        with afnio.set_backward_model_client(lm, completion_args={"model": "m"}):
            reply = cog.ChatCompletion()(lm, messages, inputs={"m": ["lovely", "awful"]}, model="m")
            _, explanation = await cog.ExactMatchEvaluator()(reply, ["x", "y"])
            await explanation.backward()
            await afnio.optim.TGD([prompt], lm, model="m").step()
        usage = lm.get_usage()
        assert {p: u["calls"] for p, u in usage["phases"].items()} == {"forward": 2, "backward": 2, "step": 1}
        stats = provider.stats()
        assert stats["requests"] == usage["calls"]
        assert stats["prompt_tokens"] == usage["prompt_tokens"]
        assert stats["completion_tokens"] == usage["completion_tokens"]


async def test_a_call_may_block_or_be_awaited():
    """`chat` waits, `achat` is awaited."""
    async with Provider(lm=say("hi")) as provider:
        lm = AsyncOpenAI(api_key=KEY, base_url=provider.base_url)
        assert str(await ask(lm)) == "hi"
        assert await afnio.to_thread(lambda: str(lm.chat(messages=HELLO, model="m"))) == "hi"


# Errors ----------------------------------------------------------------------------------------


async def test_a_wrong_key_is_final():
    """One request; the SDK's own error is its cause."""
    async with Provider(api_key="another") as provider:
        with pytest.raises(
            FinalModelError, match="answered 401: .* .check api_key or OPENAI_API_KEY"
        ) as caught:
            await ask(client(provider))
        assert (caught.value.status, provider.stats()["requests"]) == (401, 1)
        assert isinstance(caught.value.__cause__, openai.AuthenticationError)


async def test_an_unknown_model_is_final():
    """With the name in the sentence."""
    async with Provider(models=["other"]) as provider:
        with pytest.raises(FinalModelError, match=r"answered 404: The model 'm' does not exist") as caught:
            await ask(client(provider))
        assert isinstance(caught.value.__cause__, openai.NotFoundError)


async def test_server_errors_and_resets_are_tried_again():
    """Then the reply comes."""
    html = Fault(502, body="<html>Bad gateway</html>")
    async with Provider(lm=say("hi"), fault=first(Fault(500), Fault(close=True), html)) as provider:
        with kit.events() as events:
            assert str(await ask(client(provider))) == "hi"
        assert [
            next(
                word
                for word in ("500: A simulated fault.", "ended early", "Bad gateway")
                if word in event.error
            )
            for event in events
            if isinstance(event, CallRetried)
        ] == ["500: A simulated fault.", "ended early", "Bad gateway"]


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"retry-after-ms": "30"}, 0.03),
        ({"retry-after": "0.02"}, 0.02),
        ({"retry-after": email.utils.formatdate(time.time() - 9, usegmt=True)}, 0.0),
    ],
)
async def test_a_rate_limit_waits_as_long_as_it_is_told(headers, least):
    """By each of the three headers."""
    async with Provider(lm=say("hi"), fault=first(Fault(429, headers=headers))) as provider:
        started = time.monotonic()
        with kit.events() as events:
            assert str(await ask(client(provider))) == "hi"
        assert time.monotonic() - started >= least
        assert events[0].wait == pytest.approx(least, abs=0.01)


async def test_a_rate_limit_that_stays_is_an_error(monkeypatch):
    """After the time that refusals are borne."""
    monkeypatch.setattr("afnio.runtime._call.REFUSED_FOR", 0.6)
    async with Provider(fault=lambda *_: Fault(429)) as provider:
        with pytest.raises(RateLimitedError, match="answered 429") as caught:
            await ask(client(provider))
        attempts = provider.stats()["requests"]
        assert attempts >= 2
        assert "not tried again: it was refused for 0.01 minutes, each time" in caught.value.__notes__
        assert any(f"after {attempts} attempts" in note for note in caught.value.__notes__)


async def test_an_empty_account_is_final():
    """A 429 that no waiting helps."""
    body = json.dumps({"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}})
    async with Provider(fault=lambda *_: Fault(429, body=body)) as provider:
        with pytest.raises(FinalModelError, match="out of quota: check its billing"):
            await ask(client(provider))
        assert provider.stats()["requests"] == 1


async def test_an_endpoint_that_is_not_there(monkeypatch):
    """After a few tries; the sentence has host, port and the fix, the notes the launch line."""
    monkeypatch.setattr("afnio.runtime._call.BACKOFF_FIRST", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    lm = AsyncOpenAI(api_key=KEY, base_url=f"http://127.0.0.1:{port}/v1")
    reply = cog.ChatCompletion()(lm, [{"role": "user", "content": [afnio.Variable("hi")]}], model="m")
    words = (
        rf"can't reach http://127.0.0.1:{port}/.* \(127.0.0.1:{port}: connection refused\); check base_url"
    )
    with anyio.fail_after(60), pytest.raises(FinalModelError, match=words) as caught:
        await reply
    assert any(__file__ in note for note in caught.value.__notes__)


async def test_a_silent_endpoint_ends_by_the_timeout(monkeypatch):
    """Each attempt has its deadline."""
    monkeypatch.setattr("afnio.runtime._call.ATTEMPTS", 2)
    async with Provider(fault=lambda *_: Fault(hang=True)) as provider:
        with pytest.raises(TransientModelError, match="gave no reply within 0.05 s"):
            await ask(client(provider, timeout=0.05))
        assert provider.stats()["requests"] == 2


async def test_a_body_that_is_no_completion_is_tried_again():
    """Truncated JSON behind status 200."""
    async with Provider(lm=say("hi"), fault=first(Fault(200, body='{"choices": [{"mess'))) as provider:
        assert str(await ask(client(provider))) == "hi"


async def test_a_refused_schema_falls_back_to_words():
    """The critic is asked again without it, and from then on at once."""

    def refuse(request, index):
        body = json.dumps({"error": {"message": "response_format is not supported"}})
        return Fault(400, body=body) if "response_format" in request else None

    answer = json.dumps({"feedback": [{"variable": "v1", "text": "better"}]})
    async with Provider(lm=say(answer), fault=refuse) as provider:
        lm = client(provider)
        prompt = cog.Parameter("Say the sentiment.", role="prompt")
        messages = [
            {"role": "system", "content": [prompt]},
            {"role": "user", "content": [afnio.Variable("{m}")]},
        ]
        with afnio.set_backward_model_client(lm, completion_args={"model": "m"}):
            for _ in range(2):
                reply = cog.ChatCompletion()(lm, messages, inputs={"m": "thank you"}, model="m")
                _, explanation = await cog.ExactMatchEvaluator()(reply, "other")
                await explanation.backward()
        assert [g.data for g in prompt.grad] == ["better", "better"]
        assert (provider.stats()["by_kind"], lm.json_schema) == ({"student": 2, "critic": 3}, False)


async def test_limits_hold_on_the_wire_for_all_clients_of_an_account():
    """And are used up."""
    async with Provider(lm=say("hi"), latency=0.005) as provider:
        one, two = client(provider, limits=afnio.Limits(max_in_flight=5)), client(provider)
        await afnio.resolve([lm._launch(HELLO, "m", {}) for _ in range(20) for lm in (one, two)])
        assert (provider.stats()["requests"], provider.stats()["peak_in_flight"]) == (40, 5)


def test_what_changes_the_reply_is_part_of_the_request(tmp_path):
    """Headers, organization, project and query; not timeouts, limits or keys."""

    async def main():
        async with Provider(lm=say("hi"), latency=0.05) as provider:
            plain = client(provider)
            same = [client(provider, timeout=5.0), client(provider, default_headers={"Authorization": "x"})]
            others = [
                client(provider, default_headers={"x-tenant": "a"}),
                client(provider, default_headers={"X-Tenant": "b"}),
                client(provider, organization="o"),
                client(provider, project="p"),
            ]
            assert [lm.variant for lm in (plain, *same)] == [""] * 3
            assert len({lm.variant for lm in others}) == 4
            assert others[0].variant == client(provider, default_headers={"X-Tenant": "a"}).variant
            assert "tenant" not in others[0].variant
            for lm in (plain, *others, plain, *others):
                async with afnio.journal(tmp_path / "j", "reuse"):
                    await ask(lm)
            assert provider.stats()["requests"] == 5

    anyio.run(main)


async def test_the_list_of_models_is_asked_at_the_address_alone():
    """A redirect is an error there, too."""
    moved = Way(reply(b"", "307 Moved", "location: /elsewhere/v1/models?key=1\r\n"))
    async with HostileServer({"v1": moved, "elsewhere": Way(reply())}) as server:
        with pytest.raises(
            FinalModelError, match=r"a redirect to .*/elsewhere/v1/models, which is not followed"
        ):
            await AsyncOpenAI(api_key=KEY, base_url=server.url("v1")).list_models()
        assert server.seen == {"v1": 1}


# Options ---------------------------------------------------------------------------------------


async def test_an_http_client_of_ones_own_carries_the_calls():
    """Through the SDK's transport, with the same classification."""
    seen = []

    def handle(request):
        seen.append(request)
        if len(seen) == 1:
            return http.Response(500, text="no")
        body = {"choices": [{"message": {"content": "hi"}}], "model": "m"}
        return http.Response(200, json=body)

    own = http.AsyncClient(transport=http.MockTransport(handle))
    lm = AsyncOpenAI(api_key=KEY, base_url="http://host/v1", http_client=own)
    assert str(await ask(lm)) == "hi"
    assert [str(request.url) for request in seen] == ["http://host/v1/chat/completions"] * 2
    assert seen[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (
            http.ConnectError("refused"),
            UnreachableError,
            "can't reach http://host/v1 .refused.; check base_url",
        ),
        (
            http.ReadError("reset"),
            TransientModelError,
            "the connection to http://host/v1 ended early .reset.",
        ),
        (
            http.ReadTimeout(""),
            TransientModelError,
            "the connection to http://host/v1 ended early .ReadTimeout.",
        ),
    ],
)
async def test_an_http_client_that_fails(failure, kind, words):
    """Its errors have the same classes and sentences."""

    def handle(request):
        raise failure

    own = http.AsyncClient(transport=http.MockTransport(handle))
    lm = AsyncOpenAI(api_key=KEY, base_url="http://host/v1", http_client=own)
    with pytest.raises(FinalModelError, match=words) as caught:
        await ask(OneAttempt(lm))
    assert kind is type(caught.value.__cause__)


async def test_an_http_client_reads_the_start_of_errors_alone():
    """Of Afnio's requests; what else it is used for goes on as before."""
    long = b'{"error": {"message": "' + b"x" * 2**22 + b'"}}'
    async with HostileServer({"v1": Way(reply(long, "503 X"))}) as server, http.AsyncClient() as own:
        lm = AsyncOpenAI(api_key=KEY, base_url=server.url("v1"), http_client=own)
        with pytest.raises(FinalModelError, match="answered 503: it starts") as caught:
            await ask(OneAttempt(lm))
        assert len(caught.value.__cause__.__cause__.response.content) == 2**14
        assert len(long) == len((await own.post(server.url("v1"))).content)


async def test_a_key_may_be_a_function():
    """It is asked at each call."""
    seen = []

    async def key():
        return f"key-{len(seen)}"

    def handle(request):
        seen.append(request.headers["authorization"])
        return http.Response(200, json={"choices": [{"message": {"content": "hi"}}]})

    own = http.AsyncClient(transport=http.MockTransport(handle))
    lm = AsyncOpenAI(api_key=key, base_url="http://host/v1", http_client=own)
    await ask(lm)
    await ask(lm)
    assert seen == ["Bearer key-0", "Bearer key-1"]


class Answer(NamedTuple):
    """As the transport returns it."""

    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture
def received(monkeypatch):
    """What the transport was asked to send."""
    posts = []

    async def post(self, url, headers, body, most):
        posts.append((url, headers, body))
        return Answer(200, {}, b'{"choices": [{"message": {"content": "hi"}}]}')

    monkeypatch.setattr("afnio.models._transport.AiohttpTransport.post", post)
    return posts


async def test_headers_come_from_the_sdk(received):
    """Key, organization, project and the user's own."""
    lm = AsyncOpenAI(
        api_key=KEY, base_url="http://host/v1", organization="o", project="p", default_headers={"X-Mine": "1"}
    )
    await ask(lm)
    ((url, headers, body),) = received
    assert url == "http://host/v1/chat/completions"
    assert tuple(
        headers[name] for name in ("Authorization", "OpenAI-Organization", "OpenAI-Project", "X-Mine")
    ) == (f"Bearer {KEY}", "o", "p", "1")
    assert json.loads(body) == {"model": "m", "messages": HELLO}


async def test_credentials_in_the_base_url_are_sent_and_shown_nowhere(received):
    """As basic authorization, in the header alone."""
    lm = AsyncOpenAI(api_key=KEY, base_url="http://ada:pa%3Ass@host/v1")
    await ask(lm)
    ((url, headers, _),) = received
    assert headers["Authorization"] == f"Basic {base64.b64encode(b'ada:pa:ss').decode()}"
    assert (
        url,
        lm.base_url,
        repr(lm),
    ) == ("http://host/v1/chat/completions", "http://host/v1", "AsyncOpenAI('http://host/v1')")


async def test_no_secret_enters_an_event_or_an_error(monkeypatch):
    """Though the server repeats the key, and the base URL holds a password."""
    monkeypatch.setattr("afnio.runtime._call.ATTEMPTS", 2)
    echo = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}})
    faults = first(Fault(500, body=echo), Fault(401, body=echo))
    async with Provider(fault=faults) as provider:
        url = provider.base_url.replace("http://", "http://ada:password@")
        lm = AsyncOpenAI(api_key=KEY, base_url=url)
        with kit.events() as events, pytest.raises(FinalModelError) as caught:
            await ask(lm)
    chain, error = [], caught.value
    while error is not None:
        chain += [repr(error), str(error), *getattr(error, "__notes__", ())]
        error = error.__cause__ or error.__context__
    shown = "\n".join([*chain, *map(repr, events), repr(lm), repr(lm.account), json.dumps(lm.get_usage())])
    assert "Incorrect API key provided: <api key>." in shown
    assert len(events) == 2
    for secret in (KEY, "password", "ada"):
        assert secret not in shown


def chain_of(error):
    """All that may be logged of an error."""
    shown = []
    while error is not None:
        body = getattr(error, "response", None)
        shown += [
            repr(error),
            str(error),
            *getattr(error, "__notes__", ()),
            "" if body is None else body.text,
        ]
        error = error.__cause__ or error.__context__
    return "\n".join(shown)


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize("by_sdk", [False, True])
async def test_no_form_of_a_secret_enters_an_error(by_sdk, status):
    """Of the key, a password in the base URL, and headers of the user's: escaped, in base64, whole headers."""
    key, password, gateway = "sk-SeCrEt/Key+01==", "hush hush/hush", "gateway-0123"
    basic = base64.b64encode(f"ada:{password}".encode()).decode()
    forms = {
        "plain": key,
        "slashes": key.replace("/", "\\/"),
        "codes": "".join(f"\\u{ord(letter):04x}" for letter in key),
        "url": quote(key, safe=""),
        "base64": base64.b64encode(key.encode()).decode(),
        "basic": basic,
        "password": quote(password, safe=""),
        "gateway": gateway,
        "cookie": f"session={gateway}",
    }
    echo = '{"error": {"message": "you sent: %s", "code": 401}}' % ", ".join(forms.values())  # noqa: UP031
    async with (
        Provider(fault=lambda request, index: Fault(status, body=echo)) as provider,
        http.AsyncClient() as own,
    ):
        lm = AsyncOpenAI(
            api_key=key,
            base_url=provider.base_url.replace("http://", f"http://ada:{quote(password, safe='')}@"),
            default_headers={"X-Gateway-Key": gateway, "Cookie": f"session={gateway}"},
            http_client=own if by_sdk else None,
        )
        with pytest.raises(FinalModelError, match="you sent") as caught:
            await ask(lm)
    shown = chain_of(caught.value)
    assert [name for name, form in forms.items() if form in shown] == []
    assert not {key, password, gateway, basic} & set(shown.replace(",", " ").split())
    assert key not in json.loads(json.dumps(shown).replace("\\\\u", "\\u"))


async def test_no_form_of_the_key_enters_a_reply():
    """A model's text that has it is stored like any other."""
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    body = '{"choices": [{"message": {"content": "your key is %s"}}]}' % escaped  # noqa: UP031
    async with Provider(fault=first(Fault(200, body=body))) as provider:
        assert str(await ask(client(provider))) == "your key is <api key>"


async def test_a_key_in_the_address_of_a_redirect_is_masked(monkeypatch):
    """The error names that address."""
    monkeypatch.setattr("afnio.runtime._call.ATTEMPTS", 1)
    fault = Fault(302, headers={"location": f"http://{KEY}.invalid/"})
    async with Provider(fault=first(fault)) as provider:
        with pytest.raises(ModelError) as caught:
            await ask(client(provider))
    assert "<api key>.invalid" in str(caught.value)
    assert KEY not in str(caught.value)


def test_two_keys_are_two_accounts():
    """Limits belong to base URL and key, wherever the client was made."""
    one, same, other, elsewhere = (
        AsyncOpenAI(api_key=key, base_url=url).account
        for key, url in [
            ("a", "http://h/v1"),
            ("a", "http://h/v1/"),
            ("b", "http://h/v1"),
            ("a", "http://i/v1"),
        ]
    )
    assert one == same
    assert len({one, other, elsewhere}) == 3


@pytest.mark.parametrize("base_url", ["localhost:8000/v1", "ftp://host/v1", "host"])
def test_a_base_url_that_is_none_is_refused(base_url):
    """At once, not after eight attempts."""
    with pytest.raises(ValueError, match="must start with http:// or https:// and name a host .got"):
        AsyncOpenAI(api_key=KEY, base_url=base_url)


@pytest.mark.parametrize(
    ("base_url", "words"),
    [
        (f"http://{'a' * 64}.org/v1", "must be a URL with a valid host and port .got 'http://aaa"),
        ("http://a..b/v1", "must be a URL with a valid host and port .got 'http://a..b/v1'."),
        ("http://h:99999/v1", "must be a URL with a valid host and port .got 'http://h:99999/v1'."),
        ("http://ada:secret@h:x/v1?k=secret", "must be a URL with a valid host and port .got 'h:x/v1'."),
        (
            "http://h/v1?key=secret",
            "must have no query .got one after .http://h/v1/?'.; pass it as default_query",
        ),
    ],
)
def test_a_base_url_that_can_not_be_asked_is_refused(base_url, words):
    """In one sentence at the constructor, without what may be secret in it."""
    with pytest.raises(ValueError, match=words) as caught:
        AsyncOpenAI(api_key=KEY, base_url=base_url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "base_url", ["http://[::1]:80/v1", "http://a./v1", "http://my_host/v1", "http://ü.org/v1"]
)
def test_a_host_may_be_odd(base_url):
    """An IPv6 address, an absolute name, one with an underscore, one that is not ASCII."""
    assert AsyncOpenAI(api_key=KEY, base_url=base_url).base_url[-3:] == "/v1"


@pytest.mark.parametrize("given", [0, -1, 1.5, True, None])
def test_the_largest_reply_is_a_number_of_bytes(given):
    """At the constructor."""
    with pytest.raises(ValueError, match="max_reply_bytes must be a whole number above 0 .got"):
        AsyncOpenAI(api_key=KEY, max_reply_bytes=given)


def test_no_key_is_an_error_that_says_where_to_put_one(monkeypatch):
    """At the constructor."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(FinalModelError, match="no API key was given; pass api_key=… or set OPENAI_API_KEY"):
        AsyncOpenAI()
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://host/v1")
    assert AsyncOpenAI().base_url == "http://host/v1"


def test_retries_are_the_engines():
    """The SDK's would multiply with them."""
    with pytest.raises(ValueError, match="max_retries isn't supported"):
        AsyncOpenAI(api_key=KEY, max_retries=2)
    assert AsyncOpenAI(api_key=KEY, max_retries=0)._sdk.max_retries == 0
