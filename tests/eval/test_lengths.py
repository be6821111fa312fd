"""Tasks by length: problems of so many tokens, the key at its depth, and figures that no interruption changes."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lmf import ConfigError, EvalTask, Evaluation, LmfError, PluginError, Problem, Written
from lmf.evaluate.asking import Asker
from lmf.evaluate.lengths import at_lengths
from lmf.evaluate.sources import Items, find_tasks, item_of, read_items
from lmf.generate.opening import Chatter, open_model
from lmf.testing import check_task
from lmf_eval.benchmarks.lengths import FOUND, GARBAGE, PIECE, PIECES, fitting, hidden
from lmf_eval.results import read_results
from terminal import lmf, lmf_without_torch, tree
from tinyrun import PLUGINS
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

ROPE = ("--rope", "yarn", "--rope-factor", "2")


@pytest.fixture(scope="module")
def chatter(tiny) -> Chatter:
    return open_model(str(tiny), PLUGINS)


def items_of(name: str) -> Items:
    return read_items(find_tasks([name], PLUGINS)[name][0], PLUGINS)


def asked(name: str, chatter: Chatter, *lengths: int, **how) -> tuple[Items, list[str]]:
    return at_lengths(items_of(name), Evaluation(lengths=lengths, **how), chatter)


def plain_text(chatter: Chatter, problem: Problem) -> list[int]:
    """Return the ids of a problem by the tokenizer of transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(chatter.tokenizer.name_or_path)
    return tokenizer(str(problem.prompt))["input_ids"]


def test_a_passkey_problem_has_the_asked_length_with_its_reply_and_never_more(chatter):
    made, _ = asked("passkey", chatter, 400, 512, 700)
    assert [item.problem.part for item in made.items] == ["400"] * 10 + ["512"] * 10 + ["700"] * 10
    for item in made.items:
        tokens = len(plain_text(chatter, item.problem)) + made.task.max_tokens
        assert int(item.problem.part) - 10 < tokens <= int(item.problem.part), item.where
    words, _ = asked("passkey", chatter, 700, max_tokens=100)  # a longer reply leaves less room
    assert all(len(plain_text(chatter, item.problem)) <= 600 for item in words.items)


@pytest.mark.parametrize("length", [99, 100, 101, 513, 4096])
def test_a_passkey_problem_is_filled_to_the_last_token_where_words_are_tokens(length):
    def tokens(problem: Problem) -> int:
        return len(re.findall(r"\w+|[^\w\s]", str(problem.prompt)))

    for item in items_of("passkey").items:
        (made,) = hidden(item.problem, length, tokens)
        assert tokens(made) == length


def test_a_passkey_stands_at_its_depth_in_the_text_of_the_paper(chatter):
    made, _ = asked("passkey", chatter, 3000)
    depths = []
    for item in made.items:
        before, line, after, question = str(item.problem.prompt).split("\n")[1:]
        key = item.problem.answer
        assert line == f"The pass key is {key}. Remember it. {key} is the pass key."
        assert question == "What is the pass key? The pass key is"
        for text in (before, after):
            assert (f"{GARBAGE} " * 200).startswith(text)
        depths.append(len(before) / (len(before) + len(after)))
    records = [item.problem.more["depth"] for item in items_of("passkey").items]
    assert depths == pytest.approx(records, abs=0.01)
    assert sorted({*records}) == [0, 0.25, 0.5, 0.75, 1]
    assert len({item.problem.answer for item in made.items}) == 10


def test_the_same_pieces_are_scored_at_every_length_after_what_stands_before_them(chatter):
    made, _ = asked("long_ppl", chatter, 512, 1000)
    whole = items_of("long_ppl").items[0].problem.answer
    short, long = ([item.problem for item in made.items if item.problem.part == part] for part in ("512", "1000"))
    assert [problem.answer for problem in short] == [problem.answer for problem in long]
    assert len(short) == PIECES
    assert whole.rstrip().endswith("".join(problem.answer for problem in reversed(short)))
    asker = Asker(made, Evaluation(), chatter)
    for length, problems in ((512, short), (1000, long)):
        for problem in problems:
            assert f"{problem.prompt}{problem.answer}" in whole
            assert length - 40 < asker.tokens(problem) <= length  # whole words, of letters as tokens
            assert len(chatter.encoder.plain(problem.answer)) <= PIECE


