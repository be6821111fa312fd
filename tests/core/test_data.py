"""Files become records, or one error that names every problem and its line."""

import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from lmf import DataError, DataFormat, DataSet, Message, Objective, PluginError, Plugins, Record, hookimpl
from lmf.data import read

GOOD = b'{"input": "Hi", "output": "Hello!"}'
BAD = b'{"input": "Hi", "output": null}'
CAUSE = "output is null; it must be a text."
SAID = (Message("user", "Hi"), Message("assistant", "Hello!"))


@dataclass
class NoOptions:
    """The options of an objective that has none."""


def providing(hook, *items):
    """A module that provides some things by one hook."""
    module = ModuleType("stub")
    setattr(module, hook, hookimpl(lambda: items))
    return module


def objective(name, kind):
    return Objective(name=name, summary="", data=kind, options=NoOptions, build=lambda options: None)


def dataset(name, *files):
    return DataSet(name=name, summary="", source="here", files=lambda: files)


@pytest.fixture
def plugins():
    """The core alone, with one objective for each kind of data."""
    found = Plugins(only=())
    found.register(
        "acme", providing("lmf_objectives", objective("train", "conversation"), objective("pretrain", "text"))
    )
    return found


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the current folder, which is empty, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
        return name

    return write


def refusal(plugins, *names, kind="conversation"):
    with pytest.raises(DataError) as caught:
        read(names, kind, plugins)
    return str(caught.value)


# What is read

INSTANCE = '{"type": "%s", "instances": [%s]}'
READ = {
    "lines": ("a.jsonl", GOOD + b"\n" + GOOD + b"\n", [1, 2]),
    "no line end at the end": ("a.jsonl", GOOD + b"\n" + GOOD, [1, 2]),
    "ndjson": ("a.ndjson", GOOD, [1]),
    "upper-case suffix": ("A.JSONL", GOOD, [1]),
    "blank lines": ("a.jsonl", b"\n \t\n" + GOOD + b"\n\n" + GOOD + b"\n\n", [3, 5]),
    "white space around": ("a.jsonl", b" \t" + GOOD + b"  \n", [1]),
    "CRLF": ("a.jsonl", GOOD + b"\r\n\r\n" + GOOD + b"\r\n", [1, 3]),
    "byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD, [1, 2]),
    "gzip": ("a.jsonl.gz", gzip.compress(GOOD + b"\n\n" + GOOD), [1, 3]),
    "gzip in two members": ("a.jsonl.gz", gzip.compress(GOOD + b"\n") + gzip.compress(GOOD), [1, 2]),
    "array": ("a.json", b"[" + GOOD + b",\n" + GOOD + b"]\n", [1, 2]),
    "array over lines": ("a.json", b'[\r\n{"input": "Hi",\r\n"output": "Hello!"}\r\n,\r\n\r\n' + GOOD + b"]", [2, 6]),
    "array with a byte order mark": ("a.json", b"\xef\xbb\xbf\n[" + GOOD + b"]", [2]),
    "array, packed": ("a.json.gz", gzip.compress(b"[\n" + GOOD + b"]"), [2]),
    "one record": ("a.json", b'\n{\n"input": "Hi", "output": "Hello!"}\n', [2]),
    "LMFlow text2text": ("a.json", b'{"type": "text2text",\n"instances": [\n' + GOOD + b",\n" + GOOD + b"]}", [3, 4]),
    "LMFlow, type last": ("a.json", b'{"instances":\n[' + GOOD + b'], "type": "text2text"}', [2]),
    "LMFlow conversation": (
        "a.json",
        b'{"type": "conversation", "instances": [{"conversation_id": 1, "tools": [],\n'
        b'"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}]}',
        [1],
    ),
}


@pytest.mark.parametrize(("name", "content", "where"), READ.values(), ids=READ)
def test_every_kind_of_file_is_read_with_physical_line_numbers(plugins, write, name, content, where):
    data = read([write(name, content)], "conversation", plugins)
    assert data.records == [Record(f"{name}:{line}", SAID) for line in where]
    (source,) = data.sources
    assert (source.path, source.records) == (Path(name), len(where))
    assert source.sha256 == hashlib.sha256(content).hexdigest()


KEPT = (
    "naïve 你好 🙂",
    "a\u2028b\u2029c\u0085d",
    "\ufeff",
    "\u001b[0m",
    'quote " and \\u0000 and \\ud800',
    "\r\n\t",
    " x ",
    "\ufffd",
)


