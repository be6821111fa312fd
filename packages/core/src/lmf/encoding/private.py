"""Private copies of a tokenizer: they know no special tokens, and put no space of their own before a text."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer


def plain_tokenizer(text: str) -> Tokenizer:
    """Make a tokenizer of a tokenizer.json that takes special tokens for text, and gives offsets of whole tokens."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.post_processor = None  # the one of ByteLevel would move the start of a token behind its white space
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def drop_prefix(spec: dict[str, Any]) -> str:
    """Change a tokenizer.json so that no space is put before a text.

    Returns:
        Where it was put: "" nowhere, "first" at the start of the text, "always" also after control tokens.
    """
    found = ""
    for step in [*_steps(spec["normalizer"]), *_steps(spec["pre_tokenizer"])]:
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
