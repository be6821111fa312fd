"""The loop: its numbers against transformers and plain torch, and two ways to one result.

The differences that the tests allow are printed with ``-s``, to see how far below they stay.
"""

import dataclasses
import importlib.util
import json
import math
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmf.training.loop
import lmf.training.packing
import lmf_cli
import lmf_sft
import pytest
import torch
import torch.nn.functional as F
from lmf import ConfigError, LmfError, Sampling
from lmf.errors import Interrupted
from lmf.generate.opening import open_model, reply
from lmf.testing import tiny_checkpoint
from lmf.training.loop import schedule, train
from tinyrun import (
    PLUGINS,
    At,
    Notes,
    apart,
    far,
    log,
    losses,
    plan,
    processes,
    relative,
    run,
    run_in_two,
    sha256,
    stop_at,
    talks,
    weights,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

Counter = Callable[[], int]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 20)


@pytest.fixture
def passes(monkeypatch) -> Counter:
    """Count the forward passes since the last question."""
    batches: list[Any] = []
    loss = lmf_sft.Supervised.loss

    def counted(self: Any, model: Any, batch: Any) -> torch.Tensor:
        batches.append(batch)
        return loss(self, model, batch)

    def count() -> int:
        number = len(batches)
        batches.clear()
        return number

    monkeypatch.setattr(lmf_sft.Supervised, "loss", counted)
    return count


@pytest.fixture
def learners(monkeypatch) -> list[Any]:
    """The learner of every run in the test, to look at its model afterwards."""
    found: list[Any] = []

    def keep(*args: Any) -> Any:
        found.append(lmf.training.learner.load_learner(*args))
        return found[-1]

    monkeypatch.setattr(lmf.training.loop, "load_learner", keep)
    return found


# The numbers of a step


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_micro_batches_change_nothing_but_the_rounding(packed, tiny, data, tmp_path, passes, monkeypatch):
    if not packed:
        monkeypatch.setattr(lmf.training.packing, "packable", lambda model: False)
    runs = {}
    for tokens, least, most in ((4096, 10, 10), (130, 16, 20), (1, 68, 68)):  # 20 records: steps of 8, 8 and 4
        runs[tokens] = run(
            *(tiny, data, tmp_path / str(tokens)),
            **{"steps": 10, "batch_size": 8, "micro_batch_tokens": tokens, "learning_rate": 2e-5},
        )
        assert least <= passes() <= most
    for tokens in (130, 1):
        difference = apart(runs[4096], runs[tokens])
        print(f"\n  micro-batches of {tokens} tokens: {difference}")
        assert max(difference.values()) <= 1e-6


def test_micro_batches_agree_to_rounding_in_float64(tiny, data, tmp_path, monkeypatch):
    """In float64 what is left after ten steps is a thousandth of what float32 could hide."""

    def double(*args: Any) -> Any:
        learner = lmf.training.learner.load_learner(*args)
        return dataclasses.replace(learner, model=learner.model.double())

    def loss(self: Any, model: Any, batch: Any) -> torch.Tensor:
        logits = model(**batch.inputs, logits_to_keep=batch.index).logits[0]
        return F.cross_entropy(logits, batch.targets, reduction="sum")

    monkeypatch.setattr(lmf.training.loop, "load_learner", double)
    monkeypatch.setattr(lmf_sft.Supervised, "loss", loss)
    runs = [
        run(tiny, data, tmp_path / str(n), steps=10, batch_size=8, micro_batch_tokens=n, learning_rate=1e-3)
        for n in (4096, 130, 1)
    ]
    for other in runs[1:]:
        assert all(tensor.dtype == torch.float64 for tensor in weights(other).values())
        difference = apart(runs[0], other)
        print(f"\n  float64: {difference}")
        assert max(difference.values()) <= 1e-12