@pytest.mark.parametrize("text", KEPT, ids=ascii)
@pytest.mark.parametrize("plain", [True, False], ids=["characters", "escapes"])
@pytest.mark.parametrize("form", ["%s\n\n%s", "[%s,\n\n%s]"], ids=["jsonl", "json"])
def test_text_arrives_unchanged(plugins, write, text, plain, form):
    text = f"{text}."
    record = json.dumps({"input": "Hi", "output": text}, ensure_ascii=not plain)
    name = write("a.json" if form[0] == "[" else "a.jsonl", (form % (record, record)).encode())
    data = read([name], "conversation", plugins)
    assert [record.data[1].content for record in data.records] == [text, text]
    assert data.records[1].where == f"{name}:3"


def test_a_text_file_is_one_document_and_nothing_in_it_changes(plugins, write):
    text = " One\r\n\r\ntwo\u2028three <|endoftext|>\n"
    write("a.txt", b"\xef\xbb\xbf" + text.encode())
    write("b.txt.gz", gzip.compress(b"<html>"))
    data = read(["a.txt", "b.txt.gz"], "text", plugins)
    assert data.records == [Record("a.txt:1", text), Record("b.txt.gz:1", "<html>")]
    assert [source.format for source in data.sources] == ["text", "text"]


def test_texts_are_read_from_json_as_well(plugins, write):
    write("a.jsonl", b'{"text": "One"}\n{"text": "Two", "url": "x"}')
    write("b.json", b'{"type": "text_only", "instances": [{"text": "Three"}]}')
    data = read(["a.jsonl", "b.json"], "text", plugins)
    assert [record.data for record in data.records] == ["One", "Two", "Three"]


def test_the_source_names_the_formats_of_its_records(plugins, write):
    alpaca = b'{"instruction": "Hi", "input": "", "output": "Hello!"}'
    name = write("a.jsonl", b"\n".join([GOOD, alpaca, GOOD]))
    data = read([name], "conversation", plugins)
    assert [record.data for record in data.records] == [SAID] * 3
    assert data.sources[0].format == "alpaca, text2text"


def test_a_record_with_two_meanings_is_read_as_the_one_that_is_learned(plugins, write):
    name = write("a.jsonl", b'{"instruction": "Hi", "output": "Hello!", "text": "Hi Hello!"}')
    assert read([name], "conversation", plugins).records[0].data == SAID
    assert read([name], "text", plugins).records[0].data == "Hi Hello!"


# What is refused

