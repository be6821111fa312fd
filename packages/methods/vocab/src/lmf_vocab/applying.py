"""A model with the vocabulary of another tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lmf import ConfigError, Plugins
from lmf.models import load_model, quiet
from lmf.saving import save_folder, write_new
from lmf.sources import find_model

from .bases import open_tokenizer
from .corpus import Texts, read_texts
from .measuring import chatter_of, loss_per_byte
from .rows import How, begin_rows, change_of, check_model, resize
from .vocabulary import Json, vocabulary_of

if TYPE_CHECKING:
    from .command import Applying

COPY = "copy:"


def apply(name: str, out: Path, applying: Applying, plugins: Plugins) -> None:
    """Write a model with the vocabulary of another tokenizer, and tell what it makes of new text.

    Raises:
        LmfError: The two do not belong together.
    """
    quiet()
    source = find_model(name, plugins)
    tokenizer, other = open_tokenizer(name, plugins), open_tokenizer(applying.tokenizer, plugins)
    old, new = vocabulary_of(tokenizer, name), vocabulary_of(other, applying.tokenizer)
    change = change_of(old, new, applying.tokenizer)
    how, token = _how(applying.init, old)
    texts = read_texts(Texts(data=applying.data), plugins) if applying.data else []
    model: Any = load_model(source, None if applying.dtype == "auto" else getattr(torch, applying.dtype))
    check_model(model, old, name)
    losses = {"before": loss_per_byte(chatter_of(model, tokenizer), texts)} if texts else {}
    before = resize(model, change)
    if texts and change.parts and how != "random":
        begin_rows(model, before, change, "random", None, applying.seed)
        losses["random"] = loss_per_byte(chatter_of(model, other), texts)
    begin_rows(model, before, change, how, token, applying.seed)
    if texts:
        losses[applying.init] = loss_per_byte(chatter_of(model, other), texts)
    other.chat_template = other.chat_template or tokenizer.chat_template
    write_new(out, lambda folder: save_folder(model, other, folder, applying.shard_size))
    gone = len(old.ids) - len(change.kept)
    rows = model.get_input_embeddings().weight.shape[0]
    print(f"{len(change.parts):,} new pieces, {gone:,} left out; {rows:,} rows of {len(new.ids):,} tokens")
    for init, loss in losses.items():
        what = "with the old tokens" if init == "before" else f"with the new tokens, --init {init}"
        print(f"loss per byte before training {what}: {loss:.4f} nats")
    print(f"saved {out}")
    if change.parts:
        print(f"next: lmf pretrain freeze --train-new-tokens-only --model {out} --data DATA")


def _how(init: str, old: Json) -> tuple[How, int | None]:
    """Return how new rows begin, and the token that is copied.

    Raises:
        ConfigError: There is no such way, or no such token.
    """
    if init in ("mean-of-pieces", "weighted", "random"):
        return init, None
    if not init.startswith(COPY):
        raise ConfigError(f"--init is {init!r}; it must be mean-of-pieces, weighted, random or copy:TOKEN.")
    text = init.removeprefix(COPY)
    token = old.ids.get(text, old.ids.get(old.written(text.encode())))
    if token is None:
        raise ConfigError(f"--init {init}: {text!r} is no token of the model.")
    return "copy", token