def test_a_problem_is_read_in_one_window_whatever_the_window_is(chatter):
    made, _ = asked("long_ppl", chatter, 700, limit=1)
    (text,) = Asker(made, Evaluation(window=64, stride=32), chatter).windows(made.items[0])
    problem = made.items[0].problem
    assert list(text.ids) == chatter.encoder.plain(str(problem.prompt)) + chatter.encoder.plain(problem.answer)
    assert text.start == len(chatter.encoder.plain(str(problem.prompt)))


def test_the_perplexity_is_that_of_transformers_for_the_same_tokens(tiny, chatter, tmp_path):
    done = lmf(
        "eval", str(tiny), "--task", "long_ppl", "--lengths", "300,512", "--limit", "3", "--out", str(tmp_path / "out")
    )
    assert done.code == 0, done.err
    result = read_results(tmp_path / "out")["tasks"]["long_ppl"]
    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    made, _ = asked("long_ppl", chatter, 300, 512, limit=3)
    for part, found in result["parts"].items():
        nll, tokens, size = 0.0, 0, 0
        for item in made.items:
            if item.problem.part == part:
                before, answer = (chatter.encoder.plain(str(x)) for x in (item.problem.prompt, item.problem.answer))
                with torch.no_grad():
                    rows = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1].double()
                nll -= float(rows.log_softmax(-1)[range(len(answer)), answer].sum())
                tokens, size = tokens + len(answer), size + len(item.problem.answer.encode())
        assert found["items"] == 3
        assert found["figures"]["perplexity"]["value"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
        assert found["figures"]["bits_per_byte"]["value"] == pytest.approx(nll / size / math.log(2), rel=1e-4)


def test_lengths_are_powers_of_two_up_to_what_the_model_reads(tiny, chatter):
    made, notes = asked("passkey", chatter)
    assert ({item.problem.part for item in made.items}, notes) == ({"512"}, [])
    scaled = open_model(str(tiny), PLUGINS)
    scaled.model.config.max_position_embeddings = 2100
    made, notes = asked("passkey", scaled)
    assert sorted({int(item.problem.part) for item in made.items}) == [512, 1024, 2048]
    scaled.model.config.max_position_embeddings = 100  # fewer than the question has with its key
    with pytest.raises(ConfigError, match="passkey cannot be asked: not asked at 100 tokens: without any garbage"):
        asked("passkey", scaled)


def test_longer_texts_than_the_model_reads_are_asked_and_told(tiny, tmp_path):
    out = tmp_path / "out"
    done = lmf("eval", str(tiny), "--task", "lengths", "--lengths", "600,512", "--limit", "2", "--out", str(out))
    assert done.code == 0, done.err
    assert "passkey: the model reads 512 tokens; more than that are 600" in done.out
    results = read_results(out)["tasks"]
    assert [*results["passkey"]["parts"]] == [*results["long_ppl"]["parts"]] == ["512", "600"]


def test_a_length_that_the_text_has_not_is_left_out_unless_it_was_asked_for(tiny, chatter, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("hello assistant say one two three " * 80)
    data = read_items(find_tasks(["long_ppl"], PLUGINS)["long_ppl"][0], PLUGINS, str(text))
    with pytest.raises(ConfigError, match="--lengths 4096 is not possible for long_ppl: the text is too short"):
        at_lengths(data, Evaluation(lengths=(512, 4096), limit=1), chatter)
    long = open_model(str(tiny), PLUGINS)
    long.model.config.max_position_embeddings = 4096
    made, notes = at_lengths(data, Evaluation(limit=1), long)
    assert {item.problem.part for item in made.items} == {"512", "1024"} or notes
    assert any(note.startswith("not asked at 4,096 tokens: the text is too short") for note in notes)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("0", "--lengths is 0; it must be at least 2."),
        ("-5", "--lengths is -5; it must be at least 2."),
        ("many", "--lengths is 'many'; it must be a whole number."),
        ("512,1e3", "--lengths is '1e3'; it must be a whole number."),
        ("", "--lengths is ''; it must be a whole number."),
    ],
)
def test_lengths_that_are_none_are_refused_before_anything_is_loaded(given, told, tiny, tmp_path):
    before = tree(tmp_path)
    done = lmf_without_torch(
        "eval", str(tiny), "--task", "passkey", f"--lengths={given}", "--out", str(tmp_path / "out")
    )
    assert (done.code, tree(tmp_path)) == (2, before) and told in done.err, done.err


