"""SmolLM3."""

from lmf import JinjaTemplate, ModelSpec

from .llama import PROJECTIONS
from .text import jinja

TEMPLATES = [
    JinjaTemplate(
        name="smollm3",
        source="https://huggingface.co/HuggingFaceTB/SmolLM3-3B/blob/main/chat_template.jinja",
        text=jinja("smollm3"),
        stop=("<|im_end|>",),
        tokens=("<|im_start|>", "<|im_end|>"),
        steady=True,
    ),
]

FAMILIES = [
    ModelSpec(
        name="smollm3",
        model_types=frozenset({"smollm3"}),
        template="smollm3",
        projections=PROJECTIONS,
    ),
]
