"""Data that cannot be learned from are refused with the file, the place and the cause; good ones like them are read."""

import gzip
import json
import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest
from datafiles import BAD, CAUSE, GOOD, SAID, core_plugins, refusal
from lmf import DataError, Plugins
from lmf.data import textfile
from lmf.data.jsonfile import read_json
from lmf.data.reading import read

ZSTD = b"\x28\xb5\x2f\xfd"
PREFERENCE = b'{"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}'


def talk(*roles):
    """A record with a message of each role."""
    return json.dumps({"messages": [{"role": role, "content": "Hi"} for role in roles]}).encode()


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
    "parquet": ("a.json", b"PAR1\x15\x04", "a.json is a Parquet file; call it .parquet."),
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
        "a.jsonl:1: not valid JSON at column 14: it ends in the middle of a value (Unterminated string)",
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
        b'{"type": "conversation", "instances": [{"tools": [7], "messages": []}]}',
        "a.json:1: tools[0]",
    ),
    # more of the same, in other places
    "UTF-32, big end first": (
        "a.json",
        GOOD.decode().encode("utf-32-be"),
        "a.json is UTF-32 text; convert it to UTF-8",
    ),
    "UTF-32 with a mark": ("a.jsonl", b"\0\0\xfe\xff" + GOOD.decode().encode("utf-32-be"), "a.jsonl is UTF-32 text"),
    "UTF-16 table": ("a.csv", "input,output\nHi,Hello!".encode("utf-16"), "a.csv is UTF-16 text; convert it to UTF-8"),
    "CESU-8": (
        "a.jsonl",
        GOOD + b'\n{"input": "\xed\xa0\xbd\xed\xb8\x80"}',
        "a.jsonl:2: byte 47 of the file (0xed) is not",
    ),
    "overlong NUL": ("a.jsonl", b'{"input": "\xc0\x80"}', "a.jsonl:1: byte 11 of the file (0xc0) is not UTF-8"),
    "beyond Unicode": (
        "a.jsonl",
        b'{"input": "\xf4\x90\x80\x80"}',
        "a.jsonl:1: byte 11 of the file (0xf4) is not UTF-8",
    ),
    "NUL hole": (
        "a.jsonl",
        GOOD + b"\n" + GOOD[:9] + b"\0" * 4096 + GOOD + b"\n" + GOOD,
        "a.jsonl:2: byte 45 of the file is NUL: the file is damaged; fetch or write it again.",
    ),
    "NUL in a document": ("a.md", b"# One\n\ntwo\0", "a.md:3: byte 10 of the file is NUL", "text"),
    "only NUL": ("a.jsonl", b"\0" * 512, "a.jsonl:1: byte 0 of the file is NUL"),
    "only blanks": ("a.json", b" \t\r\n ", "a.json holds no records."),
    "an empty table": ("a.csv", b"", "a.csv is empty."),
    "a blank document": ("a.txt", b" \n\t\n", "a.txt:1: text is empty; there is nothing to learn.", "text"),
    "after CRLF": ("a.jsonl", GOOD + b"\r\n\r\n" + BAD + b"\r\n", f"a.jsonl:3: {CAUSE}"),
    "after a mark": ("a.jsonl", b"\xef\xbb\xbf\n" + BAD, f"a.jsonl:2: {CAUSE}"),
    "after separators that end no line": ("a.jsonl", b'{"a": "\xe2\x80\xa8\xc2\x85"}\n' + BAD, f"a.jsonl:2: {CAUSE}"),
    "in an array after blank lines": ("a.json", b"\n[\r\n\r\n" + GOOD + b",\r\n" + BAD + b"]", f"a.json:5: {CAUSE}"),
    "cut in the last line": (
        "a.jsonl",
        GOOD + b"\n" + GOOD[:-1] + b"\n",
        "a.jsonl:2: not valid JSON at column 35: it ends",
    ),
    "cut in a literal": ("a.jsonl", b'{"input": tru', "a.jsonl:1: not valid JSON at column 14: it ends in the middle"),
    "cut in an escape": (
        "a.jsonl",
        rb'{"input": "\u00e',
        "a.jsonl:1: not valid JSON at column 17: it ends in the middle",
    ),
    "cut after a key": ("a.jsonl", b'{"input":  \r\n', "a.jsonl:1: not valid JSON at column 10: it ends in the middle"),
    "cut in an array": ("a.json", b"[\n" + GOOD + b",\n" + GOOD[:-2], "a.json:3: not valid JSON at column 34: it ends"),
    "a comment": ("a.jsonl", b"// notes\n" + GOOD, "a.jsonl:1: not valid JSON at column 1: Expecting value"),
    "Python's words": ("a.jsonl", b'{"input": None}', "a.jsonl:1: not valid JSON at column 11: Expecting value"),
    "a comma behind a record": (
        "a.jsonl",
        GOOD + b",\n",
        "a.jsonl:1: not valid JSON at column 36: more follows the record",
    ),
    "minus infinity": (
        "a.jsonl",
        b'{"input": "Hi", "output": "x", "score": -Infinity}',
        "a.jsonl:1: -Infinity is not JSON",
    ),
    "a number without end": ("a.jsonl", b'{"text": "x", "score": 1e999}', "a.jsonl:1: the number 1e999 is too large"),
    "an unknown escape": ("a.jsonl", rb'{"input": "\x41"}', r"a.jsonl:1: not valid JSON at column 12: Invalid \escape"),
    "a number with a zero before": ("a.jsonl", b'{"a": 01}', "a.jsonl:1: not valid JSON at column 8: Expecting ','"),
    "two records in one array line": ("a.json", b"[" + GOOD + GOOD + b"]", "a.json:1: not valid JSON at column 37"),
    "a web page called a table": ("a.csv", b"<!DOCTYPE html>\n<html>", "a.csv:1: it starts with '<': it is a web page"),
    "a pointer called a table": (
        "a.csv",
        b"version https://git-lfs.github.com/spec/v1\noid",
        "a.csv is a git-lfs pointer",
    ),
    "a pointer called Parquet": (
        "a.parquet",
        b"version https://git-lfs.github.com/spec",
        "a.parquet is a git-lfs pointer",
    ),
    "a web page called Parquet": ("a.parquet", b"<html>", "a.parquet is not Parquet data: it starts with b'<html>'"),
    "an empty Parquet file": ("a.parquet", b"", "a.parquet is empty."),
    "JSON called Arrow": ("a.arrow", GOOD, "a.arrow is not Arrow data: it starts with b'{"),
    "Parquet called Feather": ("a.feather", b"PAR1\x15\x04", "a.feather is a Parquet file; call it .parquet."),
    "a ZIP called a document": ("a.md", b"PK\x03\x04", "a.md is a ZIP archive; unpack it", "text"),
    "Arrow called lines": ("a.jsonl", b"ARROW1\0\0", "a.jsonl is an Arrow file; call it .arrow."),
    "Zstandard without .zst": ("a.jsonl", ZSTD, "a.jsonl is Zstandard data but is not called .zst; rename it"),
    "Zstandard called .gz": ("a.jsonl.gz", ZSTD, "a.jsonl.gz is Zstandard data but is not called .zst; rename it"),
    "gzip called .zst": (
        "a.jsonl.zst",
        gzip.compress(GOOD),
        "a.jsonl.zst is gzip data but is not called .gz; rename it",
    ),
    ".zst without Zstandard": (
        "a.jsonl.zst",
        GOOD,
        "a.jsonl.zst is called .zst but is not Zstandard data: it starts with b'{",
    ),
    "gzip with more behind it": (
        "a.jsonl.gz",
        gzip.compress(GOOD) + b"more",
        "a.jsonl.gz holds damaged gzip data (Not a gzip",
    ),
    "a web page in gzip": ("a.jsonl.gz", gzip.compress(b"<html>"), "a.jsonl.gz starts with '<': it is a web page"),
    "bad bytes in gzip": (
        "a.jsonl.gz",
        gzip.compress(GOOD + b"\n\xff"),
        "a.jsonl.gz:2: byte 36 of the file (0xff) is not",
    ),
    # records
    "a mixture of schemas": (
        "a.jsonl",
        GOOD + b'\n{"text": "x"}\n' + GOOD,
        "a.jsonl:2: the record is a text (format text)",
    ),
    "a preference": ("a.jsonl", PREFERENCE, "a.jsonl:1: the record is a preference (format"),
    "a missing reply": ("a.jsonl", GOOD + b'\n{"input": "Hi"}', "a.jsonl:2: no data format has the keys 'input'"),
    "a reply that is a number": (
        "a.jsonl",
        b'{"input": "Hi", "output": 5}',
        "a.jsonl:1: output is the number 5; it must be a text",
    ),
    "a reply that is a list": (
        "a.jsonl",
        b'{"input": "Hi", "output": []}',
        "a.jsonl:1: the record is a ranking (format ranking)",
    ),
    "a reply that is an object": (
        "a.jsonl",
        b'{"input": "Hi", "output": {}}',
        "a.jsonl:1: output is an object; it must be a text",
    ),
    "a reply that is true": (
        "a.jsonl",
        b'{"input": "Hi", "output": true}',
        "a.jsonl:1: output is true; it must be a text",
    ),
    "an empty reply": (
        "a.jsonl",
        b'{"input": "Hi", "output": " \\n"}',
        "a.jsonl:1: output is empty; there is no reply to learn",
    ),
    "an empty question": ("a.jsonl", b'{"input": "", "output": "Hello!"}', "a.jsonl:1: input is empty"),
    "a key misspelled by case": (
        "a.jsonl",
        b'{"Input": "Hi", "output": "x"}',
        "a.jsonl:1: no data format has the keys 'Input'",
    ),
    "no messages": ("a.jsonl", talk(), "a.jsonl:1: the conversation has no messages"),
    "messages that are a text": (
        "a.jsonl",
        b'{"messages": "Hi"}',
        "a.jsonl:1: messages is the text 'Hi'; it must be a list",
    ),
    "messages that are null": ("a.jsonl", b'{"messages": null}', "a.jsonl:1: "),
    "a message that is a text": (
        "a.jsonl",
        b'{"messages": ["Hi"]}',
        "a.jsonl:1: messages[0] is the text 'Hi'; it must be an object",
    ),
    "a message without a role": (
        "a.jsonl",
        b'{"messages": [{"content": "Hi"}]}',
        "a.jsonl:1: messages[0] has no key 'role'",
    ),
    "a role that is a number": (
        "a.jsonl",
        b'{"messages": [{"role": 1, "content": "Hi"}]}',
        "a.jsonl:1: messages[0].role is the number 1",
    ),
    "an unknown role": (
        "a.jsonl",
        talk("usr", "assistant"),
        "a.jsonl:1: messages[0].role is the text 'usr'; roles are system, user",
    ),
    "two system messages": (
        "a.jsonl",
        talk("system", "system", "user", "assistant"),
        "a.jsonl:1: messages[1]: a system message stands only once",
    ),
    "a system message in the middle": (
        "a.jsonl",
        talk("user", "assistant", "system", "user", "assistant"),
        "a.jsonl:1: messages[2]: a system message stands only once, and before all others",
    ),
    "assistant first": (
        "a.jsonl",
        talk("assistant", "user"),
        "a.jsonl:1: messages[0]: a conversation cannot begin with a message of the role assistant",
    ),
    "user twice": (
        "a.jsonl",
        talk("user", "user", "assistant"),
        "a.jsonl:1: messages[1]: the role user cannot follow user",
    ),
    "assistant twice": (
        "a.jsonl",
        talk("user", "assistant", "assistant"),
        "a.jsonl:1: messages[2]: the role assistant cannot follow assistant",
    ),
    "an odd number of turns": (
        "a.jsonl",
        talk("user", "assistant", "user"),
        "a.jsonl:1: the conversation ends with a user message",
    ),
    "only a system message": ("a.jsonl", talk("system"), "a.jsonl:1: the conversation ends with a system message"),
    "a result without a call": ("a.jsonl", talk("user", "tool", "assistant"), "a.jsonl:1: messages[1]"),
    "a pair of one in the history": (
        "a.jsonl",
        b'{"instruction": "Hi", "output": "x", "history": [["a"]]}',
        "a.jsonl:1: history[0] is a list; it must be",
    ),
    "a system message that is a list": (
        "a.jsonl",
        b'{"system": [], "input": "Hi", "output": "x"}',
        "a.jsonl:1: system is a list; it must be a text",
    ),
    "a result of another call": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{"id": "a", "function":'
        b' {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "b", "content": "x"},'
        b' {"role": "assistant", "content": "x"}]}',
        "a.jsonl:1: messages[2] answers the call 'b'; the ids of messages[1] are 'a'.",
    ),
    "arguments that are cut": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [{"function":'
        b' {"name": "f", "arguments": "{\\"a\\": "}}]}]}',
        "a.jsonl:1: messages[1].tool_calls[0].function.arguments: not valid JSON at column 6: it ends in the middle",
    ),
    "a weight below 0": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x", "weight": -1}]}',
        "a.jsonl:1: messages[1].weight is the number -1; it must be at least 0.",
    ),
    "nothing that is learned": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x", "train": false}]}',
        "a.jsonl:1: every assistant message has the weight 0; there is no reply to learn.",
    ),
    "a reply that was judged bad": (
        "a.jsonl",
        b'{"prompt": "Hi", "completion": "x", "label": false}',
        "a.jsonl:1: the record is a judged reply (format unpaired), and here conversations are learned.",
    ),
    "two replies that are the same": (
        "a.jsonl",
        b'{"prompt": "Hi", "chosen": "x", "rejected": "x"}',
        "a.jsonl:1: chosen and rejected are the same; there is nothing to prefer.",
        "preference",
    ),
    "a preference of one reply": (
        "a.jsonl",
        b'{"prompt": "Hi", "chosen": "x", "rejected": null}',
        "a.jsonl:1: the record is a prompt (format prompt), and here preferences are learned.",
        "preference",
    ),
    "a preference for the worse": (
        "a.jsonl",
        b'{"prompt": "Hi", "chosen": "x", "rejected": "y", "score_chosen": 1, "score_rejected": 2}',
        "a.jsonl:1: score_chosen is less than score_rejected; the chosen reply is the better one.",
        "preference",
    ),
    "a label that is a word": (
        "a.jsonl",
        b'{"instruction": "Hi", "output": "x", "kto_tag": "good"}',
        "a.jsonl:1: kto_tag is the text 'good'; it must be true or false.",
        "unpaired",
    ),
    "a prompt that has its reply": (
        "a.jsonl",
        talk("user", "assistant").replace(b"messages", b"prompt"),
        "a.jsonl:1: the prompt ends with a message of the role assistant; a user or tool message asks for a reply.",
        "prompt",
    ),
    "a single reply to rank": (
        "a.jsonl",
        b'{"input": "Hi", "output": ["x"]}',
        "a.jsonl:1: output is a list of 1; there is nothing to rank below two replies.",
        "ranking",
    ),
    "images": ("a.jsonl", b'{"instruction": "Hi", "output": "x", "images": ["a.png"]}', "a.jsonl:1: images"),
    # tables
    "a table without rows": ("a.csv", b"input,output\n", "a.csv holds no records."),
    "unknown columns": (
        "a.csv",
        b"question,answer\nHi,Hello!\n",
        "a.csv:2: no data format has the keys 'question', 'answer'.",
    ),
    "a short row": (
        "a.csv",
        b"input,output\nHi,Hello!\nHi\n",
        "a.csv:3: the row has 1 cell; the first row names 2.",
    ),
    "a long row": (
        "a.csv",
        b"input,output\nHi,Hello, you!\n",
        "a.csv:2: the row has 3 cells; the first row names 2.",
    ),
    "a column twice": (
        "a.csv",
        b"input,output,input\n",
        "a.csv:1: two columns are called 'input'; rename or remove one.",
    ),
    "a column without a name": (
        "a.csv",
        b",input,output\n0,Hi,Hello!\n",
        "a.csv:1: column 1 has no name; the first row names every column. If",
    ),
    "semicolons in a CSV file": (
        "a.csv",
        b"input;output\nHi;Hello!\n",
        "a.csv:1: the first row is one column, 'input;output'; its cells are separated by ';'",
    ),
    "commas in a TSV file": (
        "a.tsv",
        b"input,output\nHi,Hello!\n",
        "a.tsv:1: the first row is one column, 'input,output'; its cells are separated by ','",
    ),
    "tabs in a CSV file": ("a.csv", b"input\toutput\nHi\tHello!\n", r"and this file's must be by ','. Call it .tsv."),
    "a quote that never closes": (
        "a.csv",
        b'input,output\nHi,Hello!\nHi,"Hello!\nHi,Hello!\n',
        "a.csv:3: a quote opens in this row and is never closed",
    ),
    "more behind a quote": (
        "a.csv",
        b'input,output\n"Hi" there,Hello!\n',
        "a.csv:2: more follows a closing quote; write a quote within a cell twice.",
    ),
    "carriage returns alone": (
        "a.csv",
        b"input,output\rHi,Hello!\r",
        "a.csv:1: a carriage return stands without a line feed",
    ),
    "Latin-1 in a table": ("a.csv", b'input,output\n"\n",\xe9\n', "a.csv:3: byte 17 of the file (0xe9) is not UTF-8"),
    "a NUL in a table": ("a.csv", b"input,output\nHi,\0\n", "a.csv:2: byte 16 of the file is NUL"),
    "an empty cell": ("a.csv", b"input,output\nHi,\n", "a.csv:2: output is empty; there is no reply to learn."),
    "a cell that is no JSON": (
        "a.csv",
        b"messages\n\"[{'role': 'user'}]\"\n",
        "a.csv:2: the cell messages is not valid JSON at column 3",
    ),
    "JSON called a table": (
        "a.csv",
        b"[" + GOOD + b"]",
        "a.csv:1: it starts with '[': it is JSON, not a table; call it .jsonl.",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_refused_with_its_place_and_cause_and_nothing_is_written(plugins, write, tmp_path, case):
    name, content, words, *kind = case
    message = refusal(plugins, write(name, content), kind=kind[0] if kind else "conversation")
    assert words in message
    assert name in message
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, content)]