def tokenized(run: Path, data: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels of each record, (1, n), as transformers makes them with the chat template that a run saved."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    examples = []
    for line in data.read_text().splitlines():
        encoded = tokenizer.apply_chat_template(
            json.loads(line)["messages"],
            **{"return_dict": True, "return_assistant_tokens_mask": True, "return_tensors": "pt"},
        )
        ids, mask = encoded["input_ids"], torch.as_tensor(encoded["assistant_masks"]).reshape(1, -1)
        examples.append((ids, torch.where(mask == 1, ids, -100)))
    return examples


@pytest.mark.parametrize("tokens", [4096, 1])
def test_the_loss_of_the_first_step_is_that_of_transformers(tokens, tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 9, turns=2)
    output = run(tiny, data, tmp_path / "out", steps=1, batch_size=9, micro_batch_tokens=tokens)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    examples = tokenized(output, data)
    trained = sum((labels != -100).sum() for _, labels in examples)
    with torch.no_grad():
        parts = [model(input_ids=ids, labels=labels, num_items_in_batch=trained).loss for ids, labels in examples]
    difference = relative(losses(output)[0], sum(parts).item())
    print(f"\n  the first loss and transformers': {difference}")
    assert difference <= 1e-6
    assert log(output, "loss")[0]["trained_tokens"] == trained


def test_a_run_does_what_a_plain_loop_of_torch_does(tiny, data, tmp_path):
    settings = {"batch_size": 8, "seed": 5, "learning_rate": 1e-4, "weight_decay": 0.1, "clip": 0.5}
    output = run(tiny, data, tmp_path / "out", epochs=4, warmup=0.25, schedule="linear", **settings)
    examples = tokenized(output, data)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, foreach=False)
    norms = []
    for step in range(12):
        order = list(range(20))
        random.Random(f"5:{step // 3}").shuffle(order)
        batch = [examples[i] for i in order[step % 3 * 8 : step % 3 * 8 + 8]]
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * ((step + 1) / 3 if step < 3 else (12 - step) / 9)
        trained = sum((labels != -100).sum() for _, labels in batch)
        for ids, labels in batch:
            model(input_ids=ids, labels=labels, num_items_in_batch=trained).loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
    logged = [line["gradient_norm"] for line in log(output, "loss")]
    differences = max(map(relative, logged, norms)), far(weights(output), model.state_dict())
    print(f"\n  gradient norms and weights of a plain loop: {differences}")
    assert len(logged) == 12
    assert min(norms) > 0.5, "nothing was clipped"
    assert max(differences) <= 1e-6


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (7, 0), (40, 1), (100, 3), (9, 8)])
def test_the_learning_rate_follows_transformers_after_warm_up(kind, steps, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for step in range(steps):
        ours = schedule(kind, step, steps, warmup)
        assert 0 < ours <= 1
        if step >= warmup:
            assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-15)
        else:  # theirs begins at 0, a step that teaches nothing
            assert ours == pytest.approx((step + 1) / warmup)
        optimizer.step()
        theirs.step()


def test_a_share_of_the_steps_is_not_rounded_up_by_a_float(tiny, data, tmp_path):
    """1.1 epochs of 10 steps are 11.000000000000002, and 7 % of 100 steps 7.000000000000001."""
    output = run(tiny, data, tmp_path / "out", epochs=1.1, batch_size=2, warmup=0.3, schedule="constant")
    rates = [line["learning_rate"] for line in log(output, "loss")]
    assert len(rates) == 11
    assert rates.index(max(rates)) == 3  # 3.3 steps of warm-up are 4
    settings = {"steps": 10, "batch_size": 2, "warmup": 0.3, "schedule": "constant"}
    rates = [line["learning_rate"] for line in log(run(tiny, data, tmp_path / "ten", **settings), "loss")]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, *[1e-3] * 8])


def test_recomputed_activations_give_the_same_bits(tmp_path, data):
    model = tiny_checkpoint(tmp_path / "model", dropout=0.2)
    outputs = [
        run(model, data, tmp_path / str(recompute), steps=4, batch_size=8, gradient_checkpointing=recompute)
        for recompute in (False, True)
    ]
    assert losses(outputs[0]) == losses(outputs[1])
    assert sha256(outputs[0] / "model.safetensors") == sha256(outputs[1] / "model.safetensors")


def test_a_record_of_the_log_counts_what_the_step_saw(tiny, data, tmp_path):
    output = run(tiny, data, tmp_path / "out", epochs=2, batch_size=8)
    lines = log(output, "loss")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-4)
    examples = tokenized(output, data)
    for epoch in (lines[:3], lines[3:]):
        assert sum(line["tokens"] for line in epoch) == sum(ids.numel() for ids, _ in examples)
        assert sum(line["trained_tokens"] for line in epoch) == sum((labs != -100).sum() for _, labs in examples)


# The same command again


def test_the_same_command_gives_the_same_bits(tmp_path, data):
    model = tiny_checkpoint(tmp_path / "model", dropout=0.1)
    outputs = [run(model, data, tmp_path / name, epochs=2, batch_size=6, eval_split=0.2) for name in ("a", "b", "c")]
    assert log(outputs[0]) == log(outputs[1]) == log(outputs[2])
    for file in outputs[0].iterdir():
        if file.is_file() and file.name not in ("lmf.json", "run.toml", "log.jsonl"):
            assert len({sha256(output / file.name) for output in outputs}) == 1, file.name


