"""Many requests at a time: each as if it were alone, none in the way of another, and none left behind."""

import asyncio
import contextlib
import gc
import json
import socket
import time

import httpx
import pytest
from host import NAME, chatter_of, dice, endless, engine_of, hosted
from lmf.generate.engine import Reply

PATH = "/v1/chat/completions"


def ask(text: str = "Hi", **more) -> dict:
    return {"model": NAME, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


async def streamed(http: httpx.AsyncClient, asked: dict) -> tuple[str, str]:
    """The id and the text of a stream."""
    id, text = "", ""
    async with http.stream("POST", PATH, json={**asked, "stream": True}) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                value = json.loads(line[6:])
                assert "error" not in value, value
                id, text = value["id"], text + (value["choices"][0]["delta"].get("content") or "")
    assert line == "data: [DONE]" or not line
    return id, text


def together(url: str, asked: list[dict]) -> list[tuple[str, str]]:
    async def all_of_them() -> list[tuple[str, str]]:
        limits = httpx.Limits(max_connections=len(asked))
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            return await asyncio.gather(*(streamed(http, each) for each in asked))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("count", [16, 64])
def test_many_streams_are_each_what_they_are_alone(count):
    chatter = chatter_of()
    asked = [ask(f"Tell me of {number}.", max_tokens=10 + number % 40) for number in range(count)]
    with hosted(engine_of(dice(), chatter), chatter) as host:
        many = together(host.url, asked)
        with host.http() as http:
            alone = [http.post(PATH, json=each).json()["choices"][0]["message"]["content"] for each in asked]
    assert [text for _, text in many] == alone
    assert len({id for id, _ in many}) == count
    assert len(set(alone)) > count // 2


def test_many_streams_of_a_real_architecture_are_each_what_they_are_alone(tiny):
    from lmf import Opening, Plugins
    from lmf.generate.opening import start

    chatter, engine = start(str(tiny), Plugins(), Opening(template="chatml"), most=8)
    asked = [ask("word " * (number % 13) + f"and {number}?", max_tokens=5 + number % 20) for number in range(32)]
    with hosted(engine, chatter) as host:
        many = together(host.url, asked)
        with host.http() as http:
            alone = [http.post(PATH, json=each).json()["choices"][0]["message"]["content"] for each in asked]
    assert [text for _, text in many] == alone


def until(true, seconds: float = 2.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def rests(steps: list[int]) -> bool:
    """Tell whether nothing is computed for a tenth of a second."""
    before = len(steps)
    time.sleep(0.1)
    return len(steps) == before


def request(asked: dict) -> bytes:
    body = json.dumps(asked).encode()
    headers = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([f"POST {PATH} HTTP/1.1", *headers, "", ""]).encode() + body


def replies() -> list[Reply]:
    """All that are in memory."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is Reply]


def test_who_goes_away_leaves_nothing_behind():
    """Streams and plain requests, dropped at any moment: before the first token, in the queue, in the middle."""
    before = len(replies())
    chatter = chatter_of()
    with hosted(engine_of(endless(0.001), chatter, most=8), chatter, max_queue=500) as host:
        for number in range(400):
            with socket.create_connection(("127.0.0.1", host.port)) as dropped:
                dropped.sendall(request(ask(max_tokens=300, stream=number % 2 == 0)))
                if number % 4 == 0:
                    time.sleep(0.01)
                if number % 8 == 0:
                    dropped.recv(100)
        assert until(lambda: host.worker.writing == host.worker.waiting == 0)
        assert until(lambda: rests(host.worker.engine.runner.sizes))  # the last step may still be in the making
        with host.http() as http:
            assert http.post(PATH, json=ask(max_tokens=3)).json()["usage"]["completion_tokens"] == 3
        assert len(replies()) <= before + 1  # the one that was just written


def test_writing_stops_with_the_token_after_the_client_is_gone():
    chatter = chatter_of()
    with hosted(engine_of(endless(0.1), chatter), chatter) as host:
        with socket.create_connection(("127.0.0.1", host.port)) as dropped:
            dropped.sendall(request(ask(max_tokens=300, stream=True)))
            assert until(lambda: host.worker.writing == 1)
            time.sleep(0.2)
        assert until(lambda: host.worker.writing == 0, 60)
        assert len(host.worker.engine.runner.sizes) < 200  # of 300, which take half a minute


def test_a_queue_that_is_full_says_when_to_come_again():
    chatter = chatter_of()
    with (
        hosted(engine_of(endless(0.005), chatter, most=2), chatter, max_queue=3) as host,
        contextlib.ExitStack() as all,
    ):
        for _ in range(5):
            waiting = all.enter_context(socket.create_connection(("127.0.0.1", host.port)))
            waiting.sendall(request(ask(max_tokens=300)))
        assert until(lambda: host.worker.waiting + host.worker.writing == 5)
        with host.http() as http:
            answer = http.post(PATH, json=ask())
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
            assert http.get("/health").status_code == 200
            all.close()
            assert until(lambda: host.worker.waiting + host.worker.writing == 0)
            assert http.post(PATH, json=ask(max_tokens=1)).status_code == 200


def test_choices_count_as_so_many_replies():
    chatter = chatter_of()
    with hosted(engine_of(endless(), chatter, most=4), chatter, max_queue=0) as host, host.http() as http:
        assert http.post(PATH, json=ask(n=4, max_tokens=2)).status_code == 200
        assert http.post(PATH, json=ask(n=5, max_tokens=2)).status_code in (400, 429)


def test_who_reads_slowly_or_sends_half_a_request_holds_nobody_up():
    chatter = chatter_of()
    engine = engine_of(endless(), chatter, most=2, context=4000)
    with hosted(engine, chatter, max_tokens=3000, max_queue=0) as host, contextlib.ExitStack() as all:
        for _ in range(2):  # as many as are written at a time
            slow = all.enter_context(socket.create_connection(("127.0.0.1", host.port)))
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            slow.sendall(request(ask(max_tokens=3000, stream=True)))
        half = all.enter_context(socket.create_connection(("127.0.0.1", host.port)))
        half.sendall(request(ask())[:-5])
        assert until(lambda: host.worker.writing == 2)
        assert until(lambda: host.worker.writing == 0, 30)
        with host.http() as http:
            assert http.post(PATH, json=ask(max_tokens=2)).status_code == 200


def test_a_reply_that_takes_too_long_is_given_up():
    chatter = chatter_of()
    with hosted(engine_of(endless(0.01), chatter), chatter, timeout=0.2) as host, host.http() as http:
        answer = http.post(PATH, json=ask(max_tokens=300))
        assert answer.status_code == 504
        assert answer.json()["error"]["message"] == "The reply took longer than 0.2 seconds."
        stream = http.post(PATH, json=ask(max_tokens=300, stream=True))
        assert stream.text.rstrip().endswith('"code":"timeout"}}')
        assert until(lambda: host.worker.writing == 0)


def test_a_server_that_ends_lets_replies_end_and_takes_no_more():
    chatter = chatter_of()
    with contextlib.ExitStack() as all:
        host = all.enter_context(hosted(engine_of(endless(0.005), chatter), chatter))
        http = all.enter_context(host.http())
        short, long = (
            all.enter_context(http.stream("POST", PATH, json=ask(max_tokens=length, stream=True))).iter_lines()
            for length in (40, 390)
        )
        next(short), next(long)
        host.worker.stop(0.6)
        assert http.get("/health").status_code == 503
        refused = http.post(PATH, json=ask())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert [line for line in short if line][-1] == "data: [DONE]"
        assert '"code":"shutting_down"' in [line for line in long if line][-1]
