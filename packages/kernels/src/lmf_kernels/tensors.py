"""What kernels ask of the tensors that they get."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch._subclasses.fake_tensor import FakeTensor

from .device import interpreted

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def plain(*tensors: torch.Tensor) -> bool:
    """Tell whether the plain function is to compute these: there is no kernel where they are, or no numbers in them."""
    return any(isinstance(x, FakeTensor) or x.is_meta or not (x.is_cuda or interpreted()) for x in tensors)


@lru_cache(4)  # all layers of a model get the same
def on_device(bounds: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the bounds of documents as int32 on a device."""
    return torch.tensor(bounds, dtype=torch.int32).to(device, non_blocking=True)


def check_dtypes(name: str, *tensors: torch.Tensor) -> None:
    """Raise ValueError if a tensor has a precision that kernels do not compute in."""
    for x in tensors:
        if x.dtype not in DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(f"{name} gets {str(x.dtype).removeprefix('torch.')}; its kernel computes {known}.")
