"""Columns under other names: by ``--columns`` and by ``dataset_info.json``."""

from typing import Any

import pytest
from lmf import ConfigError, Conversation, DataError, DataFormat, Message, Preference, ToolCall, Unpaired
from lmf.formats.datasetinfo import KEYS, entry, parse_columns, rename
from lmf.formats.known import FORMATS

HI, HELLO, WHAT = Message("user", "Hi"), Message("assistant", "Hello!"), Message("assistant", "What?")
CHAT = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "result",
    "function_tag": "call",
}


def find(record: dict[str, Any], name: str | None = None) -> DataFormat:
    (form,) = (form for form in FORMATS if form.matches(record) and name in (None, form.name))
    return form


# The entries are those of LLaMA-Factory's and LLM-Genie's own files, the records like those of their data.
DESCRIBED: dict[str, tuple[dict[str, Any], dict[str, Any], str, Any]] = {
    "alpaca_en": (
        {"file_name": "alpaca_data_en_52k.json", "file_sha1": "607f94a7f581341e59685aef32f531095232cf23"},
        {"instruction": "Hi", "input": "", "output": "Hello!"},
        "alpaca",
        Conversation((HI, HELLO)),
    ),
    "belle_multiturn": (
        {
            "file_name": "belle",
            "columns": {"prompt": "ask", "query": "", "response": "reply", "history": "past"},
        },
        {"ask": "Hi", "reply": "Hello!", "past": [["Hi", "What?"]]},
        "alpaca",
        Conversation((HI, WHAT, HI, HELLO)),
    ),
    "comparison_gpt4_en": (
        {"file_name": "comparison_gpt4_data_en.json", "ranking": True},
        {"instruction": "Hi", "input": "", "output": ["Hello!", "What?"]},
        "alpaca-pair",
        Preference(Conversation((HI,)), (HELLO,), (WHAT,)),
    ),
    "alpaca ranking": (
        {
            "file_name": "a.json",
            "ranking": True,
            "columns": {"prompt": "question", "system": "system", "chosen": "good", "rejected": "bad"},
        },
        {"system": "", "question": "Hi", "good": "Hello!", "bad": "What?", "images": ["not read"]},
        "alpaca-preference",
        Preference(Conversation((HI,)), (HELLO,), (WHAT,)),
    ),
    "glaive_toolcall_en_demo": (
        {
            "file_name": "glaive_toolcall_en_demo.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "tools": "tools"},
        },
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {}}'},
            ],
            "tools": "",
        },
        "sharegpt",
        Conversation((HI, Message("assistant", "", calls=(ToolCall("add", {}),)))),
    ),
    "dpo_en_demo": (
        {
            "file_name": "dpo_en_demo.json",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "gpt", "value": "What?"},
        },
        "sharegpt-preference",
        Preference(Conversation((HI,)), (HELLO,), (WHAT,)),
    ),
    "kto_en_demo": (
        {
            "file_name": "kto_en_demo.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "label"},
            "tags": CHAT,
        },
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}], "label": False},
        "sharegpt-unpaired",
        Unpaired(Conversation((HI, WHAT)), False),
    ),
    "words of its own": (
        {
            "file_name": "a.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk"},
            "tags": CHAT,
        },
        {
            "talk": [
                {"role": "user", "content": "Hi"},
                {"role": "call", "content": '{"name": "add", "arguments": {}}'},
                {"role": "result", "content": "5"},
                {"role": "assistant", "content": "Hello!"},
            ]
        },
        "sharegpt",
        Conversation((HI, Message("assistant", "", calls=(ToolCall("add", {}),)), Message("tool", "5"), HELLO)),
    ),
    "openai": (
        {"file_name": "a.jsonl", "formatting": "openai", "columns": {"messages": "messages"}},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
        "sharegpt",
        Conversation((HI, HELLO)),
    ),
}


@pytest.mark.parametrize(("described", "record", "name", "content"), DESCRIBED.values(), ids=DESCRIBED)
def test_an_entry_tells_how_the_records_become_those_of_a_format(described, record, name, content):
    found = entry({"it": described}, "it")
    assert (found.file, found.format, found.sha1) == (described["file_name"], name, described.get("file_sha1", ""))
    renamed = rename(record, found.columns, found.tags)
    assert find(renamed).name == name
    assert find(renamed).read(renamed) == content


def test_one_column_alone_is_a_text_or_a_prompt_as_the_objective_has_it():
    found = entry({"wiki_demo": {"file_name": "wiki.txt", "columns": {"prompt": "body"}}}, "wiki_demo")
    renamed = rename({"body": "Once."}, found.columns)
    assert found.format is None
    assert find(renamed, "text").read(renamed) == "Once."
    assert find(renamed, "prompt").read(renamed) == Conversation((Message("user", "Once."),))


