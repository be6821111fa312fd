"""Who is let in, and what is refused before it is read."""

import logging
import random
import string

import httpx
import pytest
from host import NAME, chatter_of, dice, endless, engine_of, hosted
from lmf import ConfigError
from lmf_serve import guard
from lmf_serve.settings import KEY_VARIABLE, Serving, is_local
from lmf_serve.worker import Worker

KEY = "a-key-of-24-characters-x"
ASK = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def locked():
    with hosted(engine_of(dice(), chatter_of()), api_key=KEY, max_body=1) as found:
        yield found


@pytest.fixture(scope="module")
def free():
    with hosted(engine_of(dice(), chatter_of()), max_body=1) as found:
        yield found


# The key


@pytest.mark.parametrize("header", [None, "", KEY, "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/nothing", "/v1/chat/completions"])
def test_without_the_key_nothing_is_told(locked, header, path):
    answer = httpx.get(f"{locked.url}{path}", headers={} if header is None else {"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert KEY not in answer.text


def test_with_the_key_all_is_open(locked):
    with locked.http() as http:
        assert http.get("/v1/models").status_code == 200
        assert http.post("/v1/chat/completions", json=ASK).status_code == 200
        assert http.get("/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200


def test_a_probe_needs_no_key(locked):
    assert httpx.get(f"{locked.url}/health").json() == {"status": "ok"}


def test_the_key_is_compared_in_constant_time(locked, monkeypatch):
    seen = []
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: bool(seen.append((a, b))))
    assert httpx.get(f"{locked.url}/v1/models", headers={"Authorization": "Bearer x"}).status_code == 401
    assert seen == [(b"x", KEY.encode())]


def test_the_key_is_never_logged(locked, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with locked.http() as http:
        http.get("/v1/models")
        http.get("/v1/models", headers={"Authorization": f"Bearer wrong{KEY}"})
    out, err = capfd.readouterr()
    assert KEY not in caplog.text + out + err


@pytest.mark.parametrize(
    "key", ["short", "x" * 15, "", "with spaces in the key", "ключключключключ", "tab\tin-the-key-here"]
)
def test_a_weak_key_is_refused(key, monkeypatch):
    with pytest.raises(ConfigError, match="at least 16 characters"):
        Serving(api_key=key).key()
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ConfigError, match="at least 16 characters"):
        Serving().key()


def test_the_key_may_stand_in_the_environment(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert Serving(host="0.0.0.0").key() == KEY
    assert Serving(api_key=KEY[::-1]).key() == KEY[::-1]


# The address


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org"])
def test_others_are_let_in_only_with_a_key_or_on_demand(host, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert not is_local(host)
    with pytest.raises(ConfigError, match=r"--api-key or LMF_API_KEY, or --allow-anyone"):
        Serving(host=host).key()
    assert Serving(host=host, allow_anyone=True).key() is None
    assert Serving(host=host, api_key=KEY).key() == KEY


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_this_machine_needs_no_key(host, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert is_local(host)
    assert Serving(host=host).key() is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]", "localhost.evil"]
)
def test_a_page_that_points_its_own_name_here_is_refused(free, host):
    answer = httpx.get(f"{free.url}/v1/models", headers={"Host": host})
    assert answer.status_code in (400, 403)
    if answer.status_code == 403:
        assert answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "[::1]:8000"])
def test_this_machine_has_several_names(free, host):
    assert httpx.get(f"{free.url}/v1/models", headers={"Host": host}).status_code == 200


def test_no_other_site_may_read_answers(free):
    origin = {"Origin": "https://evil.example"}
    for answer in (
        httpx.get(f"{free.url}/v1/models", headers=origin),
        httpx.post(f"{free.url}/v1/chat/completions", json=ASK, headers=origin),
        httpx.options(
            f"{free.url}/v1/chat/completions",
            headers={
                **origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        ),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_what_a_form_of_another_site_could_send_is_refused(free, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = httpx.post(f"{free.url}/v1/chat/completions", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "path", ["/docs", "/redoc", "/openapi.json", "/", "/v1", "/v1/embeddings", "/v1/chat/completions/"]
)
def test_nothing_else_is_there(free, path):
    answer = httpx.get(f"{free.url}{path}")
    assert answer.status_code in (404, 405)
    assert answer.json()["error"]["code"] == "unknown_url"


def test_a_wrong_method(free):
    answer = httpx.get(f"{free.url}/v1/chat/completions")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["error"]["message"] == "This cannot be done here: GET /v1/chat/completions"


# The body


def test_a_body_that_is_too_large(free):
    large = b'{"model": "' + b"x" * (1 << 20) + b'"}'

    def slowly():
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    for content in (large, slowly()):
        answer = httpx.post(
            f"{free.url}/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert "1,048,576" in answer.json()["error"]["message"]


def test_a_body_that_does_not_come(free, monkeypatch):
    import socket

    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", free.port), timeout=10) as half:
        half.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        assert httpx.get(f"{free.url}/health").status_code == 200  # others are not held up
        answer = half.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")


# Whatever is sent


def mutated(rng: random.Random, text: str) -> bytes:
    data = bytearray(text.encode())
    for _ in range(rng.choice((0, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data[at:at] = bytes([rng.randrange(256)])
        elif kind == 1 and data:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = rng.choice(WORDS).encode()
        elif kind == 3 and at < len(data):
            data[at] = rng.randrange(256)
        else:
            data[at:at] = data[: rng.randrange(1, 30)]
    return bytes(data)


WORDS = ["null", "true", "-1", "1e999", "NaN", "{}", "[]", '""', '"\\ud800"', "0.5", "[[1]]", '"<|im_end|>"', "9" * 30]
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    0.5,
    1e308,
    "",
    "x",
    "\x00",
    "<|im_end|>",
    [],
    [1],
    ["a"],
    [[]],
    {},
    {"a": 1},
    "é" * 50,
]
KEYS = [
    *("model", "messages", "prompt", "temperature", "top_p", "n", "stop", "max_tokens", "seed", "logprobs", "tools"),
    *("stream", "stream_options", "tool_choice", "top_logprobs", "logit_bias", "response_format", "user", "top_k"),
    *("presence_penalty", "min_p", "echo", "best_of", "suffix", "max_completion_tokens", "metadata", "heat"),
]


def invented(rng: random.Random) -> dict:
    """A request with some keys of any value."""
    message = {"role": rng.choice(["user", "system", "tool", "assistant", "x"]), "content": rng.choice(VALUES)}
    base = {"model": NAME, "messages": [message] * rng.randrange(3), "prompt": rng.choice(VALUES), "max_tokens": 2}
    return base | {rng.choice(KEYS): rng.choice(VALUES) for _ in range(rng.randrange(5))}


def test_ten_thousand_bodies_make_no_error_of_the_server(caplog):
    """Bytes changed at random in good requests, and requests with values of any kind: none is answered with a 500."""
    import asyncio
    import json

    rng = random.Random(5)
    statuses: dict[int, int] = {}

    async def ask() -> None:
        from lmf_serve.app import Server

        chatter = chatter_of()
        worker = Worker(engine_of(dice(), chatter), 500)
        app = Server(chatter, worker, Serving(max_tokens=4), NAME).app()
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:

            async def one(number: int) -> None:
                text = json.dumps(invented(rng) if number % 2 else ASK)
                content = mutated(rng, text) if number % 3 else text.encode()
                path = rng.choice(["/v1/chat/completions", "/v1/completions"])
                answer = await http.post(path, content=content)
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                if answer.status_code != 200:
                    error = answer.json()["error"]
                    assert set(error) == {"message", "type", "param", "code"}
                    assert "Traceback" not in answer.text and "/lmf" not in answer.text and ".py" not in answer.text

            for start in range(0, 10_000, 50):
                await asyncio.gather(*(one(number) for number in range(start, start + 50)))
        worker.stop(0)
        worker.join(10)

    asyncio.run(ask())
    assert set(statuses) <= {200, 400, 404}
    assert statuses[200] > 100 and statuses[400] > 1000
    assert "Traceback" not in caplog.text


def test_a_failure_of_the_model_is_told_without_its_cause(caplog):
    rule = endless()
    forward, broken = rule.forward, [True]

    def fail(parts):
        if broken:
            raise RuntimeError("/secret/path is broken")
        return forward(parts)

    rule.forward = fail  # type: ignore[method-assign]
    with hosted(engine_of(rule, chatter_of())) as host, host.http() as http:
        answer = http.post("/v1/chat/completions", json=ASK)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "secret" not in answer.text
        assert "/secret/path is broken" in caplog.text  # but the log tells it
        stream = http.post("/v1/chat/completions", json={**ASK, "stream": True})
        assert stream.status_code == 200
        assert '"code":"internal_error"' in stream.text and "[DONE]" not in stream.text and "secret" not in stream.text
        broken.clear()
        assert http.post("/v1/chat/completions", json=ASK).status_code == 200  # and the server goes on


def test_figures_are_those_of_the_requests():
    with hosted(engine_of(endless(), chatter_of())) as host, host.http() as http:
        for _ in range(3):
            http.post("/v1/chat/completions", json=ASK)
        http.post("/v1/chat/completions", json={})
        for _ in range(4):
            http.get("/" + "".join(random.choices(string.ascii_letters, k=9)))
        answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    from prometheus_client.parser import text_string_to_metric_families as families

    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families(answer.text)
        for sample in family.samples
    }
    assert found["lmf_requests_total", "/v1/chat/completions", "200"] == 3
    assert found["lmf_requests_total", "/v1/chat/completions", "400"] == 1
    assert found["lmf_requests_total", "404", "other"] == 4
    assert found["lmf_reply_tokens_total",] == 6
    assert found["lmf_first_token_seconds_count",] == 3
    assert found["lmf_replies_writing",] == found["lmf_replies_waiting",] == 0
