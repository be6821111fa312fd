"""Tables become the records that were written into them; the libraries that read them are asked only when needed."""

import csv
import datetime
import hashlib
import io
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datafiles import SAID, core_plugins, refusal
from lmf import Conversation, DataError, LmfError, Message, Unpaired
from lmf.data.hub import Address, address
from lmf.data.reading import read
from lmf.data.tables import read_arrow, read_csv, read_parquet

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


def values(reader, path, *more, **by_name):
    """The values of a file; what is wrong with a row stands in its place."""
    found = {}
    for number, value in reader(Path(path), found.__setitem__, *more, **by_name):
        found[number] = value
    return found


# CSV and TSV


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL], ids=["where needed", "everywhere"])
def test_what_python_writes_is_read_as_it_was(write, name, end, quoting):
    texts = ["Hi", "a, b\tc", 'say "x"', "one\ntwo\r\n\nfour", " x ", "\u2028\u0085", "", "5", '"', "é" * 200_000]
    out, mark = io.StringIO(newline=""), "," if name == "a.csv" else "\t"
    writer = csv.writer(out, delimiter=mark, lineterminator=end, quoting=quoting)
    writer.writerows([["first", "second"], *zip(texts, reversed(texts), strict=True)])
    found = values(read_csv, write(name, out.getvalue().encode()), mark)
    assert [list(record.values()) for record in found.values()] == [
        *map(list, zip(texts, reversed(texts), strict=True))
    ]
    assert [*found][:6] == [2, 3, 4, 5, 9, 10]  # the fourth record takes four lines


def test_the_line_of_a_row_is_that_on_which_it_begins(plugins, write):
    content = b'\ninput,output\n"a\n\nb",c\n\nd,"e\r\nf"\nHi\n"\n",x\n'
    name = write("a.csv", content)
    assert refusal(plugins, name).splitlines()[1:] == [
        "a.csv:9: the row has 1 cell; the first row names 2.",
        "a.csv:10: input is empty; a user message may be empty only after a system message with text.",
    ]
    assert [record.where for record in read([name], "conversation", plugins, on_bad_record="skip").records] == [
        "a.csv:3",
        "a.csv:7",
    ]


UNCERTAIN = {
    "more behind a quote": (
        b'Hi,"say "x" or\nHi,a fragment\nnothing"\n',
        "more follows a closing quote; write a quote within a cell twice.",
    ),
    "a carriage return alone": (
        b'H\ri,"one\nHi,a fragment\ntwo"\n',
        r"a carriage return stands without a line feed; write line ends as \n or \r\n.",
    ),
    "a quote that never closes": (
        b'Hi,"one\nHi,a fragment\n',
        "a quote opens in this row and is never closed; close it, or write a quote within a cell twice.",
    ),
}


@pytest.mark.parametrize(("rows", "cause"), UNCERTAIN.values(), ids=UNCERTAIN)
def test_no_fragment_of_a_row_is_learned_where_it_is_uncertain_where_rows_begin(plugins, write, rows, cause):
    write("a.csv", b"input,output\nHi,Hello!\n" + rows)
    assert refusal(plugins, "a.csv") == refusal(plugins, "a.csv", on_bad_record="skip") == f"a.csv:3: {cause}"


def test_cells_of_lists_are_json_and_may_be_empty(plugins, write):
    out = io.StringIO()
    history = json.dumps([["a", "b"]])
    csv.writer(out).writerows(
        [["instruction", "output", "history", "note"], ["Hi", "Hello!", history, "[1]"], ["Hi", "Hello!", " ", "{"]]
    )
    data = read([write("a.csv", out.getvalue().encode())], "conversation", plugins)
    assert [len(record.data.messages) for record in data.records] == [4, 2]


def test_messages_in_a_cell_are_read(plugins, write):
    out = io.StringIO()
    csv.writer(out, delimiter="\t").writerows([["messages", "tools"], [json.dumps(MESSAGES), ""]])
    assert read([write("a.tsv", out.getvalue().encode())], "conversation", plugins).records[0].data == SAID


REPLIES = {
    "a text": ("Hello!", "Hello!"),
    "a text in brackets": ("[INST] Hi", "[INST] Hi"),
    "JSON that is the reply": ('{"a": 1}', '{"a": 1}'),
    "a list that is the reply": ('[{"name": "x"}]', '[{"name": "x"}]'),
    "a list of messages": (json.dumps(MESSAGES), MESSAGES),
    "a list in ShareGPT's keys": ('[ {"from": "gpt", "value": "x"}]', [{"from": "gpt", "value": "x"}]),
}


