"""Bad data on the command line: one message with file, line and cause, exit code 4, no traceback, nothing written."""

import gzip
import json
from pathlib import Path

import pytest
from datafiles import BAD, CAUSE, GOOD
from terminal import fresh, hollow_model, lmf_without_torch, tree

FAULTS = {
    "an empty file": ("a.jsonl", b"", "a.jsonl is empty."),
    "blanks": ("a.json", b" \n\t", "a.json holds no records."),
    "UTF-16": ("a.jsonl", GOOD.decode().encode("utf-16"), "a.jsonl is UTF-16 text; convert it to UTF-8."),
    "a cut array": ("a.json", b"[\n" + GOOD + b",\n", "a.json:3: not valid JSON at column 1: it ends in the middle"),
    "a trailing comma": ("a.json", b"[\n" + GOOD + b",\n]", "a.json:3: not valid JSON at column 1: something is miss"),
    "NaN": ("a.jsonl", b'{"input": "Hi", "output": "x", "n": NaN}', "a.jsonl:1: NaN is not JSON; write null or a num"),
    "a key twice": ("a.jsonl", b'{"input": "Hi", "input": "x"}', "a.jsonl:1: the key 'input' stands twice in one"),
    "half a pair": ("a.jsonl", rb'{"input": "\ud83d", "output": "x"}', r"a.jsonl:1: a string holds \ud83d, half of"),
    "NUL": ("a.jsonl", GOOD + b"\n\0", "a.jsonl:2: byte 36 of the file is NUL: the file is damaged"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(GOOD)[:-4], "a.jsonl.gz is cut: its gzip data end too early"),
    "no reply": ("a.jsonl", GOOD + b"\r\n\r\n" + BAD, f"a.jsonl:3: {CAUSE}"),
    "a mixture": ("a.jsonl", GOOD + b'\n{"text": "x"}', "a.jsonl:2: the record is a text (format text), and here conv"),
    "unknown columns": ("a.csv", b"frage,antwort\nHi,Hello!\n", "a.csv:2: no data format has the keys 'frage', 'ant"),
    "a short row": ("a.csv", b"input,output\nHi\n", "a.csv:2: the row has 1 cell; the first row names 2."),
    "no Parquet": ("a.parquet", GOOD, "a.parquet is not Parquet data: it starts with b'{"),
    "images of LMFlow": ("a.json", b'{"type": "image_text", "instances": [{}]}', "a.json: LMFlow's data type 'image"),
}
TWINS = {
    "a mark": ("a.jsonl", b"\xef\xbb\xbf" + GOOD),
    "CRLF": ("a.jsonl", GOOD + b"\r\n" + GOOD + b"\r\n"),
    "an array": ("a.json", b"[\n" + GOOD + b"\n]"),
    "gzip": ("a.jsonl.gz", gzip.compress(GOOD)),
    "a table": ("a.csv", b"input,output\nHi,Hello!\n"),
    "LMFlow": ("a.json", b'{"type": "text2text", "instances": [' + GOOD + b"]}"),
}


def plan(name, *more):
    return "plan", "train", "full", "--model", "./model", "--data", name, *more


@pytest.fixture(autouse=True)
def model(write):
    hollow_model(Path("model"))


@pytest.mark.parametrize(("name", "content", "told"), FAULTS.values(), ids=FAULTS)
def test_bad_data_end_the_command_with_code_4_and_the_place(write, name, content, told):
    write(name, content)
    before = tree(Path())
    done = lmf_without_torch(*plan(name))
    assert (done.code, done.out) == (4, "")
    assert done.err.startswith(f"error: {told}")
    assert "Traceback" not in done.err
    assert tree(Path()) == before


@pytest.mark.parametrize(("name", "content"), TWINS.values(), ids=TWINS)
def test_good_data_like_them_pass(write, name, content):
    done = lmf_without_torch(*plan(write(name, content)))
    assert (done.code, done.err) == (0, "")


def test_a_file_that_may_not_be_read_is_told_by_name(write, monkeypatch):
    opened = Path.open

    def guarded(self, *args, **more):
        if self.name == "a.jsonl":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **more)

    write("a.jsonl", GOOD)
    monkeypatch.setattr(Path, "open", guarded)  # by its mode root may read every file
    done = lmf_without_torch(*plan("a.jsonl"))
    assert (done.code, done.err) == (4, "error: a.jsonl cannot be read: Permission denied.\n")


def test_bad_records_are_left_out_only_if_asked(write):
    write("a.jsonl", b"\n".join([GOOD, BAD, GOOD]))
    assert lmf_without_torch(*plan("a.jsonl")).code == 4
    done = lmf_without_torch(*plan("a.jsonl", "--on-bad-record", "skip"))
    assert (done.code, done.err) == (0, "")
    assert "a.jsonl: 2 records" in done.out


def test_a_process_of_its_own_ends_the_same_way(write):
    write("a.jsonl", b"\n".join([GOOD, json.dumps({"messages": []}).encode(), BAD]))
    done = fresh(*plan("a.jsonl"))
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"error: 2 problems in the data:\na.jsonl:2: the conversation has no messages.\na.jsonl:3: {CAUSE}\n"
    )
