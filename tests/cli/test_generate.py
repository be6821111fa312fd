"""``lmf generate``: replies to one message, and a file of replies that goes on where it stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lmf import Opening, Plugins, Sampling
from lmf.journal import journal
from lmf_cli.batch import Asking, Filing, Order
from terminal import lmf, lmf_without_torch, tree

RECORDS = [{"prompt": f"Say {number}.", "tools": []} for number in range(12)]
TALKS = [{"messages": [{"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong!"}]}]


@pytest.fixture
def here(tiny, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny)
    put("in.jsonl", RECORDS)
    return tmp_path


def put(name: str, records: list) -> None:
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))


def get(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def generate(*more: str, out: str = "out.jsonl", data: str = "in.jsonl"):
    return lmf("generate", "./model", "--template", "chatml", "--max-tokens", "5", "--in", data, "--out", out, *more)


DRAWN = ("--temperature", "1", "--seed", "3", "--n", "2")


def test_each_record_gets_its_replies_and_stays_as_it_is(here):
    done = generate(*DRAWN)
    assert (done.code, done.out) == (0, "out.jsonl: 12 records\n")
    found = get("out.jsonl")
    assert [{key: value for key, value in each.items() if key != "replies"} for each in found] == RECORDS
    assert all(len(each["replies"]) == 2 for each in found)
    assert len({reply["text"] for each in found for reply in each["replies"]}) == 24
    assert {(reply["finish"], reply["tokens"]) for each in found for reply in each["replies"]} == {("length", 5)}
    assert not list(here.glob("*partial*"))


def test_a_record_is_answered_as_if_it_were_alone(here):
    generate(*DRAWN)
    alone = lmf(
        "generate", "./model", "Say 7.", "--template", "chatml", "--max-tokens", "5", *DRAWN[:2], "--seed", "10"
    )
    assert alone.out == get("out.jsonl")[7]["replies"][0]["text"] + "\n"


def test_the_last_reply_of_a_conversation_is_written_anew(here):
    put("talks.jsonl", TALKS)
    put("asks.jsonl", [{"prompt": "Ping?"}])
    generate(data="talks.jsonl", out="a.jsonl")
    generate(data="asks.jsonl", out="b.jsonl")
    assert get("a.jsonl")[0] == {**TALKS[0], "replies": get("b.jsonl")[0]["replies"]}


def test_log_probabilities_are_those_of_the_model(here):
    import torch
    from lmf.generate.opening import open_model

    generate("--logprobs", "2", "--system", "Be brief.")
    reply = get("out.jsonl")[3]["replies"][0]
    ids = [each["id"] for each in reply["logprobs"]]
    chatter = open_model("./model", Plugins(), "chatml")
    from lmf import Message

    prompt = chatter.ids([Message("system", "Be brief."), Message("user", "Say 3.")])
    with torch.no_grad():
        logits = chatter.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double()
    expected = logits.log_softmax(-1)
    assert [each["logprob"] for each in reply["logprobs"]] == pytest.approx(
        [float(row[id]) for row, id in zip(expected, ids, strict=True)], abs=1e-5
    )
    best = expected.topk(2)
    told = [[other["id"] for other in each["likeliest"]] for each in reply["logprobs"]]
    assert told == best.indices.tolist()
    assert chatter.tokenizer.decode(ids) == "".join(each["token"] for each in reply["logprobs"])


STOPPED = """
import sys
from lmf import journal
count = 0
line = journal.line
def die(value):
    global count
    count += 1
    if count == 7:
        sys.stdout.flush()
        import os
        os._exit(9)
    return line(value)
