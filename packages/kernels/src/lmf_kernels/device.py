"""Where Triton's kernels run: on a GPU, or on a CPU in its interpreter (``TRITON_INTERPRET=1``), for tests."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

GPUS = ("nvidia*", "kfd", "dxg")  # devices of NVIDIA's driver, AMD's, and Windows' for Linux


def interpreted() -> bool:
    """Tell whether Triton interprets kernels; it must be so when they are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not() -> str | None:
    """Return why no kernel of Triton can run on this machine, or None if they can."""
    if find_spec("triton") is None:
        return "it needs the package triton: pip install 'lmf-kernels[triton]'"
    return None if interpreted() else no_gpu()


def no_gpu() -> str | None:
    """Return why there is no GPU to compute on, or None if there is one."""
    if not any(any(Path("/dev").glob(name)) for name in GPUS):  # which spares most machines without one the import
        return "there is no GPU here"
    import torch

    if not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than what it is made for (compute capability 8.0)"
    return None


def why_not_flash_attn() -> str | None:
    """Return why flash-attn cannot run here, or None if it can."""
    if find_spec("flash_attn") is None:
        return "it needs the package flash-attn, which is built with a CUDA compiler: pip install flash-attn"
    return no_gpu()


def why_not_torch() -> str | None:
    """Return why PyTorch's own cannot run here, or None if it can."""
    return no_gpu() or (None if find_spec("torch.nn.attention.varlen") else "it needs PyTorch 2.10")
