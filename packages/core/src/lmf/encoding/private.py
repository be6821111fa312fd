"""Private copies of a tokenizer: they know no special tokens, and put no space of their own before a text."""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram


def plain_tokenizers(backend: Tokenizer) -> tuple[Tokenizer, Tokenizer, str]:
    """Copy a tokenizer twice: for texts that start, and for texts that continue one.

    Both take special tokens for text and give offsets of whole tokens.

    Returns:
        The two, which are one where no space is put before a text; and where it is put: "" nowhere,
        "first" at the start of the text, "always" also after control tokens.
    """
    text = backend.to_str()
    start = _plain(text)
    normalizer, pre_tokenizer = _state(backend.normalizer), _state(backend.pre_tokenizer)
    prefix = _drop_prefix([*_steps(normalizer), *_steps(pre_tokenizer)])
    if not prefix:
        return start, start, prefix
    after = _plain(text)
    after.normalizer = _with_state(after.normalizer, normalizer)
    after.pre_tokenizer = _with_state(after.pre_tokenizer, pre_tokenizer)
    return start, after, prefix


def unknown_id(backend: Tokenizer) -> int | None:
    """Return the token that stands for text outside the vocabulary, or None."""
    model = backend.model
    if isinstance(model, Unigram):  # has no attribute for it
        found = re.search(r'"model":\{"type":"Unigram","unk_id":(\d+)', backend.to_str())
        return int(found[1]) if found else None
    return backend.token_to_id(model.unk_token or "")


def _plain(text: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(text)
    tokenizer.post_processor = None  # the one of ByteLevel would move the start of a token behind its white space
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _state(part: Any) -> dict[str, Any] | None:
    """Return a normalizer or pre-tokenizer as tokenizer.json has it; to read that whole takes as long as loading."""
    return json.loads(part.__getstate__()) if part else None


def _with_state(part: Any, state: dict[str, Any] | None) -> Any:
    if part:
        part.__setstate__(json.dumps(state).encode())
    return part


def _drop_prefix(steps: list[dict[str, Any]]) -> str:
    """Change the steps so that no space is put before a text. Returns where it was put."""
    found = ""
    for step in steps:
        if step["type"] == "Prepend":
            step["prepend"], found = "", "always"
        elif step["type"] == "ByteLevel" and step["add_prefix_space"]:
            step["add_prefix_space"], found = False, "always"
        elif step["type"] == "Metaspace" and step["prepend_scheme"] != "never":
            found = found or step["prepend_scheme"]
            step["prepend_scheme"] = "never"
    return found


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    return [step for each in inner for step in _steps(each)] if inner else [part]
