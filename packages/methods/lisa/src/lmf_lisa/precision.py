"""Weights of 16 bits that are trained in 32: what rounding takes off is kept, or lost without a bias.

A bfloat16 is the upper half of a float32. Rounded to the nearest, an update below half a step of it would
vanish every time. A remainder of 16 bits beside it is the whole float32 again; rounding at random, up with the
probability of the part that is cut off, loses nothing on average.
"""

from __future__ import annotations

import torch


def halved(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut float32 into the nearest bfloat16 (halves away from zero) and an int16; ``joined`` makes it whole again."""
    bits = weight.contiguous().view(torch.int32)
    upper = (bits + 0x8000) >> 16
    return upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << 16)).to(torch.int16)


def joined(upper: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    """Return the float32 that ``halved`` cut, bit for bit."""
    bits = (upper.contiguous().view(torch.int16).to(torch.int32) << 16) + remainder.to(torch.int32)
    return bits.view(torch.float32)


def rounded_at_random(weight: torch.Tensor, seed: int) -> torch.Tensor:
    """Return float32 as bfloat16, each up or down with the probability that makes its mean right.

    Args:
        weight: Finite numbers of any shape.
        seed: Decides, and no global generator is touched.
    """
    chance = torch.Generator(weight.device).manual_seed(seed)
    noise = torch.randint(0x10000, weight.shape, dtype=torch.int32, device=weight.device, generator=chance)
    bits = weight.contiguous().view(torch.int32) + noise
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)
