"""Granite 3."""

from lmf import JinjaTemplate, ModelSpec

from .llama import PROJECTIONS
from .text import jinja

TEMPLATES = [
    JinjaTemplate(
        name="granite",
        source="https://huggingface.co/ibm-granite/granite-3.3-2b-instruct/blob/main/tokenizer_config.json",
        text=jinja("granite"),
        stop=("<|end_of_text|>",),
        tokens=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
        steady=True,
    ),
]

FAMILIES = [
    ModelSpec(
        name="granite",
        model_types=frozenset({"granite"}),
        template="granite",
        projections=PROJECTIONS,
    ),
]
