"""Finds the model that somebody asked for, and checks its files before anything is loaded."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .data.cache import cache_folder as cache_folder
from .errors import ConfigError, LmfError, PluginError, UnknownName, did_you_mean
from .plugins import Plugins
from .rope import Scaling
from .specs import Checkpoint, ModelSpec

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # pickles that lie beside weights
SETTINGS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from.

    Attributes:
        asked: What the user wrote.
        path: A folder, or a hub id.
        gguf: The GGUF file in the folder to read instead of safetensors.
        template: The template that its checkpoint declares.
        rope: How its positions are scaled when it is loaded; None for leaving them as they are.
    """

    asked: str
    path: str
    gguf: str | None = None
    template: str | None = None
    rope: Scaling | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a hub id."""
        return Path(self.path) if Path(self.path).is_dir() else None


def find_model(name: str, plugins: Plugins, allow_pickle: bool = False) -> Source:
    """Find a model by folder, GGUF file, checkpoint name or hub id, and check its files.

    Raises:
        UnknownName: Nothing is called that.
        LmfError: The folder lacks what a model needs.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise LmfError(f"{path} is not a GGUF file: it does not begin with GGUF. Download it again.")
        return Source(name, str(path.parent), gguf=path.name)
    if path.is_file():
        raise ConfigError(f"--model {name} is a file; it must be a folder, a GGUF file, a checkpoint name or a hub id.")
    if path.is_dir():
        check_folder(path, allow_pickle)
        return Source(name, str(path))
    known = checkpoints(plugins)
    if name in known:
        checkpoint = known[name]
        return Source(name, str(checkpoint.folder()), template=checkpoint.template)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and all(name.split("/")):
        return Source(name, name)
    if os.sep in name:
        near = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
        raise ConfigError(f"--model {name}: no such folder ({path.absolute()}).{did_you_mean(path.name, near)}")
    hints = plugins.models.hints or ["A folder needs a path (./NAME); a hub id needs its owner (OWNER/NAME)."]
    raise UnknownName("model", name, known, hints)


def checkpoints(plugins: Plugins) -> dict[str, Checkpoint]:
    """Return every named checkpoint of every family, as ``family:name`` where families share a name."""
    found: dict[str, dict[str, Checkpoint]] = {}  # name -> family -> checkpoint
    for _, spec in plugins.models.all():
        for checkpoint in spec.checkpoints:
            found.setdefault(checkpoint.name, {})[spec.name] = checkpoint
    return {
        name if len(owners) == 1 else f"{family}:{name}": checkpoint
        for name, owners in found.items()
        for family, checkpoint in owners.items()
    }


def family(model_type: str, plugins: Plugins) -> ModelSpec:
    """Return the family that covers a ``model_type`` of config.json.

    Raises:
        UnknownName: No installed family does.
        PluginError: Several do.
    """
    found = [(package, spec) for package, spec in plugins.models.all() if model_type in spec.model_types]
    if len(found) == 1:
        return found[0][1]
    if not found:
        known = sorted({name for _, spec in plugins.models.all() for name in spec.model_types})
        raise UnknownName("model type", model_type, known, plugins.models.hints)
    names = " and ".join(f"{package}:{spec.name}" for package, spec in found)
    raise PluginError(f"{names} both cover models of type {model_type!r}.\nLeave one out: LMF_DISABLE_PLUGINS=PACKAGE.")


def check_tokenizer(folder: Path) -> None:
    """Raise LmfError if the tokenizer in a folder names a file elsewhere."""
    file = folder / "tokenizer_config.json"
    names = _json(file).get("fast_tokenizer_files", []) if file.exists() else []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or Path(name).name != name:
            raise LmfError(f"{file} names {name!r} in fast_tokenizer_files, which is not a file in the same folder.")


def check_folder(folder: Path, allow_pickle: bool = False) -> None:
    """Check that a folder holds config, tokenizer and whole safetensors weights.

    Raises:
        LmfError: Something is missing or cut, or weights are pickled and that is not allowed.
    """
    adapter = folder / "adapter_config.json"
    if adapter.exists() and not (folder / "config.json").exists():
        base = _json(adapter).get("base_model_name_or_path")
        raise LmfError(f"{folder} holds an adapter for {base!r}, not a model. Give that model to --model.")
    if not (folder / "config.json").exists():
        raise LmfError(f"{folder} holds no model: config.json is missing.")
    if adapter.exists():  # which transformers would put into the model without a word
        raise LmfError(f"{folder} holds a model and an adapter; move {adapter.name} and its weights elsewhere.")
    config = _json(folder / "config.json")
    if not config.get("model_type"):
        raise LmfError(f"{folder}/config.json has no model_type, so the architecture is unknown.")
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise LmfError(f"{folder} holds no tokenizer: tokenizer.json is missing. Copy it from the base model.")
    settings = {name: _json(folder / name) for name in SETTINGS if (folder / name).exists()}
    if "model" not in settings.get("tokenizer.json", {"model": {}}):
        raise LmfError(f"{folder}/tokenizer.json holds no tokenizer: it has no model. Copy it from the base model.")
    files = shards(folder)
    for file in files:
        check_safetensors(file)
    if files:
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES and not p.name.startswith(NO_WEIGHTS))
    if not pickled:
        raise LmfError(f"{folder} holds no weights: neither {' nor '.join(WEIGHTS)} is there.")
    if not allow_pickle:
        raise LmfError(
            f"{folder} has its weights as pickle ({', '.join(pickled[:3])}), and loading a pickle can run code.\n"
            "Convert it to safetensors, or add --allow-pickle if you trust where it comes from."
        )
    _indexed(folder / "pytorch_model.bin.index.json", ".bin")


def shards(folder: Path) -> list[Path]:
    """Return the safetensors files of a model or an adapter, none of them outside the folder."""
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / name).exists():
            return [folder / name]
    return _indexed(folder / "model.safetensors.index.json", ".safetensors")


def _indexed(index: Path, suffix: str) -> list[Path]:
    """Return the files that an index names, if there is one; they must lie beside it."""
    if not index.exists():
        return []
    names = _json(index).get("weight_map")
    if not isinstance(names, dict):
        raise LmfError(f"{index} has no weight_map, which tells what is in which file.")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(suffix):
            raise LmfError(f"{index} names {name!r}, which is not a {suffix} file in the same folder.")
        if not (index.parent / name).exists():
            raise LmfError(f"{index.parent} lacks {name}, which {index.name} names. Download the model again.")
    return [index.parent / name for name in sorted(set(names.values()))]


def check_safetensors(file: Path) -> dict[str, Any]:
    """Check that a safetensors file is whole, and return its header."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            if head == b"version ":
                raise ValueError("it is a pointer of git-lfs; get the file itself with git lfs pull")
            if len(head) < 8:
                raise ValueError(f"it has {size} bytes")
            length = struct.unpack("<Q", head)[0]
            if length > min(size, 100_000_000):
                raise ValueError("its header is longer than the file, or than 100 MB")
            header = json.loads(stream.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is no JSON object")
        end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
        whole = 8 + length + end == size
    except OSError as error:
        raise LmfError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise LmfError(f"{file} is not a safetensors file: {error}.") from None
    if not whole:
        raise LmfError(
            f"{file} has {size:,} bytes, but its header tells of {8 + length + end:,}: it is cut or damaged."
        )
    return header


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise LmfError(f"{file} is not readable as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise LmfError(f"{file} must hold a JSON object.")
    return value
