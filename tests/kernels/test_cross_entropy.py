"""The kernel against torch in float64, and against its definition in ``lmf.losses``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lmf import losses
from lmf_kernels import cross_entropy
from lmf_kernels.cross_entropy import BLOCK, linear_cross_entropy
from precisions import ALLOWED
from torch._subclasses.fake_tensor import FakeTensorMode

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "scale": {"scale": 0.4},
    "softcap": {"softcap": 1.5},
    "smoothing": {"smoothing": 0.1},
    "z_loss": {"z_loss": 1e-2},
    "all": {"scale": -1.3, "softcap": 3, "smoothing": 0.3, "z_loss": 0.1},
}
Tensors = dict[str, torch.Tensor]
dtypes = pytest.mark.parametrize("dtype", ALLOWED, ids=str)


def made(K: int, V: int, d: int, dtype: torch.dtype = torch.float32) -> Tensors:
    torch.manual_seed(K + V + d)
    tensors = {
        "hidden": torch.randn(K, d),
        "weight": torch.randn(V, d) / math.sqrt(d),
        "bias": torch.randn(V) / 2,
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()} | {
        "targets": torch.randint(V, (K,)),
        "weights": torch.rand(K) * (torch.rand(K) > 0.2),
    }


def reference(tensors: Tensors, scale: float = 1, softcap: float | None = None, z_loss=0.0, smoothing=0.0) -> Tensors:
    """Return the loss and the gradients in float64."""
    wide = {name: x.detach().double().requires_grad_() for name, x in tensors.items() if name != "targets"}
    logits = scale * F.linear(wide["hidden"], wide["weight"], wide.get("bias"))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    each = F.cross_entropy(logits, tensors["targets"], reduction="none", label_smoothing=smoothing)
    each = each + z_loss * logits.logsumexp(1) ** 2
    total = (each * wide.get("weights", torch.ones(()))).sum()
    total.backward()
    return {"loss": total.detach()} | {name: x.grad for name, x in wide.items() if x.grad is not None}


def found(tensors: Tensors, function: Any = linear_cross_entropy, **options: Any) -> Tensors:
    """Return the loss and the gradients, as far as there are any, and take these off the tensors."""
    total = function(**tensors, **options)
    if total.requires_grad:
        total.backward()
    result = {"loss": total.detach()}
    for name in ("hidden", "weight", "bias"):
        if name in tensors and tensors[name].grad is not None:
            result[name], tensors[name].grad = tensors[name].grad, None  # type: ignore[assignment]
    return result


def error(ours: Tensors, theirs: Tensors) -> float:
    """Return the largest relative difference, by the norms of the tensors."""
    return max(
        float((ours[name].double() - theirs[name]).norm() / max(float(theirs[name].norm()), 0.01)) for name in ours
    )


@dtypes
@pytest.mark.parametrize(
    ("K", "V", "d"),
    [
        *[(1, 5, 33), (1, 1025, 8), (1, BLOCK, 8)],
        *[(7, 1, 8), (7, 5, 8), (7, 50, 33), (7, 1000, 33), (7, BLOCK + 1, 33), (7, 2 * BLOCK + 1, 8)],
        *[(65, 1, 33), (65, 50, 8), (65, 1025, 33)],
    ],
)
def test_sizes(K: int, V: int, d: int, dtype: torch.dtype) -> None:
    tensors = made(K, V, d, dtype)
    assert error(found(tensors), reference(tensors)) <= ALLOWED[dtype]


@dtypes
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("left", ["", "weights", "bias", "weights bias"])
def test_options(options: dict[str, Any], left: str, dtype: torch.dtype) -> None:
    tensors = {name: tensor for name, tensor in made(9, BLOCK + 50, 33, dtype).items() if name not in left.split()}
    ours = found(tensors, **options)
    assert ours["loss"].dtype == torch.float32
    assert all(ours[name].dtype == dtype for name in ours if name != "loss")
    assert error(ours, reference(tensors, **options)) <= ALLOWED[dtype]


@pytest.mark.parametrize("chunk", [1, 160, 3 * 160 + 7, 10**6])
def test_chunks_that_do_not_divide(chunk: int) -> None:
    tensors = made(7, 150, 33)
    assert error(found(tensors, chunk=chunk, **OPTIONS["all"]), reference(tensors, **OPTIONS["all"])) <= 1e-5


@dtypes
@pytest.mark.parametrize("options", [{}, {"scale": 0.4, "softcap": 1.5, "chunk": 3 * 208}])
def test_it_is_the_plain_one(options: dict[str, Any], dtype: torch.dtype) -> None:
    tensors = made(10, 200, 33, dtype)
    theirs = found(tensors, losses.linear_cross_entropy, **options)
    theirs = {name: tensor.double() for name, tensor in theirs.items()}
    assert error(found(tensors, **options), theirs) <= ALLOWED[dtype] / 2


def test_the_gradient_of_the_loss_is_a_factor() -> None:
    tensors = made(7, 50, 8)
    halves = found(tensors, lambda **given: linear_cross_entropy(**given) / 2)
    assert error(halves, {name: tensor.double() / 2 for name, tensor in found(tensors).items()}) <= 1e-6


def test_autocast() -> None:
    tensors = made(7, 50, 33)
    with torch.autocast("cpu", torch.bfloat16):
        ours = found(tensors)
        theirs = found(tensors, losses.linear_cross_entropy)
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())
    assert 0 < error(ours, reference(tensors)) <= 1.5e-2
    assert error(ours, {name: tensor.double() for name, tensor in theirs.items()}) <= 1e-2


def test_weights_of_another_precision() -> None:
    tensors = made(7, 50, 33)
    tensors["weight"] = tensors["weight"].detach().bfloat16().requires_grad_()
    tensors["weights"] = tensors["weights"].bfloat16()
    ours = found(tensors)
    assert ours["weight"].dtype == torch.bfloat16
    assert error(ours, reference(tensors)) <= 1e-2


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("hidden", "bias"), ("hidden", "weight")])
def test_frozen(frozen: tuple[str, ...]) -> None:
    tensors = made(7, 50, 33)
    for name in frozen:
        tensors[name].requires_grad_(False)
    ours = found(tensors)
    assert ours.keys() == {"loss", "hidden", "weight", "bias"} - {*frozen}
    assert error(ours, reference(tensors)) <= 1e-5


def test_no_gradients_without_grad() -> None:
    tensors = made(7, 50, 33)
    with torch.no_grad():
        ours = found(tensors, **OPTIONS["all"])
    assert ours.keys() == {"loss"}
    assert error(ours, reference(tensors, **OPTIONS["all"])) <= 1e-5


def test_strided() -> None:
    tensors = made(14, 50, 32)
    ours = {name: tensors[name].detach()[::2] for name in ("hidden", "targets", "weights")}
    ours |= {"weight": tensors["weight"].detach().T.contiguous().T, "bias": tensors["bias"].detach()}
    for name in ("hidden", "weight", "bias"):
        ours[name].requires_grad_()
    assert error(found(ours), reference(ours)) <= 1e-5


@dtypes
@pytest.mark.parametrize("options", [{}, {"softcap": 30.0}, {"z_loss": 1e-4, "smoothing": 0.1}])
def test_huge_logits(options: dict[str, Any], dtype: torch.dtype) -> None:
    tensors = made(8, 1025, 8, dtype)
    del tensors["bias"]
    tensors["hidden"] = torch.full((8, 8), 64.0, dtype=dtype).requires_grad_()
    signs = torch.randn(1025, 1).sign() * torch.rand(1025, 1).round()
    tensors["weight"] = (32 * signs.expand(-1, 8)).to(dtype).requires_grad_()  # logits of -16384, 0 and 16384
    ours = found(tensors, **options)
    assert all(tensor.isfinite().all() for tensor in ours.values())
    assert error(ours, reference(tensors, **options)) <= ALLOWED[dtype]


def test_what_does_not_count_has_no_gradient() -> None:
    tensors = made(7, 50, 33)
    tensors["weights"][::2] = 0
    ours = found(tensors, **OPTIONS["all"])
    assert not ours["hidden"][::2].any()
    assert ours["hidden"][1::2].any()


def test_no_predictions() -> None:
    ours = found(made(0, 50, 8))
    assert ours["loss"] == 0
    assert not ours["weight"].any()


def test_a_target_outside_is_nan_where_it_is_not_looked_for() -> None:
    tensors = made(3, 50, 8)
    tensors["targets"] = torch.tensor([-100, 50, 49])
    each = torch.empty(3)
    logits = F.linear(tensors["hidden"], tensors["weight"]).detach()
    inputs: Any = (logits, tensors["targets"], None, each, 50, 50, 1.0, None, 0.0, 0.0, False, True, 64)
    cross_entropy._cross_entropy[(3,)](*inputs)
    assert each.isnan().tolist() == [True, True, False]


def test_where_there_is_no_kernel_the_plain_one_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = made(7, 50, 33)
    ours = found(tensors)
    mode = FakeTensorMode()
    fake: Tensors = {name: mode.from_tensor(tensor.detach()) for name, tensor in tensors.items()}
    with mode:
        assert found(fake)["loss"].shape == ()
    monkeypatch.delenv("TRITON_INTERPRET")
    assert error(found(tensors), {name: tensor.double() for name, tensor in ours.items()}) <= 1e-6
    options = OPTIONS["all"]
    assert error(found(tensors, **options), reference(tensors, **options)) <= 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(3, 7)}, r"hidden is \(3, 7\) and weight \(50, 8\); they must be \(K, d\) and \(V, d\)"),
        ({"hidden": torch.zeros(1, 3, 8)}, r"must be \(K, d\)"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, r"targets is \(4,\); it must be \(K,\), here \(3,\)"),
        ({"targets": torch.zeros(3)}, r"targets is torch.float32; it must be torch.int64"),
        ({"targets": torch.tensor([0, -100, 50])}, r"ids from -100 to 50; they must be from 0 to 49"),
        ({"weights": torch.zeros(3, 1)}, r"weights is \(3, 1\)"),
        ({"bias": torch.zeros(51)}, r"bias is \(51,\); it must be \(V,\), here \(50,\)"),
        ({"hidden": torch.zeros(3, 8).double()}, "gets float64; its kernel computes bfloat16, float16, float32"),
        ({"weight": torch.zeros(50, 8).double()}, "gets float64; its kernel computes bfloat16, float16, float32"),
        ({"bias": torch.zeros(50, device="meta")}, r"bias is on meta and hidden on cpu"),
        ({"softcap": 0.0}, r"softcap is 0.0; it must be above 0"),
        ({"smoothing": 1.0}, r"smoothing is 1.0; it must be from 0 to below 1"),
        ({"chunk": 0}, r"chunk is 0; it must be at least 1"),
    ],
)
def test_wrong_inputs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**made(3, 50, 8), **changes})
