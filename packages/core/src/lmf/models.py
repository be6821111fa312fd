"""Loads models and tokenizers, and refuses those that would only seem to work."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .errors import ConfigError, LmfError
from .rope import scale
from .sources import Source, check_tokenizer, shards
from .splits import restore_split

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = "lmf_new_tokens"  # the key of config.json for the first id that was added to a vocabulary, and the end
SAMPLED = 64  # values of each weight in a fingerprint


def load_tokenizer(source: Source, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Raises:
        LmfError: It is missing, damaged, or needs code that was not trusted.
    """
    from transformers import AutoTokenizer

    if source.folder:
        check_tokenizer(source.folder)
    with _explained(source):
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **({"gguf_file": source.gguf} if source.gguf else {})
        )
    if source.gguf:
        restore_split(tokenizer, Path(source.path) / source.gguf)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes where files are missing
        raise LmfError(f"{source.asked} holds no tokenizer: its vocabulary is empty. Copy it from the base model.")
    for noise in ("is_local", "local_files_only"):  # transformers would save them
        tokenizer.init_kwargs.pop(noise, None)
    return tokenizer


def load_config(source: Source, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load the configuration of a model, with its positions scaled where that is asked for.

    Raises:
        LmfError: It is missing, damaged, or needs code that was not trusted, or its positions cannot be scaled.
    """
    from transformers import AutoConfig

    with _explained(source):
        config = AutoConfig.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **({"gguf_file": source.gguf} if source.gguf else {})
        )
    if source.rope:
        scale(config, source.rope, source.asked)
    return config


def load_model(
    source: Source,
    dtype: torch.dtype | None = None,
    *,
    attention: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model.

    Args:
        source: Where it is.
        dtype: Precision of the weights; as stored by default.
        attention: Name of an attention implementation of transformers.
        allow_pickle: Accept weights in pickle files.
        trust_remote_code: Run code that the model brings.

    Raises:
        LmfError: A tensor is missing, foreign, misshapen or not finite, a file is unreadable, or the positions of the
            model cannot be scaled.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    options: dict[str, Any] = {"dtype": dtype or "auto", "trust_remote_code": trust_remote_code}
    if attention:
        options["attn_implementation"] = attention
    if source.gguf:
        options |= {"gguf_file": source.gguf, "quantization_config": GgufConfig(dequantize=True)}
        options["dtype"] = dtype or torch.float32
    elif not allow_pickle:
        options["use_safetensors"] = True
    options["ignore_mismatched_sizes"] = True  # told below, by name
    if source.rope:
        options["config"] = load_config(source, trust_remote_code)
    with _explained(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(source.path, output_loading_info=True, **options)
    model, info = loaded
    for problem, names in (
        ("lacks weights", info["missing_keys"]),
        (
            "has weights of another shape",
            [name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]],
        ),
    ):
        if names:
            raise LmfError(f"{source.asked} {problem} for {some(names)}: they would be random. Download it again.")
    if info["unexpected_keys"]:
        raise LmfError(f"{source.asked} has weights its architecture does not know: {some(info['unexpected_keys'])}.")
    check_finite(model, source.asked)
    return model


def quiet() -> None:
    """Silence the progress bars and advice of transformers; what matters is told by lmf itself."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def check_finite(model: nn.Module, name: str) -> None:
    """Raise LmfError if a parameter holds NaN or infinity."""
    bad = [n for n, p in model.named_parameters() if not torch.isfinite(p.detach().sum()) and not p.isfinite().all()]
    if bad:
        raise LmfError(f"{name} has weights that are not finite numbers: {some(bad)}. Download it again.")


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a sample of every weight, which is the same in every precision from bfloat16 on."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].to("cpu", torch.bfloat16)
        found.update(f"{name} {tuple(parameter.shape)} ".encode() + sample.view(torch.int16).numpy().tobytes())
    return found.hexdigest()


def inner(model: Any) -> Any:
    """Return the model inside an adapter of peft, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def ends(model: Any) -> list[Any]:
    """Return what has a row for each token: the input embeddings and, where there is one, the output head."""
    base = inner(model)
    return [end for end in (base.get_input_embeddings(), base.get_output_embeddings()) if end is not None]


def added_tokens(config: Any) -> range:
    """Return the ids that ``lmf vocab apply`` added to the vocabulary of a model.

    Raises:
        ConfigError: The configuration has something else in their place.
    """
    if not hasattr(config, NEW_TOKENS):
        return range(0)
    found, rows = getattr(config, NEW_TOKENS), config.get_text_config().vocab_size
    whole = isinstance(found, list | tuple) and len(found) == 2 and all(type(id) is int for id in found)
    if not whole or not 0 <= found[0] <= found[1] <= rows:
        raise ConfigError(
            f"config.json: {NEW_TOKENS} is {found!r}; it must be the first new id and the one after the last, of "
            f"{rows:,} rows. Mend it, or make the model again: lmf vocab apply."
        )
    return range(*found)


def logit_options(config: Any) -> tuple[float, float | None]:
    """Return what a model multiplies its logits by, and their bound, if there is one."""
    text = config.get_text_config()
    scale = getattr(text, "logit_scale", None) or 1 / (getattr(text, "logits_scaling", None) or 1)
    return scale, getattr(text, "final_logit_softcapping", None)


def stops(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[set[int], list[str]]:
    """Return what ends a reply: ids, of texts that are one token and those of the model itself; and the other texts."""
    known, own = tokenizer.get_vocab(), inner(model).generation_config.eos_token_id
    ids = {known[text] for text in texts if text in known} | set(own if isinstance(own, list) else [own])
    return ids - {None}, [text for text in texts if text and text not in known]


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy the safetensors files of a folder into a model, bit for bit.

    Raises:
        LmfError: A tensor is missing, foreign, of another shape or precision, or not finite.
    """
    own = model.state_dict()
    found = set()
    for file in shards(folder):
        for name, tensor in read_tensors(file):
            if name not in own:
                raise LmfError(f"{file} has the tensor {name!r}, which the model does not know.")
            check_tensor(file, name, tensor, own[name])
            with torch.no_grad():
                own[name].copy_(tensor)
            found.add(own[name].data_ptr())
    missing = [name for name, tensor in own.items() if tensor.data_ptr() not in found]
    if missing:
        raise LmfError(f"{folder} lacks the tensors {some(missing)}.")


def check_tensor(file: Path, name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    """Raise LmfError unless a tensor fits the one it is to replace and is finite."""
    if tensor.shape != like.shape:
        raise LmfError(f"{file}: {name} is {tuple(tensor.shape)}, but the model's is {tuple(like.shape)}.")
    if tensor.dtype != like.dtype:
        raise LmfError(f"{file}: {name} is {tensor.dtype}, but the model's is {like.dtype}.")
    if not torch.isfinite(tensor).all():
        raise LmfError(f"{file}: {name} holds values that are not finite numbers.")


def read_tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names and tensors of a safetensors file."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                yield name, tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise LmfError(f"{file} cannot be read: {error}.") from None


@contextlib.contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn what transformers raises for a bad model into an LmfError that names the model."""
    try:
        yield
    except Exception as error:  # of any type: the files come from outside, and so does what reads them
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise LmfError(
                f"{source.asked} brings Python code of its own, and running it is off.\n"
                "Read that code; add --trust-remote-code if you trust it."
            ) from None
        what = "cannot be loaded" if source.folder else "is no folder here, and the hub did not give it"
        raise LmfError(f"{source.asked} {what}: {text[:500] or type(error).__name__}") from error


def some(names: Collection[str]) -> str:
    """Return the first names of tensors, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
