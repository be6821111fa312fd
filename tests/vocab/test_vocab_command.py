"""The commands of ``lmf vocab``: what they write, what they say, and what they refuse before they write anything."""

import base64
import json
import re

import pytest
import sentencepiece
from lmf.testing import tiny_checkpoint
from lmf_vocab.corpus import clean
from terminal import lmf, lmf_without_torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

TEXTS = [
    "가나다 라마 가나다 라마바 사아자 차카타 파하 거너더",
    "라마 바사 가나다 the user say hello",
    "바사바사 가나 hello",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("base") / "tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("data") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS))
    return str(file)


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("data") / "empty.jsonl"
    file.write_text('{"text": "  \\n "}\n')
    return str(file)


@pytest.fixture(scope="module")
def blank(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("data") / "blank.jsonl"
    file.write_text('{"text": "\\u0007"}\n')
    return str(file)


def done(*args: object, code: int = 0) -> str:
    """Run ``lmf vocab`` and return what it says, or why it refuses."""
    found = lmf("vocab", *map(str, args))
    assert found.code == code, found.err or found.out
    if code:
        assert found.out == "" or code == 1, found.out
    return found.err if code else found.out


# corpus


def test_a_corpus_has_every_text_once_and_clean(tmp_path):
    talk = {
        "messages": [{"role": "user", "content": "e\u0301a\x07b  \r\n\r\nc"}, {"role": "assistant", "content": "Hi"}]
    }
    lines = [talk, {"text": "Hi"}, {"text": "\x07"}, {"text": "q\x1b[0m"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    told = done("corpus", tmp_path / "out.jsonl", "--data", tmp_path / "in.jsonl")
    texts = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert texts == ["éab\nc", "Hi", "q[0m"]
    assert told.startswith("3 texts of 4 records, 11 characters; 1 repeated and 1 empty ones are left out\n")
    done("corpus", tmp_path / "out.txt", "--data", tmp_path / "out.jsonl")
    assert (tmp_path / "out.txt").read_text() == "éab\nc\n\nHi\n\nq[0m\n"


def test_what_ends_a_line_parts_words_and_what_is_composed_is_composed_at_last():
    assert clean("one\ftwo\x85three\u2028four") == "one\ntwo\nthree\nfour"
    assert clean("e\x01\u0301") == "é"


def test_clean_text_stays_as_it_is():
    for text in ("a\tb", "가나다", "👩‍👩‍👧", "a\n  b"):
        assert clean(text) == text


# train


@pytest.mark.parametrize("kind", ["sentencepiece-bpe", "sentencepiece-unigram"])
def test_a_trained_model_of_sentencepiece_is_as_it_was_asked_for(kind, tmp_path):
    settings = ("--kind", kind, "--size", 1500, "--user-symbols", "0,%", "--max-piece-length", 3, "--seed", 7)
    for name in ("one", "two"):
        done("train", tmp_path / f"{name}.model", "--data", "korean", *settings)
    assert (tmp_path / "one.model").read_bytes() == (tmp_path / "two.model").read_bytes()
    made = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "one.model"))
    pieces = [made.id_to_piece(id) for id in range(made.vocab_size())]
    assert len(pieces) == 1500 and {"0", "%"} <= set(pieces)
    assert max(len(piece) for piece in pieces if not re.fullmatch("<.*>", piece)) == 3
    assert made.decode(made.encode("한국어 문장 ☃ 12")) == "한국어 문장 ☃ 12"


def test_a_trained_vocabulary_of_bytes_is_a_tokenizer_json(tmp_path):
    done("train", tmp_path / "new.json", "--data", "korean", "--size", 600)
    found = json.loads((tmp_path / "new.json").read_text())
    assert len(found["model"]["vocab"]) == 600


@pytest.mark.parametrize("kind", ["sentencepiece-bpe", "sentencepiece-unigram"])
def test_long_lines_are_learned_from(kind, tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"text": "가나다라 마바사 아자차카 " * 800}, ensure_ascii=False) + "\n")
    done("train", tmp_path / "new.model", "--data", file, "--kind", kind, "--size", 271)
    made = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "new.model"))
    assert "가" in "".join(made.id_to_piece(id) for id in range(271))


