"""``lmf bench``: figures of this machine."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from lmf import ConfigError, Kernel, LmfError, Plugins, option
from lmf.runs import write_file

from .. import UNTRIED
from ..device import no_gpu, why_not

PACKAGES = ("lmf-kernels", "torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy", "flash-attn")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is measured, and where the figures go."""

    model: str = option("", "Model whose sizes are taken; by default those of Llama-3-8B.")
    kernels: tuple[str, ...] = option(("all",), "Kernels: all that can run here but lmf-hopper, or names.", commas=True)
    tokens: int = option(8192, "Tokens of a batch.", min=16, max=2**20)
    dtype: Literal["bfloat16", "float16", "float32"] = option("bfloat16", "Precision.")
    device: Literal["cuda", "cpu"] = option("cuda", "Where; on a CPU, kernels for GPUs are their definitions.")
    out: Path | None = option(None, "Also write the figures to this file, as JSON.")


def kernels(wanted: Wanted) -> None:
    """Measure kernels beside plain PyTorch, torch.compile, and what this device can do at most.

    First each is compared with float64. Times are medians, of a forward and of a backward pass.
    """
    plugins = Plugins()
    chosen = _chosen(plugins, wanted.kernels)
    if wanted.device == "cuda" and (reason := no_gpu()):
        raise ConfigError(f"--device cuda: {reason}; --device cpu measures plain PyTorch.")
    import torch  # which --help needs not
    from lmf.models import load_config
    from lmf.sources import find_model

    from .cases import MODELS, attention, documents, parts, sizes_of
    from .measure import limits
    from .tables import rows_of, steps_of, table

    sizes = MODELS["Llama-3-8B"]
    if wanted.model:
        sizes = sizes_of(wanted.model, load_config(find_model(wanted.model, plugins)))
    device, dtype, tokens = torch.device(wanted.device), getattr(torch, wanted.dtype), wanted.tokens
    cuda = device.type == "cuda"
    print(header(torch.cuda.get_device_name(device) if cuda else platform.machine()), flush=True)
    known = limits(device, dtype, quick=not cuda)
    print(f"limits, measured: {known.bandwidth / 1e9:,.0f} GB/s, {known.rate / 1e12:,.1f} TFLOP/s", flush=True)
    lengths = {"one document": [tokens], "documents of 128 tokens on average": documents(128, tokens)}
    cases = parts(sizes, tokens) + [attention(sizes, each, name) for name, each in lengths.items()]
    asked = {kernel.part for kernel in chosen}
    facts: dict[str, Any] = {"bandwidth": known.bandwidth, "rate": known.rate, "rows": []}
    _write(wanted.out, facts)  # before anything takes long
    measured = [rows_of(case, chosen, device, dtype, known, compiling=cuda) for case in cases if case.part in asked]
    if wanted.kernels == ("all",) and cuda:
        measured.append(steps_of(device, known, why_not() is None))
    for rows in map(list, measured):
        print("\n".join(table(rows)), flush=True)
        facts["rows"] += rows
        _write(wanted.out, facts)
    for kernel in chosen:
        if reason := kernel.reason():
            print(f"not measured: {kernel.name}: {reason}")


def header(device: str) -> str:
    """Return what figures depend on: the date, the device and the versions."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{date.today()}, {device}, Python {platform.python_version()}\n{', '.join(found)}"


def _write(file: Path | None, facts: dict[str, Any]) -> None:
    if file is not None:
        try:
            write_file(file, json.dumps(facts, indent=1) + "\n")
        except OSError as error:
            raise LmfError(f"--out {file} cannot be written: {error.strerror or error}.") from None


def _chosen(plugins: Plugins, names: tuple[str, ...]) -> list[Kernel]:
    if "all" in names and len(names) > 1:
        raise ConfigError(f"--kernels {','.join(names)}: give all alone, or names.")
    if names == ("all",):
        return [kernel for _, kernel in plugins.kernels.all() if kernel.name not in UNTRIED]
    return [plugins.kernels[name] for name in names]
