"""DeepSeek LLM Chat and DeepSeek-V2 Chat. From V2-Chat-0628 and V2.5 on, the format is another."""

from dataclasses import replace

from lmf import Template

_DEEPSEEK = Template(
    name="deepseek",
    source="https://huggingface.co/deepseek-ai/deepseek-llm-7b-chat/blob/main/tokenizer_config.json",
    start="{bos}",
    system="{content}\n\n",
    user="User: {content}\n\n",
    assistant="Assistant:",
    reply=" {content}{eos}",
    stop=("{eos}",),
)

TEMPLATES = [
    _DEEPSEEK,
    replace(
        _DEEPSEEK,
        name="deepseek_v2",
        source="https://huggingface.co/deepseek-ai/DeepSeek-V2-Chat/blob/main/tokenizer_config.json",
    ),
]
