"""``--eval-tasks``: benchmarks at the same steps as the held-out loss, and a training that does not notice."""

import json

import pytest
from lmf import Evaluation, LmfError
from lmf.evaluate.running import Evaluator, score, totals
from lmf.evaluate.sources import find_tasks, limited, read_items
from lmf.generate.caches import runner_for
from lmf.generate.opening import open_model
from lmf.runs import read_log
from tinyrun import PLUGINS, losses, plan, run, sha256, talks

TASK = """
name = "words"
asks = "choices"
data = "words.jsonl"
prompt = "{q}"
choices = ["hello", "two", "three"]
answer = "gold"
"""


@pytest.fixture
def task(tmp_path) -> str:
    records = [{"q": f"the user says {number}", "gold": number % 3} for number in range(12)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "words.toml").write_text(TASK)
    return str(tmp_path / "words.toml")


@pytest.mark.parametrize("method", ["full", "lora", "lisa"])
def test_a_training_is_the_same_with_benchmarks_and_without(tiny, tmp_path, task, method):
    data = talks(tmp_path / "talks.jsonl", 24)
    for name, tasks in (("plain", ()), ("measured", (task,))):
        run(tiny, data, tmp_path / name, method, steps=6, batch_size=4, eval_every=2, eval_tasks=tasks)
    plain, measured = tmp_path / "plain", tmp_path / "measured"
    assert losses(plain) == losses(measured)
    (file,) = (each.name for each in plain.glob("*.safetensors"))
    assert sha256(plain / file) == sha256(measured / file)


def test_the_figures_in_the_log_are_those_of_the_model_at_that_step(tiny, tmp_path, task):
    data = talks(tmp_path / "talks.jsonl", 24)
    settings = {"batch_size": 4, "eval_every": 2, "eval_tasks": (task,), "eval_limit": 9}
    run(tiny, data, tmp_path / "out", steps=6, eval_data=(str(data),), save_best=False, **settings)
    entries = [entry for entry in read_log(tmp_path / "out") if "words/acc" in entry]
    assert [entry["step"] for entry in entries] == [0, 2, 4, 6] and all("eval_loss" in entry for entry in entries)
    items = limited(read_items(find_tasks([task], PLUGINS)["words"][0], PLUGINS), 9)
    for folder, entry in ((tiny, entries[0]), (tmp_path / "out", entries[-1])):
        chatter = open_model(str(folder), PLUGINS)
        evaluator = Evaluator(items, Evaluation(), chatter, runner_for(chatter.model))
        done = dict(one for some in evaluator.run() for one in some)
        sums = [score(items.task, items.items[number], done[number]) for number in range(9)]
        assert totals(items.task, sums)["acc"] == entry["words/acc"]


def test_a_task_that_is_not_there_is_refused_before_anything_is_loaded(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 4)
    with pytest.raises(LmfError, match="Did you mean 'hellaswag'"):
        plan(tiny, data, tmp_path / "out", eval_tasks=("helaswag",))
    with pytest.raises(LmfError, match="runs what the model writes; measure it afterwards"):
        plan(tiny, data, tmp_path / "out", eval_tasks=("humaneval",))
    assert not (tmp_path / "out").exists()
