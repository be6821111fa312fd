"""Folders that transformers loads: written, and examined as transformers sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lmf import LmfError, Plugins
from lmf.generate.opening import Chatter, open_model
from lmf.models import quiet
from lmf.rope import scaling_of
from lmf.saving import save_folder, write_new

from .findings import PROBE, Finding, compared, jinja_of

if TYPE_CHECKING:
    from .command import Weights

Findings = list[Finding]


def write(model: str, out: Path, plugins: Plugins, weights: Weights) -> Findings:
    """Write a model as a folder, unless what is written would not be right.

    Args:
        model: What ``open_model`` takes.
        out: The folder.
        plugins: What is installed.
        weights: How it is written.

    Returns:
        What was found in it.
    """
    quiet()
    rope = scaling_of(weights.rope, weights.rope_factor)
    chatter = open_model(model, plugins, weights.template, merged=True, rope=rope)
    whole: Any = chatter.model
    if weights.dtype != "auto":
        whole.to(getattr(torch, weights.dtype))
    if chatter.template:
        chatter.tokenizer.chat_template = jinja_of(chatter.template)
    ids, _ = chatter.stops()
    whole.generation_config.eos_token_id = sorted(ids) or None
    found: Findings = []

    def written(partial: Path) -> None:
        save_folder(whole, chatter.tokenizer, partial, weights.shard_size)
        found.extend(examine(partial, chatter, plugins))
        if wrong := [text for right, text in found if not right]:
            raise LmfError(f"{out} would not be right, and was not written: {'; '.join(wrong)}.")

    write_new(out, written)
    return found


def examine(folder: Path, ours: Chatter | None, plugins: Plugins) -> Findings:
    """Load a folder with plain transformers, and compare it with what lmf makes of it.

    Args:
        folder: A folder with a model, or with an adapter.
        ours: The model that it was written from; by default it is opened as lmf opens it.
        plugins: What is installed.
    """
    from transformers import AutoTokenizer

    quiet()
    found: Findings = []
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model, problems = _loaded(folder)
    found.append((not problems, problems or f"transformers loads it: {type(model).__name__}"))
    if problems:
        return found
    with torch.no_grad():
        ids = torch.tensor([tokenizer(PROBE)["input_ids"]], device=model.device)
        theirs = model(ids).logits
    found.append((bool(theirs.isfinite().all()), "its logits are finite numbers"))
    ours = ours or open_model(str(folder), plugins)
    with torch.no_grad():
        apart = float((ours.model(ids.to(next(ours.model.parameters()).device)).logits - theirs).abs().max())
    close = apart <= (1e-3 if theirs.dtype == torch.float32 else 2e-2) * float(theirs.abs().max())
    found.append((close, f"its logits are those in lmf, but for {apart:.2g}"))
    found += compared(tokenizer, ours)
    stops = model.generation_config.eos_token_id
    known = {stops} if isinstance(stops, int) else set(stops or ())
    missing = tokenizer.convert_ids_to_tokens(sorted(ours.encoder.end_ids - known))
    found.append(
        (not missing, f"generation does not stop at {', '.join(missing)}" if missing else "it stops where replies end")
    )
    return found


def _loaded(folder: Path) -> tuple[Any, str]:
    """Return what transformers loads from a folder, and what is wrong with it."""
    from transformers import AutoModelForCausalLM

    if (folder / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(folder).eval(), ""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    model, info = loaded
    wrong = [f"{kind.replace('_', ' ')}: {sorted(map(str, names))[:3]}" for kind, names in info.items() if names]
    return model.eval(), "; ".join(wrong)