def test_lengths_without_a_task_by_length_are_refused(tiny, tmp_path):
    done = lmf_without_torch("eval", str(tiny), "--task", "samples", "--lengths", "512", "--out", str(tmp_path / "out"))
    assert done.code == 2 and "--lengths: none of these tasks is by length" in done.err


def test_a_length_with_no_room_for_the_question_is_refused(chatter):
    with pytest.raises(ConfigError, match="--lengths 64 is not possible for passkey: without any garbage it has"):
        asked("passkey", chatter, 64)
    with pytest.raises(
        ConfigError, match=f"--lengths {PIECE} is not possible for long_ppl: the last {PIECE} of so many"
    ):
        asked("long_ppl", chatter, PIECE)


def test_what_is_refused_leaves_no_folder(tiny, tmp_path):
    done = lmf("eval", str(tiny), "--task", "passkey", "--lengths", "64", "--out", str(tmp_path / "out"))
    assert done.code == 2 and "--lengths 64 is not possible for passkey" in done.err
    assert not (tmp_path / "out").exists()


def test_examples_are_refused_where_a_problem_has_a_length(chatter):
    with pytest.raises(ConfigError, match="--shots 2: a problem of passkey is so long by itself"):
        asked("passkey", chatter, 512, shots=2)


def test_a_model_without_positions_beyond_its_own_is_not_asked_there(tiny, tmp_path):
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=512)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    learned = open_model(str(tmp_path), PLUGINS)
    with pytest.raises(ConfigError, match="--lengths 600: the model has 512 positions and none beyond"):
        asked("passkey", learned, 400, 600)


