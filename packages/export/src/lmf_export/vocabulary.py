"""The tokens of a tokenizer as llama.cpp reads them: byte-level BPE (as GPT-2), and BPE of characters (as Llama 2).

Sources: ``src/llama-vocab.cpp`` of llama.cpp, the format of ``tokenizer.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from gguf import GGUFWriter, TokenType
from lmf import LmfError
from lmf.splits import SPLITS, split_of, steps_of

USUAL = (
    {"type": "NFC"},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
)
"""Changes of texts before they are split: that llama.cpp makes, too, or that hardly any text needs."""


def write_vocabulary(
    writer: GGUFWriter, tokenizer: Any, *, rows: int, ends: Collection[int], first: bool, chats: bool
) -> None:
    """Write the tokens, how text is split into them, and what ends a reply.

    Args:
        writer: Of the file.
        tokenizer: A fast tokenizer of transformers.
        rows: Rows of the embedding.
        ends: Ids that end a reply.
        first: Programs shall put the first token (BOS) before every text.
        chats: The model has a chat template.

    Raises:
        LmfError: llama.cpp has no such tokenizer, or the model has not so many rows.
    """
    if not tokenizer.is_fast:
        raise LmfError(f"The tokenizer {type(tokenizer).__name__} has no tokenizer.json, of which a GGUF is made.")
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    steps = steps_of(whole.get("pre_tokenizer"))
    changes = steps_of(whole.get("normalizer"))
    odd = [step["type"] for step in changes if step not in USUAL]
    if odd:
        raise LmfError(f"This tokenizer changes texts before it splits them, and llama.cpp does not: {', '.join(odd)}.")
    if model["type"] == "BPE" and any(step["type"] == "ByteLevel" for step in steps):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split(steps, bool(model.get("ignore_merges"))))
        writer.add_token_merges([" ".join(pair) for pair in _merges(model)])
        scores = None
    elif model["type"] == "BPE" and model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_space_before(changes, steps, chats))
        scores = _scores(model)
    else:
        raise LmfError(f"lmf writes GGUF with BPE tokenizers, and this one is {model['type']}.")
    names, kinds = _tokens(model, whole["added_tokens"], rows, spaces=scores is not None)
    writer.add_token_list(names)
    if scores is not None:
        writer.add_token_scores([scores.get(name, 0.0) for name in names])
    writer.add_token_types(kinds)
    _write_special(writer, tokenizer, ends)
    writer.add_add_bos_token(first)
    writer.add_add_eos_token(False)


def vocabulary_notes(tokenizer: Any, ends: Collection[int]) -> list[str]:
    """Return what llama.cpp does not know of a tokenizer."""
    found = []
    if not ends and tokenizer.eos_token_id is None:
        found.append("this model has no token that ends a text, and llama.cpp takes one all the same")
    if len(ends) > 3:
        found.append("this model ends replies with more than three tokens, and a GGUF file names three")
    changes = steps_of(json.loads(tokenizer.backend_tokenizer.to_str()).get("normalizer"))
    if any(step["type"] == "NFC" for step in changes):
        found.append("llama.cpp reads letters as they are written, and this tokenizer composes accents first (NFC)")
    return found


def _write_special(writer: GGUFWriter, tokenizer: Any, ends: Collection[int]) -> None:
    for token, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if token is not None:
            add(token)
    # what is no text's end ends a turn, or a message that is a call
    last = tokenizer.eos_token_id if tokenizer.eos_token_id in ends or not ends else min(ends)
    others = sorted({*ends} - {last})
    places = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for token, add in zip([last, *others], places, strict=False):  # llama.cpp knows more of them by their names
        if token is not None:
            add(token)


def _tokens(model: Any, added: Any, rows: int, spaces: bool) -> tuple[list[str], list[int]]:
    """Return the text and the kind of the token of each row."""
    names = {token: text for text, token in model["vocab"].items()}
    kinds = dict.fromkeys(names, TokenType.NORMAL)
    for text, token in model["vocab"].items() if spaces else ():
        if re.fullmatch("<0x[0-9A-F]{2}>", text):
            kinds[token] = TokenType.BYTE
    for each in added:
        text = each["content"]
        names[each["id"]] = text if each["special"] or not spaces else text.replace("▁", " ")
        kinds[each["id"]] = TokenType.CONTROL if each["special"] else TokenType.USER_DEFINED
    if model.get("unk_token") in model["vocab"] and spaces:
        kinds[model["vocab"][model["unk_token"]]] = TokenType.UNKNOWN
    if names and max(names) >= rows:
        raise LmfError(f"The tokenizer has the token {max(names)}, and the embedding of the model only {rows} rows.")
    return (
        [names.get(row, f"[PAD{row}]") for row in range(rows)],
        [int(kinds.get(row, TokenType.UNUSED)) for row in range(rows)],
    )


def _merges(model: Any) -> list[list[str]]:
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]


def _scores(model: Any) -> dict[str, float]:
    """Return scores that merge in the order of the merges: the first one that makes a token counts."""
    found: dict[str, float] = {}
    for rank, (left, right) in enumerate(_merges(model)):
        found.setdefault(left + right, float(-1 - rank))
    worst = float(-1 - len(model["merges"]))
    return {text: found.get(text, worst) for text in model["vocab"]}


def _split(steps: list[Any], whole: bool) -> str:
    """Return the name that llama.cpp has for how a byte-level tokenizer splits text.

    Raises:
        LmfError: It has none that lmf knows.
    """
    found = split_of(steps, whole)
    if found is None:
        told = ", ".join(step.get("pattern", {}).get("Regex") or step["type"] for step in steps)
        raise LmfError(
            f"lmf knows no name in llama.cpp for how this tokenizer splits text ({told}), and with a wrong one the "
            f"model would read other tokens. Known are: {', '.join(SPLITS)}."
        )
    return found


def _space_before(normalizers: list[Any], steps: list[Any], chats: bool) -> bool:
    """Return whether llama.cpp is to put a space before each text, and so after each special token as well."""
    if any(step["type"] == "Prepend" for step in normalizers):
        return True
    scheme = next((step.get("prepend_scheme", "always") for step in steps if step["type"] == "Metaspace"), "never")
    # "first" puts one before what begins a text, which in a chat is a special token
    return scheme == "always" or (scheme == "first" and not chats)