@pytest.mark.parametrize("length", range(1, len(GOOD)))
def test_a_record_that_is_cut_anywhere_is_reported_where_it_ends(plugins, write, length):
    name = write("a.jsonl", GOOD + b"\n" + GOOD[:length] + b"\r\n")
    column = len(GOOD[:length].rstrip()) + 1
    if length == 1:  # a brace alone may be the first of several lines
        column = 2
    assert f"a.jsonl:2: not valid JSON at column {column}: it ends in the middle" in refusal(plugins, name)


# What resembles the bad ones and is good

HI = '{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}'
ROW = b"Hi,Hello!"
TWINS = {
    "a mark": ("a.jsonl", b"\xef\xbb\xbf" + GOOD),
    "a mark in an array": ("a.json", b"\xef\xbb\xbf[" + GOOD + b"]"),
    "CRLF": ("a.jsonl", GOOD + b"\r\n"),
    "CRLF in an array": ("a.json", b"[\r\n" + GOOD + b"\r\n]\r\n"),
    "blank lines": ("a.jsonl", b"\n \t\r\n" + GOOD + b"\n\n\n"),
    "no line end": ("a.jsonl", GOOD),
    "blanks around": ("a.json", b" \n\t[ " + GOOD + b" ]\n "),
    "an escaped pair of surrogates": ("a.jsonl", rb'{"input": "Hi", "output": "Hello!", "note": "\ud83d\ude42"}'),
    "an emoji": ("a.jsonl", '{"input": "Hi", "output": "Hello!", "note": "🙂"}'.encode()),
    "a text about NUL": ("a.jsonl", rb'{"input": "Hi", "output": "Hello!", "note": "\\u0000"}'),
    "an escaped line end": ("a.jsonl", rb'{"input": "Hi", "output": "Hello!", "note": "\n\t"}'),
    "a separator that ends no line": ("a.jsonl", b'{"note": "\xe2\x80\xa8\xc2\x85", ' + GOOD[1:]),
    "a mark within a text": ("a.jsonl", b'{"note": "\xef\xbb\xbf", ' + GOOD[1:]),
    "the replacement character": ("a.jsonl", b'{"note": "\xef\xbf\xbd", ' + GOOD[1:]),
    "a text called NaN": ("a.jsonl", b'{"note": "NaN", ' + GOOD[1:]),
    "null in a note": ("a.jsonl", b'{"note": null, ' + GOOD[1:]),
    "a large number in a note": ("a.jsonl", b'{"note": 1e300, ' + GOOD[1:]),
    "one key in two objects": ("a.jsonl", b'{"note": {"input": 1}, ' + GOOD[1:]),
    "the same keys in both cases": ("a.jsonl", b'{"Input": "x", ' + GOOD[1:]),
    "empty media": ("a.jsonl", b'{"images": [], "tools": [], ' + GOOD[1:]),
    "a null system message": ("a.jsonl", b'{"system": null, ' + GOOD[1:]),
    "an empty system message": ("a.jsonl", b'{"system": "", ' + GOOD[1:]),
    "a null input": ("a.jsonl", b'{"instruction": "Hi", "input": null, "output": "Hello!"}'),
    "no input": ("a.jsonl", b'{"instruction": "Hi", "output": "Hello!"}'),
    "an empty history": ("a.jsonl", b'{"instruction": "Hi", "output": "Hello!", "history": []}'),
    "messages": ("a.jsonl", f'{{"messages": [{HI}]}}'.encode()),
    "ShareGPT with roles": ("a.jsonl", f'{{"conversations": [{HI}]}}'.encode()),
    "parts of text": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},'
        b' {"role": "assistant", "content": "Hello!"}]}',
    ),
    "a text that spells a special token": (
        "a.jsonl",
        b'{"note": "<|im_end|>", ' + GOOD[1:],
    ),
    "keys of nobody": ("a.jsonl", b'{"id": 7, "source": "x", "date": {"year": 2024}, ' + GOOD[1:]),
    "a label that is a class": ("a.jsonl", b'{"label": "greeting", ' + GOOD[1:]),
    "OpenAI's keys that say nothing": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": "Hello!",'
        b' "refusal": null, "audio": null, "tool_calls": null}], "parallel_tool_calls": false}',
    ),
    "one record over several lines": ("a.json", b'{\n"input": "Hi",\n"output": "Hello!"\n}'),
    "one record in an array": ("a.json", b"[" + GOOD + b"]"),
    "LMFlow": ("a.json", b'{"type": "text2text", "instances": [' + GOOD + b"]}"),
    "gzip": ("a.jsonl.gz", gzip.compress(GOOD)),
    "gzip with zeros behind it": ("a.jsonl.gz", gzip.compress(GOOD) + b"\0" * 64),
    "gzip in two members": ("a.jsonl.gz", gzip.compress(GOOD[:9]) + gzip.compress(GOOD[9:])),
    "a table": ("a.csv", b"input,output\n" + ROW),
    "a table with a mark": ("a.csv", b"\xef\xbb\xbfinput,output\n" + ROW),
    "a table with CRLF": ("a.csv", b"input,output\r\n" + ROW + b"\r\n"),
    "a table with blank lines": ("a.csv", b"\ninput,output\n\n" + ROW + b"\n\n"),
    "a quoted table": ("a.csv", b'"input","output"\n"Hi","Hello!"\n'),
    "a table with tabs": ("a.tsv", b"input\toutput\nHi\tHello!\n"),
    "an empty cell that may be": ("a.csv", b"instruction,input,output,history\nHi,,Hello!,\n"),
    "a packed table": ("a.csv.gz", gzip.compress(b"input,output\n" + ROW)),
}


