"""Falcon 3."""

from lmf import JinjaTemplate

from .text import jinja

TEMPLATES = [
    JinjaTemplate(
        name="falcon3",
        source="https://huggingface.co/tiiuae/Falcon3-7B-Instruct/blob/main/tokenizer_config.json",
        text=jinja("falcon3"),
        stop=("{eos}",),
        steady=True,
    ),
]