@pytest.mark.parametrize(("cell", "value"), REPLIES.values(), ids=REPLIES)
def test_a_reply_in_a_cell_is_a_text_unless_it_is_a_list_of_messages(write, cell, value):
    out = io.StringIO()
    csv.writer(out).writerows([["chosen", "other"], [cell, cell]])
    assert values(read_csv, write("a.csv", out.getvalue().encode())) == {2: {"chosen": value, "other": cell}}


CELLS = {
    "true": ("label", "True", True),
    "false": ("kto_tag", " false ", False),
    "a class": ("label", "greeting", "greeting"),
    "a number": ("margin", "1.5", 1.5),
    "a negative number": ("score_chosen", " -2e3 ", -2000),
    "no number": ("rejected_score", "nan", "nan"),
    "nothing": ("margin", " ", None),
    "a text": ("note", "true", "true"),
}


@pytest.mark.parametrize(("key", "cell", "value"), CELLS.values(), ids=CELLS)
def test_labels_and_margins_in_a_cell_are_what_they_say_under_any_name(write, key, cell, value):
    name = write("a.csv", f"text,{key}\nHi,{cell}\n".encode())
    expected = {"text": "Hi"} if value is None else {"text": "Hi", key: value}
    assert values(read_csv, name) == {2: expected}
    other = write("b.csv", f"text,other\nHi,{cell}\n".encode())
    renamed = {"other" if name == key else name: value for name, value in expected.items()}
    assert values(read_csv, other, columns={key: "other"}) == {2: renamed}


def test_a_bad_reply_in_a_table_is_not_learned_as_a_good_one(plugins, write):
    table = write("a.csv", b"prompt,completion,label\nHi,Hello!,TRUE\nHi,What?,False\n")
    rated = [record.data for record in read([table], "unpaired", plugins).records]
    assert rated == [
        Unpaired(SAID, True),
        Unpaired(Conversation((SAID.messages[0], Message("assistant", "What?"))), False),
    ]
    assert "a.csv:3: the record is a judged reply (format unpaired)" in refusal(plugins, table)
    write("b.jsonl", b'{"prompt": "Hi", "completion": "What?", "label": "false"}')
    assert refusal(plugins, "b.jsonl") == "b.jsonl:1: label is the text 'false'; it must be true or false."


def test_a_column_alone_may_hold_semicolons_in_its_cells(plugins, write):
    data = read([write("a.csv", b"text\nOne; two | three\n")], "text", plugins)
    assert data.records[0].data == "One; two | three"


# Parquet and Arrow


@pytest.fixture
def pa():
    return pytest.importorskip("pyarrow")


def save(table, path, how):
    """Write an Arrow table in one of the four ways."""
    import pyarrow
    from pyarrow import feather, parquet

    if how == "parquet":
        parquet.write_table(table, path, row_group_size=2)
    elif how == "feather":
        feather.write_feather(table, path, chunksize=2)
    else:
        new = pyarrow.ipc.new_stream if how == "stream" else pyarrow.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


TABLES = {"parquet": "a.parquet", "feather": "a.feather", "file": "a.arrow", "stream": "b.arrow"}


@pytest.fixture(params=TABLES)
def stored(request, pa, tmp_path, monkeypatch):
    """Writes records as a table in each of the four ways and returns its name."""
    monkeypatch.chdir(tmp_path)

    def stored(records):
        if not isinstance(records, pa.Table):
            every = dict.fromkeys(key for record in records for key in record)  # Arrow itself looks at the first alone
            records = pa.Table.from_pylist([every | record for record in records])
        return save(records, TABLES[request.param], request.param)

    return stored


