"""ChatML, which many lines of models share, and the first two of Qwen, whose format it is."""

from dataclasses import replace

from lmf import Template

CHATML = Template(
    name="chatml",
    source="https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md",
    system="<|im_start|>system\n{content}<|im_end|>\n",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    reply="{content}<|im_end|>",
    after_reply="\n",
    stop=("<|im_end|>",),
    tokens=("<|im_start|>", "<|im_end|>"),
)

TEMPLATES = [
    CHATML,
    replace(
        CHATML,
        name="qwen",
        source="https://huggingface.co/Qwen/Qwen-7B-Chat/blob/main/qwen_generation_utils.py",
        default_system="You are a helpful assistant.",
    ),
    replace(
        CHATML,
        name="qwen2",  # also Qwen1.5
        source="https://huggingface.co/Qwen/Qwen2-7B-Instruct/blob/main/tokenizer_config.json",
        default_system="You are a helpful assistant.",
    ),
]
