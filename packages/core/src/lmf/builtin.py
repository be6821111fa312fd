"""What core itself provides as a plugin: the data formats, one optimizer and the usual figures of benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .evaluate.metrics import LMFLOW_PERPLEXITY, RIGHT_SHARE, USUAL
from .evaluate.task import Metric
from .formats.known import FORMATS
from .hookspecs import hookimpl
from .settings import WAYS
from .specs import DataFormat, Optimizer

if TYPE_CHECKING:
    import torch

_FUSED = {"cpu", "cuda", "mps", "xpu"}  # devices for which torch has a fused AdamW


@hookimpl
def lmf_formats() -> list[DataFormat]:
    return list(FORMATS)


@hookimpl
def lmf_metrics() -> list[Metric]:
    return [*(metric for metrics in USUAL.values() for metric in metrics), RIGHT_SHARE, LMFLOW_PERPLEXITY]


@hookimpl
def lmf_optimizers() -> list[Optimizer]:
    return [Optimizer(name="adamw", summary="AdamW (arXiv:1711.05101), torch's own.", build=_adamw, parallel=WAYS)]


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make AdamW, in one fused kernel where torch has it for the device of every parameter."""
    from torch.optim import AdamW

    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=devices <= _FUSED)