TALK = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
UNNAMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "system and history": ({}, {"system": "x", "history": [["a", "b"]], "instruction": "Hi", "output": "Hello!"}),
    "a judgement": ({}, {"instruction": "Hi", "output": "What?", "kto_tag": False}),
    "a preference": ({}, {"instruction": "Hi", "chosen": "Hello!", "rejected": "What?"}),
    "tools": ({"formatting": "sharegpt"}, {"conversations": TALK, "tools": '[{"name": "add"}]'}),
    "a judged talk": ({"formatting": "sharegpt"}, {"conversations": TALK, "kto_tag": False}),
    "a note": ({"formatting": "openai"}, {"conversations": TALK, "id": 1}),
}


@pytest.mark.parametrize(("described", "record"), UNNAMED.values(), ids=UNNAMED)
def test_without_columns_the_records_are_read_as_they_are(described, record):
    found = entry({"it": {"file_name": "a.json", **described}}, "it")
    assert (found.columns, found.tags) == ({}, {})


@pytest.mark.parametrize("record", [record for described, record in UNNAMED.values() if described])
def test_with_tags_alone_no_key_is_lost(record):
    found = entry({"it": {"file_name": "a.json", "formatting": "sharegpt", "tags": CHAT}}, "it")
    spoken = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    renamed = rename({**record, "conversations": spoken, "images": ["a.png"]}, found.columns, found.tags)
    assert renamed == {**record, "images": ["a.png"]}


BAD = {
    "a list": ([], "it", "dataset_info.json is a list; it must be an object."),
    "an unknown name": (
        {"alpaca_en": {}, "wiki": {}},
        "alpaca",
        "dataset_info.json has no data set 'alpaca'; it has alpaca_en, wiki. Did you mean 'alpaca_en'?",
    ),
    "a text": ({"it": "a.json"}, "it", "it is the text 'a.json'; it must be an object."),
    "no file": ({"it": {}}, "it", "it has no key 'file_name'; its keys are []."),
    "a data set of a hub": (
        {"it": {"hf_hub_url": "a/b"}},
        "it",
        "it.hf_hub_url: the data are not here; download them and name the file in file_name.",
    ),
    "a script": (
        {"it": {"script_url": "belle_multiturn"}},
        "it",
        "it.script_url: the data are not here; download them and name the file in file_name.",
    ),
    "samples": (
        {"it": {"file_name": "a.json", "num_samples": 10}},
        "it",
        "it.num_samples: lmf reads whole files; write the samples into a file of their own.",
    ),
    "formatting": (
        {"it": {"file_name": "a.json", "formatting": "chatml"}},
        "it",
        "it.formatting is the text 'chatml'; lmf knows alpaca, sharegpt, openai.",
    ),
    "formatting in a list": (
        {"it": {"file_name": "a.json", "formatting": ["alpaca"]}},
        "it",
        "it.formatting is a list; lmf knows alpaca, sharegpt, openai.",
    ),
    "ranking": (
        {"it": {"file_name": "a.json", "ranking": "yes"}},
        "it",
        "it.ranking is the text 'yes'; it must be true or false.",
    ),
    "a ranking of talks without columns": (
        {"it": {"file_name": "a.json", "formatting": "sharegpt", "ranking": True}},
        "it",
        "it.ranking is true, but it.columns names no chosen and no rejected; name both.",
    ),
    "a ranking of talks with other columns": (
        {"it": {"file_name": "a.json", "formatting": "openai", "ranking": True, "columns": {"messages": "talk"}}},
        "it",
        "it.ranking is true, but it.columns names no chosen and no rejected; name both.",
    ),
    "half a ranking": (
        {"it": {"file_name": "a.json", "ranking": True, "columns": {"prompt": "a", "response": "b", "chosen": "c"}}},
        "it",
        "it.ranking is true, but it.columns names no rejected; name both.",
    ),
    "a column that is no text": (
        {"it": {"file_name": "a.json", "columns": {"prompt": 1}}},
        "it",
        "it.columns.prompt is the number 1; it must be a text.",
    ),
}


