"""ChatGLM2, which numbers the rounds of a conversation, and LLM-Genie's version of its format."""

from lmf import JinjaTemplate

from .text import jinja


def _chatglm2(name: str, source: str, first: int, opened: bool) -> JinjaTemplate:
    return JinjaTemplate(
        name=name,
        source=source,
        text=jinja("chatglm2", name=name, first=first, opened=opened),
        stop=("{eos}",),
        tokens=("[gMASK]", "sop"),
        steady=True,
    )


TEMPLATES = [
    _chatglm2(
        "chatglm2",
        "https://huggingface.co/THUDM/chatglm2-6b/blob/main/tokenization_chatglm.py",
        first=1,
        opened=False,
    ),
    _chatglm2(
        "genie_chatglm2",
        "https://github.com/hiyouga/LLaMA-Factory/blob/e5b72c6a/src/llmtuner/extras/template.py",
        first=0,
        opened=True,
    ),
]
