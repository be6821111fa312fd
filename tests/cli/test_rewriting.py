"""``lmf data convert``, ``split``, ``sample``, ``shuffle`` and ``merge``."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import samples
from lmf import DataFormat, Plugins, hookimpl
from samples import CALLED, CREPES, NAMED, PAIR, RATED, THEORY, lines, read
from terminal import lmf_without_torch, tree
from typer.testing import CliRunner

NUMBERS = [{"text": f"Number {i}."} for i in range(100)]
ASKED = {"input": "Ping?", "output": "Pong!"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    samples.write(tmp_path)
    Path("numbers.jsonl").write_text(lines(*NUMBERS))
    Path("asked.jsonl").write_text(lines(ASKED))
    return tmp_path


def done(*args: str) -> str:
    """What a command of ``lmf data`` prints that succeeds."""
    result = lmf_without_torch("data", *args)
    assert (result.code, result.err) == (0, "")
    return result.out


def refused(code: int, *args: str) -> str:
    """The message of a command that fails and leaves every file as it was."""
    before = tree(Path())
    result = lmf_without_torch("data", *args)
    assert (result.code, result.out) == (code, ""), result
    assert "Traceback" not in result.err
    assert tree(Path()) == before
    return result.err.removeprefix("error: ").rstrip("\n")


# convert


def test_records_come_into_another_kind_of_file_as_they_stand(folder):
    assert done("convert", "alpaca_en.json", "a.jsonl") == "a.jsonl: 2 records\n"
    assert read("a.jsonl") == [CREPES, NAMED]
    done("convert", "a.jsonl", "b.json")
    assert read("b.json") == [CREPES, NAMED]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_gives_back_what_was_written(folder, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    for name in ("alpaca_en", "alpaca_zh"):
        done("convert", f"{name}.json", f"{name}.{suffix}")
        done("convert", f"{name}.{suffix}", f"{name}.again.json")
        assert read(f"{name}.again.json") == samples.FILES[name][0]


def test_a_conversation_is_written_in_another_format(folder):
    done("convert", "alpaca_en.json", "a.jsonl", "--to", "messages")
    asked, reply = CREPES["instruction"], CREPES["output"]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    assert read("a.jsonl")[0] == {"messages": messages}
    done("convert", "a.jsonl", "b.jsonl", "--to", "sharegpt")
    assert read("b.jsonl")[0] == {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": reply}]}


def test_pairs_and_ratings_are_written_in_formats_of_their_kind(folder):
    done("convert", "dpo_en.json", "a.jsonl", "--to", "preference")
    chosen, rejected = PAIR["chosen"]["value"], PAIR["rejected"]["value"]
    replies = {"chosen": chosen, "rejected": rejected}
    assert {key: value[0]["content"] for key, value in read("a.jsonl")[0].items()} == {
        "prompt": "Name a game.",
        **replies,
    }
    done("convert", "kto_en.json", "b.jsonl", "--to", "unpaired")
    (rated,) = read("b.jsonl")
    assert (rated["completion"][0]["content"], rated["label"]) == ("*giggle* No!", False)


@pytest.mark.parametrize("name", samples.FILES)
@pytest.mark.parametrize("form", sorted(Plugins().formats))
def test_a_format_says_all_or_refuses(folder, name, form):
    result = lmf_without_torch("data", "convert", f"{name}.json", "out.jsonl", "--to", form)
    if result.code == 0:
        done("convert", "out.jsonl", "back.jsonl", "--to", samples.FILES[name][1])
        done("convert", f"{name}.json", "same.jsonl", "--to", samples.FILES[name][1])
        assert read("back.jsonl") == read("same.jsonl")
    else:
        assert result.code == 4
        assert f"{name}.json:2: the " in result.err
        assert not Path("out.jsonl").exists()


def test_a_call_survives_and_is_refused_where_it_has_no_place(folder):
    done("convert", "glaive_toolcall_en.json", "a.jsonl", "--to", "messages")
    (call,) = read("a.jsonl")[0]["messages"][1]["tool_calls"]
    assert call["function"]["name"] == "search"
    told = refused(4, "convert", "glaive_toolcall_en.json", "b.jsonl", "--to", "alpaca")
    assert told.startswith("glaive_toolcall_en.json:2: the format alpaca cannot express this conversation: it has no ")


def test_columns_are_renamed_before_anything_else(folder):
    Path("q.jsonl").write_text(lines({"question": "2 + 3 =", "answer": "5", "id": 7}))
    done("convert", "q.jsonl", "a.jsonl", "--columns", "input=question,output=answer", "--to", "alpaca")
    assert read("a.jsonl") == [{"instruction": "2 + 3 =", "input": "", "output": "5"}]


def test_the_format_can_be_said_where_keys_fit_several(folder):
    both = {"instruction": "Hi", "output": "Hello!", "text": "Hi Hello!"}
    Path("both.jsonl").write_text(lines(both))
    done("convert", "both.jsonl", "a.jsonl", "--to", "messages")  # a conversation goes before a text
    assert [message["content"] for message in read("a.jsonl")[0]["messages"]] == ["Hi", "Hello!"]
    done("convert", "both.jsonl", "b.jsonl", "--to", "text", "--format", "text")
    assert read("b.jsonl") == [{"text": "Hi Hello!"}]
    Path("three.jsonl").write_text(lines(both | {"messages": CALLED["conversations"]}))
    told = refused(4, "convert", "three.jsonl", "c.jsonl", "--to", "text2text")
    assert "fit the formats lmf-core:alpaca and lmf-core:messages; keep those of one, or say which" in told
    done("convert", "three.jsonl", "c.jsonl", "--to", "text2text", "--format", "alpaca")
    assert read("c.jsonl") == [{"input": "Hi", "output": "Hello!"}]


def test_every_record_that_cannot_be_converted_is_named_up_to_a_number(folder):
    Path("calls.jsonl").write_text(lines(CREPES, *[CALLED] * 30))
    told = refused(4, "convert", "calls.jsonl", "a.jsonl", "--to", "alpaca").splitlines()
    assert told[0] == "30 records cannot be rewritten; the first 20:"
    assert len(told) == 21
    assert told[1].startswith("calls.jsonl:2: ")


class Acme:
    """A plugin with a format that is only read, and one that forgets what it was told."""

    @staticmethod
    @hookimpl
    def lmf_formats() -> list[DataFormat]:
        def form(name: str, **more: Any) -> DataFormat:
            example = f'{{"{name}": "x"}}'
            return DataFormat(
                *(),
                name=name,
                summary="A text.",
                data="text",
                example=example,
                matches=lambda record: name in record,
                read=lambda record: record[name],
                **more,
            )

        return [form("silent"), form("forgetful", write=lambda text: {"forgetful": text[:3]})]


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("silent", "numbers.jsonl:1: the format silent is only read, never written."),
        ("forgetful", "numbers.jsonl:1: the format forgetful cannot express this text: it would be read differently"),
    ],
)
def test_a_format_of_a_plugin_is_held_to_the_same(folder, form, told):
    import lmf_cli.app

    plugins = Plugins()
    plugins.register("acme", Acme())
    app = lmf_cli.app.build(plugins)
    ended = CliRunner().invoke(app, ["data", "convert", "numbers.jsonl", "a.jsonl", "--to", form])
    assert told in str(ended.exception)
    assert not Path("a.jsonl").exists()


# What LMFlow's small scripts did


def test_each_line_of_a_text_becomes_a_record(folder):
    Path("raw.txt").write_text("one\n\n two \r\nthree\u2028four")
    done("convert", "raw.txt", "a.jsonl", "--lines")
    assert read("a.jsonl") == [{"text": "one"}, {"text": "two"}, {"text": "three\u2028four"}]
    done("convert", "raw.txt", "b.jsonl", "--lines", "--to", "text", "--end-mark", "#")
    assert [record["text"] for record in read("b.jsonl")] == ["one#", "two#", "three\u2028four#"]


def test_an_end_mark_and_a_prompt_are_put_around_texts(folder):
    prompt = "Q: {input}\nA:"
    done("convert", "asked.jsonl", "a.jsonl", "--prompt", prompt, "--end-mark", "###")
    assert read("a.jsonl") == [{"input": prompt.format(input="Ping?"), "output": "Pong!###"}]
    Path("completion.jsonl").write_text(lines({"prompt": "{}", "completion": "b"}))
    done("convert", "completion.jsonl", "b.jsonl", "--prompt", "<{input}>", "--end-mark", "$", "--to", "text2text")
    assert read("b.jsonl") == [{"input": "<{}>", "output": "b$"}]


# split, sample, shuffle, merge


def test_a_split_parts_all_records_and_keeps_their_order(folder):
    assert done("split", "numbers.jsonl", "a.jsonl", "b.jsonl", "--part", "0.1") == (
        "a.jsonl: 90 records\nb.jsonl: 10 records\n"
    )
    parts = [[record["text"] for record in read(name)] for name in ("a.jsonl", "b.jsonl")]
    order = [record["text"] for record in NUMBERS]
    assert sorted(parts[0] + parts[1]) == sorted(order)
    assert all(part == sorted(part, key=order.index) for part in parts)


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [([], [34, 33, 33]), (["0.25"], [50, 25, 25]), (["20", "0.5"], [30, 20, 50]), (["1", ".01"], [98, 1, 1])],
)
def test_a_part_is_a_share_or_a_number(folder, parts, sizes):
    flags = [word for part in parts for word in ("--part", part)]
    done("split", "numbers.jsonl", "a.jsonl", "b.json", "c.jsonl", *flags)
    found = [len(read(name)) for name in ("a.jsonl", "b.json", "c.jsonl")]
    assert sum(found) == 100
    assert sorted(found) == sorted(sizes) if not parts else found == sizes


@pytest.mark.parametrize(
    "line", ["split numbers.jsonl OUT b.jsonl", "sample numbers.jsonl OUT -n 9", "shuffle numbers.jsonl OUT"]
)
def test_the_seed_decides(folder, line):
    words = line.split()
    found = {}
    for name, seed in {"0.jsonl": "0", "again.jsonl": "0", "1.jsonl": "1"}.items():
        done(*(name if word == "OUT" else word for word in words), "--seed", seed, "--force")
        found[name] = read(name)
    assert found["0.jsonl"] == found["again.jsonl"] != found["1.jsonl"]


@pytest.mark.parametrize(("records", "count"), [("7", 7), ("0.07", 7), ("100", 100)])
def test_a_sample_has_its_size_and_keeps_the_order(folder, records, count):
    done("sample", "numbers.jsonl", "a.jsonl", "-n", records)
    found = [NUMBERS.index(record) for record in read("a.jsonl")]
    assert len(set(found)) == count
    assert found == sorted(found)


def test_a_shuffle_changes_the_order_only(folder):
    done("shuffle", "numbers.jsonl", "a.jsonl")
    assert read("a.jsonl") != NUMBERS
    assert sorted(read("a.jsonl"), key=NUMBERS.index) == NUMBERS


def test_a_merge_writes_all_in_order_whatever_they_are(folder):
    done("merge", "alpaca_zh.json", "kto_en.json", "alpaca_zh.json", "a.jsonl")
    assert read("a.jsonl") == [THEORY, RATED, THEORY]


def test_records_go_from_standard_input_to_standard_output(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines(*NUMBERS).encode())))
    assert [json.loads(line) for line in done("merge", "-", "-").splitlines()] == NUMBERS


# Files


def test_nothing_is_overwritten_unless_that_is_wanted(folder):
    told = refused(2, "convert", "alpaca_en.json", "kto_en.json")
    assert told == "kto_en.json exists already; add --force to replace it, or choose another name."
    done("convert", "alpaca_en.json", "kto_en.json", "--force")
    assert read("kto_en.json") == [CREPES, NAMED]


@pytest.mark.parametrize("other", ["./a.jsonl", "inner/../a.jsonl", "here/a.jsonl", "link.jsonl", "{folder}/a.jsonl"])
def test_one_file_under_two_names_is_refused(folder, other):
    Path("inner").mkdir()
    Path("here").symlink_to(".")
    Path("link.jsonl").symlink_to("a.jsonl")
    other = other.format(folder=folder)
    told = refused(2, "split", "numbers.jsonl", "a.jsonl", other, "--force")
    assert told == f"a.jsonl and {other} are one file as an output; each part needs a file of its own."


def test_a_file_can_be_rewritten_in_place(folder):
    done("sample", "numbers.jsonl", "numbers.jsonl", "-n", "10", "--force")
    assert len(read("numbers.jsonl")) == 10


def test_a_write_that_fails_leaves_nothing(folder, monkeypatch):
    def full(*args: Any) -> None:
        Path(args[0]).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(sys.modules["lmf_cli.saving"]._WRITERS, ".json", full)
    told = refused(1, "split", "numbers.jsonl", "a.jsonl", "b.json")
    assert told == "b.json cannot be written: No space left on device."


@pytest.mark.parametrize(
    ("record", "suffix", "told"),
    [
        (
            {"a": 5},
            "csv",
            "out.csv is a table of texts and cannot hold record 2 as it is. Write .jsonl instead.",
        ),
        ({"b": "x"}, "csv", "out.csv is a table of texts and cannot hold record 1 as it is. Write .jsonl instead."),
        ({"a": 5}, "parquet", "out.parquet cannot hold these records: "),
        (
            {"a": None},
            "parquet",
            "out.parquet is a table with one type in each column and cannot hold record 2 as",
        ),
        ({"a": 10**30}, "parquet", "out.parquet cannot hold these records: "),
    ],
)
def test_a_table_that_cannot_hold_a_record_is_refused(folder, record, suffix, told):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    first = {"a": 1} if record == {"a": 10**30} else {"a": "y"}
    Path("odd.jsonl").write_text(lines(first, record))
    assert refused(4, "convert", "odd.jsonl", f"out.{suffix}").startswith(told)


@pytest.mark.parametrize("numbers", [(2, 2.5), (2.5, 2)])
def test_a_whole_number_never_becomes_a_fraction(folder, numbers):
    pytest.importorskip("pyarrow")
    calls = [{"tool_calls": [{"name": "f", "arguments": {"x": number}}]} for number in numbers]
    for records in ([{"a": number} for number in numbers], calls):
        Path("odd.jsonl").write_text(lines(*records))
        told = refused(4, "convert", "odd.jsonl", "out.parquet")
        odd = 1 + [type(number) for number in numbers].index(int)
        assert told.startswith(f"out.parquet is a table with one type in each column and cannot hold record {odd} as")


def test_truth_and_fractions_come_back_from_a_table_as_they_were(folder):
    pytest.importorskip("pyarrow")
    typed = lines({"flag": True, "count": 1, "share": 1.0}, {"flag": False, "count": 0, "share": 0.5})
    Path("typed.jsonl").write_text(typed)
    done("convert", "typed.jsonl", "out.parquet")
    assert done("convert", "out.parquet", "-") == typed


@pytest.mark.parametrize(
    "words", ["convert days.parquet -", "split days.parquet a.jsonl -", "split days.parquet - a.json"]
)
def test_nothing_is_printed_or_written_if_a_later_record_cannot_be(folder, words):
    import datetime

    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    days = [None] * 9 + [datetime.date(2024, 2, 29)]
    parquet.write_table(pyarrow.table({"text": [str(number) for number in range(10)], "day": days}), "days.parquet")
    assert " cannot hold record " in refused(4, *words.split())


def test_a_value_that_json_lacks_is_refused(folder):
    import datetime

    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a"], "day": [datetime.date(2024, 2, 29)]}), "days.parquet")
    told = refused(4, "convert", "days.parquet", "out.jsonl")
    assert told == "out.jsonl cannot hold record 1: JSON cannot hold a value of the type date32[day]."


# What is refused


@pytest.mark.parametrize(
    ("code", "line", "told"),
    [
        (4, "convert nosuch.jsonl a.jsonl", "No file, folder or data set is called 'nosuch.jsonl': "),
        (2, "convert asked.jsonl a.jsonl --to nosuch", "No data format is called 'nosuch'."),
        (2, "convert asked.jsonl a.jsonl --to mesages", "No data format is called 'mesages'. Did you mean 'messages"),
        (
            4,
            "convert asked.jsonl a.jsonl --to preference",
            "asked.jsonl:1: the record is a conversation (format text2text)",
        ),
        (4, "convert numbers.jsonl a.jsonl --to messages", "100 records cannot be rewritten; the first 20:"),
        (
            2,
            "convert asked.jsonl a.txt",
            "a.txt has the suffix '.txt'; lmf writes .jsonl, .ndjson, .json, .csv, .parquet.",
        ),
        (2, "convert asked.jsonl nosuch/a.jsonl", "nosuch/a.jsonl cannot be written: there is no folder nosuch."),
        (2, "convert asked.jsonl a.jsonl --columns a=b", "--columns has the unknown key 'a'"),
        (2, "convert asked.jsonl a.jsonl --prompt Q:", "--prompt is 'Q:'; it must hold {input} once."),
        (
            2,
            "convert asked.jsonl a.jsonl --prompt {input}{input}",
            "--prompt is '{input}{input}'; it must hold {input} once.",
        ),
        (2, "convert asked.jsonl a.jsonl --end-mark=", "--end-mark is empty."),
        (
            4,
            "convert kto_en.json a.jsonl --end-mark #",
            "kto_en.json:2: the record has the keys 'messages', 'label'; its end",
        ),
        (4, "convert numbers.jsonl a.jsonl --prompt {input}", "100 records cannot be rewritten"),
        (
            4,
            "convert asked.jsonl a.jsonl --lines",
            "asked.jsonl:1: the record has the keys 'input', 'output'; its text is",
        ),
        (4, "convert blank.txt a.jsonl --lines", "a.jsonl would hold no records."),
        (2, "split numbers.jsonl a.jsonl", "split needs at least two files to write."),
        (
            2,
            "split numbers.jsonl a.jsonl a.jsonl",
            "a.jsonl is named twice as an output; each part needs a file of its own.",
        ),
        (
            2,
            "split numbers.jsonl a.jsonl b.jsonl --part 1.5",
            "--part is '1.5'; it must be a number of records from 1, or a",
        ),
        (
            2,
            "split numbers.jsonl a.jsonl b.jsonl --part 0",
            "--part is '0'; it must be a number of records from 1, or a share",
        ),
        (
            2,
            "split numbers.jsonl a.jsonl b.jsonl --part 0.0",
            "--part is '0.0'; it must be a number of records from 1, or",
        ),
        (
            2,
            "split numbers.jsonl a.jsonl b.jsonl --part 10%",
            "--part is '10%'; it must be a number of records from 1, or a",
        ),
        (
            2,
            "split numbers.jsonl a.jsonl b.jsonl --part 200",
            "--part asks for more than the 100 records that there are.",
        ),
        (
            2,
            "split numbers.jsonl a.jsonl b.jsonl --part 100",
            "a.jsonl would get none of the 100 records; choose other parts.",
        ),
        (
            2,
            "split numbers.jsonl a.jsonl b.jsonl --part 0.001",
            "b.jsonl would get none of the 100 records; choose other",
        ),
        (
            2,
            "split numbers.jsonl a.jsonl b.jsonl --part 1 --part 2",
            "--part is given 2 times for 2 files; give it once",
        ),
        (2, "split asked.jsonl a.jsonl b.jsonl", "b.jsonl would get none of the 1 records; choose other parts."),
        (2, "split numbers.jsonl a.jsonl b.jsonl --seed -1", "--seed is -1; it must be at least 0."),
        (2, "sample numbers.jsonl a.jsonl -n 101", "--records is 101; numbers.jsonl has 100 records."),
        (2, "sample numbers.jsonl a.jsonl -n 0", "--records is '0'; it must be a number of records from 1, or a sha"),
        (
            2,
            "sample numbers.jsonl a.jsonl -n all",
            "--records is 'all'; it must be a number of records from 1, or a share",
        ),
        (2, "sample asked.jsonl a.jsonl -n 0.1", "--records is 0.1; of 1 records that is none."),
        (2, "sample numbers.jsonl asked.jsonl -n 3", "asked.jsonl exists already; add --force to replace it"),
        (2, "shuffle numbers.jsonl shelf.jsonl --force", "shelf.jsonl is a folder; name a file."),
        (2, "merge asked.jsonl numbers.jsonl numbers.jsonl", "numbers.jsonl exists already; add --force to replace"),
        (4, "merge asked.jsonl broken.jsonl a.jsonl", "broken.jsonl:1: "),
    ],
)
def test_a_line_that_is_refused(folder, code, line, told):
    Path("blank.txt").write_text(" \n\n \n")
    Path("broken.jsonl").write_text('{"a": ')
    Path("shelf.jsonl").mkdir()
    assert refused(code, *line.split()).startswith(told)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(folder, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert (
        refused(2, "convert", "nosuch.jsonl", "a.jsonl") == "a.jsonl cannot be written: the folder . is not writable."
    )
