"""The step against torch's, on the float32 that weight and remainder are together, and against ``adamw-rows``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lmf_kernels.adamw import BLOCK, SHARED, EightBit, adamw_
from lmf_lisa.precision import halved, joined
from lmf_optimizers.eight_bit import CODES, AdamW8bit
from lmf_optimizers.rows import AdamWRows

STEPS = 20
OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
remainders = pytest.mark.parametrize("remainder", [True, False], ids=["remainder", "float32"])


def parts(master: torch.Tensor, remainder: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    return halved(master) if remainder else (master.clone(), None)


def whole(weight: torch.Tensor, remainder: torch.Tensor | None) -> torch.Tensor:
    return weight if remainder is None else joined(weight, remainder)


def gradients(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    return [(torch.randn(shape) * 10.0 ** torch.randint(-6, 2, shape)).to(dtype) for _ in range(STEPS)]


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1,), (7, 33), (BLOCK + 1,), (3, 2, BLOCK)], ids=str)
@remainders
def test_it_is_torchs(shape: tuple[int, ...], remainder: bool, dtype: torch.dtype, wide: torch.dtype) -> None:
    torch.manual_seed(0)
    master = torch.randn(shape)
    theirs = master.clone().to(wide).requires_grad_()
    optimizer = torch.optim.AdamW([theirs], foreach=False, **OPTIONS)
    weight, rest = parts(master, remainder)
    moments = torch.zeros(shape), torch.zeros(shape)
    for step, gradient in enumerate(gradients(shape, dtype), 1):
        theirs.grad = gradient.to(wide)
        optimizer.step()
        adamw_(weight, rest, gradient, *moments, step=step, **OPTIONS)
    assert error(whole(weight, rest), theirs.detach()) <= 1e-6
    for ours, key in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
        assert error(ours, optimizer.state[theirs][key]) <= 1e-6


@pytest.mark.parametrize(
    "changes", [{"weight_decay": 0.0}, {"betas": (0.3, 0.5)}, {"eps": 1e-2}, {"lr": 1e-9}], ids=str
)
@remainders
def test_other_numbers(changes: dict[str, Any], remainder: bool) -> None:
    torch.manual_seed(0)
    master, options = torch.randn(100), OPTIONS | changes
    theirs = master.clone().requires_grad_()
    optimizer = torch.optim.AdamW([theirs], foreach=False, **options)
    weight, rest = parts(master, remainder)
    moments = torch.zeros(100), torch.zeros(100)
    for step, gradient in enumerate(gradients((100,), torch.float32), 1):
        theirs.grad = gradient
        optimizer.step()
        adamw_(weight, rest, gradient, *moments, step=step, **options)
    assert error(whole(weight, rest), theirs.detach()) <= 1e-6


def test_the_weight_is_the_nearest_of_its_float32() -> None:
    torch.manual_seed(0)
    master = torch.randn(1000) * 10.0 ** torch.randint(-30, 30, (1000,))
    both, alone = halved(master), master.clone()
    states = [[torch.zeros(1000), torch.zeros(1000)] for _ in range(2)]
    for step, gradient in enumerate(gradients((1000,), torch.bfloat16), 1):
        adamw_(*both, gradient, *states[0], step=step, **OPTIONS)
        adamw_(alone, None, gradient, *states[1], step=step, **OPTIONS)
    assert torch.equal(joined(*both), alone)  # bit for bit
    for ours, theirs in zip(both, halved(alone), strict=True):
        assert torch.equal(ours, theirs)


@remainders
def test_rows_are_stepped_as_if_they_were_all(remainder: bool) -> None:
    torch.manual_seed(0)
    rows = torch.tensor([38, 0, 7, 21])
    master, gradient = torch.randn(40, BLOCK + 33), torch.randn(40, BLOCK + 33)
    weight, rest = parts(master, remainder)
    apart, apart_rest = parts(master[rows], remainder)
    moments = torch.randn(4, BLOCK + 33), torch.rand(4, BLOCK + 33)
    expected = [moment.clone() for moment in moments]
    adamw_(weight, rest, gradient, *moments, step=5, rows=rows, **OPTIONS)
    adamw_(apart, apart_rest, gradient[rows], *expected, step=5, **OPTIONS)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(moments, expected, strict=True))
    master[rows] = whole(apart, apart_rest)
    assert torch.equal(whole(weight, rest), master)  # and no other row was touched


def test_rows_are_those_of_adamw_rows() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(40, 33))
    optimizer = AdamWRows([{"params": [theirs], "lr": 1e-2, "weight_decay": 0.1}], betas=OPTIONS["betas"], eps=1e-8)
    weight = theirs.detach().clone()
    rows = torch.zeros(0, dtype=torch.int64)
    moments = [torch.zeros(0, 33), torch.zeros(0, 33)]
    for step, touched in enumerate(([3, 17], [17, 39], [0], [3, 8, 39]), 1):
        gradient = torch.zeros(40, 33)
        gradient[touched] = torch.randn(len(touched), 33)
        new = torch.tensor([row for row in touched if row not in rows], dtype=torch.int64)
        rows = torch.cat([rows, new])
        moments = [torch.cat([moment, torch.zeros(len(new), 33)]) for moment in moments]
        adamw_(weight, None, gradient, *moments, step=step, rows=rows, **OPTIONS)
        others = torch.ones(40, dtype=torch.bool).index_fill(0, rows, False)
        weight[others] *= 1 - 1e-2 * 0.1
        theirs.grad = gradient
        optimizer.step()
    state = optimizer.state[theirs]
    assert state["rows"].tolist() == rows.tolist()
    assert error(weight, theirs.detach()) <= 1e-6
    assert error(moments[0], state["exp_avg"]) <= 1e-6
    assert error(moments[1], state["exp_avg_sq"]) <= 1e-6


def eight_bit(size: int) -> list[EightBit]:
    """Return moments of zero."""
    codes = [torch.tensor(code) for code in CODES]
    scales = [torch.zeros(-(-size // SHARED)) for _ in codes]
    return [
        EightBit((code == 0).nonzero()[0].byte().repeat(size), scale, code)
        for code, scale in zip(codes, scales, strict=True)
    ]


def numbers(moment: EightBit) -> torch.Tensor:
    codes, scales, code = moment
    return code.double()[codes.long()] * scales.repeat_interleave(SHARED)[: len(codes)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_moments_of_8_bits_are_those_of_adamw_8bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    size = 5 * BLOCK + 33
    theirs = torch.nn.Parameter(torch.randn(size))
    weight, moments = theirs.detach().clone(), eight_bit(size)
    optimizer = AdamW8bit([{"params": [theirs], "lr": 1e-2, "weight_decay": 0.1}], betas=OPTIONS["betas"], eps=1e-8)
    for step, gradient in enumerate(gradients((size,), dtype)[:5], 1):
        gradient[:SHARED] = 0
        theirs.grad = gradient.float()
        optimizer.step()
        state, wide = optimizer.state[theirs], gradient.double()
        expected = [
            beta * numbers(moment) + (1 - beta) * power
            for beta, moment, power in zip(OPTIONS["betas"], moments, (wide, wide**2), strict=True)
        ]
        adamw_(weight, None, gradient, *moments, step=step, **OPTIONS)
        assert error(weight, theirs.detach()) <= 1e-6
        for number, (moment, exact) in enumerate(zip(moments, expected, strict=True), 1):
            scale = moment.scales.double().repeat_interleave(SHARED)[:size]
            nearest = (exact[:, None] - moment.code * scale[:, None]).abs().amin(1)
            assert ((numbers(moment) - exact).abs() - nearest <= 1e-6 * scale).all()
            assert torch.equal(moment.code, state[f"qmap{number}"])
            assert error(moment.scales, state[f"absmax{number}"]) <= 1e-6
            moment.codes.copy_(state[f"state{number}"])  # on a CPU, bitsandbytes rounds to 16 bits before
            moment.scales.copy_(state[f"absmax{number}"])


def test_a_remainder_beside_moments_of_8_bits() -> None:
    torch.manual_seed(0)
    size = BLOCK + 1
    alone = torch.randn(size)
    both, states = halved(alone), [eight_bit(size) for _ in range(2)]
    for step, gradient in enumerate(gradients((size,), torch.bfloat16)[:5], 1):
        adamw_(*both, gradient, *states[0], step=step, **OPTIONS)
        adamw_(alone, None, gradient, *states[1], step=step, **OPTIONS)
    assert torch.equal(joined(*both), alone)
    assert all(torch.equal(a, b) for one, other in zip(*states, strict=True) for a, b in zip(one, other, strict=True))


def test_nothing_to_step() -> None:
    weight = torch.ones(4, 8)
    none = torch.zeros(0, 8)
    adamw_(weight, None, weight, none, none, step=1, rows=torch.zeros(0, dtype=torch.int64), **OPTIONS)
    adamw_(none, None, none, none, none, step=1, **OPTIONS)
    assert torch.equal(weight, torch.ones(4, 8))


FULL = torch.zeros(4, 8)
EIGHT = EightBit(FULL.byte(), torch.zeros(1), torch.zeros(256))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": FULL.bfloat16()}, "weight is torch.bfloat16; it must be float32 alone, or bfloat16 with a rem"),
        ({"remainder": FULL.short()}, "weight is torch.float32; it must be float32 alone"),
        ({"weight": FULL.half()}, "weight is torch.float16"),
        ({"weight": FULL.to("meta")}, "weight is on meta; the kernel steps weights on a GPU"),
        ({"weight": FULL.bfloat16(), "remainder": FULL.int()}, r"remainder is \(4, 8\) of torch.int32; .* torch.int16"),
        ({"gradient": FULL.half()}, "gradient is .* torch.float16; .* torch.bfloat16 or torch.float32"),
        ({"gradient": FULL[:3]}, r"gradient is \(3, 8\) .* must be \(4, 8\)"),
        ({"exp_avg": FULL.bfloat16()}, "exp_avg is .* torch.bfloat16; .* torch.float32"),
        ({"exp_avg_sq": FULL[0]}, r"exp_avg_sq is \(8,\)"),
        ({"gradient": torch.zeros(8, 4).T}, "gradient must be contiguous"),
        ({"exp_avg": torch.zeros(4, 8, device="meta")}, "exp_avg must be .* on the device of the weight, cpu"),
        ({"rows": torch.tensor([0, 1])}, r"exp_avg is \(4, 8\) .* must be \(2, 8\)"),
        ({"rows": torch.tensor([0, 1, 2, 4])}, "rows are from 0 to 4; they must be from 0 to 3"),
        ({"rows": torch.zeros(4)}, r"rows is \(4,\) of torch.float32; it must be \(4,\) of torch.int64"),
        ({"rows": torch.zeros(1, 4)}, r"rows \(1, 4\); they must be \(V, D\) and \(R,\)"),
        ({"exp_avg_sq": EIGHT}, "must both be tensors, or both EightBit"),
        (
            {**dict.fromkeys(("exp_avg", "exp_avg_sq"), EIGHT), "rows": torch.tensor([0])},
            "both EightBit and then without rows",
        ),
        (
            dict.fromkeys(("exp_avg", "exp_avg_sq"), EIGHT._replace(scales=FULL)),
            r"exp_avg.scales is \(4, 8\) .* \(1,\)",
        ),
        ({"step": 0}, "step is 0 .* at least 1"),
        ({"betas": (0.9, 1.0)}, r"betas \(0.9, 1.0\); .* below 1"),
    ],
)
def test_wrong_inputs(changes: dict[str, Any], message: str) -> None:
    tensors = dict.fromkeys(("weight", "gradient", "exp_avg", "exp_avg_sq"), FULL)
    with pytest.raises(ValueError, match=message):
        adamw_(**{"remainder": None, "step": 1, **tensors, **OPTIONS, **changes})
