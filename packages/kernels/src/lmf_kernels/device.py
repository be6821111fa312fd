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
    if interpreted():
        return None
    if not any(any(Path("/dev").glob(name)) for name in GPUS):  # which spares most machines without one the import
        return "there is no GPU here"
    import torch

    if not torch.cuda.is_available():
        return "there is no GPU that torch can use"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than what it is made for (compute capability 8.0)"
    return None
