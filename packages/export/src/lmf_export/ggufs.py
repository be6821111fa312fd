"""GGUF files, of which llama.cpp, Ollama and LM Studio run models: written, and read back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, get_tensor_name_map, quants
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION
from lmf import LmfError
from lmf.generate.opening import Chatter

from .architectures import Change, architecture_of, describe, rotations
from .findings import jinja_of
from .vocabulary import write_vocabulary

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
"""What lmf writes itself: the type of matrices. All else is f32."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a model and of its file.

    Attributes:
        name: Its name in the file.
        tensor: What the model has.
        change: Makes of it what the file has.
        back: The way back.
    """

    name: str
    tensor: torch.Tensor
    change: Change
    back: Change


def own_type(model: Any) -> str:
    """Return the type that keeps the weights of a model as they are."""
    return {torch.float16: "f16", torch.bfloat16: "bf16"}.get(model.dtype, "f32")


def write_gguf(chatter: Chatter, file: Path, kind: str, name: str, first: bool) -> None:
    """Write a model with its tokenizer and chat template.

    Args:
        chatter: The model.
        file: The file to write.
        kind: One of ``TYPES``.
        name: What the model is called.
        first: Programs shall put the tokenizer's first token (BOS) before every text.

    Raises:
        LmfError: llama.cpp computes no such model, or has no such tokenizer.
    """
    model: Any = chatter.model
    matrices, file_type = TYPES[kind]
    architecture = architecture_of(model.config)
    writer = GGUFWriter(None, architecture.name)
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    describe(writer, architecture, model.config)
    template = chat_template(chatter)
    write_vocabulary(
        writer,
        chatter.tokenizer,
        rows=model.get_input_embeddings().weight.shape[0],
        ends=chatter.stops()[0],
        first=first,
        chats=template is not None,
    )
    if template:
        writer.add_chat_template(template)
    stored = []
    for part in parts(model):
        kept = _stored(part.tensor, matrices)
        block, size = GGML_QUANT_SIZES[kept]
        count = part.tensor.numel() // block * size
        writer.add_tensor_info(part.name, part.tensor.shape, np.dtype(np.float32), count, raw_dtype=kept)
        stored.append((part, kept))
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for part, kept in stored:  # one by one: there may be no memory for a second copy of the whole
        values = part.change(part.tensor.detach().cpu()).float().contiguous().numpy()
        with np.errstate(over="ignore"):  # infinity is found when it is read back
            writer.write_tensor_data(quants.quantize(values, kept))
    writer.close()


def parts(model: Any) -> Iterator[Part]:
    """Yield what a file of a model consists of."""
    config = model.config
    architecture = architecture_of(config)
    names = get_tensor_name_map(architecture.kind, config.num_hidden_layers)
    embedding = model.get_input_embeddings().weight
    for own, tensor in model.state_dict().items():
        if own == "lm_head.weight" and tensor.data_ptr() == embedding.data_ptr():
            continue  # without it, llama.cpp takes the embedding
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise LmfError(f"llama.cpp has no place for {own} in a model of type {config.model_type!r}.")
        yield Part(name, tensor, *architecture.change(own, config))
    for name, tensor in rotations(architecture, config).items():
        yield Part(name, tensor, lambda same: same, lambda same: same)


def take_back(reader: GGUFReader, model: Any) -> dict[str, float]:
    """Put the weights of a file into the model that it was made of.

    Returns:
        How far each tensor is from what it was: the norm of the difference by the norm of the tensor.

    Raises:
        LmfError: A tensor is missing, foreign, misshapen or not finite.
    """
    found = {tensor.name: tensor for tensor in reader.tensors}
    apart: dict[str, float] = {}
    for part in parts(model):
        stored = found.pop(part.name, None)
        if stored is None or tuple(reversed(stored.shape.tolist())) != tuple(part.tensor.shape):
            raise LmfError(f"The file has no tensor {part.name} of the shape {tuple(part.tensor.shape)}.")
        values = torch.tensor(quants.dequantize(stored.data, stored.tensor_type)).view(part.tensor.shape)
        if not values.isfinite().all():
            raise LmfError(f"{part.name} has values that are too large for this type; bf16 and f32 hold them.")
        values, own = part.back(values), part.tensor.float()
        apart[part.name] = float((values - own).norm() / own.norm().clamp_min(1e-30))
        part.tensor.copy_(values)
    if found:
        raise LmfError(f"The file has the tensor {next(iter(found))}, which the model does not know.")
    return apart


def chat_template(chatter: Chatter) -> str | None:
    """Return the chat template in Jinja, without the marks of replies, which are for training alone."""
    if chatter.template is None:
        return None
    text = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", jinja_of(chatter.template))
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", text)


def _stored(tensor: torch.Tensor, matrices: GGMLQuantizationType) -> GGMLQuantizationType:
    """Return the type of a tensor in the file; what no blocks fit into is f16 instead."""
    if tensor.ndim < 2:
        return GGMLQuantizationType.F32
    whole = tensor.shape[-1] % GGML_QUANT_SIZES[matrices][0] == 0
    return matrices if whole else GGMLQuantizationType.F16
