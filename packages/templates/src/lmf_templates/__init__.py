"""Conversation templates and model families: one module for each line of models.

``lmflow`` and ``genie`` are apart: the formats of two older systems, for the models trained with them.
"""

from lmf import ModelSpec, Template, hookimpl

from . import (
    baichuan,
    base,
    chatml,
    deepseek_chat,
    early,
    gemma,
    genie,
    internlm,
    llama,
    lmflow,
    mistral,
    phi,
    yi,
)

LINES = (base, chatml, gemma, llama, mistral, phi)
FORMATS = (yi, internlm, baichuan, deepseek_chat, early, lmflow, genie)  # their models need no family of their own


@hookimpl
def lmf_templates() -> list[Template]:
    return [template for line in (*LINES, *FORMATS) for template in line.TEMPLATES]


@hookimpl
def lmf_models() -> list[ModelSpec]:
    return [family for line in LINES for family in line.FAMILIES]
