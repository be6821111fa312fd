"""InternLM: a format of its own first, then ChatML behind the token that begins a text."""

from dataclasses import replace

from lmf import Template

from .chatml import CHATML

TEMPLATES = [
    # InternLM-Chat 1. <|User|> and <|Bot|> are plain text. Its code has no place for a system text;
    # LLM-Genie put it on a line before the first turn, and so does this.
    Template(
        name="intern",
        source="https://huggingface.co/internlm/internlm-chat-7b/blob/main/modeling_internlm.py",
        start="{bos}",
        system="{content}\n",
        user="<|User|>:{content}<eoh>\n",
        assistant="<|Bot|>:",
        reply="{content}<eoa>",
        after_reply="\n",
        stop=("<eoa>", "{eos}"),
        tokens=("<eoh>", "<eoa>"),
    ),
    replace(
        CHATML,
        name="internlm2",  # also InternLM 2.5 and 3
        source="https://huggingface.co/internlm/internlm2-chat-7b/blob/main/tokenizer_config.json",
        start="{bos}",
    ),
]
