"""LoRA by way of peft: what is trained, and how it is saved and loaded.

Shapes: r is the rank. An updated layer of weight W (out, in) computes with W + s B A, where
A is (r, in), B is (out, r) and s is the scale. PiSSA and OLoRA decompose W, begin with
A = A0 and B = B0, and leave W - s B0 A0 in the base.

What they save is nevertheless an update of the original W, of rank 2r: A and A0 stacked, B
and -B0 side by side. So whatever knows LoRA loads it on the original base, without a
decomposition, and A, B, A0 and B0 can be read back bit for bit.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lmf import ConfigError, LmfError, ModelSpec, Tuner
from lmf.models import check_tensor, read_tensors, some
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from .linear import lean
from .targets import Layers, ends, find_layers, find_rows, find_whole, inside, is_tied, select

if TYPE_CHECKING:
    from . import LoraOptions

WEIGHTS, CONFIG, PICKLE = "adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"
DECISIVE = ("r", "lora_alpha", "use_rslora", "use_dora", "bias", "modules_to_save", "trainable_token_indices")


class LoraTuner(Tuner):
    """Adds low-rank updates to linear layers and freezes the rest.

    New tokens get their rows of the input embeddings and of the output head trained too;
    all other rows stay as they are.
    """

    def __init__(self, options: LoraOptions, spec: ModelSpec):
        self.options = options
        self.projections = spec.projections
        self.start: dict[str, torch.Tensor] = {}  # A0 and B0 by their names in the file; empty where W is unchanged

    def prepare(self, model: nn.Module, new_tokens: Sequence[int] = ()) -> nn.Module:
        options = self.options
        whole = find_whole(model, options.modules_to_save)
        layers = find_layers(model, options.target, self.projections, whole)
        _check_init(options.init, options.rank, layers)
        settings: dict[str, Any] = {
            "r": options.rank,
            "lora_alpha": options.alpha,
            "lora_dropout": options.dropout,
            "target_modules": list(layers),
            "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer in layers.values()),
            "use_rslora": options.rslora,
            "use_dora": options.dora,
            "init_lora_weights": True if options.init == "default" else options.init,
            "bias": options.bias,
            "modules_to_save": whole or None,
            "trainable_token_indices": find_rows(model, new_tokens, layers, whole) or None,
            "ensure_weight_tying": is_tied(model) and any(inside(path, whole) for path in ends(model)),
        }
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 by an old name; whoever trains cannot change that
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            prepared = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
        trained = [name for name, parameter in prepared.named_parameters() if parameter.requires_grad]
        if options.bias != "none" and not any(name.endswith("bias") for name in trained):
            where = "the model has" if options.bias == "all" else "the layers of --target have"
            raise ConfigError(f"--bias {options.bias}: {where} no biases.")
        if options.init in ("pissa", "olora"):
            self.start = {n: tensor.cpu().clone() for n, tensor in _adapter(prepared).items() if _is_a(n) or _is_b(n)}
        lean(prepared)
        return prepared

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return parameter groups as LoRA+ has them: B and every vector at ``lr_ratio`` times the rate."""
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        vectors = [p for _, p in trained if p.ndim < 2]
        b = [p for name, p in trained if p.ndim >= 2 and _is_b(name)]
        rest = [p for name, p in trained if p.ndim >= 2 and not _is_b(name)]
        fast = learning_rate * self.options.lr_ratio
        groups = [(rest, learning_rate, weight_decay), (b, fast, weight_decay), (vectors, fast, 0.0)]
        return [{"params": ps, "lr": rate, "weight_decay": decay} for ps, rate, decay in groups if ps]

    def saved(self, model: nn.Module) -> list[nn.Parameter]:
        """Return what is trained; of the base, nothing is written."""
        return self.trained(model)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the two files that peft loads on the base model."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in self._update(model).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        self._config(model).save_pretrained(str(folder))

    def merge(self, model: nn.Module) -> nn.Module:
        return merged(model)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put a saved adapter back, bit for bit. One that does not fit leaves the model as it was.

        Raises:
            LmfError: A file is missing or pickled, its configuration means another update, or a
                tensor is missing, foreign, of another shape, or not finite.
        """
        file = folder / WEIGHTS
        if not file.exists() and (folder / PICKLE).exists():
            raise LmfError(f"{folder / PICKLE} is a pickle, which can run code. Convert it to {WEIGHTS}.")
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).exists():
                raise LmfError(f"{folder} holds no adapter: {name} is missing.")
        self._check_config(model, folder / CONFIG)
        found = _read(file, self._update(model))
        with torch.no_grad():
            self._rebase(model, found)
            for name, tensor in _adapter(model).items():
                tensor.copy_(found[name][tuple(slice(size) for size in tensor.shape)])  # A of A and A0

    def _update(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the tensors of a file: what is trained, with A0 and B0 where the base was changed.

        peft's own conversion keeps A and B only: it loses the magnitudes of DoRA, biases, rows
        of new tokens and whole modules.
        """
        tensors = _adapter(model)
        for name, start in self.start.items():
            start = start.to(tensors[name].device)
            parts, side = ((tensors[name], start), 0) if _is_a(name) else ((tensors[name], -start), 1)
            tensors[name] = torch.cat(parts, dim=side)
        return tensors

    def _config(self, model: Any) -> Any:
        """Return the configuration of a file: an update of the original base."""
        config = copy.copy(model.peft_config["default"])
        config.inference_mode = True
        config.target_modules = sorted(config.target_modules)  # a set, which each process orders otherwise
        base = config.base_model_name_or_path
        config.base_model_name_or_path = str(Path(base).absolute()) if base and Path(base).is_dir() else base or None
        if self.start:
            config.r *= 2
            config.lora_alpha *= 2**0.5 if config.use_rslora else 2  # keeps the scale s
            config.init_lora_weights = True
        return config

    def _check_config(self, model: Any, file: Path) -> None:
        """Raise LmfError if a file's configuration means another update than the model has."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise LmfError(f"{file} is not readable as JSON: {error}.") from None
        if not isinstance(found, dict):
            raise LmfError(f"{file} must hold a JSON object.")
        config = self._config(model)
        for key in DECISIVE:
            own = getattr(config, key)
            if found.get(key) != own:
                raise LmfError(f"{file}: {key} is {found.get(key)!r}, but the model's is {own!r}.")
        names: Any = found.get("target_modules")
        layers = [path for path, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)]
        known = isinstance(names, list) and all(isinstance(name, str) and select(layers, [name]) for name in names)
        if not known or select(layers, names) != layers:
            raise LmfError(f"{file}: target_modules is {names!r}, but the model's is {config.target_modules!r}.")

    def _rebase(self, model: nn.Module, found: Mapping[str, torch.Tensor]) -> None:
        """Take the file's B0 A0 out of the base instead of the model's own.

        They are the same bits and the base stays as it is, unless the decomposition comes out
        otherwise here: on another processor, or with another number of threads.
        """
        modules = dict(model.named_modules())
        for name_a in filter(_is_a, self.start):
            name_b = name_a.replace(".lora_A.", ".lora_B.")
            a, b = self.start[name_a], self.start[name_b]
            then_a, then_b = found[name_a][len(a) :], -found[name_b][:, len(a) :]
            if torch.equal(a, then_a) and torch.equal(b, then_b):
                continue
            layer: Any = modules[name_a.removesuffix(".lora_A.weight")]
            moved = layer.scaling["default"] * (b @ a - then_b @ then_a)
            weight = layer.get_base_layer().weight
            weight += (moved.T if layer.fan_in_fan_out else moved).to(weight)
            self.start |= {name_a: then_a.clone(), name_b: then_b.clone()}


def merged(model: Any) -> nn.Module:
    """Return the base model of peft with the updates in its own weights.

    Raises:
        LmfError: A weight would not be finite.
    """
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise LmfError(f"The adapter cannot be merged: {error}") from None


def _adapter(model: Any) -> dict[str, torch.Tensor]:
    """Return what is trained by its names in a file; the tensors are the model's own, not copies."""
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _read(file: Path, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, which must be those of ``own`` and no others.

    Trained tensors are saved in float32. A model that is loaded to talk to it may have them
    in the lower precision of its base.
    """
    found = {}
    for name, tensor in read_tensors(file):
        if name not in own:
            raise LmfError(f"{file} has the tensor {name!r}, which the model does not know.")
        found[name] = tensor.to(own[name].dtype) if tensor.is_floating_point() else tensor
        check_tensor(file, name, found[name], own[name])
    missing = own.keys() - found.keys()
    if missing:
        raise LmfError(f"{file} lacks the tensors {some(missing)}.")
    return found


def _check_init(init: str, rank: int, layers: Layers) -> None:
    """Raise ConfigError if the first values cannot come from a decomposition of every layer."""
    if init not in ("pissa", "olora"):
        return
    for path, layer in layers.items():
        small = min(layer.weight.shape)
        if rank > small:
            raise ConfigError(
                f"--rank {rank} is more than --init {init} can take from {path}: its smaller side is {small}."
            )
        if init == "olora" and isinstance(layer, Conv1D):
            raise ConfigError(f"--init olora: peft decomposes {path} the wrong way round, a transposed layer (Conv1D).")


def _is_a(name: str) -> bool:
    return ".lora_A." in name


def _is_b(name: str) -> bool:
    return ".lora_B." in name
