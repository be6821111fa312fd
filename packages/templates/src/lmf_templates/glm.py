"""GLM-4 and ChatGLM3, whose turns have no end of their own.

The model stops with the token that opens the next message. That token is learned with the reply.
"""

from lmf import JinjaTemplate, ModelSpec

from .llama import ATTENTION
from .text import jinja

_STOP = ("<|user|>", "<|observation|>")
_ROLES = ("<|system|>", "<|assistant|>", *_STOP)

TEMPLATES = [
    JinjaTemplate(
        name="chatglm3",
        source="https://huggingface.co/THUDM/chatglm3-6b/blob/main/tokenizer_config.json",
        text=jinja("chatglm3"),
        stop=_STOP,
        tokens=("[gMASK]", "sop", *_ROLES),
        steady=True,
    ),
    JinjaTemplate(
        name="glm4",
        source="https://huggingface.co/zai-org/GLM-4-32B-0414/blob/main/chat_template.jinja",
        text=jinja("glm4"),
        stop=_STOP,
        tokens=("[gMASK]", "<sop>", *_ROLES),
        steady=True,
    ),
]

FAMILIES = [
    ModelSpec(
        name="glm4",
        model_types=frozenset({"glm4"}),
        template="glm4",
        projections=(*ATTENTION, "gate_up_proj", "down_proj"),
    ),
]
