"""Qwen from 2.5 on: ChatML with tools, and with reasoning in QwQ and Qwen3."""

from lmf import JinjaTemplate, ModelSpec

from .llama import ATTENTION, PROJECTIONS
from .text import jinja


def _template(name: str, model: str, text: str, steady: bool = False) -> JinjaTemplate:
    return JinjaTemplate(
        name=name,
        source=f"https://huggingface.co/Qwen/{model}/blob/main/tokenizer_config.json",
        text=text,
        stop=("<|im_end|>",),
        tokens=("<|im_start|>", "<|im_end|>"),
        steady=steady,
    )


TEMPLATES = [
    *(
        _template(name, model, jinja("qwen2_5", name=name, default_system=system), steady=True)
        for name, model, system in (
            (
                "qwen2_5",
                "Qwen2.5-7B-Instruct",
                "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
            ),
            (
                "qwen2_5_1m",
                "Qwen2.5-7B-Instruct-1M",
                "You are a helpful assistant.",
            ),
            (
                "qwen2_5_math",
                "Qwen2.5-Math-7B-Instruct",
                r"Please reason step by step, and put your final answer within \boxed{}.",
            ),
        )
    ),
    _template("qwen_qwq", "QwQ-32B", jinja("qwen_qwq")),
    _template("qwen3", "Qwen3-8B", jinja("qwen3")),
]

FAMILIES = [
    ModelSpec(
        name="qwen2",  # also Qwen1.5, Qwen2.5 and QwQ
        model_types=frozenset({"qwen2"}),
        template="qwen2_5",
        projections=PROJECTIONS,
    ),
    ModelSpec(
        name="qwen3",
        model_types=frozenset({"qwen3"}),
        template="qwen3",
        projections=PROJECTIONS,
    ),
    ModelSpec(
        name="qwen3_moe",
        model_types=frozenset({"qwen3_moe"}),
        template="qwen3",
        projections=ATTENTION,
    ),
]