RECORDS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "é\r\n\u2028"}], "id": 7},
    {"messages": [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": ""}]},
    {"instruction": "Hi", "score": 0.5, "tools": [{"function": {"name": "a", "parameters": {"x": {"type": "int"}}}}]},
    {"instruction": "", "tools": [{"function": {"name": "b", "parameters": {"y": {"enum": ["u"]}}}}, {"type": "f"}]},
    {"flag": True, "empty": [], "numbers": [1, 2], "texts": [None, "x"]},
]


def test_a_record_comes_back_as_it_was_written(stored):
    name = stored(RECORDS)
    reader = read_parquet if name.endswith("parquet") else read_arrow
    assert values(reader, name) == dict(enumerate(RECORDS, 1))


def test_rows_of_a_table_are_records_with_their_number(plugins, stored):
    name = stored([{"input": "Hi", "output": "Hello!"}] * 5 + [{"input": "Hi"}])
    data = read([name], "conversation", plugins, on_bad_record="skip")
    assert [(record.where, record.data) for record in data.records] == [(f"{name}:{n}", SAID) for n in range(1, 6)]
    assert data.sources[0].sha256 == hashlib.sha256(Path(name).read_bytes()).hexdigest()
    assert data.skipped[0].startswith(f"{name}:6: no data format has the keys 'input'.")


def test_many_rows_arrive_in_order(plugins, pa, tmp_path):
    table = pa.table({"text": [f"text {number}" for number in range(5000)]})
    from pyarrow import parquet

    parquet.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        records = read([str(tmp_path / name)], "text", plugins).records
        assert [record.data for record in records] == [f"text {number}" for number in range(5000)]
        assert records[-1].where == f"{tmp_path / name}:5000"


def test_texts_of_every_arrow_type_are_texts(pa, plugins, stored):
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"input": pa.array(["Hi"]).cast(kind), "output": pa.array(["Hello!"]).cast(kind)})
        assert read([stored(table)], "conversation", plugins).records[0].data == SAID


def test_a_value_that_json_cannot_hold_is_refused_by_name_where_it_is_learned(pa, plugins, stored):
    day = datetime.datetime(2026, 1, 1)
    for value, kind in ((day, "timestamp[us]"), (b"x", "binary"), (day.date(), "date32[day]")):
        name = stored([{"input": "Hi", "output": value}])
        assert refusal(plugins, name) == f"{name}:1: output is a value of the type {kind}; it must be a text."
        name = stored([{"input": "Hi", "output": "Hello!", "when": value}, {"input": "Hi", "output": "Hello!"}])
        assert [record.data for record in read([name], "conversation", plugins).records] == [SAID, SAID]


def test_images_in_a_table_are_refused(plugins, stored):
    name = stored([{"instruction": "Hi", "output": "Hello!", "images": [{"bytes": b"x", "path": "a.png"}]}])
    assert f"{name}:1: images: lmf takes text only" in refusal(plugins, name)


def test_what_json_refuses_is_refused_in_a_table(plugins, stored):
    name = stored([{"text": "a\0b"}, {"text": "x", "score": float("nan")}, {"text": "x"}])
    assert refusal(plugins, name, kind="text").splitlines()[1:] == [
        rf"{name}:1: a string holds the character NUL (\u0000); remove it.",
        f"{name}:2: nan is not a number that JSON has; write null or a number.",
    ]


def test_a_table_without_rows_or_of_other_columns_is_refused(pa, plugins, stored):
    name = stored(pa.table({"input": pa.array([], pa.string())}))
    assert refusal(plugins, name) == f"{name} holds no records."
    name = stored([{"question": "Hi", "answer": "Hello!"}])
    assert refusal(plugins, name).startswith(f"{name}:1: no data format has the keys 'question', 'answer'.")
    name = stored([{"input": 1, "output": "Hello!"}])
    assert refusal(plugins, name) == f"{name}:1: input is the number 1; it must be a text."


def test_two_columns_of_one_name_are_refused(pa, plugins, tmp_path):
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["text", "text"])
    name = save(table, str(tmp_path / "a.arrow"), "stream")
    assert refusal(plugins, name, kind="text") == f"{name}: two columns are called 'text'; rename or remove one."