PAIR = b'{"messages": [], "conversations": []}'
UTF16 = GOOD.decode().encode("utf-16")
REFUSED = {
    # files
    "empty file": ("a.jsonl", b"", "a.jsonl is empty."),
    "empty packed file": ("a.json.gz", gzip.compress(b""), "a.json.gz is empty."),
    "empty text file": ("a.txt", b"", "a.txt is empty."),
    "only blank lines": ("a.jsonl", b"\n \r\n\n", "a.jsonl holds no records."),
    "only a byte order mark": ("a.json", b"\xef\xbb\xbf", "a.json holds no records."),
    "empty array": ("a.json", b" [ ] ", "a.json holds no records."),
    "no instances": ("a.json", b'{"type": "text2text", "instances": []}', "a.json holds no records."),
    "web page": ("a.json", b"\n<!DOCTYPE html><html>", "a.json starts with '<': it is a web page"),
    "web page in lines": ("a.jsonl", b"<html>\n<body>\n", "a.jsonl starts with '<': it is a web page"),
    "git-lfs pointer": (
        "a.json",
        b"version https://git-lfs.github.com/spec/v1\noid",
        "is a git-lfs pointer, not the data; `git lfs pull`",
    ),
    "git-lfs pointer for gzip": (
        "a.jsonl.gz",
        b"version https://git-lfs.github.com/spec/v1\noid",
        "is a git-lfs pointer",
    ),
    "gzip without .gz": ("a.jsonl", gzip.compress(GOOD), "is gzip data but is not called .gz; rename it"),
    ".gz without gzip": ("a.jsonl.gz", GOOD, "is called .gz but is not gzip data: it starts with b'{"),
    "gzip twice": ("a.jsonl.gz", gzip.compress(gzip.compress(GOOD)), "is packed by gzip twice; unpack it once"),
    "gzip cut": ("a.jsonl.gz", gzip.compress(GOOD)[:-9], "is cut: its gzip data end too early; fetch it again"),
    "gzip cut in its head": ("a.jsonl.gz", gzip.compress(GOOD)[:7], "is cut: its gzip data end too early"),
    "gzip damaged": (
        "a.json.gz",
        gzip.compress(b"[" + GOOD + b"]")[:-8] + b"\0" * 8,
        "holds damaged gzip data (CRC check failed",
    ),
    "zip": ("a.jsonl", b"PK\x03\x04\x14\0", "is a ZIP archive; unpack it"),
    "parquet": ("a.json", b"PAR1\x15\x04", "is a Parquet file; convert it to JSON Lines"),
    "UTF-16": ("a.jsonl", UTF16, "a.jsonl is UTF-16 text; convert it to UTF-8"),
    "UTF-16, big end first": ("a.json", GOOD.decode().encode("utf-16-be"), "a.json is UTF-16 text; convert it"),
    "UTF-16 without a mark": ("a.jsonl", GOOD.decode().encode("utf-16-le"), "a.jsonl is UTF-16 text; convert it"),
    "UTF-32": ("a.jsonl", GOOD.decode().encode("utf-32"), "a.jsonl is UTF-32 text; convert it to UTF-8"),
    "UTF-16 text file": ("a.txt", "Once".encode("utf-16"), "a.txt is UTF-16 text; convert it to UTF-8"),
    # encodings: the byte is counted from 0 in the file
    "Latin-1": ("a.jsonl", GOOD + b"\n" + b'{"input": "\xe9"}', "a.jsonl:2: byte 47 of the file (0xe9) is not UTF-8"),
    "Latin-1 in JSON": (
        "a.json",
        b"[\n\n" + b'{"input": "\xe9"}]',
        "a.json:3: byte 14 of the file (0xe9) is not UTF-8",
    ),
    "GBK text": ("a.txt", "One\n你好".encode("gbk"), "a.txt:2: byte 4 of the file (0xc4) is not UTF-8"),
    "cut in a character": ("a.txt", "é".encode()[:1], "a.txt:1: byte 0 of the file (0xc3) is not UTF-8"),
    "overlong": ("a.jsonl", GOOD + b'\n"\xc0\xaf"', "a.jsonl:2: byte 37 of the file (0xc0) is not UTF-8"),
    "surrogate in UTF-8": (
        "a.jsonl",
        b'{"text": "\xed\xa0\x80"}',
        "a.jsonl:1: byte 10 of the file (0xed) is not UTF-8",
    ),
    "NUL bytes": (
        "a.jsonl",
        b"\xef\xbb\xbf" + GOOD + b"\n" + b"\0" * 4096,
        "a.jsonl:2: byte 39 of the file is NUL: the file is damaged",
    ),
    "NUL bytes in JSON": (
        "a.json",
        b"[\n" + GOOD + b"\0\0]",
        "a.json:2: byte 37 of the file is NUL: the file is damaged",
    ),
    # JSON
    "not JSON": (
        "a.jsonl",
        GOOD + b"\n\n" + b'{"input" "Hi"}',
        "a.jsonl:3: not valid JSON at column 10: Expecting ':' delimiter",
    ),
    "other white space": ("a.jsonl", GOOD + b"\n\xc2\x85\n", "a.jsonl:2: not valid JSON at column 1: Expecting value"),
    "other white space in JSON": ("a.json", b"[" + GOOD + b"\xe2\x80\xa8]", "a.json:1: not valid JSON at column 37"),
    "cut line": (
        "a.jsonl",
        b'{"input": "Hi",',
        "a.jsonl:1: not valid JSON at column 16: it ends in the middle of a value",
    ),
    "cut string": (
        "a.jsonl",
        b'{"input": "Hi',
        "a.jsonl:1: not valid JSON at column 11: it ends in the middle of a value",
    ),
    "cut array": (
        "a.json",
        b"[\n" + GOOD + b",\n",
        "a.json:3: not valid JSON at column 1: it ends in the middle of a value",
    ),
    "cut record": (
        "a.json",
        b'{"input": "Hi"',
        "a.json:1: not valid JSON at column 15: it ends in the middle of a value",
    ),
    "single quotes": ("a.jsonl", b"{'input': 'Hi'}", "a.jsonl:1: not valid JSON at column 2: Expecting property name"),
    "single quotes in JSON": (
        "a.json",
        b"{'input': 'Hi'}",
        "a.json:1: not valid JSON at column 2: Expecting a key in double quotes",
    ),
    "no comma": ("a.json", b"[" + GOOD + b"\n" + GOOD + b"]", "a.json:2: not valid JSON at column 1: Expecting ','"),
    "no colon": ("a.json", b'{"input" "Hi"}', "a.json:1: not valid JSON at column 10: Expecting ':'"),
    "comma too many": (
        "a.json",
        b"[" + GOOD + b",\n ]",
        "a.json:2: not valid JSON at column 2: something is missing before ']', or a comma",
    ),
    "comma too many in a record": (
        "a.json",
        b'{"input": "Hi",\n}',
        "a.json:2: not valid JSON at column 1: something is missing before '}'",
    ),
    "comma too many in a line": ("a.jsonl", b'{"input": ["Hi",]}', "a.jsonl:1: not valid JSON at column"),
    "raw control character": (
        "a.jsonl",
        b'{"input": "\x01"}',
        r"column 12: a string holds the raw control character '\x01'; write it as an escape",
    ),
    "raw tab": (
        "a.json",
        b'[{"input": "\t"}]',
        r"a.json:1: not valid JSON at column 13: a string holds the raw control character '\t'",
    ),
    "mark inside": (
        "a.jsonl",
        GOOD + b"\n\xef\xbb\xbf" + GOOD,
        "a.jsonl:2: not valid JSON at column 1: a byte order mark stands inside",
    ),
    "two on a line": ("a.jsonl", GOOD + GOOD, "a.jsonl:1: not valid JSON at column 36: more follows the record; each"),
    "more in JSON": (
        "a.json",
        b"[" + GOOD + b"]]",
        "a.json:1: not valid JSON at column 38: more follows the end of the data",
    ),
    "lines called JSON": (
        "a.json",
        GOOD + b"\n" + GOOD,
        "a.json:2: a second record follows the first, as in JSON Lines; rename the file to .jsonl",
    ),
    "array called lines": (
        "a.jsonl",
        b"[\n" + GOOD + b"]",
        "a.jsonl holds a JSON array, not a record on each line; rename it to .json",
    ),
    "record over lines": ("a.jsonl", b'{\n"input": "Hi"\n}', "a.jsonl: the first record spans several lines"),
    "nested deep": (
        "a.jsonl",
        b'{"a": ' + b"[" * 10**5,
        "a.jsonl:1: not valid JSON at column 1: the value is nested too deeply",
    ),
    "nested deep in JSON": (
        "a.json",
        b"[\n" + b'{"a": ' * 10**5,
        "a.json:2: not valid JSON at column 1: the value is nested too deeply",
    ),
    "many digits": (
        "a.jsonl",
        b'{"a": ' + b"9" * 5000 + b"}",
        "a.jsonl:1: not valid JSON at column 1: a number in the value has too many digits",
    ),
    # JSON that means nothing certain
    "NaN": (
        "a.jsonl",
        b'{"input": "Hi", "output": "x", "score": NaN}',
        "a.jsonl:1: NaN is not JSON; write null or a number",
    ),
    "infinity": (
        "a.json",
        b'[\n{"input": "Hi", "output": "x", "score": [-Infinity]}]',
        "a.json:2: -Infinity is not JSON",
    ),
    "NaN in one record": ("a.json", b'{"input": "Hi", "output": "x", "score": NaN}', "a.json:1: NaN is not JSON"),
    "key twice": (
        "a.jsonl",
        b'{"input": "Hi", "output": "x", "input": "y"}',
        "a.jsonl:1: the key 'input' stands twice in one object",
    ),
    "inner key twice": (
        "a.json",
        b'[{"messages": [{"role": "user", "role": "x"}]}]',
        "a.json:1: the key 'role' stands twice",
    ),
    "key twice in one record": ("a.json", b'{"input": "Hi",\n"input": "y"}', "a.json:1: the key 'input' stands twice"),
    "half a pair": (
        "a.jsonl",
        rb'{"input": "Hi", "output": "\ud83d"}',
        r"a.jsonl:1: a string holds \ud83d, half of a surrogate pair",
    ),
    "half a pair in a key": (
        "a.json",
        rb'[{"input": "Hi", "output": "x", "\uDE00": 1}]',
        r"a.json:1: a string holds \ude00, half of a",
    ),
    "escaped NUL": (
        "a.jsonl",
        rb'{"input": "Hi", "output": ["\u0000"]}',
        r"a.jsonl:1: a string holds the character NUL (\u0000)",
    ),
    # records
    "number": ("a.jsonl", GOOD + b"\n5", "a.jsonl:2: the record is the number 5; it must be an object"),
    "text": ("a.json", b'["Hi"]', "a.json:1: the record is the text 'Hi'; it must be an object"),
    "null": ("a.json", b"[null]", "a.json:1: the record is null; it must be an object"),
    "list": ("a.json", b"[\n[]]", "a.json:2: the record is a list; it must be an object"),
    "only a number": ("a.json", b"5", "a.json:1: not valid JSON at column 1: Expecting an array or an object"),
    "no keys": ("a.jsonl", b"{}", "a.jsonl:1: no data format has the keys (none)"),
    "unknown keys": (
        "a.jsonl",
        b'{"question": "?", "answer": "!"}',
        "a.jsonl:1: no data format has the keys 'question', 'answer'.",
    ),
    "key misspelled": (
        "a.jsonl",
        b'{"instruction": "Hi", "ouput": "!"}',
        "the keys 'instruction', 'ouput'. Did you mean 'output'?",
    ),
    "formats are listed": ("a.jsonl", b'{"question": "?"}', '\n  alpaca: {"instruction": '),
    "many keys": ("a.json", json.dumps(dict.fromkeys(map(str, range(1000)))).encode(), "'6', '7' and 992 more"),
    "two formats": (
        "a.jsonl",
        PAIR,
        "'messages', 'conversations' fit the formats lmf-core:messages and lmf-core:sharegpt; keep those of one",
    ),
    "bad message": (
        "a.json",
        b'[{"messages": [{"role": "user", "content": "Hi"},\n{"role": "assistant", "content": null}]}]',
        "a.json:1: messages[1].content is null; it must be a text.",
    ),
    "text, not conversation": (
        "a.jsonl",
        b'{"text": "Hi"}',
        "a.jsonl:1: the record is a text (format text), and here conversations are learned",
    ),
    "text, what fits": ("a.jsonl", b'{"text": "Hi"}', "What learns from texts: `lmf pretrain`."),
    "text file, not conversation": (
        "a.txt",
        b"Hi",
        "a.txt:1: the record is a text (format text), and here conversations",
    ),
    # LMFlow
    "LMFlow type": (
        "a.json",
        b'{"type": "text2txt", "instances": []}',
        "LMFlow's data type 'text2txt' is not supported; supported are text_only",
    ),
    "LMFlow type, nearest": ("a.json", b'{"type": "text2txt", "instances": []}', "Did you mean 'text2text'?"),
    "LMFlow images": (
        "a.json",
        b'{"type": "image_text", "instances": [{}]}',
        "LMFlow's data type 'image_text' is not supported",
    ),
    "LMFlow no type": ("a.json", b'{"instances": [{}]}', "LMFlow's data type None is not supported"),
    "LMFlow list type": (
        "a.json",
        b'{"type": ["text_only"], "instances": [{}]}',
        "LMFlow's data type ['text_only'] is not",
    ),
    "LMFlow other instance": (
        "a.json",
        b'{"type": "text2text", "instances": [' + GOOD + b',\n{"text": "Hi"}]}',
        "a.json:2: the file is of the type 'text2text', but this instance has no 'input'.",
    ),
    "LMFlow instance no object": (
        "a.json",
        b'{"type": "text_only", "instances": [\n7]}',
        "a.json:2: the file is of the type 'text_only'",
    ),
    "LMFlow tools": (
        "a.json",
        b'{"type": "conversation", "instances": [{"tools": ["add"], "messages": []}]}',
        "a.json:1: tools: lmf cannot learn from tool declarations yet",
    ),
}


