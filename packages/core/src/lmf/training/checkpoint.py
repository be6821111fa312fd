"""Checkpoints that are there whole or not at all, and that resume bit for bit.

A checkpoint is a folder ``checkpoints/step-000020``: what the tuner saves (it loads in
transformers or peft), ``optimizer.safetensors``, ``random.safetensors``, ``state.json``
and, written last, ``manifest.json`` with the size and hash of every other file. It is made
beside its place, synced, and renamed. Nothing in it is a pickle.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import LmfError
from ..models import read_tensors
from ..parallel.pieces import Saved, State, save_pieces
from ..parallel.processes import ALONE, Processes
from ..report import size
from ..runs import FOLDER, checkpoints, step_of

MANIFEST = "manifest.json"


def name(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{step:06d}"


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a checkpoint that is not one yet: they have no manifest and are not in their place.

    Attributes:
        place: Where the checkpoint will be.
        size: Bytes of all files; known to all processes.
    """

    place: Path
    size: int

    def complete(self) -> Path:
        """Make the files a checkpoint and return its place; in the main process alone, and in any thread.

        Raises:
            LmfError: It could not be done; earlier checkpoints are untouched.
        """
        partial = _partial(self.place)
        try:
            with writing(self.place):
                manifest = {
                    str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
                    for path in sorted(partial.rglob("*"))
                    if path.is_file()
                }
                (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                sync(*partial.rglob("*"), partial)
                if self.place.exists():
                    _remove(self.place)
                partial.replace(self.place)
                sync(self.place.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return self.place


def write(
    output: Path,
    step: int,
    save_model: Callable[[Path], None],
    optimizer: State,
    state: Mapping[str, Any],
    processes: Processes = ALONE,
) -> Written:
    """Write the files of the checkpoint of a step; all processes of a run together.

    Args:
        output: The run's folder, which all processes see.
        step: Optimizer steps done.
        save_model: Writes the model into a folder; called in all processes.
        optimizer: What this process is to write of the optimizer's state.
        state: What else the run must know to go on; JSON values.
        processes: The processes.

    Raises:
        LmfError: They could not be written; earlier checkpoints are untouched.
    """
    place = output / FOLDER / name(step)
    partial = _partial(place)

    def begin() -> None:
        sweep(output)
        with writing(place):
            partial.mkdir(parents=True)

    def save_own() -> None:
        if optimizer.tensors or processes.main:
            with writing(place):
                save_pieces(optimizer.tensors, partial, processes.rank)

    def save_common() -> None:
        with writing(place):
            numbered = {f"{rank}/{key}": value for rank, each in enumerate(randoms) for key, value in each.items()}
            save_file(numbered, partial / "random.safetensors")
            everything = {**state, "step": step, "optimizer": optimizer.scalars, "groups": optimizer.groups}
            (partial / "state.json").write_text(json.dumps(everything, indent=1), encoding="utf-8")

    try:
        processes.on_main(begin)
        processes.each(save_own)
        with writing(place):
            save_model(partial)
        randoms = processes.gather(random_state())
        processes.on_main(save_common)
    except BaseException:
        if processes.main:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    written = sum(path.stat().st_size for path in partial.rglob("*")) if processes.main else 0
    return Written(place, processes.largest(written))


def _partial(place: Path) -> Path:
    """Return where the files of a checkpoint are until it is complete; a name that ``sweep`` knows."""
    return place.with_name(f".{place.name}.partial")


def find(output: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint, and why each newer one was passed over."""
    skipped = []
    for folder in reversed(checkpoints(output)):
        problem = damage(folder)
        if problem is None:
            return folder, skipped
        skipped.append(f"{folder.name} is damaged: {problem}")
    return None, skipped


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if "state.json" not in manifest:
            return f"{MANIFEST} does not name state.json"
        for relative, entry in manifest.items():
            file = folder / relative
            if file.stat().st_size != entry["bytes"]:
                return f"{relative} has {file.stat().st_size:,} bytes instead of {entry['bytes']:,}"
            if file_hash(file) != entry["sha256"]:
                return f"{relative} has other contents than were written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def load(folder: Path, rank: int = 0) -> tuple[dict[str, Any], Saved]:
    """Return the state of a run and that of its optimizer; the random state of a process is put back."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    saved = Saved(folder, state.pop("optimizer"), state.pop("groups"))
    randoms = dict(read_tensors(folder / "random.safetensors"))
    own = {key.removeprefix(f"{rank}/"): value for key, value in randoms.items() if key.startswith(f"{rank}/")}
    if own:  # this process was there
        set_random_state(own)
    return state, saved


def prune(output: Path, step: int, keep: int, best: int | None) -> None:
    """Delete the checkpoints up to a step, but for the newest ``keep`` of them and the best one."""
    folders = [folder for folder in checkpoints(output) if step_of(folder) <= step]
    for folder in folders[:-keep]:
        if step_of(folder) != best:
            _remove(folder)


def sweep(output: Path) -> None:
    """Delete what an ended process left half written."""
    for path in [*output.glob(".*.partial"), *(output / FOLDER).glob(".*.partial")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def random_state() -> dict[str, torch.Tensor]:
    """Return the state of every global random generator, as tensors."""
    _, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([int(k) for k in keys] + [position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if gauss_next is None else gauss_next], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Put back what ``random_state`` returned."""
    torch.set_rng_state(state["torch"])
    *keys, position, has_gauss = state["numpy"].tolist()
    gauss = state["numpy_gauss"].item()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, *internal = state["python"].tolist()
    gauss = state["python_gauss"].item()
    random.setstate((version, tuple(internal), None if gauss != gauss else gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def file_hash(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_space(folder: Path, need: int) -> None:
    """Raise LmfError if the disk of a folder has fewer than ``need`` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise LmfError(
            f"{folder.absolute()} has {size(free)} left, but the run will write about {size(need)}.\n"
            "Free some space, choose another --output, or keep fewer checkpoints (--keep)."
        )


def cannot_write(path: Path, error: Exception) -> str:
    """Say why a file could not be written, and what to do."""
    full = f"os error {errno.ENOSPC}" in str(error)  # how safetensors tells of it
    if full or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free
        return (
            f"{path} could not be written: the disk is full ({free:,} bytes left).\n"
            "Free some space and continue with --resume; earlier checkpoints are untouched."
        )
    return (
        f"{path} could not be written: {getattr(error, 'strerror', None) or error}. Earlier checkpoints are untouched."
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file or folder is written into an LmfError that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise LmfError(cannot_write(path, error)) from error


def sync(*paths: Path) -> None:
    """Have files and folders on the disk before anything else happens."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(folder: Path) -> None:
    """Delete a checkpoint; under a name that ``sweep`` knows, so that no half of it is ever taken for one."""
    shutil.rmtree(folder.replace(folder.with_name(f".{folder.name}.old.partial")), ignore_errors=True)