def test_another_seed_is_another_order(tiny, data, tmp_path):
    first, second = (run(tiny, data, tmp_path / str(seed), steps=2, batch_size=6, seed=seed) for seed in (0, 1))
    assert losses(first) != losses(second)


def command(monkeypatch: pytest.MonkeyPatch, *line: Any) -> Any:
    """Run a line of ``lmf`` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["lmf", *map(str, line)])
    with pytest.raises(SystemExit) as end:
        lmf_cli.main()
    return end.value.code


def test_the_saved_settings_run_again_to_the_same_weights(tiny, data, tmp_path, monkeypatch, capsys):
    options = {"last_layers": 2}
    first = run(tiny, data, tmp_path / "a", "freeze", options=options, steps=4, batch_size=6, eval_split=0.1, clip=0.3)
    code = command(monkeypatch, "train", "--config", first / "run.toml", "--output", tmp_path / "b")
    assert code == 0, capsys.readouterr()
    second = tmp_path / "b"
    assert log(first) == log(second)
    assert sha256(first / "model.safetensors") == sha256(second / "model.safetensors")
    assert (first / "run.toml").read_text().replace("/a", "/b") == (second / "run.toml").read_text()


# Stopped and resumed

# epochs end at 4 and 8
STOPPED = {"steps": 10, "batch_size": 4, "eval_split": 0.2, "eval_every": 2, "patience": 4, "keep": 1}
WAYS = [("full", {}, 4096), ("full", {}, 1), ("freeze", {"last_layers": 1, "modules": ("lm_head",)}, 1)]


@pytest.fixture(scope="module")
def dropping(tmp_path_factory) -> Path:
    """A model with dropout, so that a resumed run must also draw what the straight one drew."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "dropping", dropout=0.1)


