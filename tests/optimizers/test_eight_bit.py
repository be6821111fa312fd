"""AdamW with moments of 8 bits is AdamW up to the rounding of its code, in a quarter of the memory."""

import math
from typing import Any

import bitsandbytes
import lmf_optimizers
import pytest
import torch
from lmf import LmfError, Plugins
from lmf.parallel.pieces import restore, state_of
from lmf.training import checkpoint
from lmf_optimizers import eight_bit
from lmf_optimizers.eight_bit import AdamW8bit
from tinyrun import SWITCHING, plan, run, run_in_two, talks, weights
from torch import nn

BETAS, EPS = (0.9, 0.999), 1e-8


def made(model: nn.Module, decay: float = 0.0, rate: float = 3e-3) -> torch.optim.Optimizer:
    groups = [{"params": list(model.parameters()), "lr": rate, "weight_decay": decay}]
    return Plugins().optimizers["adamw-8bit"].build(groups)


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network of two layers that learns what another one computes, in float64."""
    chance = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 64, generator=chance, dtype=torch.float64)
    teacher = torch.randn(64, 8, generator=chance, dtype=torch.float64) / 8
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 8)).double()
    return model, inputs, (inputs @ teacher).tanh()


def curve(optimizer: torch.optim.Optimizer, model: nn.Module, inputs: Any, targets: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_loss_falls_as_with_torch_in_float64(decay):
    model, inputs, targets = problem()
    exact = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=decay)
    reference = curve(exact, model, inputs, targets, 100)
    model, inputs, targets = problem()
    model = model.float()
    found = curve(made(model, decay), model, inputs.float(), targets.float(), 100)
    apart = max(abs(a / b - 1) for a, b in zip(found, reference, strict=True))
    print(
        f"\n  largest distance of the losses over 100 steps: {apart:.1%}; the last {found[-1]:.5f}, {reference[-1]:.5f}"
    )
    assert reference[-1] < reference[0] / 20  # it is a problem that is solved
    assert apart < 0.1


def dynamic_code(signed: bool) -> torch.Tensor:
    """The code of arXiv:2110.02861, section 1.3: 7 decades, the lower the fewer steps; a code is a step's middle."""
    found = [0.0, 1.0]
    for decade in range(7):
        steps = 2 ** ((6 if signed else 7) - decade)
        middles = [10**-decade * (0.1 + 0.9 * (i + 0.5) / steps) for i in range(steps)]
        found += [*middles, *(-m for m in middles)] if signed else middles
    return torch.tensor(sorted(found), dtype=torch.float64)


def test_the_first_step_is_adamw_and_its_moments_are_rounded_to_the_nearest_code():
    """The first step has moments of its gradient alone, so their exact values are known: 0.1 g and 0.001 g^2."""
    weight = nn.Parameter(torch.zeros(64, 256))
    gradient = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    optimizer = AdamW8bit([{"params": [weight], "lr": 1e-2, "weight_decay": 0.0}], BETAS, EPS)
    weight.grad = gradient.clone()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), -1e-2 * gradient / (gradient.abs() + EPS), rtol=1e-4, atol=1e-9)
    state, gradient = optimizer.state[weight], gradient.double()
    for number, exact in enumerate((0.1 * gradient, 1e-3 * gradient.square()), 1):
        code = dynamic_code(signed=number == 1)
        assert len(code) == 256
        scale = exact.abs().amax(1, keepdim=True)  # a row is a block of 256
        torch.testing.assert_close(state[f"absmax{number}"].double(), scale.squeeze(1), rtol=1e-6, atol=0)
        found = code[state[f"state{number}"].long()] * scale
        nearest = (exact[..., None] - code * scale[..., None]).abs().amin(-1)
        distance = (found - exact).abs()
        assert (distance <= nearest + 5e-5 * scale).all()  # a CPU looks codes up by parts of that size
        assert (distance <= 1.01 * scale * (1 - 0.1) / (64, 128)[number - 1] / 2).all()  # half of the widest step