@pytest.mark.parametrize(("info", "name", "words"), BAD.values(), ids=BAD)
def test_a_bad_entry_is_refused(info, name, words):
    with pytest.raises(DataError) as caught:
        entry(info, name)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("described", "key", "meant"),
    [
        ({"file_name": "a.json", "colums": {}}, "it has the unknown key 'colums'", "columns"),
        ({"file_name": "a.json", "columns": {"promt": "a"}}, "it.columns has the unknown key 'promt'", "prompt"),
        (
            {"file_name": "a.json", "formatting": "sharegpt", "tags": {"user": "a"}},
            "it.tags has the unknown key 'user'",
            "user_tag",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(described, key, meant):
    with pytest.raises(DataError) as caught:
        entry({"it": described}, "it")
    assert str(caught.value).startswith(f"{key}; known are ")
    assert str(caught.value).endswith(f" Did you mean {meant!r}?")


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "../a.json", "a/../../b.json", "..\\a.json", "C:\\a.json", "C:a.json", "\\\\host\\a", ""]
)
def test_a_file_outside_the_folder_is_refused(file):
    with pytest.raises(DataError) as caught:
        entry({"it": {"file_name": file}}, "it")
    assert "it must be a path inside the folder of dataset_info.json, without '..'." in str(caught.value)


@pytest.mark.parametrize("file", ["a.json", "sub/a.json", "a..json", "...json/b"])
def test_a_file_inside_the_folder_is_taken(file):
    assert entry({"it": {"file_name": file}}, "it").file == file


# --columns

COLUMNS = {
    "LLaMA-Factory's names": (
        "prompt=ask,query=more,response=reply",
        {"instruction": "ask", "input": "more", "output": "reply"},
    ),
    "our names": ("instruction=ask,output=reply", {"instruction": "ask", "output": "reply"}),
    "a prompt alone": ("prompt=question", {"prompt": "question"}),
    "a prompt with a completion": ("prompt=q,completion=a", {"prompt": "q", "completion": "a"}),
    "a preference": ("prompt = q , chosen = a, rejected=b", {"prompt": "q", "chosen": "a", "rejected": "b"}),
    "a text": ("text=body", {"text": "body"}),
    "a column with a sign of equality": ("text=a=b", {"text": "a=b"}),
}


@pytest.mark.parametrize(("text", "columns"), COLUMNS.values(), ids=COLUMNS)
def test_columns_are_read_from_the_command_line(text, columns):
    assert parse_columns(text) == columns


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt", "--columns has the part 'prompt'; write KEY=COLUMN, such as prompt=question."),
        ("prompt=a,", "--columns has the part ''; write KEY=COLUMN, such as prompt=question."),
        ("=a", "--columns has the part '=a'; write KEY=COLUMN, such as prompt=question."),
        ("prompt=", "--columns has the part 'prompt='; write KEY=COLUMN, such as prompt=question."),
        ("text=a,text=b", "--columns names the key 'text' twice; keep one of them."),
        ("response=a,output=b", "--columns names 'response' and 'output', which are the same; keep one of them."),
        ("prompt=a,instruction=b", "--columns names 'prompt' and 'instruction', which are the same; keep one of them."),
    ],
)
def test_bad_columns_are_refused(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_columns(text)
    assert str(caught.value) == words


def test_an_unknown_key_of_columns_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"^--columns has the unknown key 'promt'; known are .* Did you mean 'prompt'\?$"
    ):
        parse_columns("promt=a")
    assert parse_columns("frage=a", KEYS | {"frage"}) == {"frage": "a"}


def test_only_the_named_columns_are_kept():
    record = {"question": "Hi", "answer": "Hello!", "instruction": "an essay", "images": ["a.png"]}
    assert rename(record, parse_columns("prompt=question,response=answer")) == {"instruction": "Hi", "output": "Hello!"}


def test_a_missing_column_is_an_error_with_the_keys_of_the_record():
    columns = parse_columns("prompt=question,response=answer,system=rules")
    assert rename({"question": "Hi", "answer": "x"}, columns) == {"instruction": "Hi", "output": "x"}
    for record, words in (
        (
            {"question": "Hi", "id": 1},
            "the record has no column 'answer' for 'output'; its keys are ['question', 'id'].",
        ),
        (
            {"question": "Hi", "answers": "x"},
            "the record has no column 'answer' for 'output'; its keys are ['question', 'answers']."
            " Did you mean 'answers'?",
        ),
        (
            {"question": "Hi", "answer": "x", "rule": "y"},
            "the record has no column 'rules' for 'system'; its keys are ['question', 'answer', 'rule']."
            " Did you mean 'rule'?",
        ),
    ):
        with pytest.raises(DataError) as caught:
            rename(record, columns)
        assert str(caught.value) == words


def test_what_is_no_message_is_left_for_the_format_to_refuse():
    found = entry({"it": {"file_name": "a", "formatting": "sharegpt", "tags": CHAT}}, "it")
    renamed = rename({"conversations": ["Hi", {"role": 5, "text": "x"}]}, found.columns, found.tags)
    assert renamed == {"conversations": ["Hi", {"from": 5, "text": "x"}]}
