"""Conversation templates and model families: one module for each line of models."""

from lmf import ModelSpec, Template, hookimpl

from . import base, chatml, gemma, llama, mistral, phi

LINES = (base, chatml, gemma, llama, mistral, phi)


@hookimpl
def lmf_templates() -> list[Template]:
    return [template for line in LINES for template in line.TEMPLATES]


@hookimpl
def lmf_models() -> list[ModelSpec]:
    return [family for line in LINES for family in line.FAMILIES]
