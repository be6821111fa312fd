"""What OpenAI's client gets: whole answers, streams, log-probabilities, tools, and errors in its own shape."""

import json

import openai
import pytest
from host import NAME, chatter_of, dice, endless, engine_of, hosted
from lmf import Message, Sampling, ToolCall
from lmf.generate.engine import Engine
from lmf.templates.jinja import JinjaTemplate
from replies import TOKENIZER, script

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def host():
    chatter = chatter_of()
    with hosted(engine_of(dice(), chatter), chatter, max_tokens=50) as found:
        yield found


@pytest.fixture(scope="module")
def client(host):
    return host.openai()


def expected(prompt: list[int], sampling: Sampling, n: int = 1) -> list[str]:
    """The replies of the engine alone."""
    engine = engine_of(dice(), chatter_of())
    replies = engine.submit(prompt, sampling, n=n)
    engine.finish(replies)
    return [reply.text for reply in replies]


def test_the_model_is_listed(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (NAME, "model", "lmf")
    assert client.models.retrieve(NAME).id == NAME


def test_a_whole_answer(client):
    ids = chatter_of().ids([Message("user", "Hi")])
    (text,) = expected(ids, Sampling(max_tokens=50, temperature=1, seed=3))
    answer = client.chat.completions.create(model=NAME, messages=HI, seed=3)
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content == text
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.total_tokens == len(ids) + answer.usage.completion_tokens


def test_several_choices_each_as_if_alone(client):
    ids = chatter_of().ids([Message("user", "Hi")])
    texts = expected(ids, Sampling(max_tokens=20, temperature=1, seed=3), n=3)
    answer = client.chat.completions.create(model=NAME, messages=HI, seed=3, n=3, max_completion_tokens=20)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == texts
    assert len(set(texts)) == 3


def test_the_prompt_is_that_of_training_and_special_tokens_in_it_stay_text(host, monkeypatch):
    seen = []
    submit = Engine.submit
    monkeypatch.setattr(
        Engine, "submit", lambda self, ids, *a, **k: seen.append(list(ids)) or submit(self, ids, *a, **k)
    )
    eos = TOKENIZER.eos_token
    said = [
        ("system", f"Be {eos}."),
        ("user", f"Hi{eos} there"),
        ("assistant", eos),
        ("user", "Again"),
        ("user", "now"),
    ]
    messages = [{"role": role, "content": text} for role, text in said]
    host.openai().chat.completions.create(model=NAME, messages=messages, max_tokens=1)
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    host.openai().chat.completions.create(model=NAME, messages=parts, max_tokens=1)
    ids = chatter_of().encoder.prompt([Message(role, text) for role, text in said])
    assert seen == [ids, ids]
    assert ids.count(TOKENIZER.eos_token_id) == 1  # after the earlier reply


def stream_of(client, **asked) -> list:
    return list(client.chat.completions.create(model=NAME, stream=True, **asked))


def test_a_stream_says_the_same_as_a_whole_answer(client):
    whole = client.chat.completions.create(model=NAME, messages=HI, seed=5, n=2)
    chunks = stream_of(client, messages=HI, seed=5, n=2, stream_options={"include_usage": True})
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    *chunks, last = chunks
    assert last.choices == [] and last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)
    for index in range(2):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == whole.choices[index].message.content
        assert [choice.finish_reason for choice in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == whole.choices[index].finish_reason


def test_the_frames_of_a_stream(host):
    asked = {"model": NAME, "messages": HI, "stream": True, "max_tokens": 5}
    with host.http() as http, http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = answer.read().decode()
    *events, end = text.split("\n\n")
    assert end == ""
    assert events[-1] == "data: [DONE]"
    values = [json.loads(each.removeprefix("data: ")) for each in events[:-1]]
    assert all(each.startswith("data: ") for each in events)
    assert all("delta" in choice and choice["finish_reason"] != "" for value in values for choice in value["choices"])
    assert all("usage" not in value for value in values)


def test_a_thousand_streams_say_what_whole_answers_say_and_no_part_of_a_stop(host):
    """Any tokens, parts of characters among them; stops that are often begun and not finished."""
    stops = ["ab", "e", " t", "the"]
    with host.http() as http:
        for number in range(1000):
            asked = {"model": NAME, "prompt": [3 + number % 200, 5 + number // 200], "max_tokens": 12, "temperature": 0}
            asked["stop"] = stops[: number % 5] or None
            whole = http.post("/v1/completions", json=asked).json()["choices"][0]
            with http.stream("POST", "/v1/completions", json=asked | {"stream": True}) as answer:
                lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
            assert lines.pop() == "[DONE]"
            choices = [json.loads(line)["choices"][0] for line in lines]
            assert "".join(choice["text"] for choice in choices) == whole["text"]
            assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [
                whole["finish_reason"]
            ]
            assert not any(stop in whole["text"] for stop in stops[: number % 5])


def test_log_probabilities_of_a_talk(client):
    answer = client.chat.completions.create(
        model=NAME, messages=HI, seed=1, logprobs=True, top_logprobs=3, max_tokens=6
    )
    told = answer.choices[0].logprobs.content
    rule = dice().rule
    read = chatter_of().ids([Message("user", "Hi")])
    assert len(told) == 6
    for token in told:
        logprobs = rule(read).log_softmax(-1)
        (id,) = [id for id in range(len(TOKENIZER)) if float(logprobs[id]) == pytest.approx(token.logprob, abs=1e-6)]
        assert token.token == TOKENIZER.decode([id])
        assert bytes(token.bytes).decode() == token.token
        best = logprobs.topk(3)
        assert [top.token for top in token.top_logprobs] == [TOKENIZER.decode([each]) for each in best.indices.tolist()]
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-6)
        read.append(id)


def test_log_probabilities_come_with_a_stream_too(client):
    asked = {"messages": HI, "seed": 1, "logprobs": True, "max_tokens": 6}
    whole = client.chat.completions.create(model=NAME, **asked).choices[0].logprobs.content
    chunks = stream_of(client, **asked)
    assert [
        token for chunk in chunks for token in (chunk.choices[0].logprobs or chunk).model_dump().get("content") or []
    ] == [token.model_dump() for token in whole]


def test_completions_of_several_prompts(client):
    prompts = ["Once", "Twice"]
    answer = client.completions.create(model=NAME, prompt=prompts, n=2, seed=4, max_tokens=9, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.object == "text_completion"
    texts = []
    for prompt in prompts:
        ids = chatter_of().encoder.plain(prompt)
        engine = engine_of(dice(), chatter_of())
        replies = engine.submit(ids, Sampling(max_tokens=9, temperature=1, seed=4), n=2, continues=True)
        engine.finish(replies)
        texts += [reply.text for reply in replies]
    assert [choice.text for choice in answer.choices] == texts
    told = answer.choices[0].logprobs
    assert told.text_offset == [sum(map(len, told.tokens[:number])) for number in range(len(told.tokens))]
    assert all(len(each) == 1 for each in told.top_logprobs)


def test_ids_are_a_prompt_too(client):
    text = client.completions.create(model=NAME, prompt=[5, 6, 7], temperature=0, max_tokens=9).choices[0].text
    assert [text] == expected([5, 6, 7], Sampling(max_tokens=9))
    several = client.completions.create(model=NAME, prompt=[[5, 6, 7], [8]], temperature=0, max_tokens=9)
    assert several.choices[0].text == text


def test_sixteen_tokens_are_a_completion_where_nothing_is_said():
    with hosted(engine_of(endless(), chatter_of())) as host:
        answer = host.openai().completions.create(model=NAME, prompt="Once", temperature=0)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")


def test_penalties_and_cuts_are_those_of_the_engine(client):
    asked = {"top_p": 0.5, "presence_penalty": 0.3, "frequency_penalty": 0.2, "temperature": 0.9, "seed": 8}
    more = {"top_k": 9, "min_p": 0.01, "repetition_penalty": 1.3}
    answer = client.chat.completions.create(model=NAME, messages=HI, stop="x", max_tokens=30, **asked, extra_body=more)
    ids = chatter_of().ids([Message("user", "Hi")])
    assert [answer.choices[0].message.content] == expected(ids, Sampling(**asked, **more, max_tokens=30, stop=("x",)))


def test_what_means_nothing_here_may_be_said(client):
    client.chat.completions.create(
        model=NAME, messages=[{**HI[0], "name": None}], user="me", store=False, metadata={"a": "b"}, max_tokens=1
    )


# Tools

CALLING = JinjaTemplate(
    name="calling",
    source="this test",
    text=(
        "{% for tool in tools or [] %}T: {{ tool | tojson }}\n{% endfor %}"
        "{% for m in messages %}"
        "{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}"
        "\n<call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</call>"
        "{% endfor %}{{ eos_token }}{% endgeneration %}\n"
        "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    ),
    stop=(TOKENIZER.eos_token,),
    steady=True,
)
TOOL = {"type": "function", "function": {"name": "sky", "parameters": {"type": "object", "properties": {}}}}


CALL = '<call>{"name": "sky", "arguments": {"at": "night"}}</call>'


def told(text: str, tools: tuple = (TOOL,), **more):
    """What a client gets of a model that writes a text: whole, and as a stream put together."""
    chatter = chatter_of(template=CALLING)
    ids = chatter.ids([Message("user", "Hi")], tools=tools if more.get("tool_choice") != "none" else ())
    asked = {"model": NAME, "messages": HI, "temperature": 0, **({"tools": list(tools)} if tools else {}), **more}
    with hosted(engine_of(script(text, len(ids)), chatter), chatter) as host:
        whole = host.openai().chat.completions.create(**asked).choices[0]
        chunks = [chunk.choices[0] for chunk in host.openai().chat.completions.create(**asked, stream=True)]
    content = "".join(chunk.delta.content or "" for chunk in chunks)
    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert content == (whole.message.content or "")
    assert chunks[-1].finish_reason == whole.finish_reason
    assert [(call.index, call.function.name, call.function.arguments) for call in calls] == [
        (number, call.function.name, call.function.arguments)
        for number, call in enumerate(whole.message.tool_calls or [])
    ]
    return whole, [chunk.delta.content for chunk in chunks if chunk.delta.content]


def test_a_call_is_told_apart_from_what_is_said():
    whole, shown = told(f"I will look up.\n{CALL}")
    assert whole.message.content == "I will look up."
    (call,) = whole.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "sky", {"at": "night"})
    assert len(call.id) == 9 and call.id.isalnum()
    assert whole.finish_reason == "tool_calls"
    assert len(shown) > 3  # said while it was written


def test_several_calls_and_nothing_else():
    whole, shown = told(f"{CALL}\n{CALL}")
    assert whole.message.content is None and shown == []
    assert len(whole.message.tool_calls) == 2
    assert len({call.id for call in whole.message.tool_calls}) == 2


@pytest.mark.parametrize("text", ["No call.", "a < b and <c", "<call>not JSON</call>", '{"name": "sky"}', "<cal"])
def test_what_is_no_call_is_said(text):
    whole, _ = told(text)
    assert whole.message.content == text
    assert whole.message.tool_calls is None
    assert whole.finish_reason == "stop"


def test_without_tools_nothing_is_a_call():
    assert told(CALL, tool_choice="none")[0].message.content == CALL
    assert told(CALL, tools=())[0].message.content == CALL


def test_a_result_of_a_tool_goes_on(monkeypatch):
    chatter = chatter_of(template=CALLING)
    call = {"id": "call00001", "type": "function", "function": {"name": "sky", "arguments": '{"at": "night"}'}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "call00001", "content": "dark"},
    ]
    seen = []
    submit = Engine.submit
    monkeypatch.setattr(
        Engine, "submit", lambda self, ids, *a, **k: seen.append(list(ids)) or submit(self, ids, *a, **k)
    )
    with hosted(engine_of(dice(), chatter), chatter) as host:
        host.openai().chat.completions.create(model=NAME, messages=messages, tools=[TOOL], max_tokens=2)
    said = [
        Message("user", "Hi"),
        Message("assistant", "", calls=(ToolCall("sky", {"at": "night"}, "call00001"),)),
        Message("tool", "dark", call_id="call00001"),
    ]
    assert seen == [chatter.ids(said, tools=[TOOL])]


# What is refused

LONG = "word " * 500
MESSAGE = {"role": "user", "content": "Hi"}
NO_VALUE = [
    ("temperature", -0.1), ("temperature", 2.1), ("temperature", "hot"), ("temperature", True),
    ("top_p", 0), ("top_p", 1.1), ("top_k", -1), ("top_k", 1.5), ("min_p", -0.1), ("min_p", 1.1),
    ("presence_penalty", 2.1), ("presence_penalty", -2.1), ("frequency_penalty", 3), ("repetition_penalty", 0),
    ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", "5"), ("max_tokens", 10**400),
    ("max_completion_tokens", 0), ("n", 0), ("n", 33), ("n", "2"), ("seed", 1.5), ("seed", 2**63),
    ("stop", ""), ("stop", ["a"] * 5), ("stop", [""]), ("stop", 3), ("stop", "x" * 201),
    ("stream", "yes"), ("stream_options", {"include_usage": True}), ("logprobs", 3), ("top_logprobs", 3),
    ("top_logprobs", 21), ("logit_bias", {"5": 10}), ("response_format", {"type": "json_object"}),
    ("tool_choice", "required"), ("tools", "sky"), ("tools", [{"type": "web_search"}]), ("tools", [{"function": {}}]),
    ("messages", []), ("messages", "Hi"), ("messages", [3]), ("messages", [{"role": "user"}]),
    ("messages", [{"role": "wizard", "content": "Hi"}]), ("messages", [{"content": "Hi"}]),
    ("messages", [{"role": "user", "content": None}]), ("messages", [{"role": "user", "content": 3}]),
    ("messages", [{**MESSAGE, "images": ["a"]}]), ("messages", [MESSAGE, {"role": "assistant", "content": "Ho"}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x"}}]}]),
    ("model", 3), ("store", True),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), NO_VALUE, ids=lambda each: str(each)[:30])
def test_a_wrong_value_is_named(host, key, value):
    with host.http() as http:
        answer = http.post("/v1/chat/completions", content=json.dumps({"model": NAME, "messages": HI} | {key: value}))
        assert answer.status_code == 415
        headers = {"Content-Type": "application/json"}
        body = json.dumps({"model": NAME, "messages": HI} | {key: value})
        answer = http.post("/v1/chat/completions", content=body, headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if isinstance(value, int) and value > 10**100:  # more digits than Python reads
        return
    assert (error["param"] or "").startswith(key)
    assert key in error["message"]


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        (b"", "invalid_json", "cannot be read as JSON"),
        (b"{", "invalid_json", "cannot be read as JSON"),
        (b"[]", "invalid_json", "The body is a list; it must be an object."),
        (b"\xff", "invalid_json", "The body is not UTF-8: byte 0."),
        (b'{"model": NaN}', "invalid_json", "cannot be read as JSON"),
        (b'{"model": "\\ud800"}', "invalid_json", "cannot be read as JSON"),
        (b'{"model": 1, "model": 2}', "invalid_json", "cannot be read as JSON"),
        (b"[" * 100_000, "invalid_json", "cannot be read as JSON"),
        (b"{}", "missing_required_parameter", "model is required."),
        (b'{"model": "tiny"}', "missing_required_parameter", "messages is required."),
        (b'{"model": "tiny", "messages": [], "heat": 1}', "invalid_value", "messages is a list"),
    ],
)
def test_a_body_that_is_no_request(host, body, code, told):
    with host.http() as http:
        answer = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == code
    assert told in error["message"]


def test_an_unknown_parameter_is_named(client):
    with pytest.raises(openai.BadRequestError, match="heat is no parameter of this request") as error:
        client.chat.completions.create(model=NAME, messages=HI, extra_body={"heat": 1})
    assert (error.value.code, error.value.param) == ("unknown_parameter", "heat")


def test_another_model_is_not_here(client):
    with pytest.raises(openai.NotFoundError, match="The model 'gpt-4' is not here; this server has 'tiny'") as error:
        client.chat.completions.create(model="gpt-4", messages=HI)
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_a_prompt_that_is_too_long_is_told_with_both_numbers(client):
    messages = [{"role": "user", "content": LONG}]
    length = len(chatter_of().ids([Message("user", LONG)]))
    with pytest.raises(openai.BadRequestError, match=f"{length:,} tokens.*room for 400") as error:
        client.chat.completions.create(model=NAME, messages=messages)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="room for 400"):
        client.completions.create(model=NAME, prompt=["Hi", LONG])


def test_more_tokens_than_the_server_writes(client):
    with pytest.raises(openai.BadRequestError, match="max_tokens is 51; this server writes at most 50 tokens"):
        client.chat.completions.create(model=NAME, messages=HI, max_tokens=51)
    with pytest.raises(openai.BadRequestError, match="max_completion_tokens is 51"):
        client.chat.completions.create(model=NAME, messages=HI, max_completion_tokens=51)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"prompt": []}, "prompt is empty."),
        ({"prompt": [5, 300]}, "prompt has 300, which is no token."),
        ({"prompt": [[5], [-1]]}, "prompt[1] has -1, which is no token."),
        ({"prompt": {"a": 1}}, "prompt is an object"),
        ({"prompt": "Hi", "echo": True}, "echo is true"),
        ({"prompt": "Hi", "best_of": 2}, "best_of is the number 2"),
        ({"prompt": "Hi", "suffix": "x"}, "suffix is the text 'x'"),
        ({"prompt": "Hi", "logprobs": 21}, "logprobs is the number 21"),
        ({}, "prompt is required."),
    ],
)
def test_a_completion_that_cannot_be_done(host, asked, told):
    with host.http() as http:
        answer = http.post("/v1/completions", json={"model": NAME, **asked})
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_what_a_template_refuses_is_a_bad_request_and_tells_no_path(tmp_path):
    file = tmp_path / "mine.jinja"
    text = "{{ raise_exception('no talk') }}{% generation %}{{ eos_token }}{% endgeneration %}"
    chatter = chatter_of(template=JinjaTemplate(name=str(file), source="", text=text, stop=(TOKENIZER.eos_token,)))
    with hosted(engine_of(dice(), chatter), chatter) as host, pytest.raises(openai.BadRequestError) as error:
        host.openai().chat.completions.create(model=NAME, messages=HI)
    assert "no talk" in error.value.message
    assert str(tmp_path) not in error.value.message


