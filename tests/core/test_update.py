"""Steps taken in the backward pass are the steps that are taken after it, with one gradient at a time."""

import math

import lmf_sft
import pytest
import torch
from lmf import ConfigError, LmfError
from lmf.testing import tiny_model
from lmf.training.update import AfterBackward, InBackward, norm_of
from tinyrun import log, plan, processes, run, stop_at, talks, weights

ONE_PASS = {"clip": 0, "batch_size": 8, "max_tokens": 128, "step_in_backward": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 20)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("full", {}),
        ("freeze", {"last_layers": 1}),
        ("lora", {"rank": 4}),
        ("lisa", {"active_layers": 1, "interval": 2}),
    ],
)
def test_both_ways_give_the_same_bits(method, options, tiny, data, tmp_path):
    for name, on in (("after", False), ("in", True)):
        run(tiny, data, tmp_path / name, method, options=options, epochs=2, **ONE_PASS | {"step_in_backward": on})
    after, within = (log(tmp_path / name, "loss") for name in ("after", "in"))
    assert [line["loss"] for line in after] == [line["loss"] for line in within]
    norms = [[line["gradient_norm"] for line in lines] for lines in (after, within)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    for file in (tmp_path / "after").glob("*.safetensors"):
        assert (tmp_path / "in" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_there_is_never_more_than_one_gradient(tied):
    model = tiny_model(tied=tied)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    held: list[int] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(p.grad is not None for p in model.parameters()))
        )
    update = InBackward(optimizer)
    ids = torch.arange(20)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert held == [1] * len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())
    assert update.norm() > 0


def test_the_norm_is_that_of_all_gradients_and_counts_each_pass_alone():
    ids = torch.arange(20)[None]
    models = tiny_model(), tiny_model()
    after = AfterBackward(models[0], torch.optim.SGD(models[0].parameters(), lr=0.0), clip=0)
    within = InBackward(torch.optim.SGD(models[1].parameters(), lr=0.0))
    for _ in range(2):
        for model in models:
            model(input_ids=ids, labels=ids).loss.backward()
        norm = after.norm()
        assert within.norm().item() == pytest.approx(norm.item(), rel=1e-6)
        after.step(norm)


def test_the_norm_of_many_gradients_is_that_of_float64():
    gradients = [torch.randn(30_000, 1000) * 1e-3, torch.randn(7), torch.zeros(3, 0)]
    exact = torch.cat([each.double().flatten() for each in gradients]).norm()
    assert abs(norm_of(gradients) - exact) / exact < 1e-6


def test_a_step_in_the_backward_pass_needs_no_limit_of_the_norm_of_all_gradients(tiny, data, tmp_path):
    with pytest.raises(ConfigError, match=r"--clip 1\.0 needs the norm of all gradients.*Add --clip 0\."):
        plan(tiny, data, tmp_path / "out", step_in_backward=True)


def test_gradients_that_would_be_accumulated_are_refused(tiny, data, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)16 examples of up to 2048 tokens.*or give --micro-batch-tokens 32768"):
        plan(tiny, data, tmp_path / "out", step_in_backward=True, clip=0)


def test_several_processes_are_refused(tiny, data, tmp_path):
    def refused(rank: int) -> None:
        with pytest.raises(ConfigError, match="--step-in-backward runs in one process"):
            run(tiny, data, tmp_path / "out", **ONE_PASS)

    assert processes(2, refused) == [0, 0]


def test_a_loss_that_is_no_number_ends_the_run_before_any_weight_changes(tiny, data, tmp_path, monkeypatch):
    loss = lmf_sft.Supervised.loss
    seen = []

    def poisoned(self, model, batch):
        seen.append([p.detach().clone() for p in model.parameters()])
        seen.append(model)
        return loss(self, model, batch) * math.nan

    monkeypatch.setattr(lmf_sft.Supervised, "loss", poisoned)
    with pytest.raises(LmfError, match=r"Step 1: the loss is nan; the step was not taken\."):
        run(tiny, data, tmp_path / "out", **ONE_PASS)
    before, model = seen
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_a_gradient_that_is_no_number_ends_the_run_and_says_that_weights_have_changed(
    tiny, data, tmp_path, monkeypatch
):
    loss = lmf_sft.Supervised.loss

    def poisoned(self, model, batch):
        model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * math.nan)
        return loss(self, model, batch)

    monkeypatch.setattr(lmf_sft.Supervised, "loss", poisoned)
    with pytest.raises(LmfError, match=r"Step 1: .* the norm of its gradient nan; the step was taken in part\."):
        run(tiny, data, tmp_path / "out", **ONE_PASS)


def test_a_run_with_steps_in_the_backward_pass_resumes_to_the_same_bits(tiny, data, tmp_path):
    run(tiny, data, tmp_path / "straight", steps=6, **ONE_PASS)
    with pytest.raises(LmfError, match="Stopped after step 3 of 6"):
        run(tiny, data, tmp_path / "out", report=stop_at(3), steps=6, **ONE_PASS)
    run(tiny, data, tmp_path / "out", resume="newest", steps=6, **ONE_PASS)
    straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "out")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