@pytest.mark.parametrize(("name", "content", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_refused_with_its_place_and_cause(plugins, write, name, content, words):
    assert words in refusal(plugins, write(name, content))


def test_conversations_are_refused_where_texts_are_learned(plugins, write):
    message = refusal(plugins, write("a.jsonl", GOOD), kind="text")
    assert message == (
        "a.jsonl:1: the record is a conversation (format text2text), and here texts are learned.\n"
        "What learns from conversations: `lmf train`."
    )


def test_without_an_objective_that_fits_the_error_says_so(write):
    message = refusal(Plugins(only=()), write("a.jsonl", GOOD), kind="text")
    assert "What learns from conversations: no installed objective." in message


def test_all_bad_records_are_counted_and_the_first_ten_are_shown(plugins, write):
    good = b"\n".join([BAD, GOOD] * 8)
    names = [write("a.jsonl", good), write("b.json", b"[" + BAD + b",\n\n" + BAD), write("c.jsonl", b"")]
    first = [f"a.jsonl:{line}: {CAUSE}" for line in range(1, 17, 2)]
    assert refusal(plugins, *names).splitlines() == [
        "12 problems in the data; the first 10:",
        *first,
        f"b.json:1: {CAUSE}",
        f"b.json:3: {CAUSE}",
    ]
    assert refusal(plugins, *names[1:]).splitlines()[3:] == [
        "b.json:3: not valid JSON at column 32: it ends in the middle of a value (Expecting ',').",
        "c.jsonl is empty.",
    ]


def test_a_fault_in_json_hides_no_later_one(plugins, write):
    records = [b'{"a": NaN}', GOOD, rb'{"a": "\ud800"}', b'{"a": 1, "a": 2}', b"[]", GOOD, BAD]
    for name, content in (("a.json", b"[" + b",\n".join(records) + b"]"), ("a.jsonl", b"\n".join(records))):
        lines = refusal(plugins, write(name, content)).splitlines()
        assert lines[0] == "5 problems in the data:"
        assert [line.split(":")[1] for line in lines[1:]] == ["1", "3", "4", "5", "7"]


# What names stand for


def test_a_folder_is_its_data_files_sorted(plugins, write):
    for name in ("d/b.jsonl", "d/c.json", "d/a.jsonl.gz"):
        content = b"[" + GOOD + b"]" if name.endswith("json") else GOOD
        write(name, gzip.compress(content) if name.endswith(".gz") else content)
    for name in ("d/README.md", "d/.hidden.jsonl", "d/inner/z.jsonl"):
        write(name, b"not read")
    data = read(["d"], "conversation", plugins)
    assert [record.where for record in data.records] == ["d/a.jsonl.gz:1", "d/b.jsonl:1", "d/c.json:1"]


def test_names_are_read_in_the_order_given_and_as_often(plugins, write):
    names = [write("b.jsonl", GOOD), write("a.jsonl", GOOD), "b.jsonl"]
    assert [source.path.name for source in read(names, "conversation", plugins).sources] == names


def test_a_data_set_is_found_by_its_name(plugins, write, tmp_path):
    write("x/a.jsonl", GOOD)
    plugins.register("acme-data", providing("lmf_datasets", dataset("greetings", tmp_path / "x/a.jsonl")))
    for name in ("greetings", "acme-data:greetings"):
        assert read([name], "conversation", plugins).sources[0].path == tmp_path / "x/a.jsonl"


def test_an_unknown_name_is_refused_with_what_is_near(plugins, write, tmp_path):
    write("train.jsonl", GOOD)
    plugins.register("acme-data", providing("lmf_datasets", dataset("greetings", tmp_path / "train.jsonl")))
    assert refusal(plugins, "trian.jsonl") == (
        f"No file, folder or data set is called 'trian.jsonl': {tmp_path}/trian.jsonl does not exist. "
        "Did you mean 'train.jsonl'?\nData sets installed: greetings."
    )
    assert "Did you mean 'greetings'?" in refusal(plugins, "greeting")
    assert f"'x/train.jsonl': {tmp_path}/x does not exist." in refusal(plugins, "x/train.jsonl")
    assert f"{tmp_path}/train.jsonl/x does not exist." in refusal(plugins, "train.jsonl/x")


def test_names_that_no_file_can_have_are_refused(plugins, write):
    assert "No file, folder or data set is called ''" in refusal(plugins, "")
    assert r"No file, folder or data set is called 'a\x00b'" in refusal(plugins, "a\0b")
    assert "cannot be read: File name too long" in refusal(plugins, "a" * 5000)
    assert refusal(plugins) == "No data are named; name a file, a folder or a data set."


def test_a_name_with_two_meanings_is_refused(plugins, write):
    write("greetings/a.jsonl", GOOD)
    plugins.register("acme-data", providing("lmf_datasets", dataset("greetings", "greetings/a.jsonl")))
    message = refusal(plugins, "greetings")
    assert message == "'greetings' is a path and a data set; write './greetings' or 'acme-data:greetings'."
    for name in ("./greetings", "acme-data:greetings"):
        assert len(read([name], "conversation", plugins).records) == 1


def test_a_data_set_that_two_packages_define_is_refused(plugins, write):
    for package in ("acme-a", "acme-b"):
        plugins.register(package, providing("lmf_datasets", dataset("greetings", write("a.jsonl", GOOD))))
    with pytest.raises(PluginError, match="Ask for acme-a:greetings or acme-b:greetings"):
        read(["greetings"], "conversation", plugins)


def test_a_data_set_without_its_files_is_refused(plugins, write, tmp_path):
    sets = [dataset("none"), dataset("gone", tmp_path / "gone.jsonl"), dataset("table", tmp_path / "a.csv")]
    plugins.register("acme-data", providing("lmf_datasets", *sets))
    assert refusal(plugins, "none") == "The data set 'none' has no files."
    assert refusal(plugins, "gone") == f"{tmp_path}/gone.jsonl cannot be read: No such file or directory."
    assert "has the suffix '.csv'" in refusal(plugins, "table")


def test_a_folder_without_data_files_is_refused(plugins, write):
    write("d/README.md", b"")
    write("d/train/a.jsonl", GOOD)
    message = refusal(plugins, "d")
    assert message.startswith("d holds no data files; lmf reads .json, .jsonl, .ndjson, .txt, each also with .gz.")
    assert message.endswith("Name one of its folders: train.")


def test_a_folder_is_refused_rather_than_read_in_part(plugins, write):
    write("d/a.jsonl", GOOD)
    write("d/b.parquet", b"PAR1")
    assert (
        refusal(plugins, "d") == "d holds b.parquet, which lmf cannot read; convert it to JSON Lines or move it away."
    )


def test_a_broken_link_in_a_folder_is_not_passed_over(plugins, write, tmp_path):
    write("d/a.jsonl", GOOD)
    (tmp_path / "d/b.jsonl").symlink_to("gone.jsonl")
    assert refusal(plugins, "d") == "d/b.jsonl cannot be read: No such file or directory."


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.csv", ".csv"), ("a.jsonl.zst", ".zst"), ("data", ""), ("a.md", ".md")]
)
def test_an_unknown_suffix_is_refused_with_the_known_ones(plugins, write, name, suffix):
    message = refusal(plugins, write(name, GOOD))
    assert f"{name} has the suffix {suffix!r}; lmf reads .json, .jsonl, .ndjson, .txt, each also with .gz." in message
    assert ("Convert it to JSON Lines." in message) == (suffix in (".csv", ".zst"))


def test_what_is_no_file_is_refused(plugins, write, tmp_path):
    fifo = tmp_path / "pipe.jsonl"
    os.mkfifo(fifo)
    assert refusal(plugins, str(fifo)) == f"{fifo} is not a file."


# Formats of plugins


def dolly(name="dolly"):
    """The format of databricks-dolly-15k."""
    return DataFormat(
        name=name,
        summary="",
        data="conversation",
        example='{"instruction": "Hi", "context": "", "response": "Hello!"}',
        matches=lambda record: "response" in record,
        read=lambda record: (Message("user", record["instruction"]), Message("assistant", record["response"])),
    )


def test_a_format_of_a_plugin_is_found_and_shown_like_those_of_the_core(plugins, write):
    plugins.register("acme-dolly", providing("lmf_formats", dolly()))
    name = write("a.jsonl", b'{"instruction": "Hi", "response": "Hello!"}')
    data = read([name], "conversation", plugins)
    assert (data.records[0].data, data.sources[0].format) == (SAID, "dolly")
    message = refusal(plugins, write("b.jsonl", b'{"instruction": "Hi", "respons": "Hello!"}'))
    assert "Did you mean 'response'?" in message
    assert '\n  dolly: {"instruction": "Hi", "context": "", "response": "Hello!"}' in message


def test_formats_of_one_name_are_told_apart_by_what_they_match(plugins, write):
    plugins.register("acme-dolly", providing("lmf_formats", dolly(name="alpaca")))
    name = write("a.jsonl", b'{"instruction": "Hi", "response": "Hello!"}')
    assert read([name], "conversation", plugins).records[0].data == SAID
    both = write("b.jsonl", b'{"instruction": "Hi", "response": "Hello!", "output": "Hello!"}')
    assert "fit the formats acme-dolly:alpaca and lmf-core:alpaca; keep those of one" in refusal(plugins, both)


# Size and chance


def test_the_last_of_100_000_lines_is_reported_in_time(plugins, write):
    name = write("a.jsonl", (GOOD + b"\n") * 99_999 + BAD)
    start = time.process_time()
    message = refusal(plugins, name)
    assert message == f"a.jsonl:100000: {CAUSE}"
    assert time.process_time() - start < 6  # seconds, a minute for a million; measured: 1.3


@pytest.mark.parametrize("form", ["%s\n%s", "[%s,\n%s]"], ids=["jsonl", "json"])
def test_a_record_of_16_mib_is_read(plugins, write, form):
    long = json.dumps({"input": "Hi", "output": "é" * 2**23}, ensure_ascii=False)
    name = write("a.json" if form[0] == "[" else "a.jsonl", (form % (long, GOOD.decode())).encode())
    data = read([name], "conversation", plugins)
    assert [len(record.data[1].content) for record in data.records] == [2**23, 6]
    assert data.records[1].where.endswith(":2")


SEEDS = (
    b'{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "\xc3\xa9"}, {"role": "assistant",'
    b' "content": [{"type": "text", "text": "a\\ud83d\\ude42"}]}], "system": "", "tools": []}',
    b'{"instruction": "b", "input": "c", "output": "d", "system": "e", "history": [["f", "g"]]}',
    b'{"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "i"}], "id": 1.5e3}',
    b'{"input": "j", "output": "\\u0041\\n"}',
    b'{"text": "k"}',
)
MATERIAL = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"null",
        b"NaN",
        b"-Infinity",
        b"0",
        b"1e999",
    ),
    *(
        b"\\ud800",
        b"\\u0000",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\x1f\x8b",
        b"\xe2\x80\xa8",
        b"<",
        b"true",
    ),
    *(b'"role"', b'"content"', b'"from"', b'"text"', b'"instances"', b'"type"', b'"output"', b"9" * 5000, b"[" * 2000),
)


