"""Losses from hidden states, without the logits of a whole batch.

Shapes: K is the number of counted predictions, d the width of the model, V the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

FEWEST = 16
"""Rows of a product whose bits should not depend on the others: kernels of CPUs for fewer (12) add in another order."""


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
    """Return the weighted sum of the negative log-likelihoods of the targets in nats, a scalar.

    It is ``cross_entropy(softcap * tanh(scale * (hidden @ weight.T + bias) / softcap), targets)``, a few rows at a
    time. The gradients are made in the same pass, while the logits are at hand, so no logits are kept for the
    backward pass. Matrices are multiplied in the precision of ``hidden``, or in that of an enclosing
    ``torch.autocast``; what comes after is float32, or float64 if they are.

    Args:
        hidden: What the output head gets; (K, d).
        weight: The output head; (V, d).
        targets: The ids; (K,).
        bias: The head's bias; (V,).
        weights: How much each prediction counts; (K,), 1 by default.
        scale: What the logits are multiplied by.
        softcap: Bound of the logits; none by default.
        chunk: Most elements of logits that exist at a time; by default what the device works on well.
        smoothing: Share of the likelihood that is spread over the vocabulary (arXiv:1512.00567, section 7).
        z_loss: Factor of the squared logsumexp that is added for each prediction (PaLM, arXiv:2204.02311, section 5).
    """
    if chunk is None:
        chunk = _elements(hidden.device)
    rows = max(1, chunk // weight.shape[0])
    compute = autocast_dtype(hidden)
    numbers = (scale, softcap, smoothing, z_loss)
    learns = torch.is_grad_enabled()  # autograd tells which inputs need gradients, not whether any are wanted
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, weights, numbers, rows, compute, learns)  # pyright: ignore


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the precision in which a product of x is computed: that of ``torch.autocast``, if it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


@torch.no_grad()
def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each target in nats, float32 or wider, and whether none is likelier; (K,) each.

    The arguments are those of ``linear_cross_entropy``, whose result is the negative sum of these. No gradients.
    """
    count = len(targets)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if not count:
        return hidden.new_empty(0, dtype=wide), hidden.new_empty(0, dtype=torch.bool)
    if count < FEWEST:
        fill = FEWEST - count
        hidden, targets = (torch.cat([x, x[-1:].expand(fill, *x.shape[1:])]) for x in (hidden, targets))
    parts = max(1, len(targets) * weight.shape[0] // _elements(hidden.device))
    found = []
    for states, ids in zip(hidden.tensor_split(parts), targets.tensor_split(parts), strict=True):
        logits = F.linear(states, weight, bias).to(wide) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        found.append(chosen_logprobs(logits, ids))
    logprobs, likeliest = zip(*found, strict=True)
    return torch.cat(logprobs)[:count], torch.cat(likeliest)[:count]


def _elements(device: torch.device) -> int:
    """Return how many elements of logits may exist at a time."""
    return 2**24 if device.type == "cpu" else 2**26  # 64 MiB stay near a CPU; a GPU wants more rows


def chosen_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each target in nats, and whether none is likelier; (K,) each, of logits (K, V)."""
    chosen = logits.gather(1, targets[:, None])[:, 0]
    return chosen - logits.logsumexp(1), chosen >= logits.amax(1)


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
        learns: bool,
    ) -> torch.Tensor:
        """Return the loss, and keep the gradients of hidden, weight and bias, as far as they are needed."""
        scale, softcap, smoothing, z_loss = numbers
        needed = [learns and need for need in ctx.needs_input_grad[:3]]
        inputs = (hidden, weight, bias)
        by_hidden, by_weight, by_bias = gradients = [
            torch.zeros_like(each) if need and each is not None else None
            for each, need in zip(inputs, needed, strict=True)
        ]
        head = weight.to(compute)
        wide = torch.promote_types(compute, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                states, ids = hidden[part].to(compute), targets[part, None]
                logits = F.linear(states, head, None if bias is None else bias.to(compute)).to(wide)
                if scale != 1.0:
                    logits *= scale
                if softcap is not None:
                    logits = logits.div_(softcap).tanh_().mul_(softcap)
                likely = F.log_softmax(logits, 1)
                losses = -likely.gather(1, ids) * (1 - smoothing)
                if smoothing:
                    losses -= likely.mean(1, keepdim=True) * smoothing
                spread = logits.logsumexp(1, keepdim=True) if z_loss else None
                if spread is not None:
                    losses += z_loss * spread.square()
                counted = None if weights is None else weights[part, None].to(wide)
                total += losses.sum() if counted is None else (losses * counted).sum()
                if not any(needed):
                    continue
                slope = likely.exp_()  # of the loss by the logits: the probabilities, less 1 at the target
                if spread is not None:
                    slope *= 1 + 2 * z_loss * spread
                if smoothing:
                    slope -= smoothing / logits.shape[1]
                slope.scatter_add_(1, ids, torch.full_like(losses, smoothing - 1))
                if counted is not None:
                    slope *= counted
                if softcap is not None:
                    slope *= 1 - (logits / softcap).square_()
                if scale != 1.0:
                    slope *= scale
                if by_bias is not None:
                    by_bias += slope.sum(0)
                slope = slope.to(compute)
                if by_hidden is not None:
                    by_hidden[part] = slope @ head
                if by_weight is not None:
                    _add_product(by_weight, slope.T, states)
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Multiply the gradients by that of the loss, in place and so only once."""
        (factor,), gradients = given, ctx.gradients
        ctx.gradients = None  # or else autograd would copy what it could take
        return (*[each if each is None else each.mul_(factor.to(each.dtype)) for each in gradients], *[None] * 6)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
