"""DeepSeek V3 and R1, and the models that were distilled from R1.

After a thought comes a reply, and both are learned together. Once the conversation goes on, R1's
format drops the thought.
"""

from lmf import JinjaTemplate

from .text import jinja

_END = "<｜end▁of▁sentence｜>"
_TALK = ("<｜User｜>", "<｜Assistant｜>", _END)
_TOOLS = tuple(
    f"<｜tool▁{part}｜>"
    for part in (
        "calls▁begin",
        "call▁begin",
        "sep",
        "call▁end",
        "calls▁end",
        "outputs▁begin",
        "output▁begin",
        "output▁end",
        "outputs▁end",
    )
)


def _template(name: str, model: str, tokens: tuple[str, ...], steady: bool = False) -> JinjaTemplate:
    return JinjaTemplate(
        name=name,
        source=f"https://huggingface.co/deepseek-ai/{model}/blob/main/tokenizer_config.json",
        text=jinja(name),
        stop=(_END,),
        tokens=tokens,
        steady=steady,
    )


TEMPLATES = [
    _template("deepseek_v3", "DeepSeek-V3-0324", _TALK + _TOOLS, steady=True),
    _template("deepseek_r1", "DeepSeek-R1", _TALK + _TOOLS),
    _template("deepseek_r1_distill", "DeepSeek-R1-Distill-Qwen-7B", _TALK),
]
