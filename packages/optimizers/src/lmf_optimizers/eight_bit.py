"""AdamW with moments of 8 bits, as bitsandbytes has it, in bounded memory on a CPU too.

The moments are kept block-wise, each block of 256 with its own scale, in a code with more steps near zero
(arXiv:2110.02861, sections 2.1 and 2.2): signed for the first, unsigned for the second. A step makes them numbers
of 32 bits, does AdamW, and rounds them again. Tensors of fewer than 4096 numbers keep moments of 32 bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from bitsandbytes.functional import create_dynamic_map, optimizer_update_8bit_blockwise
from bitsandbytes.optim.adamw import AdamW8bit as _AdamW8bit
from lmf import LmfError
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor

CODES = [create_dynamic_map(signed).tolist() for signed in (True, False)]  # of the first and the second moment
SMALL = 4096  # numbers; a tensor of fewer keeps moments of 32 bits
BLOCK = 256  # numbers that share a scale
CHUNK = 2**22  # numbers at a time on a CPU, where a step keeps some five copies of them in 32 bits; whole blocks


class AdamW8bit(_AdamW8bit):
    """bitsandbytes' AdamW. Its kernels for GPUs need no copies; on a CPU, large tensors are stepped in parts."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float):
        if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
            raise LmfError(
                "--optimizer adamw-8bit cannot step weights that FSDP2 has sharded: the kernels of bitsandbytes "
                "take no DTensor. Use --optimizer adamw."
            )
        super().__init__(groups, betas=betas, eps=eps)  # type: ignore[arg-type]

    @torch.no_grad()
    def init_state(self, group: dict[str, Any], p: torch.Tensor, gindex: int, pindex: int) -> None:
        """Make the state of a parameter; bitsandbytes calls this.

        It is what bitsandbytes makes, but the codes are each parameter's own: safetensors does not save tensors
        that share memory.
        """
        state = self.state[p]
        state["step"] = 0
        large = p.numel() >= SMALL
        for number, code in enumerate(CODES, 1):
            state[f"state{number}"] = torch.zeros_like(p, dtype=torch.uint8 if large else torch.float32)
            if large:
                state[f"qmap{number}"] = torch.tensor(code, device=p.device)
                state[f"absmax{number}"] = torch.zeros(math.ceil(p.numel() / BLOCK), device=p.device)

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: torch.Tensor, gindex: int, pindex: int) -> None:
        """Step one parameter; bitsandbytes calls this."""
        state = self.state[p]
        if isinstance(p, FakeTensor):  # in a forecast of memory
            state["step"] += 1
            return
        if p.device.type != "cpu" or p.numel() <= CHUNK or state["state1"].dtype != torch.uint8:
            super().update_step(group, p, gindex, pindex)
            return
        assert p.grad is not None
        state["step"] += 1
        p.data, grad = p.data.contiguous(), p.grad.contiguous().view(-1)
        weight, first, second = p.data.view(-1), state["state1"].view(-1), state["state2"].view(-1)
        for start in range(0, p.numel(), CHUNK):
            part = slice(start, start + CHUNK)
            scales = slice(start // BLOCK, (start + CHUNK) // BLOCK)
            optimizer_update_8bit_blockwise(
                "adam",
                grad[part],
                weight[part],
                first[part],
                second[part],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                beta3=0.0,  # of a third moment, which AdamW has not
                alpha=0.0,
                eps=group["eps"],
                step=state["step"],
                lr=group["lr"],
                qmap1=state["qmap1"],
                qmap2=state["qmap2"],
                absmax1=state["absmax1"][scales],
                absmax2=state["absmax2"][scales],
                weight_decay=group["weight_decay"],
            )
