"""An adapter of peft, of ours or of others, put into the weights of its base."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lmf import ConfigError, LmfError, Plugins
from lmf.generate.opening import scaling_in
from lmf.models import fingerprint, load_model, load_tokenizer, quiet, read_tensors, some
from lmf.rope import lengthen
from lmf.runs import RUN_FILE, read_run
from lmf.saving import check_new, check_shard_size, save_folder, write_new
from lmf.sources import Source, find_model
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from . import Merging
from .tuner import CONFIG, PICKLE, WEIGHTS, merged

PROBE = (4, 48)  # texts and their tokens, drawn at random, on which logits are compared
LARGEST = 0.1  # of the change of logits by the adapter that merging may lose
ENDS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")  # what peft saves whole when the vocabulary grew


def merge(base: str, adapter: str, out: str, options: Merging) -> None:
    """Put an adapter into the weights of its base, and tell how far the logits of the two are apart.

    Args:
        base: What ``--model`` takes.
        adapter: The folder of the adapter.
        out: The folder to write.
        options: The settings.

    Raises:
        LmfError: The adapter is damaged, belongs to another base or changes nothing, or merging changes the logits.
    """
    folder, place = Path(adapter), Path(out)
    config = _config(folder)
    source = _scaled(find_model(base, Plugins()), folder)
    check_new(place)
    check_shard_size(options.shard_size)
    quiet()
    model: Any = load_model(source, None if options.dtype == "auto" else getattr(torch, options.dtype)).eval()
    if not options.any_base:
        _check_base(model, source, folder, config)
    own = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
    tokenizer = load_tokenizer(Source(adapter, adapter) if own else source)
    if source.rope:
        lengthen(tokenizer, model.config)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    beside = load_adapter(model, folder, config).to("cuda" if gpu else "cpu")
    whole, effect, apart = _merged(beside, len(tokenizer))
    print(f"the adapter changes logits by up to {effect:.3g}")
    if effect == 0:
        raise LmfError(f"{folder} changes nothing: the logits with it are those of {base}. Was it trained?")
    print(f"merging changes them by up to {apart:.3g}, which is {apart / effect:.1e} of that")
    if apart > LARGEST * effect:
        raise LmfError(
            f"In {next(whole.parameters()).dtype}, merging loses too much of what was learned. Use --dtype float32."
        )
    write_new(place, lambda partial: save_folder(whole, tokenizer, partial, options.shard_size))
    print(f"saved {out}")


def _scaled(source: Source, folder: Path) -> Source:
    """Return a base with its positions scaled as in the run that made the adapter, if one did."""
    return replace(source, rope=scaling_in(folder, read_run(folder))) if (folder / RUN_FILE).exists() else source


@torch.no_grad()
def _merged(model: Any, tokens: int) -> tuple[Any, float, float]:
    """Merge an adapter.

    Args:
        model: The base with the adapter beside it.
        tokens: How many tokens there are.

    Returns:
        The merged model; the largest change of the logits of random texts by the adapter, and that by merging.
    """
    ids = torch.randint(tokens, PROBE, generator=torch.Generator().manual_seed(0)).to(model.device)
    with model.disable_adapter():
        without = model(ids).logits.double()
    with_it = model(ids).logits.double()
    whole: Any = merged(model)
    after = whole(ids).logits.double()
    return whole, float((without - with_it).abs().max()), float((after - with_it).abs().max())


def load_adapter(model: Any, folder: Path, config: PeftConfig) -> PeftModel:
    """Put an adapter beside its base; unlike peft, take no part of it for the whole.

    Raises:
        LmfError: A tensor is missing, foreign, of another shape, or not finite.
    """
    if not (folder / WEIGHTS).exists():
        if (folder / PICKLE).exists():
            raise LmfError(f"{folder / PICKLE} is a pickle, which can run code. Convert it to {WEIGHTS}.")
        raise LmfError(f"{folder} holds no adapter: {WEIGHTS} is missing.")
    found = dict(read_tensors(folder / WEIGHTS))
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what peft warns of is checked below
            prepared = PeftModel(model, config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LmfError(f"{folder / CONFIG} does not fit the model: {' '.join(str(error).split())[:300]}") from None
    own: Mapping[str, torch.Tensor] = get_peft_model_state_dict(prepared, save_embedding_layers=False)
    whole = {name for name in found.keys() - own.keys() if any(f".{end}.weight" in name for end in ENDS)}
    _check_names(folder, own, found, whole)
    set_peft_model_state_dict(prepared, found)
    return prepared.eval()


def _check_names(
    folder: Path, own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], whole: set[str]
) -> None:
    """Raise LmfError unless the tensors of a file are those of the adapter, besides whole embeddings."""
    for names, what in (
        (found.keys() - own.keys() - whole, "has tensors that the model has no place for"),
        (own.keys() - found.keys(), "lacks tensors that its configuration tells of"),
    ):
        if names:
            raise LmfError(f"{folder / WEIGHTS} {what}: {some(names)}. Is this the adapter of another base?")
    for name, tensor in found.items():
        if name in own and tensor.shape != own[name].shape:
            raise LmfError(
                f"{folder / WEIGHTS}: {name} is {tuple(tensor.shape)}, but the model's is {tuple(own[name].shape)}. "
                "Is this the adapter of another base?"
            )
        if not tensor.isfinite().all():
            raise LmfError(f"{folder / WEIGHTS}: {name} holds values that are not finite numbers.")


def _config(folder: Path) -> PeftConfig:
    """Return the configuration of an adapter.

    Raises:
        LmfError: There is none, or it is damaged.
    """
    file = folder / CONFIG
    if not file.exists():
        raise LmfError(f"{folder} holds no adapter: {CONFIG} is missing.")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        kind = value["peft_type"]
        config: PeftConfig = PeftConfig.from_peft_type(**value)
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise LmfError(f"{file} is no configuration of an adapter: {type(error).__name__}: {error}.") from None
    if not hasattr(config, "target_modules"):
        raise LmfError(f"{file}: an adapter of the type {kind} is no change of weights, so it cannot be merged.")
    return config


def _check_base(model: Any, source: Source, folder: Path, config: PeftConfig) -> None:
    """Raise ConfigError if an adapter tells of another base: by its fingerprint, where lmf made it, or by its name."""
    way = "Give that one, or --any-base if you know that this is it."
    record = read_run(folder) if (folder / RUN_FILE).exists() else {}
    if then := record.get("base"):
        if then != fingerprint(model):
            name = record["settings"]["model"]
            raise ConfigError(f"{folder} was trained on {name}, whose weights are not those of {source.asked}. {way}")
        return
    told = config.base_model_name_or_path or ""
    names = {Path(name).name.lower() for name in (source.asked, str(Path(source.path).resolve()))}
    if told and Path(told).name.lower() not in names:
        raise ConfigError(f"{folder} was trained on {told}, not on {source.asked}. {way}")
