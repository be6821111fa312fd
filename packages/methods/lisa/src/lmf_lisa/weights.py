"""How likely each layer is drawn: numbers from a file, or measured at a LoRA run.

What a LoRA run changed tells which layers matter (arXiv:2403.17919, section 3.1): a layer weighs what its
updates have of the norms of the weights that they change.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmf import ConfigError, LmfError
from lmf.models import read_tensors

if TYPE_CHECKING:
    from torch import nn


def read_weights(path: Path, model: nn.Module, layers: str, count: int) -> list[float]:
    """Return a weight for each layer.

    Args:
        path: A JSON file with a list of numbers above 0, or the folder of a LoRA adapter as peft writes it.
        model: The model that is trained.
        layers: The dotted path to its decoder layers.
        count: How many there are.

    Raises:
        ConfigError: The file or folder does not give them.
    """
    if path.is_dir():
        return _of_adapter(path, model, layers, count)
    try:
        weights = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--layer-weights {path} cannot be read: {error}.") from None
    if not isinstance(weights, list) or len(weights) != count:
        what = f"a list of {len(weights)}" if isinstance(weights, list) else f"a JSON {type(weights).__name__}"
        raise ConfigError(f"--layer-weights {path} is {what}; it must be a list of {count} numbers, one a layer.")
    for number, weight in enumerate(weights):
        if type(weight) not in (int, float) or not 0 < weight < math.inf:
            raise ConfigError(
                f"--layer-weights {path}: the weight of layer {number} is {weight!r}; it must be above 0."
            )
    return [float(weight) for weight in weights]


def _of_adapter(folder: Path, model: nn.Module, layers: str, count: int) -> list[float]:
    """Return the mean of ``|update| / |weight|`` (Frobenius norms) over the matrices of each layer."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = dict(read_tensors(folder / "adapter_model.safetensors"))
    except (OSError, ValueError, LmfError) as error:
        raise ConfigError(f"--layer-weights {folder} is no folder of a LoRA run: {error}") from None
    own: dict[str, Any] = dict(model.named_parameters())
    ratios: dict[int, list[float]] = defaultdict(list)
    for name, a in tensors.items():
        module, found, _ = name.removeprefix("base_model.model.").partition(".lora_A.")
        number = module.removeprefix(f"{layers}.").partition(".")[0]
        base, b = own.get(f"{module}.weight"), tensors.get(name.replace(".lora_A.", ".lora_B."))
        if not found or b is None or not module.startswith(f"{layers}.") or not number.isdecimal():
            continue
        if base is None or base.shape != (b.shape[0], a.shape[1]):
            raise ConfigError(f"--layer-weights {folder} is an adapter of another model: {module} does not fit.")
        root = config.get("use_rslora") and math.sqrt(a.shape[0])
        scale = config["lora_alpha"] / (root or a.shape[0])
        ratios[int(number)].append(float(scale * (b.double() @ a.double()).norm() / base.detach().double().norm()))
    missing = [number for number in range(count) if not ratios.get(number)]
    if missing:
        raise ConfigError(f"--layer-weights {folder} changes nothing in layer {missing[0]}; give a file of numbers.")
    weights = [sum(ratios[number]) / len(ratios[number]) for number in range(count)]
    if min(weights) <= 0:
        raise ConfigError(f"--layer-weights {folder}: the updates of some layers are zero; was this adapter trained?")
    return weights
