"""``lmf eval``: figures in a folder, from where an earlier call stopped, and comparisons of two folders."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lmf.testing import tiny_checkpoint
from lmf_eval.results import read_results
from terminal import lmf, lmf_without_torch, tree

WORDS = ["the", "user", "and", "assistant", "say", "hello", "what", "is", "one", "two", "answer", "three"]
TASK = """
name = "words"
asks = "choices"
data = "words.jsonl"
prompt = "{q}"
choices = "c"
answer = "gold"
"""
REPLY = """
name = "said"
asks = "reply"
data = "words.jsonl"
prompt = "{q}"
answer = "a"
metrics = ["exact", "f1"]
max_tokens = 4
"""


@pytest.fixture
def here(tiny, tmp_path, monkeypatch) -> Path:
    """A folder with two models, data, and tasks of them."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny)
    chance = random.Random(0)
    records = []
    for _ in range(40):
        words = chance.sample(WORDS, 6)
        records.append({"q": " ".join(words[:3]), "c": words[3:], "gold": chance.randrange(3), "a": words[0]})
    put("words.jsonl", records)
    Path("words.toml").write_text(TASK)
    Path("said.toml").write_text(REPLY)
    return tmp_path


def put(name: str, records: list) -> None:
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))


def measure(*more: str, task: str = "words.toml,said.toml", out: str = "out", model: str = "./model"):
    return lmf("eval", model, "--task", task, "--out", out, *more)


def items(task: str, out: str = "out") -> list[dict]:
    return [json.loads(line) for line in Path(out, "items", f"{task}.jsonl").read_text().splitlines()]