def test_a_model_of_texts_has_no_talk():
    chatter = chatter_of(template=None)
    with hosted(engine_of(dice(), chatter), chatter) as host:
        with pytest.raises(openai.BadRequestError, match="use /v1/completions"):
            host.openai().chat.completions.create(model=NAME, messages=HI)
        assert host.openai().completions.create(model=NAME, prompt="Hi").object == "text_completion"


def test_tools_need_a_template_with_a_place_for_them(client):
    with pytest.raises(openai.BadRequestError, match="no place for tools"):
        client.chat.completions.create(model=NAME, messages=HI, tools=[TOOL])


# LMFlow's server


def test_predict_answers_as_lmflow_did():
    chatter = chatter_of()
    said = [Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "And?")]
    runner = script("Good day.", len(chatter.ids(said)))
    history = [{"content": text} for text in ("Welcome!", "Hi", "Ho", "And?")]
    with hosted(engine_of(runner, chatter), chatter, predict=True) as host, host.http() as http:
        for asked in ({"Input": "And?", "History": history}, {"Input": "And?", "History": history[:3]}):
            answer = http.post("/predict", json=asked)
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            parts = ["Good day."[:end] for end in range(1, 10)]
            grown = [part for part in parts if part in answer.text]
            assert grown[-1] == "Good day." and answer.text.endswith("Good day.")
            assert len(answer.text) > len("Good day.")
        assert http.post("/predict", json={"Input": ""}).status_code == 400
        assert http.post("/predict", json={"History": []}).json()["error"]["param"] == "Input"


def test_predict_is_there_only_if_it_is_asked_for(host):
    with host.http() as http:
        answer = http.post("/predict", json={"Input": "Hi"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "There is nothing here: POST /predict"
