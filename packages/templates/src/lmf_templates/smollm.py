"""SmolLM3."""

from lmf import JinjaTemplate

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
