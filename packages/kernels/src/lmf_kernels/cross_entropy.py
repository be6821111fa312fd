"""Cross-entropy of an output head in Triton; the definition is ``lmf.losses.linear_cross_entropy``.

Matrices are multiplied by torch. One kernel reads the logits of some rows and puts their gradient in their place,
so the logits of these rows are all that is kept beside the gradients.

Shapes: K is the number of counted predictions, d the width of the model, V the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from lmf import losses
from torch.autograd.function import once_differentiable

from .tensors import check_dtypes, plain

BUDGET = 2**29  # bytes of logits at a time; 1024 rows of 262144 in bfloat16
ALIGNED = 16  # a row of logits begins at a multiple of so many elements, or products and loads are slow
BLOCK = 2048  # elements of a row at a time
WARPS = 8


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """Return the weighted sum of the negative log-likelihoods of the targets in nats, a float32 scalar.

    It is ``lmf.losses.linear_cross_entropy``. Logits, and the gradients by them, are in the
    precision in which matrices are multiplied; what is between is float32. The gradients of ``hidden``, ``weight``
    and ``bias`` are made in the forward pass. A target outside the vocabulary makes the loss NaN on a GPU, because
    to look for it would wait for the GPU.

    Args:
        hidden: What the output head gets; (K, d).
        weight: The output head; (V, d).
        targets: The ids, int64; (K,).
        bias: The head's bias; (V,).
        weights: How much each prediction counts; (K,), 1 by default.
        scale: What the logits are multiplied by.
        softcap: Bound of the logits; none by default.
        chunk: Most elements of logits that exist at a time, but at least one row; by default 512 MiB of them.
        smoothing: Share of the likelihood that is spread over the vocabulary (arXiv:1512.00567, section 7).
        z_loss: Factor of the squared logsumexp that is added for each prediction (PaLM, arXiv:2204.02311, section 5).

    Raises:
        ValueError: Shapes, precisions, devices or numbers do not fit.
    """
    if plain(hidden, weight, targets):
        options: dict[str, Any] = {"bias": bias, "weights": weights, "scale": scale, "softcap": softcap, "chunk": chunk}
        return losses.linear_cross_entropy(hidden, weight, targets, **options, smoothing=smoothing, z_loss=z_loss)
    compute = losses.autocast_dtype(hidden)
    check_dtypes("linear_cross_entropy", hidden[:0].to(compute), weight)
    _check(hidden, weight, targets, bias, weights)
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap is {softcap}; it must be above 0, or None for no bound.")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; it must be from 0 to below 1.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1, or None for {BUDGET} bytes.")
    rows = max(1, (chunk or BUDGET // compute.itemsize) // _aligned(len(weight)))
    numbers = (float(scale), None if softcap is None else float(softcap), float(smoothing), float(z_loss))
    with torch.cuda.device_of(hidden):  # Triton launches on the current one
        return _LinearCrossEntropy.apply(  # pyright: ignore
            hidden, weight, bias, targets, weights, numbers, rows, compute, torch.is_grad_enabled()
        )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        weights: torch.Tensor | None,
        numbers: tuple[float, float | None, float, float],
        rows: int,
        compute: torch.dtype,
        grad: bool,
    ) -> torch.Tensor:
        """Return the loss, and keep the gradients of hidden, weight and bias, as far as they are needed."""
        needed = [need and grad for need in ctx.needs_input_grad[:3]]
        by_hidden, by_weight, by_bias = ctx.gradients = [
            torch.zeros_like(tensor) if need and tensor is not None else None
            for tensor, need in zip((hidden, weight, bias), needed, strict=True)
        ]
        head = weight.to(compute)
        offset = None if bias is None else bias.to(compute)
        targets, weights = targets.contiguous(), None if weights is None else weights.contiguous()
        each = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        rows = min(rows, max(1, len(targets)))
        buffer = torch.empty(rows, _aligned(len(weight)), dtype=compute, device=hidden.device)[:, : len(weight)]
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                states = hidden[part].to(compute)
                logits = buffer[: len(states)]
                if offset is None:
                    torch.mm(states, head.T, out=logits)
                else:
                    torch.addmm(offset, states, head.T, out=logits)
                counted = None if weights is None else weights[part]
                inputs = (logits, targets[part], counted, each[part], logits.stride(0), len(weight), *numbers)
                options = (numbers[2] > 0, any(needed), BLOCK)
                _cross_entropy[(len(states),)](*inputs, *options, num_warps=WARPS)  # pyright: ignore
                slope = logits  # of the loss by the logits, which the kernel has put in their place
                if by_hidden is not None:
                    by_hidden[part] = slope @ head
                if by_weight is not None:
                    _add_product(by_weight, slope.T, states)
                if by_bias is not None:
                    by_bias += slope.sum(0, dtype=torch.float32)
        return each.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Multiply the gradients by that of the loss, in place and so only once."""
        (factor,), gradients = given, ctx.gradients
        ctx.gradients = None  # or else autograd would copy what it could take
        return (*[each if each is None else each.mul_(factor.to(each.dtype)) for each in gradients], *[None] * 6)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _aligned(vocabulary: int) -> int:
    return -(-vocabulary // ALIGNED) * ALIGNED


def _check(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> None:
    """Raise a ValueError if a tensor does not fit the others."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or not len(weight):
        raise ValueError(
            f"hidden is {tuple(hidden.shape)} and weight {tuple(weight.shape)}; they must be (K, d) and (V, d)."
        )
    for name, tensor, of, count in (
        ("targets", targets, "K", len(hidden)),
        ("weights", weights, "K", len(hidden)),
        ("bias", bias, "V", len(weight)),
    ):
        if tensor is not None and tensor.shape != (count,):
            raise ValueError(f"{name} is {tuple(tensor.shape)}; it must be ({of},), here ({count},).")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype}; it must be torch.int64.")
    for name, tensor in (("weight", weight), ("targets", targets), ("bias", bias), ("weights", weights)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device} and hidden on {hidden.device}; they must be on one device.")
    if targets.device.type == "cpu" and len(targets) and not 0 <= targets.min() <= targets.max() < len(weight):
        raise ValueError(
            f"targets has ids from {targets.min()} to {targets.max()}; they must be from 0 to {len(weight) - 1}."
        )


@triton.jit(do_not_specialize_on_alignment=("T", "W", "L"))  # of a chunk: these begin anywhere
def _cross_entropy(
    X, T, W, L, stride, V, scale, softcap, smoothing, z_loss,
    SMOOTHED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the loss of a row of X to L and, in place, its gradient by the row; ``softcap`` and W may be None."""
    row = tl.program_id(0)
    X += row.to(tl.int64) * stride
    target = tl.load(T + row)
    known = (target >= 0) & (target < V)
    chosen = _bounded(tl.load(X + target, mask=known, other=float("nan")).to(tl.float32), scale, softcap)[0]
    # each lane has its own largest logit and sum of exponentials: no lane waits for another in the loop
    top = tl.full([BLOCK], -3.0e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    spread = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = _bounded(_read(X, at, stride, V), scale, softcap)[0]
        if SMOOTHED:
            spread += tl.where(at < V, x, 0.0)
        x = tl.where(at < V, x, float("-inf"))
        above = x - top
        less = tl.exp(-tl.abs(above))
        total = tl.where(above > 0, total * less + 1.0, total + less)
        top = tl.maximum(top, x)
    largest = tl.max(top, 0)
    exponentials = tl.sum(total * tl.exp(top - largest), 0)
    rest = tl.log(exponentials)
    lse = largest + rest
    loss = rest - (chosen - largest) + z_loss * lse * lse
    if SMOOTHED:
        loss += smoothing * (chosen - tl.sum(spread, 0) / V)
    counted = 1.0
    if W is not None:
        counted = tl.load(W + row).to(tl.float32)
    tl.store(L + row, loss * counted)
    if GRADIENT:
        tl.debug_barrier()  # until all warps have read the target's logit
        counted *= scale
        slope = (1.0 + 2.0 * z_loss * lse) / exponentials
        for start in range(0, V, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x, bent = _bounded(_read(X, at, stride, V), scale, softcap)
            g = slope * tl.exp(x - largest)
            if SMOOTHED:
                g -= smoothing / V
            g = tl.where(at == target, g - (1.0 - smoothing), g)
            tl.store(X + at, (g * bent * counted).to(X.dtype.element_ty), mask=at < stride)


@triton.jit
def _read(X, at, stride, V):
    """Return logits in float32, minus infinity behind the last; up to the aligned stride, loads are wide for any V."""
    return tl.where(at < V, tl.load(X + at, mask=at < stride, other=0.0).to(tl.float32), float("-inf"))


@triton.jit
def _bounded(x, scale, softcap):
    """Return logits scaled and bounded, and their derivative by the scaled ones."""
    x *= scale
    bent = 1.0
    if softcap is not None:
        less = tl.exp(-2.0 * tl.abs(x) / softcap)
        bound = softcap * (1.0 - less) / (1.0 + less)
        bent = 4.0 * less / ((1.0 + less) * (1.0 + less))
        x = tl.where(x < 0, -bound, bound)
    return x, bent


def variants(architecture: int) -> list[Any]:
    """Return what ``lmf_kernels.compiling`` is to compile; the same for every architecture."""
    from .compiling import Variant

    plain = {"W": None, "softcap": None, "SMOOTHED": False, "GRADIENT": True}
    options: dict[str, dict[str, Any]] = {
        "": {},
        " loss alone": {"GRADIENT": False},
        " weights": {"W": "*fp32"},
        " softcap": {"softcap": "fp32"},
        " smoothing": {"SMOOTHED": True},
        " weights softcap smoothing": {"W": "*fp32", "softcap": "fp32", "SMOOTHED": True},
    }
    return [
        Variant(
            f"cross_entropy {dtype}{name}",
            _cross_entropy,
            {
                **dict.fromkeys(_cross_entropy.arg_names),
                **{"X": f"*{dtype}", "T": "*i64", "L": "*fp32", "stride": "i32:16", "V": "i32", "BLOCK": BLOCK},
                **dict.fromkeys(("scale", "smoothing", "z_loss"), "fp32"),
                **plain,
                **chosen,
            },
            WARPS,
        )
        for dtype in ("bf16", "fp16", "fp32")
        for name, chosen in options.items()
    ]
