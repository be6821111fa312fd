"""What a run gives out: the model and what belongs to it, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..encoding.material import Material
from ..errors import LmfError
from ..models import inner
from ..parallel.processes import Processes
from ..plan import Plan
from ..runs import LOCK_FILE, RUN_FILE
from . import checkpoint
from .learner import Learner


def check_saving(learner: Learner, material: Material, plan: Plan) -> None:
    """Try before the first step what could fail after the last: what is saved beside the weights, and disk space.

    Raises:
        LmfError: It cannot be saved, or the disk is too small.
    """
    base, model = inner(learner.model), learner.model
    try:
        with checkpoint.writing(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
            _save_extras(learner, material, Path(folder))
            base.config.save_pretrained(folder)
    except (ValueError, TypeError) as error:
        raise LmfError(
            f"What {plan.model.asked} brings could not be saved with the tuned model: {' '.join(str(error).split())}\n"
            "Correct its config.json, generation_config.json or tokenizer files."
        ) from error
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    saved = sum(p.numel() * p.element_size() for p in model.parameters()) if base is model else trained
    output = plan.settings.output.absolute()
    existing = next(p for p in [output, *output.parents] if p.exists())
    freed = sum(p.stat().st_size for p in output.rglob("*") if p.is_file())  # an earlier run that this one replaces
    checkpoints = plan.settings.keep + 2  # besides: the best one, and the one being written; AdamW doubles the trained
    checkpoint.check_space(existing, saved * (checkpoints + 1) + 2 * trained * checkpoints - freed)


def save_model(
    save: Callable[[Path], None], learner: Learner, material: Material, output: Path, processes: Processes
) -> None:
    """Write what the run gives out, so that transformers or peft load the folder unaided; all processes together.

    Args:
        save: Writes the model into a folder; called in all processes.
        learner: What learned.
        material: What it learned from.
        output: The run's folder.
        processes: The processes.

    Raises:
        LmfError: It could not be written; the checkpoints are untouched.
    """
    partial = output / ".model.partial"

    def begin() -> None:
        checkpoint.sweep(output)
        with checkpoint.writing(output):
            partial.mkdir()

    def complete() -> None:
        with checkpoint.writing(output):
            _save_extras(learner, material, partial)
            checkpoint.sync(*partial.iterdir())
            for path in sorted(partial.iterdir()):
                path.replace(output / path.name)

    try:
        processes.on_main(begin)
        save(partial)
        processes.on_main(complete)
    finally:
        if processes.main:
            shutil.rmtree(partial, ignore_errors=True)


def _save_extras(learner: Learner, material: Material, folder: Path) -> None:
    """Write the tokenizer with its chat template, and the generation config with its stop ids."""
    material.tokenizer.save_pretrained(folder)
    inner(learner.model).generation_config.save_pretrained(folder)


def clear(output: Path) -> None:
    """Delete an earlier run; its record goes last, so that half of it is still known for a run."""
    for path in sorted(output.iterdir(), key=lambda path: path.name == RUN_FILE):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()