@pytest.mark.parametrize(("name", "content"), TWINS.values(), ids=TWINS)
def test_a_good_file_is_not_refused_for_what_it_resembles(plugins, write, name, content):
    assert [record.data for record in read([write(name, content)], "conversation", plugins).records] == [SAID]


def test_there_are_enough_of_both():
    assert len(REFUSED) >= 150
    assert len(TWINS) >= 31


# Packed by Zstandard


@pytest.fixture
def zstd():
    return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True)


@pytest.mark.parametrize("cut", [1, 4, 5, 9, 40, 60, 100])
def test_a_zstandard_file_that_is_cut_is_refused(plugins, write, zstd, cut):
    packed = zstd.compress(os.urandom(100).hex().encode())[:-cut]
    message = refusal(plugins, write("a.txt.zst", packed), kind="text")
    assert message == "a.txt.zst is cut: its Zstandard data end too early; fetch it again."


def test_a_damaged_zstandard_file_is_refused(plugins, write, zstd):
    packed = bytearray(zstd.compress(GOOD * 3))
    packed[-1] ^= 1
    message = refusal(plugins, write("a.jsonl.zst", bytes(packed)))
    assert message.startswith("a.jsonl.zst holds damaged Zstandard data (")
    assert "doesn't match checksum" in message
    garbage = zstd.compress(GOOD) + b"more"
    assert "a.jsonl.zst holds damaged Zstandard data (" in refusal(plugins, write("a.jsonl.zst", garbage))


