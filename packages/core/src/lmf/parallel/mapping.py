"""Weights in files that processes can map, for a model that they divide.

Each process copies its part out of files that the system keeps once for all. A GGUF file, weights in another precision
than the run's or pickled ones would be converted whole in each process. So one process of each machine converts them
into files, which go as soon as all have loaded the model.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..data.cache import cache_folder
from ..errors import LmfError
from ..models import load_model
from ..plan import Plan
from ..sources import Source, check_safetensors, shards
from .processes import Processes

ABANDONED = 24 * 3600  # seconds after which what a killed process has left is deleted
NAMES = {torch.float32: "F32"}  # of precisions that a run may ask for, in safetensors files
FLOATS = ("F64", "F32", "F16", "BF16")


@contextlib.contextmanager
def mapped(plan: Plan, dtype: torch.dtype | None, processes: Processes, first: int) -> Iterator[Source]:
    """Give out where a run is to load its model from, while the block runs.

    Args:
        plan: The run.
        dtype: The precision in which weights are loaded; None for that of the files.
        processes: The processes of the run; all must come here.
        first: The number of the first process of this machine.

    Raises:
        LmfError: The model cannot be loaded, or there is no room for the files.
    """
    if processes.count == 1 or plan.sharing.way == "ddp" or _mappable(plan, dtype):
        yield plan.model
        return
    with contextlib.ExitStack() as held:
        own = processes.each(lambda: held.enter_context(_converted(plan, dtype)) if processes.rank == first else None)
        folder = processes.gather(own)[first]
        yield replace(plan.model, path=str(folder), gguf=None)


def _mappable(plan: Plan, dtype: torch.dtype | None) -> bool:
    """Whether processes can map the files of a model, or nothing but its own code knows how to read them."""
    if plan.model.gguf:
        return False
    if plan.model.folder is None or plan.settings.trust_remote_code:
        return True
    files = shards(plan.model.folder)
    found = {entry.get("dtype") for file in files for entry in check_safetensors(file).values()}
    return bool(files) and (dtype is None or not (found & set(FLOATS)) - {NAMES[dtype]})


@contextlib.contextmanager
def _converted(plan: Plan, dtype: torch.dtype | None) -> Iterator[Path]:
    """Write a model as safetensors files into a folder that is there while the block runs."""
    model = load_model(plan.model, dtype, allow_pickle=plan.settings.allow_pickle)
    place = cache_folder() / "converted"
    with contextlib.ExitStack() as held:
        try:
            place.mkdir(parents=True, exist_ok=True)
            for left in place.iterdir():
                if time.time() - left.stat().st_mtime > ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(dir=place)))
            model.save_pretrained(folder)
        except (OSError, SafetensorError) as error:
            raise LmfError(
                f"{place}: the weights cannot be written there in the precision of the run, to be divided: {error}.\n"
                "LMF_CACHE chooses another folder; lmf export folder converts a model once and for all."
            ) from None
        del model
        yield folder
