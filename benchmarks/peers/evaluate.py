"""The loss of a model that a tool has saved, measured alike for all: nats per token of held-out replies.

Usage: evaluate.py FOLDER SAVED

FOLDER is what prepare.py has filled. SAVED holds a PEFT adapter, or safetensors or a ``model.pth``
of whole weights, itself or in a folder below; it is searched in this order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(base: Path, saved: Path) -> Any:
    """Return the model of ``base`` with what was saved.

    Raises:
        SystemExit: Nothing is there that could be loaded.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = sorted(saved.rglob("model*.safetensors")) or sorted(saved.rglob("model.pth"))
    for adapter in sorted(saved.rglob("adapter_config.json")):
        if not list(adapter.parent.glob("model*.safetensors")):
            from peft import PeftModel

            return PeftModel.from_pretrained(model, str(adapter.parent))
    if not weights:
        sys.exit(f"{saved} holds neither an adapter nor weights")
    last = weights[-1].parent  # of several checkpoints the newest
    state: dict[str, Any] = {}
    for file in (w for w in weights if w.parent == last):
        state |= load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    head = state.get("lm_head.weight")
    if head is not None and not torch.equal(head, state["model.embed_tokens.weight"]):
        model.lm_head.weight = torch.nn.Parameter(head)  # trained apart from the embeddings
    missing, unknown = model.load_state_dict(state, strict=False)
    if unknown or set(missing) - {"lm_head.weight"}:
        sys.exit(f"{last} holds other weights: missing {missing[:3]}, unknown {unknown[:3]}")
    return model


def measure(model: Any, tokenizer: Any, records: list[dict[str, str]]) -> float:
    """Return the mean over the tokens of all replies, given their prompts."""
    total, tokens = 0.0, 0
    model.eval()
    for record in records:
        prompt = tokenizer(record["prompt"], add_special_tokens=False).input_ids
        reply = tokenizer(record["reply"], add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(reply), reduction="sum").item()
        tokens += len(reply)
    return total / tokens


def main(folder: Path, saved: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    records = json.loads((folder / "held-out.json").read_text(encoding="utf-8"))
    print(f"{measure(load(folder / 'model', saved), tokenizer, records):.5f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
