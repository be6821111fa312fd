"""``lmf data check``, ``preview``, ``stats`` and ``count``."""

import json
import re
from pathlib import Path

import pytest
import samples
from terminal import Done, lmf, lmf_without_torch, tree

CHATML = ("--template", "chatml")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    samples.write(tmp_path)
    return tmp_path


def done(*args: str) -> str:
    """What a command of ``lmf data`` prints that succeeds without torch."""
    result = lmf_without_torch("data", *args)
    assert (result.code, result.err) == (0, "")
    return result.out


def with_model(*args: str) -> Done:
    """A command of ``lmf data`` that loads a tokenizer."""
    return lmf("data", *args)


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# check


@pytest.mark.parametrize("name", samples.FILES)
def test_each_of_the_demo_files_is_read_without_a_hint(folder, name):
    records, form = samples.FILES[name]
    assert [f"{name}.json", form, str(len(records))] in rows(done("check", f"{name}.json"))


def test_check_tells_files_formats_and_counts_as_json(folder):
    found = json.loads(done("check", "alpaca_en.json", "kto_en.json", "--json"))
    assert [(each["file"], each["format"], each["records"]) for each in found["files"]] == [
        ("alpaca_en.json", "alpaca", 2),
        ("kto_en.json", "messages-unpaired", 1),
    ]
    assert (found["records"], found["encoded"]) == (3, None)
    assert done("check", "alpaca_en.json", "kto_en.json").endswith("\n3 records, nothing wrong\n")


def test_check_finds_every_problem_of_every_file(folder):
    Path("a.jsonl").write_text(samples.lines(samples.CREPES, {"instruction": "Hi", "output": None}))
    Path("b.jsonl").write_text(samples.lines({"text": ""}) + "{\n")
    result = lmf_without_torch("data", "check", "a.jsonl", "b.jsonl")
    assert (result.code, result.out) == (4, "")
    told = result.err.splitlines()
    assert told[0] == "error: 3 problems in the data:"
    assert told[1] == "a.jsonl:2: output is null; it must be a text."
    assert told[2].startswith("b.jsonl:1: text is empty")
    assert told[3].startswith("b.jsonl:2: ")


def test_check_with_a_model_counts_what_a_run_would_learn(folder, tiny):
    result = with_model("check", "alpaca_en.json", "dpo_en.json", "--model", str(tiny), *CHATML, "--json")
    assert (result.code, result.err) == (0, "")
    survey = json.loads(result.out)["encoded"]
    assert (survey["records"], survey["examples"], survey["ends"]) == (3, 4, 4)  # a pair is two examples
    assert survey["dropped"] == {}


def test_check_with_a_model_refuses_what_a_run_would_and_has_the_flags_that_it_advises(folder, tiny):
    line = ("check", "alpaca_en.json", "--model", str(tiny), *CHATML, "--max-tokens", "60")
    result = with_model(*line)
    assert (result.code, result.out) == (4, "")
    assert result.err.startswith(
        "error: 1 of 2 data examples would be dropped, more than --max-dropped 0.05 allows:\n"
        "  1 longer than --max-tokens 60, first alpaca_en.json:2\n"
    )
    table = rows(with_model(*line, "--max-dropped", "0.5").out)
    assert ["examples", "1"] in table
    assert ["dropped", "1", "(1", "longer", "than", "--max-tokens", "60)"] in table
    assert ["truncated", "1"] in rows(with_model(*line, "--on-overflow", "truncate-left").out)
    assert "1 of 2 data examples are longer than --max-tokens 60" in with_model(*line, "--on-overflow", "error").err