def test_figures_are_means_of_the_items_and_stand_beside_all_that_decided_on_them(here):
    done = measure()
    assert done.code == 0, done.err
    results = read_results(Path("out"))
    words = results["tasks"]["words"]
    hits = [line["scores"]["acc"][0] for line in items("words")]
    mean = sum(hits) / 40
    assert words["figures"]["acc"]["value"] == pytest.approx(mean, abs=1e-12)
    error = (sum((hit - mean) ** 2 for hit in hits) / 39 / 40) ** 0.5
    assert words["figures"]["acc"]["error"] == pytest.approx(error, abs=1e-12)
    for line in items("words"):
        best = max(range(3), key=lambda number: line["logprobs"][number])
        assert line["scores"]["acc"] == [float(best in line["right"]), 1.0]
    asked = words["asked"]
    assert asked["data"][0]["sha256"] == hashlib.sha256(Path("words.jsonl").read_bytes()).hexdigest()
    assert (asked["version"], asked["template_sha256"], words["in"], words["items"]) == (1, None, "text", 40)
    assert results["plugins"]["lmf-eval"] and results["versions"]["torch"] and results["command"].startswith("lmf")
    report = Path("out/report.md").read_text()
    assert f"| words | acc | {mean:.4f} | {error:.4f} | 40 | 0 | text |" in report
    assert Path("out/report.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(Path("out").rglob("*partial*"))


def test_a_template_is_said_and_its_hash_is_kept(here):
    measure("--template", "chatml")
    found = read_results(Path("out"))["tasks"]["words"]
    assert found["in"] == "chatml" and len(found["asked"]["template_sha256"]) == 64
    assert items("words")[0]["prompt"].startswith("<|im_start|>")


KILLED = """
import os, sys
from lmf import journal
count, line = 0, journal.line
def die(value):
    global count
    count += 1
    if count == int(os.environ["LINES"]):
        os._exit(9)
    return line(value)
journal.line = die
import lmf_cli
lmf_cli.main()
"""


@pytest.mark.parametrize("lines", [2, 7, 33, 42, 44, 79])
def test_a_run_that_was_killed_and_resumed_gives_the_same_bits(here, whole, lines):
    command = ["eval", "./model", "--task", "words.toml,said.toml", "--out", "out", "--batch-tokens", "16"]
    environment = {**os.environ, "LINES": str(lines)}
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], env=environment, capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    partial = next(iter(Path("out/items").glob("*.partial")), None)
    if partial:
        with partial.open("a") as stream:
            stream.write('{"id": 3, "scor')  # cut while it was written
    again = measure("--batch-tokens", "16")
    assert again.code == 0, again.err
    for task in ("words", "said"):
        assert items(task) == whole[task]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> dict[str, list[dict]]:
    """The items of a run that nothing interrupted, by task."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        here.__wrapped__(tiny, place, patch)
        assert measure("--batch-tokens", "16").code == 0
        return {task: items(task) for task in ("words", "said")}


def test_figures_that_are_there_are_not_measured_again_and_not_replaced(here):
    measure(task="words.toml")
    before = tree(Path("out/items"))
    assert "the figures are there already" in measure(task="words.toml").err
    refused = measure("--limit", "3", task="words.toml")
    assert refused.code == 2 and "figures of words with --limit None, not 3" in refused.err
    assert tree(Path("out/items")) == before
    assert measure("--limit", "3", "--force", task="words.toml").code == 0
    assert len(items("words")) == 3
    assert measure("--limit", "3", task="said.toml").code == 0
    assert set(read_results(Path("out"))["tasks"]) == {"words", "said"}


def test_a_limit_takes_the_first_problems_and_a_seed_draws_them(here):
    measure("--limit", "5", task="words.toml")
    assert [line["where"] for line in items("words")] == [f"words.jsonl:{number}" for number in range(1, 6)]
    measure("--limit", "5", "--seed", "1", task="words.toml", out="drawn")
    drawn = [line["where"] for line in items("words", "drawn")]
    assert len(set(drawn)) == 5 and drawn != [line["where"] for line in items("words")]


def test_values_that_are_no_numbers_are_named(here, tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.lm_head.weight[5:9] = 3e38 * model.lm_head.weight[5:9].sign()
    model.save_pretrained("broken")
    AutoTokenizer.from_pretrained(tiny).save_pretrained("broken")
    done = measure(model="./broken", task="words.toml")
    assert done.code == 1 and "words.jsonl:" in done.err and "no numbers (NaN or infinite)" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ("./model --task helaswag", 2, "No eval task is called 'helaswag'. Did you mean 'hellaswag'?"),
        ("./model --task piqa", 4, "lmf data download piqa fetches"),
        ("./model --task gpt4_en_eval", 4, "--data gpt4_en_eval=PATH takes a copy that you have."),
        ("./model --task nosuch.toml", 2, "--task nosuch.toml: there is no such file."),
        ("./model --task nll", 2, "The task nll has no data of its own; name some: --data PATH."),
        ("./model --task humaneval", 2, "--allow-code-execution allows it"),
        ("./model --task words.toml --data bad.jsonl", 4, "bad.jsonl:2: the key 'gold' is missing"),
        ("./model --task words.toml --data bad.jsonl", 4, "bad.jsonl:1: there is nothing to choose: 1 choice"),
        ("./model --task words.toml,said.toml --data bad.jsonl", 2, "write which of the tasks it is for"),
        ("./model --task words.toml --adapter nope", 2, "--adapter nope: there is no such folder."),
        ("./model --task words.toml --window 4 --stride 9", 2, "the tokens between two windows would be left out"),
        ("./model --task words.toml --template chatml --prompt-structure {input}", 2, "two ways to ask"),
        ("./model --task words.toml --template nosuch", 2, "No template is called 'nosuch'."),
        ("nosuch --task words.toml", 2, "No model is called 'nosuch'."),
        ("./model --task words.toml --out bad.jsonl", 2, "--out bad.jsonl: bad.jsonl is a file; it must be a folder."),
        ("./model --task words.toml --out bad.jsonl/out", 2, "bad.jsonl is a file; it must be a folder."),
        ("./model", 2, "--task is required"),
        ("compare out nowhere", 1, "out holds no results of lmf eval: results.json is missing."),
        ("compare out nowhere --out a.txt", 2, "a comparison is written as .md or .png."),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_loaded(here, arguments, code, told):
    put("bad.jsonl", [{"q": "one", "c": ["a"], "gold": 0}, {"q": "two", "c": ["a", "b"]}])
    before = tree(here)
    run = lmf if arguments.startswith("compare") else lmf_without_torch  # a comparison needs numpy
    done = run("eval", *arguments.split())
    assert done.code == code and told in done.err, done.err
    assert tree(here) == before


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("--context 2", "the problem has"),
        ("--context 900", "--context 900 is more than the 512 tokens that the model can read."),
        ("--shots 40", "--shots 40: words has 39 problems to show as examples."),
        ("--template auto", "This model has no template of its own"),
        ("--prompt-structure abc", "has no {input}, where the prompt would stand."),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_measured(here, more, told):
    done = measure(*more.split(), task="words.toml")
    assert done.code in (2, 4) and told in done.err
    assert not Path("out").exists()


def test_prompts_that_are_cut_are_counted(here):
    assert "prompts lost their beginning" in measure("--context", "3", "--on-overflow", "cut", task="words.toml").out


def test_empty_replies_score_nothing_and_are_counted(here):
    Path("said.toml").write_text(REPLY + 'stop = ["", " "]\n'.replace('"", ', ""))
    done = measure("--limit", "8", task="said.toml")
    assert done.code == 0, done.err
    empty = sum(not line["replies"][0].strip() for line in items("said"))
    assert (f"{empty} replies are empty" in done.out) == bool(empty)
    assert all(line["scores"]["exact"][0] == 0 for line in items("said") if not line["replies"][0].strip())


def test_two_models_are_compared_item_by_item(here, tmp_path):
    tiny_checkpoint(tmp_path / "other", seed=1)
    measure(task="words.toml", out="a")
    measure(task="words.toml", out="b", model="./other")
    done = lmf("eval", "compare", "a", "b", "--out", "both.md")
    assert done.code == 0, done.err
    pairs = list(zip(items("words", "a"), items("words", "b"), strict=True))
    gained = sum(one["scores"]["acc"][0] < other["scores"]["acc"][0] for one, other in pairs)
    lost = sum(one["scores"]["acc"][0] > other["scores"]["acc"][0] for one, other in pairs)
    row = next(line for line in Path("both.md").read_text().splitlines() if line.startswith("| words | acc |"))
    assert f"{(gained - lost) / 40:.4f}" in row and "McNemar" in row
    assert "no difference shown" in lmf("eval", "compare", "a", "a").out
    assert lmf("eval", "compare", "a", "b", "--out", "both.png").code == 0
    assert Path("both.png").read_bytes()[:4] == b"\x89PNG"


def test_only_items_of_both_are_compared_and_what_was_asked_apart_is_said(here):
    measure(task="words.toml", out="a")
    measure("--limit", "7", "--template", "chatml", task="words.toml", out="b")
    told = lmf("eval", "compare", "a", "b").out
    assert "A has 40 items and B 7; compared are those of both" in told
    assert "asked apart: template is None for A, 'chatml' for B" in told


def test_a_python_file_with_the_hook_is_a_task(here):
    Path("mine.py").write_text(
        "import lmf\n\n@lmf.hookimpl\ndef lmf_tasks():\n"
        "    return [lmf.EvalTask(name='mine', source='here', version=1, data='words.jsonl', asks='choices',\n"
        "        problems=lambda r: [lmf.Problem(prompt=r['q'], choices=tuple(r['c']), right=(r['gold'],))])]\n"
    )
    measure(task="mine.py", out="a")
    measure(task="words.toml", out="b")
    assert [line["logprobs"] for line in items("mine", "a")] == [line["logprobs"] for line in items("words", "b")]
    Path("broken.py").write_text("1 / 0\n")
    done = measure(task="broken.py")
    assert done.code == 1 and "--task broken.py cannot be used: ZeroDivisionError" in done.err


def test_the_tasks_are_listed_with_their_groups(here):
    told = lmf_without_torch("eval", "tasks").out
    assert "hellaswag_sample" in told and "commonsense_nll_eval" in told and "group" in told


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks for it
def test_an_adapter_of_a_run_and_one_of_peft_are_measured_on_their_base(here, tiny):
    """Both give the figures of the merged model."""
    put(
        "talks.jsonl",
        [{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "two"}]}] * 8,
    )
    train = ["--model", "./model", "--data", "talks.jsonl", "--template", "chatml", "--learning-rate", "0.01"]
    assert lmf("train", "lora", *train, "--dtype", "float32", "--steps", "8", "--output", "run").code == 0
    assert lmf("merge", "./model", "run", "merged").code == 0
    measure(task="words.toml", out="merged-figures", model="./merged")
    measure("--adapter", "run", task="words.toml", out="run-figures")
    bare = Path("bare")
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (bare / name).write_bytes((Path("run") / name).read_bytes())
    measure("--adapter", "bare", task="words.toml", out="bare-figures")
    measure(task="words.toml", out="base-figures")
    merged, run, bare_one, base = (
        torch.tensor([line["logprobs"] for line in items("words", f"{name}-figures")])
        for name in ("merged", "run", "bare", "base")
    )
    torch.testing.assert_close(run, merged, rtol=0, atol=1e-4)
    torch.testing.assert_close(bare_one, merged, rtol=0, atol=1e-4)
    assert (base - merged).abs().max() > 0.1
    wrong = measure("--adapter", "run", task="words.toml", out="wrong", model="smollm2-135m")
    assert wrong.code == 1 and "--adapter run was trained on ./model, not on smollm2-135m" in wrong.err


def test_humaneval_runs_what_was_written_where_that_is_allowed(here):
    problem = {
        "task_id": "x/0",
        "prompt": "def two():\n",
        "canonical_solution": "    return 2\n",
        "test": "def check(candidate):\n    assert candidate() == 2\n",
        "entry_point": "two",
    }
    put("humaneval.jsonl", [problem, problem | {"prompt": "def two():\n    return 2\n\nx = 1\n# "}])
    done = measure("--data", "humaneval.jsonl", "--allow-code-execution", "--max-tokens", "2", task="humaneval")
    assert done.code == 0, done.err
    assert "no item counts for pass@10" in done.out
    hits = [line["scores"]["pass@1"][0] for line in items("humaneval")]
    assert hits == [0.0, 1.0]  # a comment behind a whole function changes nothing
