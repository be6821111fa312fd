"""Models as folders that transformers loads unaided, whole or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .errors import ConfigError
from .training import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_new(out: Path) -> None:
    """Refuse a place where something is already, or can be nothing.

    Raises:
        ConfigError: There is something, or no folder to put it into.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists; name a place for something new.")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out} cannot be written: there is no folder {out.absolute().parent}.")


def check_shard_size(text: str) -> None:
    """Raise ConfigError if a text is no size of a file, such as ``500MB``."""
    if not re.fullmatch(r"[1-9]\d*(KB|MB|GB)", text):
        raise ConfigError(f"--shard-size is {text!r}; write it as 500MB or 5GB.")


def write_new(out: Path, write: Callable[[Path], None]) -> None:
    """Write a file or a folder beside its place first, and then rename it.

    Args:
        out: The place.
        write: Writes it to where it is told.

    Raises:
        LmfError: It cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial")
    _remove(partial)
    try:
        with checkpoint.writing(out):
            write(partial)
            checkpoint.sync(*([*partial.rglob("*"), partial] if partial.is_dir() else [partial]))
            partial.rename(out)
            checkpoint.sync(out.absolute().parent)
    finally:
        _remove(partial)


def save_folder(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, shard_size: str = "5GB") -> None:
    """Write a model with its tokenizer, chat template and generation settings into a folder.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: The folder; it is made.
        shard_size: Largest file of weights, as ``5GB``.
    """
    whole: Any = model
    whole.save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)
    whole.generation_config.save_pretrained(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
