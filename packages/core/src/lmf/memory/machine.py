"""What memory this machine has, and what this process uses of it."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path

import torch
from torch import nn

from .. import cgroups


def capacity(device: torch.device) -> int:
    """Return the bytes of a GPU, or of main memory as far as this process may use it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([whole, *cgroups.memory()])


def free(device: torch.device) -> int:
    """Return the bytes of ``capacity`` that nobody uses; of main memory, as far as the system can tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    left = max(0, capacity(device) - resident())
    file = Path("/proc/meminfo")
    told = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return min([left, *(int(words[1]) * 1024 for words in told if words[0] == "MemAvailable:")])


def device() -> torch.device:
    """Return the device that a run on this machine uses."""
    from accelerate import PartialState

    found: torch.device = PartialState().device or torch.device("cpu")
    return found


def process(device: torch.device) -> int:
    """Return the bytes that are used beside the tensors of a run.

    Of a GPU that is what is taken already, by others and by the context of CUDA. Of main memory it
    is what this process has, with the parts of torch that are loaded when they are first used.
    """
    if device.type == "cuda":
        torch.zeros(1, device=device)
        free, whole = torch.cuda.mem_get_info(device)
        return whole - free - torch.cuda.memory_reserved(device)
    layer = nn.Linear(256, 256)
    optimizer = torch.optim.AdamW(layer.parameters())
    heads = layer(torch.zeros(256, 256)).view(1, 4, 256, 64)
    nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).sum().backward()
    optimizer.step()
    return resident()


def resident() -> int:
    """Return the bytes of main memory that this process has now; the most it had where nothing tells."""
    file = Path("/proc/self/statm")
    if file.exists():
        return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak(device: torch.device) -> int:
    """Return the most memory used so far in bytes: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
