"""The memory that is forecast is the memory that is used, as torch's profiler and arithmetic have it."""

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import cgroups
from lmf.encoding.material import encode_data
from lmf.errors import LmfError
from lmf.memory import machine
from lmf.memory.fitting import smaller
from lmf.memory.forecast import forecast, measure, most_work
from lmf.memory.ledger import Ledger, Usage
from lmf.report import Reporter
from lmf.training import packing
from lmf.training.learner import load_learner
from lmf.training.supply import supply_of
from tinyrun import PLUGINS, plan, talks
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 8, turns=4)


def profiled(planned, steps: int) -> int:
    """Run the first steps under torch's profiler, with nothing of ours that counts. Returns the bytes at the peak."""
    material = encode_data(planned, Reporter())
    learner = load_learner(planned, material, CPU, Reporter())
    model, tuner = learner.model.train(), learner.tuner
    optimizer = planned.optimizer.build(tuner.groups(model, 1e-3, 0.0))
    chunks = list(islice(supply_of(material.train, planned).batches(0), steps))
    low = learner.compute == torch.bfloat16
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        for step, chunk in enumerate(chunks):
            tuner.before_step(step, optimizer)
            for part in packing.micro_batches(chunk, planned.settings.micro_batch_tokens, packed=True):
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    loss = material.criterion.loss(model, packing.pack(part))
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    now = most = 0
    events: Any = found.profiler
    for event in events.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    weights = {t.untyped_storage().data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return most + sum(t.untyped_storage().nbytes() for t in weights.values())


METHODS = {"full": {}, "freeze": {"last_layers": 1}, "lora": {"rank": 8}, "lisa": {"interval": 2}}


@pytest.mark.parametrize("tokens", [128, 512])
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("method", METHODS)
def test_the_forecast_is_within_a_tenth_of_what_the_profiler_of_torch_finds(
    method, recomputed, tokens, tiny, data, tmp_path
):
    settings = {"gradient_checkpointing": recomputed, "micro_batch_tokens": tokens, "options": METHODS[method]}
    settings["batch_size"] = 3
    learned = plan(tiny, data, tmp_path / "out", method, **settings)
    material = encode_data(learned, Reporter())
    learner = load_learner(learned, material, CPU, Reporter())
    measured, work = measure(learned, material, learner, CPU, 2)
    expected = profiled(plan(tiny, data, tmp_path / "out", method, **settings), 2)
    assert measured.usage.total == pytest.approx(expected, rel=0.02)
    assert forecast(learned, CPU, work).usage.total == pytest.approx(expected, rel=0.1)


def test_the_forecast_in_bfloat16_is_within_a_tenth_of_what_the_profiler_of_torch_finds(tiny, data, tmp_path):
    for method in ("full", "lora"):
        settings = {"dtype": "bfloat16", "options": METHODS[method], "batch_size": 3}
        learned = plan(tiny, data, tmp_path / "out", method, **settings)
        material = encode_data(learned, Reporter())
        _, work = measure(learned, material, load_learner(learned, material, CPU, Reporter()), CPU, 2)
        expected = profiled(plan(tiny, data, tmp_path / "out", method, **settings), 2)
        assert forecast(learned, CPU, work).usage.total == pytest.approx(expected, rel=0.1)


# The tiny model: width 64, 4 layers, 4 heads of 16 and 2 of keys and values, 128 inside, V tokens

LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
NORM = 64
FREQUENCIES = 2 * 4 * 8  # bytes of the buffers of the rotary embedding, kept twice


def ends(tiny: Path) -> int:
    """The parameters of embeddings and head."""
    return 2 * 64 * AutoConfig.from_pretrained(tiny).vocab_size


def planned_peak(tiny, data, tmp_path, method="full", **settings):
    made = plan(tiny, data, tmp_path / "out", method, **settings)
    return forecast(made, CPU, most_work(made)).most


def count(tensors: int) -> int:
    """The bytes of AdamW's counters of steps, a float32 for each tensor."""
    return 4 * tensors


def test_full_fine_tuning_keeps_weight_gradient_and_two_moments_of_each_parameter(tiny, data, tmp_path):
    all_of_them = ends(tiny) + 4 * LAYER + NORM
    most = planned_peak(tiny, data, tmp_path)
    assert most.weights == 4 * all_of_them + FREQUENCIES
    assert most.gradients == 4 * all_of_them
    assert most.state == 8 * all_of_them + count(2 + 4 * 9 + 1)


def test_frozen_weights_take_two_bytes_and_neither_gradient_nor_state(tiny, data, tmp_path):
    most = planned_peak(tiny, data, tmp_path, "freeze", dtype="bfloat16", options={"last_layers": 1})
    assert most.weights == 2 * (ends(tiny) + 3 * LAYER + NORM) + 4 * LAYER + FREQUENCIES
    assert most.gradients == 4 * LAYER
    assert most.state == 8 * LAYER + count(9)


def test_lora_keeps_state_of_its_updates_only(tiny, data, tmp_path):
    rank = 8
    # A is (rank, in) and B is (out, rank), of the four projections of attention
    update = 4 * rank * sum(a + b for a, b in ((64, 64), (64, 32), (64, 32), (64, 64)))
    targets = {"rank": rank, "target": ("q_proj", "k_proj", "v_proj", "o_proj")}
    most = planned_peak(tiny, data, tmp_path, "lora", options=targets)
    assert most.weights == 4 * (ends(tiny) + 4 * LAYER + NORM + update) + FREQUENCIES
    assert most.gradients == 4 * update
    assert most.state == 8 * update + count(4 * 4 * 2)


def test_steps_in_the_backward_pass_keep_one_gradient_at_a_time(tiny, data, tmp_path):
    most = planned_peak(
        tiny, data, tmp_path, step_in_backward=True, clip=0.0, batch_size=2, max_tokens=64, micro_batch_tokens=128
    )
    assert 4 * ends(tiny) // 2 <= most.gradients < 4 * (ends(tiny) // 2 + LAYER)
    assert most.state == 8 * (ends(tiny) + 4 * LAYER + NORM) + count(2 + 4 * 9 + 1)


@pytest.mark.parametrize("state, layers", [("reset", 2), ("keep", 4)])
def test_lisa_keeps_the_state_of_the_layers_that_are_trained_now_or_of_all_that_ever_were(
    state, layers, tiny, data, tmp_path
):
    made = plan(tiny, data, tmp_path / "out", "lisa", options={"state": state, "interval": 1}, steps=50)
    usage = forecast(made, CPU, most_work(made)).usage
    always = ends(tiny) + NORM
    assert usage.state == 8 * (always + layers * LAYER) + count(3 + 9 * layers)


def test_a_first_update_from_a_decomposition_is_forecast_without_the_weights(tiny, data, tmp_path):
    plain, pissa, olora = (
        planned_peak(tiny, data, tmp_path, "lora", options={"init": init}) for init in ("default", "pissa", "olora")
    )
    assert plain.state == pissa.state == olora.state


def test_a_plan_takes_full_micro_batches_of_the_longest_examples(tiny, data, tmp_path):
    made = plan(tiny, data, tmp_path / "out", max_tokens=100, micro_batch_tokens=250, batch_size=8, epochs=5.0)
    work = most_work(made)
    assert work.batches == (((100, 100), (100, 100), (50, 50)),)
    assert work.tokens == 250
    assert work.later
    assert work.steps == 5
    alone = most_work(plan(tiny, data, tmp_path / "out", max_tokens=100, micro_batch_tokens=250, batch_size=2))
    assert alone.batches == (((100, 100), (100, 100)),)
    assert not alone.later


def test_examples_are_never_longer_than_the_model_has_positions(tiny, data, tmp_path):
    assert most_work(plan(tiny, data, tmp_path / "out", batch_size=1)).batches == (((512, 512),),)


def test_a_model_of_seventy_billion_parameters_is_forecast_without_memory_for_it(tiny, data, tmp_path):
    large = tmp_path / "large"
    large.mkdir()
    for file in tiny.iterdir():
        (large / file.name).symlink_to(file)
    (large / "config.json").unlink()
    shape = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
    config = AutoConfig.from_pretrained(tiny, vocab_size=32000, num_hidden_layers=2, head_dim=128, **shape)
    config.save_pretrained(large)
    made = plan(large, data, tmp_path / "out", dtype="bfloat16")
    before = machine.resident()
    most = forecast(made, CPU, most_work(made)).most
    layer = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    assert most.gradients == 4 * (2 * layer + 2 * 32000 * 8192 + 8192)
    assert machine.resident() - before < most.gradients / 20


def test_what_would_fit_is_forecast_and_the_fewest_changes_come_first(tiny, data, tmp_path):
    made = plan(tiny, data, tmp_path / "out", max_tokens=64, micro_batch_tokens=512)
    changes = {each.flags: each for each in smaller(made, CPU, 10**12)}
    assert list(changes)[:3] == sorted(list(changes)[:3], key=lambda flags: changes[flags].bytes)
    settings = {"--gradient-checkpointing", "--micro-batch-tokens 64", "--dtype bfloat16"}
    assert set(list(changes)[:3]) == settings
    assert {"lora", "lisa"} <= changes.keys()
    assert all(each.fits for each in changes.values())
    lower = dataclasses.replace(made, settings=dataclasses.replace(made.settings, micro_batch_tokens=64))
    assert changes["--micro-batch-tokens 64"].bytes == forecast(lower, CPU, most_work(lower)).usage.total


def test_where_no_single_change_is_enough_they_are_made_together(tiny, data, tmp_path):
    made = plan(tiny, data, tmp_path / "out", max_tokens=64, micro_batch_tokens=512)
    found = smaller(made, CPU, 0)
    assert not any(each.fits for each in found)
    together = "--gradient-checkpointing --micro-batch-tokens 64 --dtype bfloat16"
    assert {together, f"lora {together}", f"lisa {together}"} <= {each.flags for each in found}
    assert [each.bytes for each in found] == sorted(each.bytes for each in found)


def test_options_that_do_not_fit_the_model_are_told_as_in_a_run(tiny, data, tmp_path):
    (tmp_path / "weights.json").write_text(json.dumps([1, 2, 3]))
    options = {"sampler": "weighted", "layer_weights": tmp_path / "weights.json"}
    made = plan(tiny, data, tmp_path / "out", "lisa", options=options)
    with pytest.raises(LmfError, match=r"it must be a list of 4 numbers, one a layer\.$"):
        forecast(made, CPU, most_work(made))


# The ledger


def test_a_ledger_counts_what_lives_and_forgets_what_dies():
    ledger = Ledger(CPU, vocabulary=7)
    with ledger:
        kept = torch.zeros(10)
        view = kept[2:]  # the same storage
        torch.ones(1000).sum()
        del view
        logits = torch.zeros(3, 7)
    peak = ledger.peak()
    assert peak.usage == Usage(activations=4 * (10 + 1000 + 1))
    assert peak.most.logits == 4 * 21
    assert (kept.numel(), logits.numel()) == (10, 21)


def test_a_purpose_can_be_given_later():
    ledger = Ledger(CPU, vocabulary=0)
    weight = torch.nn.Parameter(torch.ones(5))
    ledger.enter([weight], "weights")
    with ledger:
        loss = (weight * 2).sum()
        with ledger.backward():
            loss.backward()
    assert weight.grad is not None
    ledger.enter([weight.grad], "gradients")
    assert ledger.peak().most.gradients == 20
    assert ledger.peak().most.weights == 20


# The machine


def test_a_run_is_planned_for_the_memory_of_the_machine_or_less(monkeypatch):
    whole = machine.capacity(CPU)
    assert machine.resident() < whole
    monkeypatch.setattr(cgroups, "memory", lambda: [1000])
    assert machine.capacity(CPU) == 1000


def test_every_method_that_needs_no_settings_is_forecast(tiny, data, tmp_path):
    for name in PLUGINS.methods:
        made = plan(tiny, data, tmp_path / "out", name, options={"last_layers": 1} if name == "freeze" else {})
        assert forecast(made, CPU, most_work(made)).usage.total > 0