def test_what_is_packed_twice_or_is_empty_inside_is_refused(plugins, write, zstd):
    twice = zstd.compress(zstd.compress(GOOD))
    assert refusal(plugins, write("a.jsonl.zst", twice)) == "a.jsonl.zst is packed by Zstandard twice; unpack it once."
    assert refusal(plugins, write("b.jsonl.zst", zstd.compress(b""))) == "b.jsonl.zst is empty."
    other = zstd.compress(gzip.compress(GOOD))
    assert refusal(plugins, write("c.jsonl.zst", other)) == "c.jsonl.zst is gzip data but is not called .gz; rename it."


# What is no file


def test_a_file_that_may_not_be_read_is_refused(plugins, write):
    Path(write("a.jsonl", GOOD)).chmod(0)
    if os.access("a.jsonl", os.R_OK):
        pytest.skip("this user may read every file; run the tests as another than root")
    assert refusal(plugins, "a.jsonl") == "a.jsonl cannot be read: Permission denied."


def test_what_is_no_file_is_refused_without_waiting(plugins, write, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    Path(write("d/a.jsonl", GOOD))
    os.mkfifo(tmp_path / "d/pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "gone.jsonl").symlink_to("nowhere.jsonl")
    (tmp_path / "round.jsonl").symlink_to("round.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert refusal(plugins, str(tmp_path / "pipe.jsonl")) == f"{tmp_path}/pipe.jsonl is not a file."
    for name in ("d", "d/*.jsonl"):
        assert refusal(plugins, name) == "d/pipe.jsonl is not a file."
    assert refusal(plugins, str(tmp_path / "zero.jsonl")) == f"{tmp_path}/zero.jsonl is not a file."
    assert "folder.jsonl holds no data files" in refusal(plugins, str(tmp_path / "folder.jsonl"))
    assert "No file, folder or data set is called" in refusal(plugins, str(tmp_path / "gone.jsonl"))
    assert "round.jsonl" in refusal(plugins, str(tmp_path / "round.jsonl"))


# All problems at once


def test_conversations_are_refused_where_texts_are_learned(plugins, write):
    message = refusal(plugins, write("a.jsonl", GOOD), kind="text")
    assert message == (
        "a.jsonl:1: the record is a conversation (format text2text), and here texts are learned.\n"
        "What learns from conversations: `lmf train`."
    )


def test_without_an_objective_that_fits_the_error_says_so(write):
    message = refusal(Plugins(only=()), write("a.jsonl", GOOD), kind="text")
    assert "What learns from conversations: no installed objective." in message


def test_all_bad_records_are_counted_and_the_first_twenty_are_shown(plugins, write):
    good = b"\n".join([BAD, GOOD] * 18)
    names = [write("a.jsonl", good), write("b.json", b"[" + BAD + b",\n\n" + BAD), write("c.jsonl", b"")]
    first = [f"a.jsonl:{line}: {CAUSE}" for line in range(1, 37, 2)]
    assert refusal(plugins, *names).splitlines() == [
        "22 problems in the data; the first 20:",
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


# Size and chance


def test_the_last_of_100_000_lines_is_reported_in_time(plugins, write):
    name = write("a.jsonl", (GOOD + b"\n") * 99_999 + BAD)
    start = time.process_time()
    message = refusal(plugins, name)
    assert message == f"a.jsonl:100000: {CAUSE}"
    assert time.process_time() - start < 6  # seconds, a minute for a million; measured: 1.3


@pytest.mark.parametrize("form", ["%s\n%s", "[%s,\n%s]"], ids=["jsonl", "json"])
def test_a_line_of_50_mb_is_read_and_one_like_it_refused(plugins, write, form):
    name = "a.json" if form[0] == "[" else "a.jsonl"
    long = json.dumps({"input": "Hi", "output": "é" * 25_000_000}, ensure_ascii=False)
    data = read([write(name, (form % (long, GOOD.decode())).encode())], "conversation", plugins)
    assert [len(record.data.messages[1].content) for record in data.records] == [25_000_000, 6]
    assert data.records[1].where.endswith(":2")
    message = refusal(plugins, write(name, (form % (GOOD.decode(), long[:-1])).encode()))
    assert f"{name}:2: not valid JSON at column" in message
    assert len(message) < 500


def test_only_what_is_needed_of_a_json_file_is_in_memory(write, monkeypatch):
    size = 4 * 2**20
    monkeypatch.setattr(textfile, "PIECE", 2**16)
    line = GOOD.replace(b"Hi", b"Hi" * 500)
    path = Path(write("a.json", b'{"type": "text2text", "instances": [' + (line + b",\n") * (size // len(line)) + line))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"^a\.json:\d+: not valid JSON at column \d+: it ends in the middle"):
        for _ in read_json(path, lambda line, problem: None):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 8


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_what_a_file_is_and_what_is_wrong_with_it_does_not_depend_on_the_pieces_it_is_read_in(
    plugins, write, monkeypatch, size
):
    def outcome(name, content, kind="conversation"):
        try:
            data = read([write(name, content)], kind, plugins)
        except DataError as error:
            return str(error)
        return [(record.where, record.data) for record in data.records]

    cases = [(name, content, *kind) for name, content, _, *kind in REFUSED.values()]
    cases += [*TWINS.values(), *FILES]
    cases = [case for case in cases if case[0].endswith((".json", ".txt", ".md")) and len(case[1]) < 10_000]
    assert len(cases) > 50
    whole = [outcome(*case) for case in cases]
    monkeypatch.setattr(textfile, "PIECE", size)
    for case, expected in zip(cases, whole, strict=True):
        assert outcome(*case) == expected


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


FILES = [  # name, content, kind
    ("a.json", b'{"type": "text2text", "instances": [' + SEEDS[3] + b",\n" + SEEDS[3] + b"]}", "conversation"),
    ("a.json", SEEDS[0], "conversation"),
    ("a.txt", b"Once.", "text"),
    ("a.csv", b'input,output\r\nHi,"Hel\n""lo""!"\n\n\xc3\xa9,x', "conversation"),
    ("a.tsv", b'history\tinstruction\toutput\n[["a", "b"]]\tHi\tHello!\n', "conversation"),
    *(
        (f"a.{form}", content, kind)
        for kind, seeds in {"conversation": SEEDS[:4], "text": SEEDS[4:]}.items()
        for seed in seeds
        for form, content in {
            "jsonl": seed + b"\n" + seed + b"\r\n",
            "json": b"[" + seed + b",\n" + seed + b"]",
        }.items()
    ),
]


def packed(name, content, chance):
    """The file, packed by gzip or Zstandard."""
    zstandard = pytest.importorskip("zstandard")
    return chance.choice([(f"{name}.gz", gzip.compress(content)), (f"{name}.zst", zstandard.compress(content))])


def fuzz(rounds, folder, seed=0):
    """Read damaged files; each gives records that are whole, or a refusal that names the file, and neither takes long.

    Returns:
        How many were read, how many were refused, and the longest time in seconds.
    """
    chance, plugins = random.Random(seed), core_plugins()
    count, longest = {"read": 0, "refused": 0}, 0.0
    for _ in range(rounds):
        name, content, kind = chance.choice(FILES)
        content = mutated(content, chance)
        if chance.random() < 0.1:
            name, content = packed(name, content, chance)
            content = mutated(content, chance) if chance.random() < 0.5 else content
        path = folder / name
        path.write_bytes(content)
        on_bad_record = chance.choice(("error", "skip"))
        start = time.perf_counter()
        try:
            data = read([str(path)], kind, plugins, on_bad_record=on_bad_record)
        except DataError as error:
            count["refused"] += 1
            assert str(path) in str(error), content
        else:
            count["read"] += 1
            for record in data.records:
                check(record, kind)
        longest = max(longest, time.perf_counter() - start)
    return count["read"], count["refused"], longest


def test_no_file_however_damaged_gives_another_error_or_a_broken_record_or_hangs(tmp_path):
    good, refused, longest = fuzz(4_000, tmp_path)
    assert min(good, refused) > 400
    assert longest < 2  # seconds


def check(record, kind):
    """What every record that was read must be: Unicode text, with the assistant's word last."""
    texts = [record.data] if kind == "text" else [message.content for message in record.data.messages]
    for text in texts:
        assert text.encode("utf-8").decode("utf-8") == text
    if kind == "conversation":
        roles = [message.role for message in record.data.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message.content.strip() for message in record.data.messages if message.role == "assistant")
