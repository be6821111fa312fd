"""Mistral's formats with tools: versions 3 and 7.

Both come in two spellings. Tokenizers of SentencePiece have a space behind each control token,
those called Tekken have none. Version 7 gives the system text a turn of its own.
"""

from lmf import JinjaTemplate

from .text import jinja

_TOKENS = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
_TOKENS += ("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")


def _mistral(name: str, version: int, space: str) -> JinjaTemplate:
    return JinjaTemplate(
        name=name,
        source="https://github.com/mistralai/mistral-common/blob/main/src/mistral_common/tokens/tokenizers/instruct.py",
        text=jinja("mistral", name=name, version=version, space=space),
        stop=("{eos}",),
        tokens=_TOKENS if version == 3 else (*_TOKENS, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
    )


TEMPLATES = [
    _mistral("mistral_v3", version=3, space=" "),  # Mistral 7B v0.3, Mixtral 8x22B, Mistral Large 2407
    _mistral("mistral_v3_tekken", version=3, space=""),  # Mistral Nemo, Ministral 8B 2410, Pixtral 12B
    _mistral("mistral_v7", version=7, space=" "),  # Mistral Large 2411
    _mistral("mistral_v7_tekken", version=7, space=""),  # Mistral Small 2501 and 2503
]