def test_check_reads_a_record_of_several_kinds_as_training_does(folder):
    alpaca = {"instruction": "a", "output": "b", "text": "c"}
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "text": "d"}
    Path("a.jsonl").write_text(samples.lines(alpaca, alpaca))
    Path("b.jsonl").write_text(samples.lines(pair))
    table = rows(done("check", "a.jsonl", "b.jsonl"))
    assert ["a.jsonl", "alpaca", "2"] in table
    assert ["b.jsonl", "preference", "1"] in table
    assert ["a.jsonl", "text", "2"] in rows(done("check", "a.jsonl", "--format", "text"))
    assert json.loads(done("stats", "a.jsonl", "--json"))["formats"] == {"alpaca": 2}


def test_check_refuses_keys_of_two_formats_of_one_kind(folder):
    Path("a.jsonl").write_text(samples.lines({"instruction": "a", "output": "b", "prompt": "a", "completion": "b"}))
    told = lmf_without_torch("data", "check", "a.jsonl")
    assert told.code == 4
    assert "fit the formats lmf-core:alpaca and lmf-core:completion; keep those of one" in told.err


def test_check_shows_the_formats_of_every_kind_as_those_of_records(folder):
    Path("a.jsonl").write_text(samples.lines({"foo": 1}))
    told = lmf_without_torch("data", "check", "a.jsonl").err.splitlines()
    assert told[:2] == ["error: a.jsonl:1: no data format has the keys 'foo'.", "Records come in these formats:"]
    assert {"  alpaca", "  text", "  preference", "  ranking"} <= {line.partition(":")[0] for line in told}


def test_check_names_records_that_a_template_refuses(folder, tiny):
    result = with_model("check", "alpaca_en.json", "glaive_toolcall_en.json", "--model", str(tiny), *CHATML)
    assert (result.code, result.out) == (4, "")
    assert result.err == "error: glaive_toolcall_en.json:2: the template 'chatml' has no place for tools.\n"


def test_texts_and_prompts_are_encoded_without_a_reply_to_learn(folder, tiny):
    Path("text.txt").write_text("the user and the assistant " * 40)
    survey = json.loads(with_model("check", "text.txt", "--model", str(tiny), "--max-tokens", "32", "--json").out)
    assert survey["encoded"]["truncated"] == 1  # a long text is cut up, as `lmf pretrain` does it
    assert survey["encoded"]["dropped"] == {}
    Path("asked.jsonl").write_text(samples.lines({"prompt": "Hi"}))
    assert with_model("check", "asked.jsonl", "--model", str(tiny), *CHATML).code == 0


# preview


def test_preview_shows_the_first_records_and_marks_what_is_learned(folder, tiny):
    result = with_model("preview", "alpaca_en.json", "--model", str(tiny), *CHATML, "-n", "1")
    assert (result.code, result.err) == (0, "")
    legend, blank, title, *text = result.out.splitlines()
    assert (legend, blank) == ("> is learned, [ ] is a control token, ↵ ends a line", "")
    assert title.startswith("alpaca_en.json:2: format alpaca, ")
    assert text == [
        "  [<|im_start|>]user↵",
        "  Describe how to make crepes.[<|im_end|>]↵",
        "  [<|im_start|>]assistant↵",
        "> Whisk flour, eggs and milk.↵",
        "> ↵",
        "> Bake.[<|im_end|>]",
        "  ↵",
    ]


def test_what_a_user_writes_is_never_shown_as_a_control_token(folder, tiny):
    Path("a.jsonl").write_text(samples.lines({"input": "<|im_end|>", "output": "No."}))
    text = with_model("preview", "a.jsonl", "--model", str(tiny), *CHATML).out
    assert "\n  <|im_end|>[<|im_end|>]↵\n" in text


@pytest.mark.parametrize("name", ["alpaca_zh", "kto_en"])
def test_the_tokens_of_a_preview_are_those_of_the_tokenizer(folder, tiny, name):
    from transformers import AutoTokenizer

    text = with_model("preview", f"{name}.json", "--model", str(tiny), *CHATML, "--tokens").out
    ids = [int(id) for row in re.findall(r"^[> ] +([0-9 ]+?)  ", text, re.M) for id in row.split()]
    record = samples.FILES[name][0][0]
    said = record.get("messages") or [
        {"role": "user", "content": f"{record['instruction']}\n{record['input']}"},
        {"role": "assistant", "content": record["output"]},
    ]
    chatml = lmf_without_torch("templates", "show", "chatml", "--jinja").out
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert ids == tokenizer.apply_chat_template(said, chat_template=chatml, return_dict=False)


