"""Exports for llama.cpp and Ollama: written, and compared with the model before they appear."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gguf import GGUFReader
from lmf import Conversation, LmfError, Message, Plugins
from lmf.errors import DataError
from lmf.generate.opening import Chatter, open_model
from lmf.models import quiet
from lmf.saving import write_new

from . import llama_cpp
from .architectures import architecture_of, notes
from .findings import PROBE, Finding, asked, compared, rendered
from .ggufs import TYPES, own_type, take_back, write_gguf
from .modelfile import modelfile
from .vocabulary import vocabulary_notes

if TYPE_CHECKING:
    from .command import Packing

HARD = "It's 12345 WE'LL x2y  two\tspaces \n\n\n naïve Straße 你好，世界 мир 😀 f(x)=x**2 //// HTTPServer_v10"
"""What tokenizers differ in."""
WORST = {"f32": 1e-5, "f16": 2e-3, "bf16": 4e-3, "q8": 2e-2, "q6": 4e-2, "q5": 8e-2, "q4": 0.15, "q3": 0.25, "q2": 0.4}
"""How far a tensor may be from what it was, by the type: the norm of the difference by the norm."""
SAME = {"f32": 1e-3, "f16": 1e-2, "bf16": 5e-2, "q8_0": 0.15}
"""How far llama.cpp may be from transformers with the same weights: it rounds what it multiplies with them, too."""


def write_file(model: str, out: Path, plugins: Plugins, options: Packing) -> list[Finding]:
    """Write a model as a GGUF file, unless what is written would not be right.

    Returns:
        What was found in it.
    """
    chatter, kind = _opened(model, plugins, options)
    # a template that does not begin with the first token must not get one either
    first = bool(chatter.encoder.start) and chatter.ids([Message("user", "a")])[0] == chatter.encoder.bos_id
    found: list[Finding] = []
    write_new(out, lambda partial: found.extend(_written(chatter, partial, kind, _name(model, chatter), first)))
    return found


def write_ollama(model: str, out: Path, plugins: Plugins, options: Packing) -> list[Finding]:
    """Write a folder that ``ollama create`` takes, unless what is written would not be right.

    Returns:
        What was found in it.
    """
    chatter, kind = _opened(model, plugins, options)
    text = modelfile(chatter)
    found: list[Finding] = []

    def written(partial: Path) -> None:
        partial.mkdir()
        # what TEMPLATE writes is all that the model is to read
        first = chatter.template is None and bool(chatter.encoder.start)
        found.extend(_written(chatter, partial / "model.gguf", kind, _name(model, chatter), first))
        (partial / "Modelfile").write_text(text, encoding="utf-8")

    write_new(out, written)
    return found


def _opened(model: str, plugins: Plugins, options: Packing) -> tuple[Chatter, str]:
    quiet()
    chatter = open_model(model, plugins, options.template, merged=True)
    whole: Any = chatter.model
    architecture_of(whole.config)
    kind = own_type(whole) if options.type == "auto" else options.type
    if kind not in TYPES and not llama_cpp.quantizes():
        raise LmfError(
            f"--type {kind} is made by llama.cpp, which is not installed here: {llama_cpp.INSTALL}, or have its "
            f"program llama-quantize on the PATH. lmf itself writes {', '.join(TYPES)}."
        )
    return chatter, kind


def _written(chatter: Chatter, file: Path, kind: str, name: str, first: bool) -> list[Finding]:
    """Write a file and examine it.

    Raises:
        LmfError: It would not be right.
    """
    whole = file.with_name(f"{file.name}.whole")
    try:
        if kind in TYPES:
            write_gguf(chatter, file, kind, name, first)
        else:
            write_gguf(chatter, whole, own_type(chatter.model), name, first)
            llama_cpp.quantize(whole, file, kind)
    finally:
        whole.unlink(missing_ok=True)
    found = list(_examined(chatter, file, kind, first))
    wrong = [text for right, text in found if right is False]
    if wrong:
        raise LmfError(f"The file would not be right, and was not written: {'; '.join(wrong)}.")
    return found


def _examined(chatter: Chatter, file: Path, kind: str, first: bool) -> Iterator[Finding]:
    """Yield what is right and wrong in a file. The model has its weights afterwards."""
    model: Any = chatter.model
    ids = chatter.encoder.plain(PROBE)
    before = _logits(model, ids)
    reader = GGUFReader(file)
    with torch.no_grad():
        apart = take_back(reader, model)
    worst = max(apart, key=lambda name: apart[name])
    yield (
        apart[worst] <= WORST[kind.partition("_")[0]],
        f"its {len(apart)} tensors are those of the model, but for {apart[worst]:.2%} of the norm ({worst})",
    )
    after = _logits(model, ids)
    same = int((before.argmax(-1) == after.argmax(-1)).sum())
    yield (
        None if after.isfinite().all() else False,
        f"with them the logits are the same, but for {_most(after, before)}; "
        f"the likeliest token is, {same} times of {len(ids)}",
    )
    yield from _template(chatter, reader)
    if llama_cpp.installed():
        bound = max(SAME.get(kind, 0.5), SAME[own_type(model)])  # transformers rounds, too
        yield from _in_llama_cpp(chatter, file, first, ids, after, bound)
    else:
        yield None, f"not tried in llama.cpp; to have it tried: {llama_cpp.INSTALL}"
    for text in chatter.stops()[1]:
        yield None, f"replies also end before {text!r}, which a GGUF file cannot tell: name it to llama.cpp as a stop"
    for text in (
        *vocabulary_notes(chatter.tokenizer, chatter.stops()[0]),
        *notes(architecture_of(model.config), model.config),
    ):
        yield None, text


def _template(chatter: Chatter, reader: GGUFReader) -> Iterator[Finding]:
    """Yield whether the chat template in a file writes the prompts of lmf, rendered by transformers."""
    field = reader.get_field("tokenizer.chat_template")
    tokenizer: Any = copy.deepcopy(chatter.tokenizer)
    tokenizer.chat_template = field.contents() if field else None
    yield from compared(tokenizer, chatter)


def _in_llama_cpp(
    chatter: Chatter, file: Path, first: bool, ids: list[int], logits: torch.Tensor, bound: float
) -> Iterator[Finding]:
    """Yield what llama.cpp makes of a file.

    Args:
        chatter: The model, with the weights of the file.
        file: The file.
        first: The file says that the first token (BOS) stands before every text.
        ids: A text.
        logits: Those after each of its tokens. Shape: (tokens, vocabulary).
        bound: How far those of llama.cpp may be from them: the norm of the difference by the norm.
    """
    prompts = list(_prompts(chatter))
    start = chatter.encoder.bos if first else ""
    texts = [text.removeprefix(start) for text, _ in prompts]
    ends = sorted(chatter.stops()[0])
    seen = llama_cpp.read(file, texts, ids, ends, first)
    different = [text for (text, ours), theirs in zip(prompts, seen.ids, strict=True) if ours != theirs]
    yield (
        not different,
        f"llama.cpp reads other tokens in {different[0]!r}"
        if different
        else f"llama.cpp reads the tokens of lmf in {len(prompts)} of {len(prompts)} prompts",
    )
    apart = float((torch.from_numpy(seen.logits) - logits).norm() / logits.norm())
    yield apart <= bound, f"llama.cpp computes these logits, but for {apart:.2%} of their norm"
    missing = [token for token in ends if token not in seen.ends]
    named = ", ".join(chatter.tokenizer.convert_ids_to_tokens(missing or ends))
    if ends:
        yield not missing, f"llama.cpp does not stop at {named}" if missing else f"llama.cpp stops at {named}"


def _prompts(chatter: Chatter) -> Iterator[tuple[str, list[int]]]:
    """Yield the text and the ids of all prompts that the template has a place for."""
    if chatter.template is None:
        for text in (PROBE, HARD):
            yield chatter.encoder.start + text, chatter.encoder.plain(text)
        return
    bos, eos = chatter.encoder.bos, chatter.encoder.eos
    for talk in (*(talk for _, talk in asked()), Conversation((Message("user", HARD),))):
        try:
            yield rendered(chatter.template, talk, bos, eos), chatter.ids(talk.messages, tools=talk.tools)
        except DataError:
            continue  # it has no place for such a conversation


def _logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids], device=model.device)).logits[0].float().cpu()


def _most(found: torch.Tensor, expected: torch.Tensor) -> str:
    return f"{float((found - expected).abs().max()):.2g} of {float(expected.abs().max()):.2g}"


def _name(model: str, chatter: Chatter) -> str:
    """Return what the model is called in its file.

    By the name alone llama.cpp knows that the tokens of Phi 3 swallow the space behind them, and then it looks for some
    by their text; without them it ends its process.
    """
    path = Path(model)
    name = (path.resolve() if path.exists() else path).name.removesuffix(".gguf")
    added = chatter.tokenizer.added_tokens_decoder.values()
    if not {"<s>", "</s>", "<unk>", "<|endoftext|>"} <= chatter.tokenizer.get_vocab().keys():
        return re.sub("phi-?3", "phi", name, flags=re.IGNORECASE)
    trims = any(token.rstrip for token in added if token.special) and not re.search("phi-?3", name, re.IGNORECASE)
    return f"phi-3 {name}" if trims else name