@pytest.fixture(scope="module", params=WAYS, ids=["full, one pass", "full, four passes", "freeze, four passes"])
def straight(request, dropping, data, tmp_path_factory) -> tuple[Path, Callable[..., Path]]:
    """A run that was never stopped, and what starts the same one in another folder."""
    method, options, tokens = request.param

    def again(output: Path, **settings: Any) -> Path:
        return run(
            *(dropping, data, output, method),
            **{"options": options, "micro_batch_tokens": tokens, **STOPPED, **settings},
        )

    return again(tmp_path_factory.mktemp("straight") / "out"), again


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, random numbers, log and what the record says of the result are equal, bit for bit."""
    assert log(one) == log(other)
    for folder in (Path(), *(path.relative_to(one) for path in sorted(one.glob("checkpoints/*")))):
        for file in sorted((one / folder).glob("*")):
            same = file.name in ("lmf.json", "run.toml", "log.jsonl") or file.is_dir()
            assert same or sha256(file) == sha256(other / folder / file.name), folder / file.name
    keys = ("status", "ended", "steps", "best")
    records = [json.loads((folder / "lmf.json").read_text()) for folder in (one, other)]
    assert {key: records[0][key] for key in keys} == {key: records[1][key] for key in keys}


@pytest.mark.parametrize("step", range(1, 10))
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(step, straight, tmp_path):
    first, again = straight
    with pytest.raises(Interrupted, match=f"Stopped after step {step} of 10; saved .*step-0*{step}\\.") as stopped:
        again(tmp_path, report=stop_at(step))
    assert stopped.value.exit_code == 130
    assert f"Continue: lmf train --config {tmp_path}/run.toml --resume" in str(stopped.value)
    assert json.loads((tmp_path / "lmf.json").read_text())["status"] == "interrupted"
    report = Notes()
    again(tmp_path, resume="newest", report=report)
    assert f"resumed from step-{step:06d}" in report.notes
    assert_same_run(first, tmp_path)


def test_a_run_stopped_after_every_step_ends_at_the_same_bits(straight, tmp_path):
    first, again = straight
    for step in range(1, 10):
        with pytest.raises(Interrupted):
            again(tmp_path, resume="newest" if step > 1 else None, report=stop_at(step))
    again(tmp_path, resume="newest")
    assert_same_run(first, tmp_path)


def test_resuming_a_finished_run_changes_nothing(tiny, data, tmp_path):
    settings = {**STOPPED, "sample": "one and two"}
    first, again = run(tiny, data, tmp_path / "first", **settings), tmp_path / "again"
    shutil.copytree(first, again)
    report = Notes()
    run(tiny, data, again, resume="newest", report=report, **settings)
    assert_same_run(first, again)
    records = [json.loads((output / "lmf.json").read_text()) for output in (first, again)]
    assert records[0]["sample_before"] == records[1]["sample_before"]
    assert [(when, text) for when, _, text in report.samples] == [("after", records[0]["sample_after"])]


def test_auto_starts_a_run_goes_on_with_it_and_leaves_a_finished_one_alone(straight, tmp_path):
    first, again = straight
    with pytest.raises(Interrupted):
        again(tmp_path, resume="auto", report=stop_at(3))
    report = Notes()
    again(tmp_path, resume="auto", report=report)
    assert "resumed from step-000003" in report.notes
    again(tmp_path, resume="auto")
    assert_same_run(first, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match="holds a run already"):
        again(tmp_path, resume="auto")
    assert_same_run(tmp_path, first)  # of the files that are left


def test_auto_leaves_alone_what_another_run_saved_since_it_was_planned(tiny, data, tmp_path):
    settings = {"steps": 2, "resume": "auto"}
    planned = plan(tiny, data, tmp_path / "out", **settings)
    run(tiny, data, tmp_path / "out", **settings)
    before = sha256(tmp_path / "out/model.safetensors")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(planned)
    assert sha256(tmp_path / "out/model.safetensors") == before


def test_auto_does_not_replace_an_unfinished_run_of_other_settings(straight, tiny, data, tmp_path):
    _, again = straight
    with pytest.raises(Interrupted):
        again(tmp_path, report=stop_at(3))
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match="began with something else"):
        run(tiny, data, tmp_path, resume="auto", steps=2, seed=5)
    assert (tmp_path / "log.jsonl").exists()


def test_auto_starts_a_run_that_was_killed_before_it_had_begun(straight, tmp_path):
    first, again = straight
    (tmp_path / ".lmf.json.partial").write_text("{")
    (tmp_path / ".lock").touch()
    again(tmp_path, resume="auto")
    assert_same_run(first, tmp_path)


def test_auto_starts_a_run_again_that_had_saved_nothing(straight, tmp_path):
    first, again = straight
    with pytest.raises(Interrupted):
        again(tmp_path, report=stop_at(3))
    shutil.rmtree(tmp_path / "checkpoints")
    again(tmp_path, resume="auto")
    assert_same_run(first, tmp_path)


def test_a_run_goes_on_from_the_checkpoint_that_is_named(straight, tmp_path):
    first, again = straight
    for step in (3, 5):
        with pytest.raises(Interrupted):
            again(tmp_path, resume="auto", report=stop_at(step))
    older, newer = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())[-2:]
    report = Notes()
    again(tmp_path, resume=older, report=report)
    assert f"resumed from {older}" in report.notes
    assert f"{newer} is of the earlier course of this run; it is kept as {newer}.left1" in report.notes
    assert (tmp_path / f"checkpoints/{newer}.left1/manifest.json").exists()
    assert_same_run(first, tmp_path)


def test_a_checkpoint_that_is_named_must_be_there_and_whole(straight, tmp_path):
    _, again = straight
    with pytest.raises(Interrupted):
        again(tmp_path, report=stop_at(3))
    with pytest.raises(ConfigError, match=r"has no such checkpoint\. Did you mean 'step-000003'\?\nCheckpoints: step"):
        again(tmp_path, resume="step-3")
    with (tmp_path / "checkpoints/step-000003/optimizer.safetensors").open("r+b") as file:
        file.truncate(99)
    with pytest.raises(LmfError, match=r"--resume step-000003: it is damaged: optimizer.safetensors has 99 bytes"):
        again(tmp_path, resume="step-000003")


def test_a_stop_in_the_last_step_lets_the_run_finish(tiny, data, tmp_path):
    output = run(tiny, data, tmp_path / "out", steps=3, batch_size=4, report=stop_at(3))
    assert json.loads((output / "lmf.json").read_text())["status"] == "finished"


def test_what_may_change_does_not_stop_a_resumed_run(tiny, data, tmp_path):
    with pytest.raises(Interrupted):
        run(tiny, data, tmp_path, steps=4, batch_size=4, report=stop_at(2))
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(data.read_bytes())
    run(tiny, moved, tmp_path, steps=4, batch_size=4, resume="newest", save_every=1, keep=5)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "--seed: 0 then, 1 now"),
        ({"learning_rate": 0.5}, "--learning-rate: 0.001 then, 0.5 now"),
        ({"options": {"last_layers": 3}}, "--last-layers: 2 then, 3 now"),
        ({"method": "full", "options": {}}, "--method: 'lmf-full:freeze' then, 'lmf-full:full' now"),
        ({"steps": 5}, "--steps: 4 then, 5 now"),
        ({"template": "llama3"}, "--template: 'chatml' then, 'llama3' now"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_run_does_not_go_on_with_another_setting(change, message, tiny, data, tmp_path):
    settings = {"options": {"last_layers": 2}, "steps": 4, "batch_size": 4}
    with pytest.raises(Interrupted):
        run(tiny, data, tmp_path, "freeze", report=stop_at(2), **settings)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError) as refused:
        run(tiny, data, tmp_path, resume="newest", **{"method": "freeze", **settings, **change})
    lines = str(refused.value).splitlines()
    assert lines[0] == f"--resume: the run in {tmp_path} began with something else:"
    assert f"  {message}" in lines
    assert lines[-1] == f"Continue it as it was: lmf train --config {tmp_path}/run.toml --resume"
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_run_does_not_go_on_with_another_model_or_other_data(tiny, data, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(tiny, [data], output, steps=4, batch_size=4, report=stop_at(2))
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=f"  --model: '{tiny}' then, '{other}' now"):
        plan(other, data, output, steps=4, batch_size=4, resume="newest")
    changed = talks(tmp_path / "talks.jsonl", 21)
    with pytest.raises(ConfigError) as refused:
        plan(tiny, [changed], output, steps=4, batch_size=4, resume="newest")
    sums = sha256(data)[:12], sha256(changed)[:12]
    assert f"  data: talks.jsonl (sha256 {sums[0]}) then, talks.jsonl (sha256 {sums[1]}) now" in str(refused.value)
    with pytest.raises(ConfigError, match=r"  data: no file then, talks.jsonl \(sha256 [0-9a-f]{12}\) now"):
        plan(tiny, [data, changed], output, steps=4, batch_size=4, resume="newest")


def test_a_run_does_not_go_on_with_another_meaning_of_its_settings(tiny, data, tmp_path):
    with pytest.raises(Interrupted):
        run(tiny, data, tmp_path, steps=4, batch_size=4, report=stop_at(2))
    file = tmp_path / "lmf.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"template": "acme:chatml"}))
    with pytest.raises(ConfigError, match="template: 'acme:chatml' then, 'lmf-templates:chatml' now"):
        run(tiny, data, tmp_path, steps=4, batch_size=4, resume="newest")
    file.write_text(json.dumps(record | {"versions": record["versions"] | {"torch": "1.0"}}))
    report = Notes()
    run(tiny, data, tmp_path, steps=4, batch_size=4, resume="newest", report=report)
    (note,) = [note for note in report.notes if note.startswith("versions then: {'torch': '1.0'")]
    assert note.endswith("The numbers may differ a little")


# Two processes


def test_two_processes_compute_what_one_does(tiny, data, tmp_path):
    """In steps of 19 and 1 of the 20 records; in the second step one process has nothing to do."""
    settings = {"steps": 4, "batch_size": 19, "learning_rate": 2e-5, "micro_batch_tokens": 100}
    settings |= {"eval_data": [str(data)]}
    one = run(tiny, data, tmp_path / "one", **settings)
    assert processes(2, lambda rank: run(tiny, data, tmp_path / "two", **settings)) == [0, 0]
    two = tmp_path / "two"
    assert json.loads((two / "lmf.json").read_text())["processes"] == 2
    held_out = [[line["eval_loss"] for line in log(output, "eval_loss")] for output in (one, two)]
    difference = apart(one, two) | {"held-out loss": max(map(relative, *held_out))}
    print(f"\n  two processes: {difference}")
    assert max(difference.values()) <= 1e-6


def test_two_processes_stop_together_and_go_on_to_the_same_bits(dropping, data, tmp_path):
    settings = {"steps": 6, "batch_size": 4}

    def stopped(rank: int) -> None:
        with pytest.raises(Interrupted, match="Stopped after step 3 of 6"):
            run(dropping, data, tmp_path / "out", report=stop_at(3) if rank == 1 else None, **settings)

    assert processes(2, lambda rank: run(dropping, data, tmp_path / "straight", **settings)) == [0, 0]
    assert processes(2, stopped) == [0, 0]
    assert processes(2, lambda rank: run(dropping, data, tmp_path / "out", resume="newest", **settings)) == [0, 0]
    assert_same_run(tmp_path / "straight", tmp_path / "out")


def test_the_record_that_diverged_is_named_by_every_process(tiny, data, tmp_path, monkeypatch):
    poison(monkeypatch, ":7", lambda loss, model: loss * math.nan)

    def diverged(rank: int) -> None:
        with pytest.raises(LmfError, match=f"Records of that batch: {data}:7\\."):
            run(tiny, data, tmp_path / "out", batch_size=20, micro_batch_tokens=1)

    assert processes(2, diverged) == [0, 0]


# The held-out loss


def test_the_best_weights_are_given_out_and_the_run_stops_when_they_get_no_better(tiny, data, tmp_path, learners):
    report = Notes()
    settings = {"steps": 60, "batch_size": 4, "eval_split": 0.3, "eval_every": 2, "patience": 3, "keep": 1}
    output = run(tiny, data, tmp_path / "out", learning_rate=0.02, schedule="constant", report=report, **settings)
    record = json.loads((output / "lmf.json").read_text())
    measured = {line["step"]: line["eval_loss"] for line in log(output, "eval_loss")}
    best = min(measured, key=lambda step: measured[step])
    assert record["best"] == {"step": best, "loss": measured[best]}
    assert (record["status"], record["ended"]) == ("finished", "stopped early")
    assert record["steps"] == best + 3 * 2 < 60
    assert "stopped early: 3 evaluations without a lower held-out loss" in report.notes
    assert f"giving out the weights of step {best}, which had the lowest held-out loss" in report.notes
    assert sorted(path.name for path in (output / "checkpoints").iterdir())[0] == f"step-{best:06d}"
    again = run(output, data, tmp_path / "again", report=report, **settings | {"steps": 1, "seed": 0})
    assert log(again, "eval_loss")[0]["eval_loss"] == pytest.approx(measured[best], rel=1e-6)


def test_a_run_that_stopped_early_does_not_go_on_when_it_is_resumed(tiny, data, tmp_path):
    settings = {"steps": 60, "batch_size": 4, "eval_split": 0.3, "eval_every": 2, "patience": 3, "save_every": 2}
    settings |= {"learning_rate": 0.02, "schedule": "constant"}
    output = run(tiny, data, tmp_path / "out", **settings)
    before = sha256(output / "model.safetensors"), log(output)
    run(tiny, data, output, resume="newest", **settings)
    assert (sha256(output / "model.safetensors"), log(output)) == before


def test_the_last_weights_are_given_out_when_that_is_asked_or_no_other_choice_is_left(tiny, data, tmp_path):
    settings = {"steps": 6, "batch_size": 4, "eval_split": 0.3, "eval_every": 2, "schedule": "constant"}
    settings |= {"learning_rate": 1.0}  # such a rate only makes it worse
    report = Notes()
    first = run(tiny, data, tmp_path / "first", report=report, **settings)
    assert json.loads((first / "lmf.json").read_text())["best"]["step"] == 0
    text = "the held-out loss was lowest before training; giving out the last weights all the same"
    assert text in report.notes
    second = run(tiny, data, tmp_path / "second", save_best=False, **settings)
    for output in (first, second):
        assert sha256(output / "model.safetensors") == sha256(output / "checkpoints/step-000006/model.safetensors")


def test_a_lost_best_checkpoint_is_told(tiny, data, tmp_path):
    settings = {"steps": 10, "batch_size": 4, "eval_split": 0.3, "eval_every": 2, "save_every": 1, "keep": 1}
    settings |= {"learning_rate": 0.02, "schedule": "constant"}

    def damage() -> None:
        (best,) = (path for path in (tmp_path / "checkpoints").glob("step-*") if path.name < "step-000008")
        (best / "model.safetensors").write_bytes(b"")

    report = At(9, damage)
    run(tiny, data, tmp_path, report=report, **settings)
    assert [note for note in report.notes if "is lost (model.safetensors has 0 bytes instead of" in note]
    assert sha256(tmp_path / "model.safetensors") == sha256(tmp_path / "checkpoints/step-000010/model.safetensors")
    report = Notes()
    run(tiny, data, tmp_path, resume="newest", report=report, **settings)
    assert [note for note in report.notes if note.startswith("the best checkpoint, of step ")]


# What diverges


def poison(
    monkeypatch: pytest.MonkeyPatch, where: str, change: Callable[[torch.Tensor, Any], torch.Tensor], after: int = 0
) -> None:
    """Change the loss of batches with the record whose place ends in ``where``, once it was drawn ``after`` times."""
    loss, drawn = lmf_sft.Supervised.loss, []

    def poisoned(criterion: Any, model: Any, batch: Any) -> torch.Tensor:
        value = loss(criterion, model, batch)
        if not any(name.endswith(where) for name in batch.where):
            return value
        drawn.append(batch)
        return change(value, model) if len(drawn) > after else value

    monkeypatch.setattr(lmf_sft.Supervised, "loss", poisoned)


def kink(loss: torch.Tensor, model: Any) -> torch.Tensor:
    """Leave the loss as it is, with a gradient that is NaN in one matrix: the root of 0 has no slope."""
    return loss + (model.model.layers[2].mlp.up_proj.weight.sum() * 0).sqrt()


STEADY = {"steps": 8, "batch_size": 5, "micro_batch_tokens": 1, "save_every": 1}


@pytest.fixture(scope="module")
def steady(tiny, data, tmp_path_factory) -> Path:
    """A run that does not diverge."""
    return run(tiny, data, tmp_path_factory.mktemp("steady") / "out", **STEADY)


@pytest.mark.parametrize(
    ("change", "numbers", "rest"),
    [
        (lambda loss, model: loss * math.nan, "nan and the norm of its gradient nan", []),
        (lambda loss, model: loss * math.inf, "inf and the norm of its gradient nan", []),
        (lambda loss, model: loss - math.inf, r"-inf and the norm of its gradient \d\.\d+", []),
        (kink, r"\d\.\d+ and the norm of its gradient nan", ["model.layers.2.mlp.up_proj.weight"]),
    ],
    ids=["nan", "inf", "minus inf", "gradient"],
)
def test_a_loss_or_gradient_that_is_no_number_ends_the_run_before_the_step(
    change, numbers, rest, steady, tiny, data, tmp_path, monkeypatch, learners
):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        poison(patch, ":7", change, after=1)  # in the second epoch
        with pytest.raises(LmfError) as stopped:
            run(tiny, data, output, **STEADY)
    record = json.loads((output / "lmf.json").read_text())
    done = record["steps"]
    assert record["status"] == "diverged"
    assert 4 <= done < 8
    last = output / "checkpoints" / f"step-{done:06d}"
    first, records, *parameter, end = str(stopped.value).splitlines()
    assert re.fullmatch(f"Step {done + 1}: the loss is {numbers}; the step was not taken.", first)
    assert end == f"The last good checkpoint is {last}. Try a lower --learning-rate, or look at these records."
    if rest:
        assert parameter == [f"First parameter with a bad gradient: {name}." for name in rest]
        assert len(records.split(", ")) == 5 and f"{data}:7" in records
    else:
        assert records == f"Records of that batch: {data}:7."
    model = learners[-1].model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights(last).items())
    run(tiny, data, output, resume="newest", **STEADY)
    assert sha256(output / "model.safetensors") == sha256(steady / "model.safetensors")


def test_a_held_out_loss_that_is_no_number_ends_the_run(tiny, data, tmp_path, monkeypatch):
    held_out = talks(tmp_path / "held.jsonl", 5)
    settings = {"eval_data": [str(held_out)], "steps": 4, "batch_size": 5, "eval_every": 2, "micro_batch_tokens": 1}
    poison(monkeypatch, "held.jsonl:3", lambda loss, model: loss * math.nan, after=1)
    with pytest.raises(LmfError) as stopped:
        run(tiny, data, tmp_path / "out", **settings)
    lines = str(stopped.value).splitlines()
    assert lines[0] == "Step 2: the held-out loss is nan."
    assert lines[1] == f"Records of that batch: {held_out}:3."


def test_weights_that_are_no_numbers_are_not_saved(tiny, data, tmp_path, learners):
    def spoil() -> None:
        next(learners[-1].model.parameters()).data[0, 0] = math.inf

    with pytest.raises(LmfError, match="Step 3: the weights are not finite numbers") as stopped:
        run(tiny, data, tmp_path, steps=5, batch_size=4, save_every=1, report=At(3, spoil))
    assert f"The last good checkpoint is {tmp_path}/checkpoints/step-000002." in str(stopped.value)


def test_a_run_that_diverges_in_its_first_step_leaves_nothing_behind(tiny, data, tmp_path, monkeypatch):
    poison(monkeypatch, "", lambda loss, model: loss * math.nan)
    with pytest.raises(LmfError, match=r"Step 1: the loss is nan[^#]*There is no checkpoint yet"):
        run(tiny, data, tmp_path / "out", batch_size=20)
    assert not (tmp_path / "out").exists()


# What a run gives out


def test_what_a_run_gives_out_loads_in_transformers_unaided(tiny, data, tmp_path, learners):
    output = run(tiny, data, tmp_path / "out", steps=3, batch_size=8)
    trained = learners[-1].model.eval()
    model = AutoModelForCausalLM.from_pretrained(output)
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in model.state_dict().items())
    ids = torch.randint(3, 280, (1, 24), generator=torch.Generator().manual_seed(0))
    trained.set_attn_implementation("sdpa")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, trained(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(output)
    chatter = open_model(str(output), PLUGINS)
    prompt = [{"role": "user", "content": "what is one?"}]
    theirs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert theirs == chatter.encoder.prompt([lmf.Message("user", "what is one?")])
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_nothing_that_a_run_writes_is_a_pickle(tiny, data, tmp_path):
    run(tiny, data, tmp_path / "out", steps=2, batch_size=8, eval_split=0.2)
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(files) > 15
    for file in files:
        assert file.suffix in (".json", ".jsonl", ".safetensors", ".toml", ".jinja"), file
        if file.suffix != ".safetensors":
            file.read_text(encoding="utf-8")


def test_a_model_taught_short_answers_stops_by_itself(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 50)
    output = run(tiny, data, tmp_path / "out", steps=80, batch_size=25, learning_rate=3e-3)
    chatter = open_model(str(output), PLUGINS)
    stopped = known = 0
    for line in data.read_text().splitlines():
        question, answer = (message["content"] for message in json.loads(line)["messages"])
        text = reply(chatter, question, Sampling(max_tokens=64))
        stopped += len(chatter.tokenizer(text)["input_ids"]) < 50
        known += text == answer
    print(f"\n  {stopped} of 50 replies stopped by themselves, {known} of 50 are those that were taught")
    assert stopped >= 49
    assert known >= 40


def test_the_sample_is_answered_before_and_after(tiny, data, tmp_path):
    report = Notes()
    output = run(tiny, data, tmp_path / "out", steps=2, batch_size=8, sample="what is one?", report=report)
    record = json.loads((output / "lmf.json").read_text())
    assert [(when, prompt) for when, prompt, _ in report.samples] == [
        ("before", "what is one?"),
        ("after", "what is one?"),
    ]
    assert [record["sample_before"], record["sample_after"]] == [text for _, _, text in report.samples]
    assert report.ended


# Trackers


def test_tensorboard_gets_what_the_log_gets(tiny, data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "out"
    settings = {"steps": 4, "batch_size": 8, "eval_split": 0.2, "eval_every": 2, "log": "tensorboard"}
    run_in_two(2, tiny, data, output, **settings)
    seen: dict[str, dict[int, float]] = {}
    for folder in {file.parent for file in output.rglob("events.out.tfevents.*")}:
        events = EventAccumulator(str(folder)).Reload()
        for key in events.Tags()["scalars"]:
            seen.setdefault(key, {}).update({each.step: each.value for each in events.Scalars(key)})
    for key in ("loss", "gradient_norm", "learning_rate", "tokens", "eval_loss"):
        assert seen[key] == pytest.approx({line["step"]: line[key] for line in log(output, key)}, rel=1e-6)
    assert sorted(seen["loss"]) == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:.*no supported trackers are currently installed")  # none has to be, for this
def test_a_tracker_that_cannot_start_leaves_nothing_behind(tiny, data, tmp_path, monkeypatch):
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the server")

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: name == "wandb" or found(name))
    monkeypatch.setattr(lmf.training.loop.Accelerator, "init_trackers", offline)
    with pytest.raises(ConnectionError, match="no route"):
        run(tiny, data, tmp_path / "out", log="wandb", steps=1)
    assert not (tmp_path / "out").exists()


# What could not be saved


def test_a_generation_config_that_contradicts_itself_is_refused_before_the_first_step(tiny, data, tmp_path):
    model = tiny_checkpoint(tmp_path / "model")
    file = model / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": False, "temperature": 0.7}))
    with pytest.raises(LmfError) as refused:
        run(model, data, tmp_path / "out", steps=1)
    assert str(refused.value).startswith(f"What {model} brings could not be saved with the tuned model: ")
    assert "`temperature` is set to `0.7`" in str(refused.value)
    assert not (tmp_path / "out").exists()


def spoil_generation(learner: Any, material: Any) -> None:
    learner.model.generation_config.stop_strings = {"a", "set"}


def spoil_config(learner: Any, material: Any) -> None:
    learner.model.config.note = object()


def spoil_tokenizer(learner: Any, material: Any) -> None:
    material.tokenizer.init_kwargs["note"] = object()


@pytest.mark.parametrize("spoil", [spoil_generation, spoil_config, spoil_tokenizer])
def test_what_cannot_be_saved_beside_the_weights_is_found_before_the_first_step(
    spoil, tiny, data, tmp_path, monkeypatch
):
    def load(plan: Any, material: Any, *rest: Any) -> Any:
        learner = lmf.training.learner.load_learner(plan, material, *rest)
        spoil(learner, material)
        return learner

    monkeypatch.setattr(lmf.training.loop, "load_learner", load)
    with pytest.raises(LmfError, match="could not be saved with the tuned model: "):
        run(tiny, data, tmp_path / "out", steps=1)
    assert not (tmp_path / "out").exists()