def test_user_symbols_are_whole_pieces_after_they_are_merged(base, data, tmp_path):
    done("train", tmp_path / "new.json", "--data", data, "--size", 280, "--user-symbols", "안녕,zz")
    done("merge", base, tmp_path / "new.json", tmp_path / "merged")
    cut = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert [len(cut.tokenize(text)) for text in ("안녕", "zz")] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("new.json", "--size", "9000"), r"--size 9000: the corpus has room for at most \d+ pieces\."),
        (
            ("new.model", "--kind", "sentencepiece-bpe", "--size", "9000"),
            r"--size 9000: the corpus has room for at most \d+ pieces\.",
        ),
        (
            ("new.model", "--kind", "sentencepiece-unigram", "--size", "300"),
            r"--size 300: the corpus has room for at most|--size 300: single characters and bytes need \d+ pieces",
        ),
        (
            ("new.model", "--kind", "sentencepiece-bpe", "--size", "20"),
            r"--size 20: single characters and bytes need \d+ pieces; give a larger --size or a smaller --coverage\.",
        ),
        (("new.json", "--size", "100"), r"--size 100: single bytes and --user-symbols need 256 pieces\."),
        (("new.json", "--kind", "sentencepiece-bpe"), r"must end in \.model, as --kind sentencepiece-bpe writes it\."),
        (("new.json", "--size", "1"), r"--size is 1; it must be at least 2\."),
        (("new.json", "--coverage", "1.5"), r"--coverage is 1\.5; it must be at most 1"),
        (("new.json", "--kind", "wordpiece"), r"--kind is 'wordpiece'"),
    ],
)
def test_training_that_cannot_be_says_what_is_possible(arguments, told, data, tmp_path):
    name, *rest = arguments
    assert re.search(told, done("train", tmp_path / name, "--data", data, *rest, code=2))
    assert list(tmp_path.iterdir()) == []


def test_what_is_possible_is_possible(data, tmp_path):
    told = done("train", tmp_path / "new.json", "--data", data, "--size", 9000, code=2)
    most = re.search(r"at most (\d+)", told)[1]
    done("train", tmp_path / "new.json", "--data", data, "--size", most)


@pytest.mark.parametrize("command", ["corpus", "train", "extend", "prune", "report"])
def test_a_corpus_without_text_is_refused(command, base, empty, blank, tmp_path):
    out = tmp_path / ("out.jsonl" if command == "corpus" else "out.json" if command == "train" else "out")
    names = {"corpus": [out], "train": [out], "extend": [base, out], "prune": [base, out], "report": [base, base]}
    told = f"{empty}:1: text is empty; there is nothing to learn."
    assert told in done(command, *names[command], "--data", empty, code=4)
    if command == "corpus":
        assert f"{blank} holds no text." in done(command, out, "--data", blank, code=4)
    assert list(tmp_path.iterdir()) == []


# extend, merge, add-merges, prune, check


def test_new_pieces_are_merged_checked_reported_and_pruned(base, data, tmp_path):
    done("train", tmp_path / "new.json", "--data", data, "--size", 280)
    told = done("merge", base, tmp_path / "new.json", tmp_path / "merged")
    assert re.search(r"24 pieces: \d+ were there, 0 are never asked for, 0 would change old text", told)
    table = done("report", base, tmp_path / "merged", "--data", data)
    assert re.search(r"\| tokens \| \d+ \| \d+ \| [\d.]+ times fewer \|", table)
    checked = done("check", tmp_path / "merged", "--base", base, "--count", 500, "--data", data)
    assert checked.count(": 0\n") == 4 and checked.endswith("500 texts tried\n")
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps({"text": TEXTS[2]}) + "\n")
    done("prune", tmp_path / "merged", tmp_path / "pruned", "--base", base, "--data", few)
    sizes = [len(AutoTokenizer.from_pretrained(each)) for each in (base, tmp_path / "pruned", tmp_path / "merged")]
    assert sizes[0] < sizes[1] < sizes[2]
    cut = [
        AutoTokenizer.from_pretrained(each).tokenize(TEXTS[2]) for each in (tmp_path / "pruned", tmp_path / "merged")
    ]
    assert cut[0] == cut[1]
    assert done("check", tmp_path / "pruned", "--base", base, "--count", 500).count(": 0\n") == 4