def mutated(content, chance):
    """The bytes with one to three small accidents."""
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(content) + 1)
        end = min(len(content), start + chance.choice((0, 1, 1, 2, 8, 40)))
        new = chance.choice((b"", bytes([chance.randrange(256)]), chance.choice(MATERIAL), content[start:end] * 2))
        content = content[:start] + new + content[end:]
    return content


def test_no_file_however_damaged_gives_another_error_or_a_broken_record(plugins, tmp_path):
    chance = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    container = b'{"type": "text2text", "instances": [' + SEEDS[3] + b",\n" + SEEDS[3] + b"]}"
    files = [("a.json", container, "conversation"), ("a.json", SEEDS[0], "conversation"), ("a.txt", b"Once.", "text")]
    for seed in SEEDS:
        kind = "text" if seed.startswith(b'{"text"') else "conversation"
        files += [
            ("a.jsonl", seed + b"\n" + seed + b"\r\n", kind),
            ("a.json", b"[" + seed + b",\n" + seed + b"]", kind),
        ]
    for _ in range(20_000):
        name, content, kind = chance.choice(files)
        content = mutated(content, chance)
        if chance.random() < 0.1:
            name, content = f"{name}.gz", gzip.compress(content)
            content = mutated(content, chance) if chance.random() < 0.5 else content
        path = tmp_path / name
        path.write_bytes(content)
        try:
            data = read([str(path)], kind, plugins)
        except DataError as error:
            outcomes["refused"] += 1
            assert str(path) in str(error), content
            continue
        outcomes["read"] += 1
        for record in data.records:
            check(record, kind)
    assert min(outcomes.values()) > 1000, outcomes


