"""Phi-4 and Phi-4-mini, whose formats have nothing in common.

The official template of Phi-4-mini also writes the token that ends a text, as that of Phi-3 does. It is
left out here for the same reason: the model stops at ``<|end|>``.
"""

from lmf import JinjaTemplate

from .text import jinja

TEMPLATES = [
    JinjaTemplate(
        name="phi4",
        source="https://huggingface.co/microsoft/phi-4/blob/main/tokenizer_config.json",
        text=jinja("phi4"),
        stop=("<|im_end|>",),
        tokens=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        steady=True,
    ),
    JinjaTemplate(
        name="phi4_mini",
        source="https://huggingface.co/microsoft/Phi-4-mini-instruct/blob/main/tokenizer_config.json",
        text=jinja("phi4_mini"),
        stop=("<|end|>",),
        tokens=(
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|end|>",
            "<|tool|>",
            "<|/tool|>",
            "<|tool_call|>",
            "<|/tool_call|>",
        ),
        steady=True,
    ),
]
