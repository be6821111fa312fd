"""gpt-oss of OpenAI and its format, called harmony.

The system turn says which day it is; here it is one fixed day. The variables ``date_string``
and ``reasoning_effort`` (low, medium, high) set another day, and how long the model is to think.
"""

from lmf import JinjaTemplate, ModelSpec

from .llama import ATTENTION
from .text import jinja

TEMPLATES = [
    JinjaTemplate(
        name="gpt_oss",
        source="https://huggingface.co/openai/gpt-oss-20b/blob/main/chat_template.jinja",
        text=jinja("gpt_oss"),
        stop=("<|return|>", "<|call|>"),
        tokens=("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"),
    ),
]

FAMILIES = [
    ModelSpec(
        name="gpt_oss",
        model_types=frozenset({"gpt_oss"}),
        template="gpt_oss",
        projections=ATTENTION,
    ),
]