def test_the_state_takes_two_bytes_a_parameter_and_scales():
    model = nn.Linear(512, 1024, bias=True)
    optimizer = made(model)
    model(torch.ones(1, 512)).sum().backward()
    optimizer.step()
    sizes = {
        name: sum(v.numel() * v.element_size() for v in optimizer.state[p].values() if isinstance(v, torch.Tensor))
        for name, p in model.named_parameters()
    }
    codes = 2 * 256 * 4  # the values that the 256 codes stand for, of either moment
    assert sizes["weight"] == 2 * 512 * 1024 + 2 * 4 * 512 * 1024 // 256 + codes
    assert sizes["bias"] == 2 * 4 * 1024  # few numbers stay in 32 bits


@pytest.mark.parametrize("size", [(1000, 33), (7, 1024), (4096, 3)])
def test_in_parts_a_step_has_the_same_bits(monkeypatch, size):
    found = []
    for chunk in (eight_bit.CHUNK, 1024):
        monkeypatch.setattr(eight_bit, "CHUNK", chunk)
        chance = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(size, generator=chance))
        optimizer = AdamW8bit([{"params": [weight], "lr": 1e-2, "weight_decay": 0.1}], BETAS, EPS)
        for _ in range(3):
            weight.grad = torch.randn(size, generator=chance)
            optimizer.step()
        found.append([weight.detach(), *(v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor))])
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("size", [(64, 100), (4095,)])
def test_the_state_and_the_steps_are_those_of_bitsandbytes(size):
    found = []
    for kind in (AdamW8bit, bitsandbytes.optim.AdamW8bit):
        chance = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(size, generator=chance))
        groups = [{"params": [weight], "lr": 1e-2, "weight_decay": 0.1}]
        optimizer: Any = kind(groups, betas=BETAS, eps=EPS)
        for _ in range(3):
            weight.grad = torch.randn(size, generator=chance)
            optimizer.step()
        found.append({"weight": weight.detach(), **optimizer.state[weight]})
    assert found[0].keys() == found[1].keys()
    assert all(torch.as_tensor(found[0][key]).equal(torch.as_tensor(found[1][key])) for key in found[0])


def test_a_checkpoint_brings_the_state_back_bit_for_bit(tmp_path):
    model = nn.Linear(128, 128)
    optimizer = made(model)
    model(torch.ones(1, 128)).sum().backward()
    optimizer.step()
    folder = checkpoint.write(tmp_path, 1, lambda folder: None, state_of(model, optimizer), {}).complete()
    again = made(model)
    restore(model, again, checkpoint.load(folder)[1])
    for parameter in model.parameters():
        one, two = optimizer.state[parameter], again.state[parameter]
        assert one.keys() == two.keys()
        assert all(torch.as_tensor(one[key]).equal(torch.as_tensor(two[key])) for key in one)
        assert {key: torch.as_tensor(v).dtype for key, v in one.items()} == {
            key: torch.as_tensor(v).dtype for key, v in two.items()
        }


@pytest.mark.parametrize(("method", "options"), SWITCHING, ids=str)
def test_a_run_that_was_stopped_comes_to_the_same_bits(method, options, tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 24)
    settings = {"steps": 7, "optimizer": "adamw-8bit", "options": options, "dtype": "bfloat16"}
    straight = run(tiny, data, tmp_path / "straight", method, **settings)
    stopped = run_in_two(3, tiny, data, tmp_path / "stopped", method, **settings)
    one, other = weights(straight), weights(stopped)
    assert all(one[n].equal(other[n]) for n in one)
    assert any(not one[n].equal(before) for n, before in weights(tiny).items())
    assert all(math.isfinite(t.float().abs().max().item()) for t in one.values())


def test_without_bitsandbytes_it_is_refused_before_anything_is_loaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(lmf_optimizers, "find_spec", lambda name: None)
    with pytest.raises(LmfError, match=r"^--optimizer adamw-8bit cannot run here: .* lmf-optimizers\[8bit\]"):
        plan(tiny, talks(tmp_path / "talks.jsonl", 20), tmp_path / "out", optimizer="adamw-8bit")