def check(record, kind):
    """What every record that was read must be: Unicode text, with the assistant's word last."""
    texts = [record.data] if kind == "text" else [message.content for message in record.data]
    for text in texts:
        assert text.encode("utf-8").decode("utf-8") == text
    if kind == "conversation":
        roles = [message.role for message in record.data]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message.content.strip() for message in record.data if message.role == "assistant")


# The page about data

PAGE = Path(__file__).parents[2] / "docs/data.md"
EXAMPLES = re.findall(r"^```(jsonl?)\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
ERRORS = re.findall(r"^\| `(.*?)` \| `(a\.jsonl:1: .*?)` \|$", PAGE.read_text("utf-8"), re.M)


def test_the_page_has_an_example_of_every_format_and_some_errors(plugins):
    text = PAGE.read_text("utf-8")
    assert all(f"`{name}`\n" in text for name in plugins.formats)
    assert len(EXAMPLES) >= len(plugins.formats)
    assert len(ERRORS) >= 8


@pytest.mark.parametrize(("suffix", "content"), EXAMPLES)
def test_the_examples_of_the_page_can_be_read(plugins, write, suffix, content):
    kind = "text" if content.startswith('{"text"') else "conversation"
    assert read([write(f"a.{suffix}", content.encode())], kind, plugins).records


@pytest.mark.parametrize(("content", "message"), ERRORS)
def test_the_errors_of_the_page_are_those_that_are_shown(plugins, write, content, message):
    assert refusal(plugins, write("a.jsonl", content.encode())).splitlines()[0] == message


def test_reading_loads_neither_torch_nor_numpy():
    code = "import sys, lmf.builtin, lmf.data; print({'torch', 'numpy', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
