"""Yi Chat, which speaks ChatML."""

from dataclasses import replace

from .chatml import CHATML

TEMPLATES = [
    replace(CHATML, name="yi", source="https://huggingface.co/01-ai/Yi-34B-Chat/blob/main/tokenizer_config.json"),
    # From 1.5 on, a system text stands before the first turn as it is.
    replace(
        CHATML,
        name="yi1_5",
        source="https://huggingface.co/01-ai/Yi-1.5-9B-Chat/blob/main/tokenizer_config.json",
        system="{content}",
    ),
]