journal.line = die
import lmf_cli
lmf_cli.main()
"""


def test_what_was_killed_goes_on_where_it_stopped(here):
    generate(*DRAWN)
    command = ["generate", "./model", "--template", "chatml", "--max-tokens", "5", "--in", "in.jsonl"]
    command += ["--out", "again.jsonl", *DRAWN]
    assert subprocess.run([sys.executable, "-c", STOPPED, *command], capture_output=True).returncode == 9
    partial = Path("again.jsonl.partial")
    assert len(partial.read_text().splitlines()) == 6 and not Path("again.jsonl").exists()
    with partial.open("a") as stream:
        stream.write('{"prompt": "Say 5.", "repl')  # cut while it was written
    done = generate(*DRAWN, out="again.jsonl")
    assert "again.jsonl.partial: 5 of 12 are there; going on" in done.err
    assert Path("again.jsonl").read_bytes() == Path("out.jsonl").read_bytes()
    assert not partial.exists()


@pytest.fixture
def begun(here) -> Path:
    """A file of which two of twelve replies are there."""
    order = Order("./model", Asking(), Sampling(max_tokens=5), Opening(template="chatml"), Filing())
    put("out.jsonl.partial", [{"asked": order.settings()}, *({**record, "replies": []} for record in RECORDS[:2])])
    return here / "out.jsonl.partial"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--temperature", "0.7"], "was begun with --temperature 0.0, not 0.7. Give the same to go on, or --force"),
        (["--logprobs", "1"], "was begun with --logprobs None, not 1."),
        (["--system", "x"], "was begun with --system None, not 'x'."),
    ],
)
def test_a_file_goes_on_only_as_it_was_begun(begun, more, told):
    before = begun.read_bytes()
    done = generate(*more)
    assert done.code == 2
    assert told in done.err
    assert begun.read_bytes() == before


def test_a_file_goes_on_only_with_its_own_records(begun):
    before = begun.read_bytes()
    put("in.jsonl", [RECORDS[0], RECORDS[5]])
    assert "was begun with other records, from line 3 on" in generate().err
    put("in.jsonl", RECORDS[:1])
    assert "was begun with other records, from line 3 on" in generate().err
    assert begun.read_bytes() == before


@pytest.mark.parametrize("line", ["[]\n", "{}\n", "nonsense", '{"asked": 3}\n'])
def test_a_file_of_others_is_left_alone(begun, line):
    begun.write_text(line)
    done = generate()
    assert done.code == 1 and "is no file that lmf began" in done.err
    assert begun.read_text() == line


def test_a_damaged_line_is_named(begun):
    text = begun.read_text().splitlines()
    begun.write_text("\n".join([text[0], "{", text[2], ""]))
    assert "out.jsonl.partial:2: not a line that was written here" in generate().err


def test_force_begins_anew(begun):
    assert generate("--force", "--temperature", "0.5").code == 0
    assert all(each["replies"] for each in get("out.jsonl"))


def test_two_processes_do_not_write_one_file(begun):
    with journal(begun, {}):
        done = generate()
    assert done.code == 1 and "is being written by another process" in done.err


def test_a_file_that_is_there_is_not_replaced(here):
    Path("out.jsonl").write_text("mine")
    assert "out.jsonl" in generate().err
    assert Path("out.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([{"prompt": "x", "replies": []}], "in.jsonl:1: the record has a key 'replies' already"),
        ([{"prompt": "Hi"}, {"prompt": "word " * 5000}], "in.jsonl:2: The prompt has "),
        ([{"prompt": "Hi"}, {"text": "Once upon a time"}], "in.jsonl:2: a text asks nothing of a model that talks"),
        ([{"prompt": ""}], "in.jsonl:1: "),
        ([{"question": "x"}], "in.jsonl:1: "),
    ],
    ids=["taken", "long", "text", "empty", "unknown"],
)
def test_a_record_that_cannot_be_asked_is_named_and_nothing_is_written(here, records, told):
    put("in.jsonl", records)
    before = tree(here)
    done = generate()
    assert done.code in (1, 4)
    assert told in done.err
    assert tree(here) == before


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("./model", "Give a PROMPT, or --in with the prompts and --out for the replies."),
        ("./model Hi --in in.jsonl --out out.jsonl", "Give a PROMPT, or --in"),
        ("./model --in in.jsonl", "Give a PROMPT, or --in"),
        ("./model Hi --out out.jsonl", "Give a PROMPT, or --in"),
        ("./model Hi --logprobs 3", "--logprobs and --force are about the file of --out"),
        ("./model --in in.jsonl --out out.csv", "name a .jsonl file"),
        ("./model --in in.jsonl --out nowhere/out.jsonl", "there is no folder nowhere"),
        ("./model --in missing.jsonl --out out.jsonl", "missing.jsonl"),
        ("./model --in in.jsonl --out out.jsonl --n 0", "--n is 0; it must be at least 1."),
        ("./model --in in.jsonl --out out.jsonl --logprobs 21", "--logprobs is 21; it must be at most 20."),
    ],
)
def test_a_wrong_line_is_refused_before_torch_is_loaded(here, line, told):
    before = tree(here)
    done = lmf_without_torch("generate", *line.split())
    assert done.code in (2, 4)
    assert told in done.err
    assert tree(here) == before
