"""The norms of the gradients of layers are those that torch computes, and those of the loop."""

import math
from typing import Any

import pytest
import torch
from lmf import LmfError
from lmf.testing import tiny_model
from lmf.training.gradients import measure, norms
from lmf_lisa.sampling import drawn
from tinyrun import log, plan, run, talks

LAYERS = 4


def batches(count: int) -> list[Any]:
    chance = torch.Generator().manual_seed(0)
    return [torch.randint(8, 300, (2, 8), generator=chance) for _ in range(count)]


def test_norms_are_those_of_autograd_and_no_two_gradients_are_held_at_a_time():
    model: Any = tiny_model()
    model.requires_grad_(False)
    model.model.layers.requires_grad_(True)
    layers = list(model.model.layers)
    expected = []
    for layer in layers:
        squares = []
        for ids in batches(3):
            found = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, list(layer.parameters()))
            squares.append(sum(g.double().square().sum().item() for g in found))
        expected.append(math.sqrt(sum(squares) / 3))
    held: list[int] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            count = lambda _: held.append(sum(p.grad is not None for p in model.parameters()))  # noqa: E731
            parameter.register_post_accumulate_grad_hook(count)
    got = norms(layers, lambda ids: model(input_ids=ids, labels=ids).loss, batches(3))  # type: ignore[arg-type]
    assert got == pytest.approx(expected, rel=1e-5)
    assert set(held) == {1}
    assert all(p.grad is None for p in model.parameters())


def test_afterwards_gradients_are_kept_again():
    model: Any = tiny_model()
    ids = batches(1)
    norms(list(model.model.layers), lambda ids: model(input_ids=ids, labels=ids).loss, ids)  # type: ignore[arg-type]
    model(input_ids=ids[0], labels=ids[0]).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_gradient_that_is_not_finite_is_told_with_its_layer():
    model: Any = tiny_model()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = math.nan
    ids: Any = batches(1)
    with pytest.raises(LmfError, match=r"^The gradient of layer 0 is nan; look at the data, or try --dtype float32\."):
        norms(list(model.model.layers), lambda ids: model(input_ids=ids, labels=ids).loss, ids)


def test_measured_norms_are_those_that_runs_of_one_layer_log(tiny, tmp_path):
    """One batch holds all data, so whatever the seed that draws the layer, the first step sees the same."""
    data = talks(tmp_path / "talks.jsonl", 6)
    settings = {"batch_size": 6, "steps": 1}
    found = measure(plan(tiny, data, tmp_path / "none", "lora", **settings))
    assert not (tmp_path / "none").exists()
    only = {"active_layers": 1, "train_embeddings": False, "train_head": False, "train_norm": False}
    logged = {}
    for seed in range(20):
        (number,) = drawn("uniform", seed, 0, LAYERS, 1)
        if number not in logged:
            out = run(tiny, data, tmp_path / str(number), "lisa", seed=seed, options=only, **settings)
            logged[number] = log(out, "gradient_norm")[0]["gradient_norm"]
    assert found == pytest.approx([logged[number] for number in range(LAYERS)], rel=1e-5)


def test_norms_in_16_bits_are_near_those_in_32(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 12)
    exact, low = (
        measure(plan(tiny, data, tmp_path / "none", "full", steps=2, batch_size=6, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    )
    print(f"\n  apart by {max(abs(a / b - 1) for a, b in zip(low, exact, strict=True)):.1%}")
    assert low == pytest.approx(exact, rel=0.05)