def test_a_table_that_is_cut_is_refused(plugins, stored):
    path = Path(stored([{"text": f"text {number}"} for number in range(50)]))
    whole = path.read_bytes()
    for length in (len(whole) - 9, len(whole) // 2, 30):
        path.write_bytes(whole[:length])
        message = refusal(plugins, str(path), kind="text")
        assert message.startswith(f"{path} is damaged or cut (")
        assert message.endswith("); fetch it again.")


def test_text_in_a_table_that_is_not_utf_8_is_refused(pa, plugins, tmp_path):
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    name = save(pa.table({"text": text}), str(tmp_path / "a.arrow"), "file")
    assert "is damaged or cut (" in refusal(plugins, name, kind="text")
    assert "UTF8" in refusal(plugins, name, kind="text")


def test_a_folder_that_datasets_saved_is_its_tables(plugins, pa, tmp_path):
    save(pa.table({"text": ["One"]}), str(tmp_path / "data-00000-of-00001.arrow"), "stream")
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    assert [record.data for record in read([str(tmp_path)], "text", plugins).records] == ["One"]


def test_without_pyarrow_the_command_that_installs_it_is_named(plugins, write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write("a.parquet", b"PAR1")
    write("a.arrow", b"ARROW1\0\0")
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(LmfError, match=rf"^{name} needs the package pyarrow: pip install 'lmf-core\[data\]'$"):
            read([name], "text", plugins)


def fuzz(rounds, folder, seed=0):
    """Read tables with damaged bytes; each gives records or a refusal that names the file."""
    chance, plugins = random.Random(seed), core_plugins()
    import pyarrow

    table = pyarrow.Table.from_pylist([{"messages": MESSAGES, "id": n, "note": "é" * n} for n in range(9)])
    whole = [(name, Path(save(table, str(folder / name), how)).read_bytes()) for how, name in TABLES.items()]
    count = {"read": 0, "refused": 0}
    for _ in range(rounds):
        name, content = chance.choice(whole)
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            start = chance.randrange(len(damaged))
            damaged[start : start + chance.choice((0, 1, 1, 4))] = chance.randbytes(chance.choice((0, 1, 1, 4)))
        path = folder / name
        path.write_bytes(bytes(damaged))
        try:
            read([str(path)], "conversation", plugins)
        except DataError as error:
            count["refused"] += 1
            assert str(path) in str(error)
        else:
            count["read"] += 1
    return count


def test_no_table_however_damaged_gives_another_error(pa, tmp_path):
    count = fuzz(500, tmp_path)
    assert min(count.values()) > 20, count


# The Hugging Face hub


class FakeDataSet:
    """As much of a data set of the library ``datasets`` as is asked for."""

    def __init__(self, table):
        self.table = table

    def with_format(self, name):
        assert name == "arrow"
        return self

    def iter(self, batch_size):
        for start in range(0, len(self.table), batch_size):
            yield self.table.slice(start, batch_size)


@pytest.fixture
def hub(pa, monkeypatch):
    """A library ``datasets`` that knows one data set, and the calls that it gets."""
    calls = []

    def load_dataset(path, name=None, **more):
        calls.append((path, name, more))
        if path != "acme/talks":
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub or cannot be accessed.")
        return FakeDataSet(pa.table({"input": ["Hi"] * 1500, "output": ["Hello!"] * 1500}))

    fake = SimpleNamespace(load_dataset=load_dataset, __version__="5.2.0", calls=calls)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "hf:acme/talks": Address("acme/talks", None, "train"),
        "hf:acme/talks:test": Address("acme/talks", None, "test"),
        "hf:acme/talks/en": Address("acme/talks", "en", "train"),
        "hf:acme/talks/en:train[:10%]": Address("acme/talks", "en", "train[:10%]"),
    }.items(),
)
def test_an_address_of_the_hub_is_taken_apart(name, expected):
    assert address(name) == expected


@pytest.mark.parametrize("name", ["hf:", "hf:talks", "hf:acme/", "hf:a/b/c/d", "hf:acme/talks:", "hf:/talks"])
def test_what_is_no_address_is_refused_before_anything_is_loaded(plugins, hub, name):
    assert refusal(plugins, name).startswith(f"{name!r} is no address of the hub; write hf:owner/name,")
    assert not hub.calls


def test_a_data_set_of_the_hub_is_read_like_a_table(plugins, hub):
    data = read(["hf:acme/talks/en:test"], "conversation", plugins)
    assert hub.calls == [("acme/talks", "en", {"split": "test"})]
    assert len(data.records) == 1500
    assert (data.records[-1].where, data.records[-1].data) == ("hf:acme/talks/en:test:1500", SAID)
    line = b'{"input": "Hi", "output": "Hello!"}\n'
    assert data.sources[0].sha256 == hashlib.sha256(line * 1500).hexdigest()


def test_what_the_hub_does_not_have_is_refused_with_its_reason(plugins, hub):
    assert refusal(plugins, "hf:acme/talk") == (
        "hf:acme/talk cannot be loaded by the library datasets: "
        "Dataset 'acme/talk' doesn't exist on the Hub or cannot be accessed."
    )


def test_a_library_that_may_run_code_of_data_sets_is_refused(plugins, hub):
    hub.__version__ = "3.6.0"
    with pytest.raises(
        LmfError, match=r"datasets 3\.6\.0 can run code that a data set brings; pip install 'datasets>=4'"
    ):
        read(["hf:acme/talks"], "conversation", plugins)
    assert not hub.calls


def test_without_datasets_the_command_that_installs_it_is_named(plugins, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LmfError, match=r"^hf:a/b needs the package datasets: pip install 'lmf-core\[hub\]'$"):
        read(["hf:a/b"], "conversation", plugins)