def test_extending_says_how_many_pieces_the_text_has_room_for(base, data, tmp_path):
    told = done("extend", base, tmp_path / "out", "--data", data, "--pieces", 4000)
    found = re.search(r"the text has room for (\d+) pieces that occur 2 times, not 4,000", told)
    assert f"{found[1]} new pieces, ids 300 to {299 + int(found[1])}\n" in told


def test_words_of_a_list_become_one_piece(base, tmp_path):
    (tmp_path / "words.txt").write_text("가나다\t3\nbanana\n\n", encoding="utf-8")
    told = done("add-merges", base, tmp_path / "words.txt", tmp_path / "out")
    assert "4 of 4 words are one piece\n" in told
    cut = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [len(cut.tokenize(text)) for text in ("가나다", " 가나다", "banana", " banana", " banana banana")] == [
        1,
        1,
        1,
        1,
        2,
    ]
    done("add-merges", base, tmp_path / "words.txt", tmp_path / "bare", "--after", "nothing")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "bare").tokenize(" banana")) == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "lists no words."),
        ("a\tb\n", "words.txt:1: 'b' stands behind the tab; it must be how often the word occurs."),
        ("a\n\t3\n", "words.txt:2: there is no word before the tab."),
        (b"\xff\xfe", "words.txt cannot be read:"),
    ],
)
def test_a_list_of_words_that_is_none_is_refused(content, told, base, tmp_path):
    (tmp_path / "words.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert told in done("add-merges", base, tmp_path / "words.txt", tmp_path / "out", code=4)
    assert not (tmp_path / "out").exists()


def test_words_with_a_special_token_in_them_are_refused(base, tmp_path):
    (tmp_path / "words.txt").write_text("x<|im_end|>\n")
    told = done("add-merges", base, tmp_path / "words.txt", tmp_path / "out", code=2)
    assert "The piece 'x<|im_end|>' contains the special token '<|im_end|>' of the base" in told


def test_text_of_special_tokens_makes_no_pieces(base, tmp_path):
    file = tmp_path / "special.jsonl"
    file.write_text((json.dumps({"text": "hello <|im_end|><|im_end|> hello 가나 가나"}) + "\n") * 1)
    done("extend", base, tmp_path / "out", "--data", file)
    added = sorted(AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab().items(), key=lambda item: item[1])[300:]
    assert added and not any("<" in piece or "im" in piece or "end" in piece for piece, _ in added)


def test_a_file_of_tiktoken_that_lmf_does_not_know_is_extended_and_checked(tmp_path):
    base = tmp_path / "base.tiktoken"
    base.write_text("".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)))
    how = ("--pattern", r"\s+|\S+", "--first-id", 300)
    done("extend", base, tmp_path / "out", "--data", "korean", "--pieces", 50, *how)
    checked = done("check", tmp_path / "out/base.tiktoken", "--base", base, "--data", "korean", "--count", 500, *how)
    assert checked.count(": 0\n") == 4


@pytest.mark.parametrize(
    ("pattern", "told"),
    [("(", "is no regular expression"), (r"\p{L}+", "leaves parts of text out, which would be lost.")],
)
def test_a_pattern_that_does_not_cut_text_is_refused(pattern, told, tmp_path):
    (tmp_path / "x.tiktoken").write_text("YQ== 0\nYg== 1\n")
    how = ("--pattern", pattern, "--first-id", 2)
    assert told in done("extend", tmp_path / "x.tiktoken", tmp_path / "out", "--data", "korean", *how, code=2)


