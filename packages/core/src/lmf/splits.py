"""How byte-level tokenizers split text before they merge, by the names that llama.cpp has for it.

A GGUF file holds such a name alone; transformers 5.23 reads some of them, but not that of SmolLM 2, which splits
digits. Sources: ``src/llama-vocab.cpp`` of llama.cpp, ``tokenizer.json`` of the models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_CL100K = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = _CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
_O200K = (
    rf"{_WORDS[0]}{_CONTRACTIONS}?|{_WORDS[1]}{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_TEKKEN = rf"{_WORDS[0]}|{_WORDS[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


class Split(NamedTuple):
    """How text is split.

    Attributes:
        pattern: What the parts are; None for those of GPT-2.
        digits: Each digit is a part of its own.
        whole: A part that is a token is taken at once.
    """

    pattern: str | None = None
    digits: bool = False
    whole: bool = False

    def steps(self) -> list[dict[str, Any]]:
        """Return the pre-tokenizer, as it stands in ``tokenizer.json``."""
        found: list[dict[str, Any]] = []
        if self.digits:
            found.append({"type": "Digits", "individual_digits": True})
        if self.pattern:
            pattern = {"Regex": self.pattern}
            found.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
        usual = {"add_prefix_space": False, "trim_offsets": True, "use_regex": self.pattern is None}
        return [*found, {"type": "ByteLevel", **usual}]


SPLITS: Mapping[str, Split] = {
    "gpt-2": Split(),
    "smollm": Split(digits=True),
    "llama-bpe": Split(_CL100K, whole=True),
    "dbrx": Split(_CL100K),
    "qwen2": Split(_QWEN2),
    "gpt-4o": Split(_O200K),
    "tekken": Split(_TEKKEN, whole=True),
}
"""By the names of llama.cpp."""


ALIASES = {
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral"), "llama-bpe"),
    **{"deepseek-r1-qwen": "qwen2", "smaug-bpe": "dbrx", "llama4": "gpt-4o"},
}
"""Other names of the same."""


def steps_of(part: Any) -> list[Any]:
    """Return the steps of a normalizer or pre-tokenizer of ``tokenizer.json``, one by one."""
    if not part:
        return []
    if part["type"] == "Sequence":
        inner = part.get("pretokenizers") or part.get("normalizers") or []
        return [step for each in inner for step in steps_of(each)]
    return [part]


def split_of(steps: list[Any], whole: bool) -> str | None:
    """Return the name of how text is split; None if it is none of those known here.

    Args:
        steps: The pre-tokenizers of ``tokenizer.json``, in order.
        whole: A part that is a token is taken at once (``ignore_merges``).
    """
    told = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for name, split in SPLITS.items():
        own = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in split.steps()]
        if own == told and split.whole == whole:
            return name
    return None


def restore_split(tokenizer: Any, file: Path) -> None:
    """Have the tokenizer of a GGUF file split text as the file says, where its name for that is known here.

    Args:
        tokenizer: The tokenizer that transformers made of the file; it is changed.
        file: The file.
    """
    from gguf import GGUFReader
    from tokenizers import Tokenizer

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    name = field.contents() if field else ""
    split = SPLITS.get(ALIASES.get(name, name))
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    if split is None or whole["model"]["type"] != "BPE" or whole["model"].get("byte_fallback"):
        return
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": split.steps()}
    whole["model"]["ignore_merges"] = split.whole
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(whole))