@pytest.mark.parametrize("record", [{"depth": 2, "key": "5"}, {"depth": "0", "key": "5"}, {"depth": 0, "key": "five"}])
def test_a_passkey_of_ones_own_needs_a_depth_and_digits(record, tmp_path):
    (tmp_path / "keys.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(LmfError, match=r"keys.jsonl:1: '(depth|key)' is"):
        read_items(find_tasks(["passkey"], PLUGINS)["passkey"][0], PLUGINS, str(tmp_path / "keys.jsonl"))


@pytest.mark.parametrize("how", [(), ROPE, ("--rope", "dynamic", "--rope-factor", "2")])
def test_a_resumed_evaluation_gives_the_same_bits(how, tiny, tmp_path, monkeypatch):
    command = ("eval", str(tiny), "--task", "passkey,long_ppl", "--lengths", "512,700", "--limit", "2", *how, "--out")
    assert lmf(*command, str(tmp_path / "whole")).code == 0
    from lmf_eval import running

    count = [0]
    real = running.score

    def interrupted(*given):
        count[0] += 1
        if count[0] == 3:
            raise LmfError("interrupted")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(running, "score", interrupted)
        assert lmf(*command, str(tmp_path / "again")).code != 0
    done = lmf(*command, str(tmp_path / "again"))
    assert done.code == 0 and "are there; going on" in done.err
    for task in ("passkey", "long_ppl"):
        one, other = (Path(tmp_path, name, "items", f"{task}.jsonl") for name in ("whole", "again"))
        assert one.read_bytes() == other.read_bytes()


def test_other_lengths_are_another_evaluation(tiny, tmp_path):
    command = ("eval", str(tiny), "--task", "passkey", "--limit", "1", "--out", str(tmp_path), "--lengths")
    assert lmf(*command, "400").code == 0
    done = lmf(*command, "400,512")
    assert done.code == 2 and "with --lengths [400], not [400, 512]" in done.err
    assert "the figures are there already" in lmf(*command, "400").err


def test_the_curve_and_the_table_are_in_the_order_of_lengths(tiny, tmp_path):
    done = lmf(
        "eval", str(tiny), "--task", "passkey", "--lengths", "1000,400,512", "--limit", "1", "--out", str(tmp_path)
    )
    assert done.code == 0, done.err
    lines = (tmp_path / "report.md").read_text().splitlines()
    start = lines.index("## passkey by part")
    assert [line.split(" | ")[0] for line in lines[start + 4 : start + 7]] == ["| 400", "| 512", "| 1000"]
    assert (tmp_path / "by-length.png").read_bytes().startswith(b"\x89PNG")


def test_the_positions_are_scaled_without_training(tiny, tmp_path):
    command = ("--task", "long_ppl", "--lengths", "1000", "--limit", "2")
    assert lmf("eval", str(tiny), *command, *ROPE, "--out", str(tmp_path / "one")).code == 0
    assert lmf("export", "hf", str(tiny), str(tmp_path / "model"), *ROPE).code == 0
    assert lmf("eval", str(tmp_path / "model"), *command, "--out", str(tmp_path / "other")).code == 0
    assert lmf("eval", str(tiny), *command, "--out", str(tmp_path / "without")).code == 0
    one, other, without = (read_results(tmp_path / name)["tasks"]["long_ppl"] for name in ("one", "other", "without"))
    assert one["figures"] == other["figures"] != without["figures"]
    assert not any("the model reads" in note for note in one["notes"])


def test_the_first_number_of_a_reply_is_compared_with_the_key():
    problem = Problem(prompt="?", answer="34070")
    for text, right in ((" 34070", 1), ("34070. Remember", 1), (" 340701", 0), (" key 1, 34070", 0), ("", 0)):
        assert FOUND.sums(problem, Written((text,))) == (right, 1.0)


def test_as_many_units_as_fit_are_found():
    for tokens in (lambda n: n, lambda n: 3 * n, lambda n: n * n, lambda n: n // 2, lambda n: 5 if n else 0):
        for units in (0, 1, 7, 100):
            for most in (0, 1, 5, 60, 10_000):
                best = max((n for n in range(units + 1) if tokens(n) <= most), default=0)
                assert fitting(units, tokens, most) == best


@pytest.mark.parametrize("name", ["passkey", "long_ppl"])
def test_tasks_by_length_keep_the_promises_of_tasks(name, tmp_path):
    task = find_tasks([name], PLUGINS)[name][0]
    check_task(task, tmp_path, PLUGINS)


def test_a_task_that_makes_longer_problems_than_were_asked_for_is_refused(chatter):
    task = EvalTask(
        name="liar", source="", version=1, data="x", asks="reply",
        of_length=lambda problem, length, tokens: [replace(problem, prompt="hello " * length)],
    )  # fmt: skip
    items = Items(task, (item_of("x:1", Problem(prompt="?", answer="!")),), (), ())
    with pytest.raises(LmfError, match="The task liar made a problem of"):
        at_lengths(items, Evaluation(lengths=(300,)), chatter)


def test_choices_have_no_length():
    with pytest.raises(PluginError, match="has choices, so it cannot be asked by length"):
        EvalTask(name="x", source="", version=1, data="x", asks="choices", of_length=lambda problem, length, tokens: [])
