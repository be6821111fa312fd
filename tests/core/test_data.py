"""Files become records: every kind of file, every name that data may have, and the page that tells of them."""

import dataclasses
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datafiles import BAD, CAUSE, GOOD, SAID, dataset, providing, refusal
from lmf import ConfigError, Conversation, DataFormat, LmfError, Message, PluginError, Record, RunSettings
from lmf.data.inputs import TABLES, TEXTS
from lmf.data.jsonfile import INSTANCES
from lmf.data.reading import read

# What is read

READ = {
    "lines": ("a.jsonl", GOOD + b"\n" + GOOD + b"\n", [1, 2]),
    "no line end at the end": ("a.jsonl", GOOD + b"\n" + GOOD, [1, 2]),
    "ndjson": ("a.ndjson", GOOD, [1]),
    "jsonlines": ("a.jsonlines", GOOD, [1]),
    "upper-case suffix": ("A.JSONL", GOOD, [1]),
    "blank lines": ("a.jsonl", b"\n \t\n" + GOOD + b"\n\n" + GOOD + b"\n\n", [3, 5]),
    "white space around": ("a.jsonl", b" \t" + GOOD + b"  \n", [1]),
    "CRLF": ("a.jsonl", GOOD + b"\r\n\r\n" + GOOD + b"\r\n", [1, 3]),
    "separators that end no line": (
        "a.jsonl",
        b'{"input": "Hi", "output": "Hello!", "note": "\xe2\x80\xa8\xc2\x85\x7f"}\n' + GOOD,
        [1, 2],
    ),
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
    assert list(data.records) == [Record(f"{name}:{line}", SAID) for line in where]
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
    assert [record.data.messages[1].content for record in data.records] == [text, text]
    assert data.records[1].where == f"{name}:3"


def test_a_text_file_is_one_document_and_nothing_in_it_changes(plugins, write):
    text = " One\r\n\r\ntwo\u2028three <|endoftext|>\n"
    write("a.txt", b"\xef\xbb\xbf" + text.encode())
    write("b.txt.gz", gzip.compress(b"<html>"))
    data = read(["a.txt", "b.txt.gz"], "text", plugins)
    assert list(data.records) == [Record("a.txt:1", text), Record("b.txt.gz:1", "<html>")]
    assert [source.format for source in data.sources] == ["text", "text"]


def test_a_markdown_file_is_one_document(plugins, write):
    write("d/a.md", b"# One\n\n<b>two</b>\n")
    write("d/b.markdown", b"Three")
    write("d/README.md", b"What these data are.")
    data = read(["d", "d/README.md"], "text", plugins)
    assert [record.data for record in data.records] == ["# One\n\n<b>two</b>\n", "Three", "What these data are."]


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.json.zst", "a.txt.zst", "a.csv.zst"])
@pytest.mark.parametrize("how", ["in one frame", "in two frames", "after a frame of notes", "without its length"])
def test_every_kind_of_text_may_be_packed_by_zstandard(plugins, write, name, how):
    pack = pytest.importorskip("zstandard").ZstdCompressor(write_content_size=how != "without its length").compress
    half = {"a.jsonl.zst": GOOD + b"\n", "a.json.zst": b"[" + GOOD + b",", "a.csv.zst": b"input,output\nHi,Hello!\n"}
    first = half.get(name, b"Once ")
    rest = {"a.json.zst": GOOD + b"]", "a.csv.zst": b"Hi,Hello!", "a.txt.zst": b"more"}.get(name, GOOD)
    packed = pack(first) + pack(rest) if how == "in two frames" else pack(first + rest)
    if how == "after a frame of notes":
        packed = b"\x50\x2a\x4d\x18\x03\0\0\0abc" + packed
    write(name, packed)
    data = read([name], "text" if name == "a.txt.zst" else "conversation", plugins)
    assert [record.data for record in data.records] == (["Once more"] if name == "a.txt.zst" else [SAID, SAID])
    assert data.sources[0].sha256 == hashlib.sha256(packed).hexdigest()


def test_a_large_packed_file_arrives_whole(plugins, write):
    zstandard = pytest.importorskip("zstandard")
    text = "".join(f"{number} is a line of this text.\n" for number in range(100_000))
    write("a.txt.zst", zstandard.compress(text.encode()))
    write("b.txt.gz", gzip.compress(text.encode()))
    assert [record.data for record in read(["a.txt.zst", "b.txt.gz"], "text", plugins).records] == [text, text]


def test_without_zstandard_the_command_that_installs_it_is_named(plugins, write, monkeypatch):
    write("a.jsonl.zst", b"\x28\xb5\x2f\xfd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(LmfError, match=r"^a\.jsonl\.zst needs the package zstandard: pip install 'lmf-core\[data\]'$"):
        read(["a.jsonl.zst"], "conversation", plugins)


class Pipe(io.BytesIO):
    """Standard input, as a program finds it."""

    def __init__(self, content, terminal=False):
        super().__init__(content)
        self.buffer = io.BufferedReader(self)
        self.isatty = lambda: terminal


def test_standard_input_is_read_once_as_json_lines(plugins, write, monkeypatch):
    content = b"\xef\xbb\xbf" + GOOD + b"\n\n" + GOOD
    monkeypatch.setattr(sys, "stdin", Pipe(content))
    data = read(["-", write("a.jsonl", GOOD)], "conversation", plugins)
    assert [record.where for record in data.records] == ["<stdin>:1", "<stdin>:3", "a.jsonl:1"]
    assert data.sources[0].sha256 == hashlib.sha256(content).hexdigest()


def test_problems_of_standard_input_are_told_with_their_line(plugins, monkeypatch):
    for content, message in {
        GOOD + b"\n" + BAD: f"<stdin>:2: {CAUSE}",
        b"": "<stdin> is empty.",
        b"<html>": "<stdin> starts with '<': it is a web page (HTML or XML), not JSON; fetch the data themselves.",
        gzip.compress(GOOD): "<stdin> is gzip data but is not called .gz; rename it.",
    }.items():
        monkeypatch.setattr(sys, "stdin", Pipe(content))
        assert refusal(plugins, "-") == message


def test_standard_input_that_nobody_pipes_to_is_not_waited_for(plugins, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Pipe(b"", terminal=True))
    assert "'-' is standard input, and nothing is piped to it" in refusal(plugins, "-")
    assert refusal(plugins, "-", "-") == "'-' is named twice; standard input can be read only once."


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
    assert message == (
        "'greetings' is a path ('./greetings') and a data set ('acme-data:greetings'); write which one is meant."
    )
    for name in ("./greetings", "acme-data:greetings"):
        assert len(read([name], "conversation", plugins).records) == 1


def test_a_data_set_that_two_packages_define_is_refused(plugins, write):
    for package in ("acme-a", "acme-b"):
        plugins.register(package, providing("lmf_datasets", dataset("greetings", write("a.jsonl", GOOD))))
    with pytest.raises(PluginError, match="Ask for acme-a:greetings or acme-b:greetings"):
        read(["greetings"], "conversation", plugins)


def test_a_data_set_without_its_files_is_refused(plugins, write, tmp_path):
    sets = [dataset("none"), dataset("gone", tmp_path / "gone.jsonl"), dataset("table", tmp_path / "a.xlsx")]
    plugins.register("acme-data", providing("lmf_datasets", *sets))
    assert refusal(plugins, "none") == "The data set 'none' has no files."
    assert refusal(plugins, "gone") == f"{tmp_path}/gone.jsonl cannot be read: No such file or directory."
    assert "has the suffix '.xlsx'" in refusal(plugins, "table")


def test_a_folder_without_data_files_is_refused(plugins, write):
    write("d/README.md", b"")
    write("d/train/a.jsonl", GOOD)
    message = refusal(plugins, "d")
    assert message.startswith("d holds no data files; lmf reads .json, .jsonl, .jsonlines, .ndjson, .csv, .tsv,")
    assert message.endswith("Name one of its folders: train.")


def test_a_folder_is_refused_rather_than_read_in_part(plugins, write):
    write("d/a.jsonl", GOOD)
    write("d/b.xlsx", b"PK")
    message = "d holds b.xlsx, which lmf cannot read; convert it to JSON Lines or move it away."
    assert refusal(plugins, "d") == refusal(plugins, "d/*") == message


ALIEN = "b.tgz b.tar.gz b.jsonl.lz4 b.jsonl.bz2 b.rar b.pkl b.XML b.html b.pdf b.npz b.h5 b.xls"
UNSAID = "b.gz b.zst b.2024.gz part-00000.gz"


@pytest.mark.parametrize("name", [*ALIEN.split(), *UNSAID.split()])
def test_data_that_cannot_be_read_are_never_passed_over(plugins, write, name):
    write("d/a.jsonl", GOOD)
    write(f"d/{name}", b"")
    advice = "convert it to JSON Lines or move it away."
    if name in UNSAID.split():
        stem, _, packing = name.rpartition(".")
        advice = f"say in its name what is packed, such as {stem}.jsonl.{packing}, or move it away."
    assert refusal(plugins, "d") == refusal(plugins, "d/*") == f"d holds {name}, which lmf cannot read; {advice}"


def test_what_is_no_data_may_lie_beside_data(plugins, write):
    write("d/a.jsonl", GOOD)
    for name in ("a.png", "load.py", "a.jsonl.sha256", "LICENSE", "run.log", "config.yaml", "Makefile", ".b.pkl"):
        write(f"d/{name}", b"")
    for name in ("d", "d/*"):
        assert [str(source.path) for source in read([name], "conversation", plugins).sources] == ["d/a.jsonl"]


def test_what_describes_the_data_of_a_folder_is_no_data(plugins, write):
    for name in ("dataset_info.json", "dataset_dict.json"):
        write(f"d/{name}", b"{}")
    write("d/a.jsonl", GOOD)
    for name in ("d", "d/*", "d/*.json*"):
        assert [str(source.path) for source in read([name], "conversation", plugins).sources] == ["d/a.jsonl"]


def test_a_readme_is_a_document_where_a_pattern_matches_it(plugins, write):
    for name in ("a.md", "README.md", "in/README.md"):
        write(f"d/{name}", b"Read me.")
    found = {"d": ["d/a.md"], "d/*.md": ["d/README.md", "d/a.md"], "d/**/README.md": ["d/README.md", "d/in/README.md"]}
    for name, files in found.items():
        assert [str(source.path) for source in read([name], "text", plugins).sources] == files


def test_a_pattern_is_the_files_that_match_sorted(plugins, write):
    for name in ("b.jsonl", "a.jsonl", "a.json", "in/c.jsonl", "in/deep/d.jsonl", ".hidden.jsonl", "in/.x/e.jsonl"):
        write(f"d/{name}", b"[" + GOOD + b"]" if name.endswith("json") else GOOD)
    found = {
        "d/*.jsonl": ["a.jsonl", "b.jsonl"],
        "d/?.json*": ["a.json", "a.jsonl", "b.jsonl"],
        "d/[b-z].jsonl": ["b.jsonl"],
        "d/**/*.jsonl": ["a.jsonl", "b.jsonl", "in/c.jsonl", "in/deep/d.jsonl"],
        "d/in/.x/*.jsonl": ["in/.x/e.jsonl"],
        "./d/in/../*.json": ["in/../a.json"],
        f"{Path.cwd()}/d/in/*": ["in/c.jsonl"],
    }
    for pattern, files in found.items():
        sources = read([pattern], "conversation", plugins).sources
        assert [str(source.path).removeprefix(f"{Path.cwd()}/").removeprefix("d/") for source in sources] == files


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(plugins, write):
    write("a1.jsonl", BAD)
    assert len(read([write("a[1].jsonl", GOOD)], "conversation", plugins).records) == 1


def test_a_pattern_does_not_follow_links_in_circles(plugins, write):
    write("d/a.jsonl", GOOD)
    Path("d/again").symlink_to(".")
    assert len(read(["d/**/*.jsonl"], "conversation", plugins).records) == 1


def test_a_pattern_without_data_is_refused(plugins, write):
    write("d/a.py", b"")
    assert refusal(plugins, "d/*.jsonl").startswith("'d/*.jsonl' gives no data: no file matches it; lmf reads .json,")
    assert "none of the 1 files that match is one that lmf reads" in refusal(plugins, "d/*")
    assert refusal(plugins, "d/**a").startswith("'d/**a' ")


def test_a_broken_link_in_a_folder_is_not_passed_over(plugins, write, tmp_path):
    write("d/a.jsonl", GOOD)
    (tmp_path / "d/b.jsonl").symlink_to("gone.jsonl")
    assert refusal(plugins, "d") == "d/b.jsonl cannot be read: No such file or directory."


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.xlsx", ".xlsx"), ("a.tar.gz", ".gz"), ("data", ""), ("a.py", ".py"), ("a.zst", ".zst")]
)
def test_an_unknown_suffix_is_refused_with_the_known_ones(plugins, write, name, suffix):
    message = refusal(plugins, write(name, GOOD))
    known = ".json, .jsonl, .jsonlines, .ndjson, .csv, .tsv, .txt, .md, .markdown, each also with .gz and .zst"
    assert message.startswith(f"{name} has the suffix {suffix!r}; lmf reads {known}, and .parquet, .arrow, .feather.")
    assert ("Convert it to JSON Lines." in message) == (name in ("a.xlsx", "a.tar.gz"))


def test_a_table_that_is_packed_is_refused(plugins, write):
    message = refusal(plugins, write("a.parquet.gz", b""))
    assert message == "a.parquet.gz is packed; unpack it: .parquet files are packed inside."


# Formats of plugins


def dolly(name="dolly"):
    """The format of databricks-dolly-15k."""
    return DataFormat(
        name=name,
        summary="",
        data="conversation",
        example='{"instruction": "Hi", "context": "", "response": "Hello!"}',
        matches=lambda record: "response" in record,
        read=lambda record: Conversation(
            (Message("user", record["instruction"]), Message("assistant", record["response"]))
        ),
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


def test_a_format_may_be_asked_for(plugins, write):
    plugins.register("acme-dolly", providing("lmf_formats", dolly()))
    both = write("a.jsonl", b'{"instruction": "Hi", "response": "Hello!", "output": "Bye!"}')
    for name, reply in {"dolly": "Hello!", "alpaca": "Bye!", "acme-dolly:dolly": "Hello!"}.items():
        (record,) = read([both], "conversation", plugins, format=name).records
        assert record.data.messages[1].content == reply


def test_a_format_that_was_asked_for_is_minded(plugins, write):
    name = write("a.jsonl", GOOD)
    assert refusal(plugins, name, format="alpaca") == (
        "a.jsonl:1: the keys 'input', 'output' are not those of --format alpaca.\n"
        f"A record of the format alpaca: {plugins.formats['alpaca'].example}"
    )
    with pytest.raises(ConfigError, match=r"No data format is called 'alpacca'. Did you mean 'alpaca'\?"):
        read([name], "conversation", plugins, format="alpacca")
    with pytest.raises(ConfigError, match=r"^--format text gives texts, and here conversations are learned"):
        read([name], "conversation", plugins, format="text")


def test_keys_may_have_other_names_in_the_files(plugins, write):
    name = write("a.jsonl", b'{"question": "Hi", "answer": "Hello!", "output": "a note"}\n"x"')
    columns = {"instruction": "question", "output": "answer"}
    assert refusal(plugins, name, columns=columns) == "a.jsonl:2: the record is the text 'x'; it must be an object."
    assert read([name], "conversation", plugins, columns=columns, on_bad_record="skip").records[0].data == SAID


def test_a_data_set_knows_the_names_of_its_keys_and_its_format(plugins, write):
    plugins.register("acme-dolly", providing("lmf_formats", dolly()))
    write("a.jsonl", b'{"question": "Hi", "response": "Hello!", "output": "Bye!"}')
    columns = {"question": "instruction", "response": "response", "output": "output"}
    sets = [
        dataset("qa", "a.jsonl", columns=columns),
        dataset("rq", "a.jsonl", columns=columns, format="dolly"),
    ]
    plugins.register("acme-data", providing("lmf_datasets", *sets))
    assert "fit the formats lmf-core:alpaca and acme-dolly:dolly" in refusal(plugins, "qa")
    assert read(["rq"], "conversation", plugins).records[0].data == SAID


# dataset_info.json


INFO = {
    "qa": {"file_name": "qa.json", "columns": {"prompt": "question", "response": "answer"}},
    "talk": {
        "file_name": "talks",
        "formatting": "sharegpt",
        "columns": {"messages": "turns"},
        "tags": {"role_tag": "who"},
    },
    "twin": {"file_name": "qa.json", "file_sha1": "0" * 40},
}


@pytest.fixture
def described(write):
    """Writes a folder with a dataset_info.json and returns its name."""
    write("sets/dataset_info.json", json.dumps(INFO).encode())
    write("sets/qa.json", b'[{"question": "Hi", "answer": "Hello!", "id": 1}]')
    write("sets/talks/a.jsonl", b'{"turns": [{"who": "human", "value": "Hi"}, {"who": "gpt", "value": "Hello!"}]}')
    return "sets"


def test_a_data_set_of_dataset_info_is_read_with_its_columns_and_tags(plugins, described, monkeypatch):
    data = read([f"{described}/dataset_info.json:qa", f"{described}/dataset_info.json:talk"], "conversation", plugins)
    assert [(record.where, record.data) for record in data.records] == [
        ("sets/qa.json:1", SAID),
        ("sets/talks/a.jsonl:1", SAID),
    ]
    monkeypatch.chdir(described)
    assert read(["talk", "dataset_info.json:qa"], "conversation", plugins).records[1] == Record("qa.json:1", SAID)


def test_records_without_named_columns_keep_all_their_keys(plugins, described):
    said = {"instruction": "Hi", "input": "", "output": "Hello!"}
    talk = [{"who": "human", "value": "Hi"}, {"who": "gpt", "value": "Hello!"}]
    plain = {"file_name": "a.json"}
    tagged = {"file_name": "a.json", "formatting": "sharegpt", "tags": {"role_tag": "who"}}
    for entry, record, name, told in (
        (plain, said | {"system": "Be brief."}, "alpaca", None),
        (plain, said | {"kto_tag": False}, "alpaca-unpaired", "the record is a judged reply (format alpaca-unpaired)"),
        (plain, said | {"images": ["a.png"]}, None, "images: lmf takes text only"),
        (tagged, {"conversations": talk, "system": "Be brief."}, "sharegpt", None),
        (tagged, {"conversations": talk, "kto_tag": False}, "sharegpt-unpaired", "the record is a judged reply"),
        (tagged, {"conversations": talk, "images": ["a.png"]}, None, "images: lmf takes text only"),
    ):
        Path("sets/dataset_info.json").write_text(json.dumps({"it": entry}))
        Path("sets/a.json").write_text(json.dumps([record]))
        if told:
            assert told in refusal(plugins, "sets/dataset_info.json:it")
        if name:
            data = read(["sets/dataset_info.json:it"], "unpaired" if told else "conversation", plugins)
            assert data.sources[0].format == name
            if not told:
                (read_record,) = data.records
                assert read_record.data.messages[0] == Message("system", "Be brief.")


def test_what_dataset_info_does_not_describe_is_refused(plugins, described, monkeypatch):
    assert "has no data set 'qb'; it has qa, talk, twin." in refusal(plugins, "sets/dataset_info.json:qb")
    message = "sets/dataset_info.json describes data sets; write which one is meant: sets/dataset_info.json:NAME."
    assert refusal(plugins, "sets/dataset_info.json") == message
    sha1 = hashlib.sha1(Path("sets/qa.json").read_bytes()).hexdigest()
    assert refusal(plugins, "sets/dataset_info.json:twin") == (
        f"sets/qa.json has the SHA-1 {sha1}, and sets/dataset_info.json says {'0' * 40}; fetch it again."
    )
    assert "no/dataset_info.json cannot be read: No such file" in refusal(plugins, "no/dataset_info.json:qa")
    Path("sets/dataset_info.json").write_text('{"qa": ')
    assert refusal(plugins, "sets/dataset_info.json:qa").startswith(
        "sets/dataset_info.json is not valid JSON at column"
    )
    monkeypatch.chdir(described)
    Path("dataset_info.json").write_text(json.dumps(INFO))
    Path("qa").mkdir()
    assert refusal(plugins, "qa") == (
        "'qa' is a path ('./qa') and described by dataset_info.json ('dataset_info.json:qa'); write which one is meant."
    )


# Bad records may be left out


def test_bad_records_are_left_out_counted_and_listed(plugins, write):
    write("a.jsonl", b"\n".join([GOOD, BAD, b"{", b"\xff", b"7", GOOD]))
    write("b.json", b"[" + GOOD + b',\n{"text": "x"},\n{"input": NaN}]')
    data = read(["a.jsonl", "b.json"], "conversation", plugins, on_bad_record="skip")
    assert [record.where for record in data.records] == ["a.jsonl:1", "a.jsonl:6", "b.json:1"]
    assert [problem.split(": ")[0] for problem in data.skipped] == [
        *("a.jsonl:2", "a.jsonl:3", "a.jsonl:4", "a.jsonl:5"),
        *("b.json:2", "b.json:3"),
    ]
    assert data.skipped[0] == f"a.jsonl:2: {CAUSE}"
    assert data.notes == [
        *("a.jsonl: 2 records, format text2text", "a.jsonl: 4 bad records left out:"),
        *(f"  {problem}" for problem in data.skipped[:4]),
        *("b.json: 1 record, format text2text", "b.json: 2 bad records left out:"),
        *(f"  {problem}" for problem in data.skipped[4:]),
    ]


def test_of_many_bad_records_the_first_twenty_are_listed(plugins, write):
    data = read([write("a.jsonl", b"\n".join([GOOD] + [BAD] * 1025))], "conversation", plugins, on_bad_record="skip")
    assert len(data.skipped) == 1025
    assert data.notes == [
        *("a.jsonl: 1 record, format text2text", "a.jsonl: 1,025 bad records left out:"),
        *(f"  a.jsonl:{line}: {CAUSE}" for line in range(2, 22)),
        "  and 1,005 more",
    ]


def test_a_bad_file_is_an_error_even_where_bad_records_are_left_out(plugins, write):
    write("a.jsonl", GOOD)
    for name, content, message in (
        ("b.json", b"[" + GOOD + b",", "b.json:1: not valid JSON"),
        ("b.jsonl", b"", "b.jsonl is empty."),
        ("b.jsonl.gz", gzip.compress(GOOD * 100)[:-9], "b.jsonl.gz is cut"),
        ("b.jsonl", BAD + b"\n" + BAD, f"none of its 2 records can be used; the first problem:\nb.jsonl:1: {CAUSE}"),
    ):
        write(name, content)
        assert message in refusal(plugins, "a.jsonl", name, on_bad_record="skip")


def test_the_notes_tell_what_each_name_gave(plugins, write):
    write("d/a.jsonl", GOOD + b"\n" + GOOD)
    write("d/b.jsonl", b'{"instruction": "Hi", "output": "Hello!"}')
    data = read(["d", "d/a.jsonl"], "conversation", plugins)
    assert data.notes == [
        "d: 3 records in 2 files, format alpaca, text2text",
        "d/a.jsonl: 2 records, format text2text",
    ]


# The page about data

PAGE = Path(__file__).parents[2] / "docs/data.md"
EXAMPLES = re.findall(r"^```(jsonl?)\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
ERRORS = re.findall(r"^\| `(.*?)` \| `(a\.jsonl:1: .*?)` \|$", PAGE.read_text("utf-8"), re.M)


def test_the_page_has_an_example_of_every_format_and_some_errors(plugins):
    text = PAGE.read_text("utf-8")
    assert all(f"`{name}`\n" in text for name in plugins.formats)
    assert len(EXAMPLES) >= len(plugins.formats)
    assert len(ERRORS) >= 8


def test_the_page_names_every_suffix_and_every_setting_of_data():
    text = PAGE.read_text("utf-8")
    assert not [suffix for suffix in (*TEXTS, *TABLES) if f"`{suffix}`" not in text]
    names = [field.name for field in dataclasses.fields(RunSettings)]
    before, after = names.index("data"), names.index("system")
    shown = {flag.replace("-", "_").removeprefix("no_") for flag in re.findall(r"--([a-z][a-z-]+)", text)}
    assert shown <= {*names}
    assert {*names[before : after + 1], "eval_data", "eval_split"} <= shown
    assert set(re.findall(r"--mix ([\w-]+)`", text)) == {"concat", "interleave-first", "interleave-all"}


def test_the_page_has_a_row_for_every_type_of_lmflow(plugins):
    rows = "".join(re.findall(r"^\| (`[a-z0-9_`, ]+) \|", PAGE.read_text("utf-8"), re.M))
    assert not [name for name in (*INSTANCES, "float_only", "image_text") if f"`{name}`" not in rows]


@pytest.mark.parametrize(("suffix", "content"), EXAMPLES)
def test_the_examples_of_the_page_can_be_read(plugins, write, suffix, content):
    value = json.loads(content if suffix == "json" else content.partition("\n")[0])
    record = value["instances"][0] if "instances" in value else value
    (kind,) = (form.data for _, form in plugins.formats.all() if form.matches(record))
    assert read([write(f"a.{suffix}", content.encode())], kind, plugins).records


@pytest.mark.parametrize(("content", "message"), ERRORS)
def test_the_errors_of_the_page_are_those_that_are_shown(plugins, write, content, message):
    assert refusal(plugins, write("a.jsonl", content.encode())).splitlines()[0] == message


def test_reading_loads_neither_torch_nor_numpy():
    heavy = {"torch", "numpy", "transformers", "datasets", "pyarrow"}
    code = f"import sys, lmf.builtin, lmf.data.reading; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
