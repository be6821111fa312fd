"""OLMo 2 of the Allen Institute for AI, whose format is that of Tulu. It marks turns with plain text."""

from lmf import JinjaTemplate, ModelSpec

from .llama import PROJECTIONS
from .text import jinja

TEMPLATES = [
    JinjaTemplate(
        name="olmo2",
        source="https://huggingface.co/allenai/OLMo-2-1124-7B-Instruct/blob/main/tokenizer_config.json",
        text=jinja("olmo2"),
        stop=("{eos}",),
        steady=True,
    ),
]

FAMILIES = [
    ModelSpec(
        name="olmo2",
        model_types=frozenset({"olmo2"}),
        template="olmo2",
        projections=PROJECTIONS,
    ),
]
