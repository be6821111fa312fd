"""ChatML, which many lines of models share, and Qwen, whose format it is."""

from lmf import ModelSpec, Template

from .llama import PROJECTIONS


def _chatml(name: str, source: str, default_system: str | None = None) -> Template:
    return Template(
        name=name,
        source=source,
        system="<|im_start|>system\n{content}<|im_end|>\n",
        user="<|im_start|>user\n{content}<|im_end|>\n",
        assistant="<|im_start|>assistant\n",
        reply="{content}<|im_end|>",
        after_reply="\n",
        default_system=default_system,
        stop=("<|im_end|>",),
        tokens=("<|im_start|>", "<|im_end|>"),
    )


TEMPLATES = [
    _chatml("chatml", "https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md"),
    _chatml(
        "qwen2_5",
        "https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/blob/main/tokenizer_config.json",
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
]

FAMILIES = [
    ModelSpec(
        name="qwen2",  # also Qwen1.5 and Qwen2.5
        model_types=frozenset({"qwen2"}),
        template="qwen2_5",
        projections=PROJECTIONS,
    ),
    ModelSpec(
        name="qwen3",
        model_types=frozenset({"qwen3"}),
        template="chatml",  # Qwen3 has no system prompt of its own
        projections=PROJECTIONS,
    ),
]
