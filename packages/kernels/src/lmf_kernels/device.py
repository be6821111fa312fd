"""Where Triton's kernels run: on a GPU, or on a CPU in its interpreter (``TRITON_INTERPRET=1``), for tests."""

from __future__ import annotations

import os
from collections.abc import Callable
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


def why_not_hopper() -> str | None:
    """Return why kernels for Hopper in Triton's Gluon cannot run here, or None if they can."""
    if find_spec("triton") is None:
        return why_not()
    if reason := no_gpu():
        return reason
    import torch

    if torch.version.hip is not None or torch.cuda.get_device_capability() != (9, 0):
        return f"{torch.cuda.get_device_name()} is not what it is made for (compute capability 9.0)"
    import triton

    if triton.__version__.split(".")[:2] not in (["3", "6"], ["3", "7"]):
        return f"it needs Triton 3.6 or 3.7, whose Gluon it is written in; {triton.__version__} is here"
    return None


def why_not_others(module: str, package: str, more: str = "") -> Callable[[], str | None]:
    """Return a function that tells why the kernels of another package cannot run here.

    Args:
        module: What is imported.
        package: What is installed.
        more: What else is to be known about it.
    """

    def why_not_it() -> str | None:
        if find_spec(module) is None:
            return f"it needs the package {package}{', ' * bool(more)}{more}: pip install {package}"
        return no_gpu()

    return why_not_it


def why_not_torch() -> str | None:
    """Return why PyTorch's own cannot run here, or None if it can."""
    return no_gpu() or (None if find_spec("torch.nn.attention.varlen") else "it needs PyTorch 2.10")