def test_letters_of_several_tokens_stand_whole(folder, tiny):
    text = with_model("preview", "alpaca_zh.json", "--model", str(tiny), *CHATML, "--tokens").out
    assert '"识"' in text
    assert "\ufffd" not in text


def test_preview_shows_both_replies_of_a_pair(folder, tiny):
    text = with_model("preview", "dpo_en.json", "--model", str(tiny), *CHATML).out
    titles = [line for line in text.splitlines() if "format" in line]
    assert [title.partition(":2 ")[2].partition(",")[0] for title in titles] == [
        "(chosen): format sharegpt-preference",
        "(rejected): format sharegpt-preference",
    ]
    assert "> Hi![<|im_end|>]" in text


def test_on_a_terminal_what_is_learned_has_a_colour(folder, tiny, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    text = with_model("preview", "identity.json", "--model", str(tiny), *CHATML).out
    assert "\x1b[32mHello! I am" in text
    assert "\x1b[1;4m<|im_start|>\x1b[0muser" in text
    assert "[<|im_start|>]" not in text
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[<|im_start|>]" in with_model("preview", "identity.json", "--model", str(tiny), *CHATML).out


def test_what_a_terminal_would_obey_is_escaped(folder, tiny):
    Path("a.jsonl").write_text(samples.lines({"input": "\x1b[2J\r", "output": "a\u202eb"}))
    text = with_model("preview", "a.jsonl", "--model", str(tiny), *CHATML).out
    assert "  \\x1b[2J\\r[<|im_end|>]" in text
    assert "> a\\u202eb[<|im_end|>]" in text


# stats and count


def test_stats_count_formats_roles_turns_and_characters(folder):
    found = json.loads(done("stats", "alpaca_en.json", "dpo_en.json", "glaive_toolcall_en.json", "--json"))
    assert found["records"] == 4
    assert found["formats"] == {"alpaca": 2, "sharegpt-preference": 1, "sharegpt": 1}
    assert {role: each["messages"] for role, each in found["roles"].items()} == {"user": 4, "assistant": 6, "tool": 1}
    users = (samples.CREPES["instruction"], samples.NAMED["instruction"], "Name a game.", "I need a logo.")
    assert found["roles"]["user"]["characters"] == sum(map(len, users))
    assert found["turns"]["max"] == 4
    assert "tokens" not in found


def test_stats_with_a_model_give_percentiles_of_tokens(folder, tiny):
    from transformers import AutoTokenizer

    Path("a.jsonl").write_text(samples.lines(*({"text": "one " * n} for n in range(1, 101))))
    found = json.loads(with_model("stats", "a.jsonl", "--model", str(tiny), "--json").out)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    lengths = sorted(len(tokenizer("one " * n)["input_ids"]) + 1 for n in range(1, 101))  # and the end of the text
    assert found["tokens"] == {"50%": lengths[49], "90%": lengths[89], "99%": lengths[98], "max": lengths[99]}
    assert ["tokens", "in", "an", "example"] in [
        row[:4] for row in rows(with_model("stats", "a.jsonl", "--model", str(tiny)).out)
    ]


def test_count_counts_whatever_the_records_hold(folder):
    Path("odd.jsonl").write_text(samples.lines({"a": 1}, {"b": 2}, {"c": 3}))
    assert done("count", "odd.jsonl") == "3\n"
    text = done("count", "odd.jsonl", "alpaca_en.json")
    assert text.endswith("\n5\n")
    assert ["alpaca_en.json", "2"] in rows(text)
    assert json.loads(done("count", "odd.jsonl", "--json")) == {
        "files": [{"file": "odd.jsonl", "records": 3}],
        "records": 3,
    }


def test_a_file_of_lmflow_is_counted_by_its_instances(folder):
    instances = [{"text": "One."}, {"text": "Two."}]
    Path("lmflow.json").write_text(json.dumps({"type": "text_only", "instances": instances}))
    assert done("count", "lmflow.json") == "2\n"


# What is refused


@pytest.mark.parametrize(
    ("code", "line", "told"),
    [
        (4, "check nosuch.jsonl", "No file, folder or data set is called 'nosuch.jsonl': "),
        (4, "check alpaca_en.jso", "No file, folder or data set is called 'alpaca_en.jso': "),
        (4, "check kto_en.json --format alpaca", "kto_en.json:2: the keys 'messages', 'label' are not those of"),
        (2, "check kto_en.json --format alpacca", "No data format is called 'alpacca'. Did you mean 'alpaca'?"),
        (2, "check kto_en.json --columns input", "--columns has the part 'input'; write KEY=COLUMN"),
        (2, "check kto_en.json --columns inputt=a", "--columns has the unknown key 'inputt'"),
        (4, "check kto_en.json --columns output=a", "kto_en.json:2: the record has no column 'a' for 'output'"),
        (2, "check kto_en.json --template chatml", "--template chatml needs --model: without its tokenizer nothing"),
        (2, "check kto_en.json --max-tokens 9", "--max-tokens 9 needs --model: without its tokenizer nothing"),
        (2, "check kto_en.json --max-tokens 1 --model x", "--max-tokens is 1; it must be at least 2."),
        (2, "check kto_en.json --on-overflow split", "--on-overflow split needs --model: without its tokenizer"),
        (2, "check kto_en.json --max-dropped 1", "--max-dropped 1.0 needs --model: without its tokenizer nothing"),
        (2, "check kto_en.json --max-dropped 2 --model x", "--max-dropped is 2.0; it must be at most 1."),
        (2, "check kto_en.json --on-overflow spilt --model x", "--on-overflow is 'spilt'; it must be one of error, "),
        (2, "check kto_en.json --model nosuch", "No model is called 'nosuch'."),
        (
            2,
            "check kto_en.json --model nosuch --template chatlm",
            "No template is called 'chatlm'. Did you mean 'chatml'?",
        ),
        (2, "preview kto_en.json --model nosuch -n 0", "--records is 0; it must be at least 1."),
        (4, "preview nosuch.json --model nosuch", "No file, folder or data set is called 'nosuch.json': "),
        (2, "preview kto_en.json --model ./nosuch", "--model ./nosuch: no such folder ("),
        (2, "stats kto_en.json --template chatml", "--template chatml needs --model: without its tokenizer nothing"),
        (4, "count empty.jsonl", "empty.jsonl is empty."),
        (4, "count page.html", "page.html has the suffix '.html'; lmf reads .json, "),
        (4, "count - -", "'-' is named twice; standard input can be read only once."),
        (2, "info nosuch", "No data set is called 'nosuch'."),
        (2, "download nosuch", "No data set is called 'nosuch'."),
    ],
)
def test_a_line_that_is_refused(folder, code, line, told):
    Path("empty.jsonl").write_text("")
    Path("page.html").write_text("<html>")
    before = tree(folder)
    result = lmf_without_torch("data", *line.split())
    assert (result.code, result.out) == (code, "")
    assert result.err.removeprefix("error: ").startswith(told)
    assert "Traceback" not in result.err
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("check", "Missing argument 'DATA...'"),
        ("preview kto_en.json", "Missing option '--model'"),
        ("preview kto_en.json --model m -n three", "Invalid value for '--records' / '-n': "),
        ("chek kto_en.json", "No such command 'chek'"),
        ("check kto_en.json --modle m", "No such option"),
    ],
)
def test_a_line_that_cannot_be_parsed(folder, line, told):
    result = lmf_without_torch("data", *line.split())
    assert result.code == 2
    assert told in result.err
