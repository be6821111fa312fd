"""What makes one model of another: for those who may give away their changes, but not the weights they changed.

A delta holds, for each tensor, the difference of the bit patterns as whole numbers, so that the tuned model comes out
bit for bit; what the base has no rows for counts as 0 there. ``delta.json`` has the type and the hash of each tuned
tensor: with another base nothing is written. Deltas of LMFlow, differences of values in the files of a model, can be
applied as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lmf import LmfError, Plugins
from lmf.models import read_tensors
from lmf.saving import check_new, write_new
from lmf.sources import Source, find_model, shards
from safetensors import safe_open
from safetensors.torch import save_file

FILE = "delta.json"
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a value
Change = Callable[[str, torch.Tensor], torch.Tensor]


def make(base: str, tuned: Path, out: Path, plugins: Plugins) -> None:
    """Write a delta.

    Args:
        base: What ``--model`` takes, with weights in safetensors files.
        tuned: The folder of the tuned model.
        out: The folder to write.
        plugins: What is installed.

    Raises:
        LmfError: A model is not whole, or the two differ in precision or shape.
    """
    check_new(out)
    origin, target = _Base(base, plugins), _files(find_model(str(tuned), plugins))
    told: dict[str, dict[str, str]] = {}

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        told[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "sha256": _hash(tensor)}
        return _bits(tensor) - _bits(origin.like(name, tensor))

    def write(partial: Path) -> None:
        partial.mkdir()
        files = _rewritten(target, partial, "delta", change)
        _copy_rest(tuned, partial)
        text = json.dumps({"version": 1, "base": base, "files": files, "tensors": told}, indent=1)
        (partial / FILE).write_text(text + "\n", encoding="utf-8")

    write_new(out, write)


def apply(base: str, delta: Path, out: Path, plugins: Plugins) -> None:
    """Make the tuned model again.

    Args:
        base: What ``--model`` takes, with weights in safetensors files.
        delta: The folder of a delta.
        out: The folder to write.
        plugins: What is installed.

    Raises:
        LmfError: The delta is damaged, or was made with another base.
    """
    check_new(out)
    if (delta / FILE).exists():
        files, told = _read(delta)
    else:  # of LMFlow
        files, told = _files(find_model(str(delta), plugins)), {}
    origin = _Base(base, plugins)

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not told:
            return tensor + origin.like(name, tensor)
        if name not in told:
            raise LmfError(f"{delta / FILE} does not tell of {name}; the delta is damaged.")
        blank = torch.zeros(tensor.shape, dtype=getattr(torch, told[name]["dtype"]))
        found = (tensor + _bits(origin.like(name, blank))).view(blank.dtype)
        if _hash(found) != told[name]["sha256"]:
            raise LmfError(f"{name} comes out otherwise: {base} is not the base that {delta} was made with.")
        return found

    def write(partial: Path) -> None:
        partial.mkdir()
        _rewritten(files, partial, "model", change)
        _copy_rest(delta, partial)

    write_new(out, write)


class _Base:
    """The tensors of a base, read when they are asked for."""

    def __init__(self, name: str, plugins: Plugins):
        self.name = name
        self.files: dict[str, Path] = {}
        for file in _files(find_model(name, plugins)):
            with safe_open(file, framework="pt") as tensors:
                self.files |= dict.fromkeys(tensors.keys(), file)

    def like(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor in the type and shape of another; rows that the base lacks are 0.

        Raises:
            LmfError: It has another type, or rows of another shape.
        """
        found = torch.zeros_like(tensor)
        if name in self.files:
            with safe_open(self.files[name], framework="pt") as tensors:
                own = tensors.get_tensor(name)
            for what, mine, others in (("type", own.dtype, tensor.dtype), ("shape", own.shape[1:], tensor.shape[1:])):
                if mine != others:
                    raise LmfError(
                        f"{name} has the {what} {mine} in {self.name} and {others} in the other model. A delta is of "
                        "models of one shape and precision; lmf export hf MODEL OUT --dtype changes the precision."
                    )
            if not own.ndim:
                return own
            rows = min(len(own), len(found))
            found[:rows] = own[:rows]
        return found


def _rewritten(files: Sequence[Path], folder: Path, stem: str, change: Change) -> list[str]:
    """Write each file of tensors with other tensors, and the index that tells what is where. Returns the names."""
    names, places, size = [], {}, 0
    for number, file in enumerate(files, 1):
        tensors = {name: change(name, tensor).contiguous() for name, tensor in read_tensors(file)}
        names.append(
            f"{stem}-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else f"{stem}.safetensors"
        )
        save_file(tensors, folder / names[-1], metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, names[-1])
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if len(files) > 1:
        text = json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=1)
        (folder / f"{stem}.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
    return names


def _read(delta: Path) -> tuple[list[Path], dict[str, dict[str, str]]]:
    """Return the files of a delta, and what it tells of each tensor.

    Raises:
        LmfError: It is damaged.
    """
    file = delta / FILE
    with _explained(file):
        value = json.loads(file.read_text(encoding="utf-8"))
        names, told = value["files"], value["tensors"]
        if not all(re.fullmatch(r"delta[\w.-]*\.safetensors", name) for name in names):
            raise ValueError("a file is not one of a delta")
        if not names or not told:
            raise ValueError("it tells of nothing")
        for each in told.values():
            if not isinstance(getattr(torch, each["dtype"], None), torch.dtype) or not each["sha256"]:
                raise ValueError("a tensor has no type or no hash")
    missing = [name for name in names if not (delta / name).exists()]
    if missing:
        raise LmfError(f"{delta} lacks {missing[0]}, which {FILE} names.")
    return [delta / name for name in names], told


@contextlib.contextmanager
def _explained(file: Path) -> Any:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LmfError(f"{file} is damaged: {type(error).__name__}: {error}.") from None


def _files(source: Source) -> list[Path]:
    """Return the files of the weights of a model.

    Raises:
        LmfError: It has none in safetensors.
    """
    found = shards(source.folder) if source.folder and not source.gguf else []
    if not found:
        raise LmfError(f"{source.asked} has no safetensors files here. Write them first: lmf export hf MODEL OUT.")
    return found


def _copy_rest(origin: Path, folder: Path) -> None:
    """Copy what stands beside the weights: configuration, tokenizer, templates, licences."""
    for file in sorted(origin.iterdir()):
        weights = file.name.endswith((".safetensors", ".safetensors.index.json", ".bin", ".pt", ".gguf"))
        if file.is_file() and not weights and file.name != FILE and not file.name.startswith("."):
            shutil.copy(file, folder / file.name)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(WHOLE[tensor.element_size()])


def _hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