def test_a_tokenizer_that_marks_parts_of_words_gives_no_pieces(base, tmp_path):
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "he": 1, "##llo": 2}, unk_token="[UNK]"))
    made.save(str(tmp_path / "new.json"))
    told = done("merge", base, tmp_path / "new.json", tmp_path / "out", code=2)
    assert "marks the parts of words (##): its pieces are no texts." in told


def test_pruning_keeps_a_base_only_if_it_is_one(base, data, smollm2, tmp_path):
    told = done("prune", base, tmp_path / "out", "--data", data, "--base", smollm2, code=2)
    assert f"--base {smollm2} is no base of {base}" in told and not (tmp_path / "out").exists()


def test_a_faulty_tokenizer_is_found_out(base, tmp_path):
    done("extend", base, tmp_path / "out", "--data", "korean", "--pieces", 50)
    old = tmp_path / "old.jsonl"
    old.write_text(json.dumps({"text": "the user and the assistant say hello"}) + "\n")
    check = ("check", str(tmp_path / "out"), "--base", base, "--data", str(old))
    file = tmp_path / "out/tokenizer.json"
    found = json.loads(file.read_text())
    merges = found["model"]["merges"]
    found["model"]["merges"] = merges[1:]
    file.write_text(json.dumps(found))
    told = lmf("vocab", *check)
    assert told.code == 1 and re.search(r"old text has other ids: [1-9]", told.out)
    assert re.search(r"has [\d,]+ faults", told.err)
    found["model"]["merges"] = merges
    found["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(found))
    told = lmf("vocab", *check)
    assert told.code == 1 and re.search(r"decoding gives another text: [1-9]", told.out)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("merge BASE nothere.model OUT", "nothere.model"),
        ("merge nothere NEW OUT", "nothere"),
        ("merge BASE BASE OUT", "There is nothing to add:"),
        ("merge BASE WEIGHTS OUT", "is neither a model of sentencepiece nor a file of tiktoken."),
        ("merge BASE CONFIG OUT", "is not a tokenizer.json"),
        ("merge BASE EMPTY OUT", "has neither tokenizer.json nor a .model or .tiktoken file."),
        ("extend BASE BASE --data DATA", "exists; name a place for something new."),
        (
            "extend BASE OUT --data DATA --pattern x",
            "--pattern and --first-id are of tiktoken files, and BASE is none.",
        ),
        ("extend BASE OUT --data nothere.jsonl", "nothere.jsonl"),
        ("extend BASE OUT --data DATA --pieces 0", "--pieces is 0; it must be at least 1."),
        ("extend RANKS OUT --data DATA", "has 2 pieces, and lmf knows files of 128,000, 151,643, 100,256, 199,998."),
        ("extend RANKS OUT --data DATA --pattern . --first-id 1", "--first-id is 1, and RANKS has the id 1 itself."),
        ("extend CONFIG OUT --data DATA", "is no file of tiktoken"),
        ("prune RANKS OUT --data DATA", "lmf knows files of"),
        ("corpus OUT --data DATA", "must end in .jsonl or .txt."),
        ("check BASE --count 0", "--count is 0; it must be at least 1."),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(line, told, base, data, tmp_path):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "x.tiktoken").write_text("YQ== 0\nYg== 1\n")
    names = {
        **{"BASE": base, "DATA": data, "OUT": str(tmp_path / "out"), "NEW": base, "EMPTY": str(tmp_path / "EMPTY")},
        **{
            "WEIGHTS": f"{base}/model.safetensors",
            "CONFIG": f"{base}/config.json",
            "RANKS": str(tmp_path / "x.tiktoken"),
        },
    }
    found = lmf("vocab", *(names.get(word, word) for word in line.split()))
    assert found.code in (1, 2, 3, 4) and "Traceback" not in found.err
    for name, value in names.items():
        told = told.replace(name, value)
    assert told in found.err, found.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["EMPTY", "x.tiktoken"]


def test_help_needs_neither_torch_nor_tokenizers():
    for command in ("", "corpus", "train", "merge", "extend", "add-merges", "prune", "check", "apply", "report"):
        found = lmf_without_torch("vocab", *command.split(), "--help")
        assert found.code == 0 and "lmf vocab" in found.out
