"""Llama 3.1 to 4, whose formats have tools.

A call is written ``{"name": ..., "parameters": ...}``, a result in a turn of the role ``ipython``. Llama 3
takes one call at a time. Its system turn always says which day it is; here it is one fixed day, and
the variable ``date_string`` sets another.
"""

from lmf import JinjaTemplate

from .text import jinja

_LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_LLAMA4 = ("<|header_start|>", "<|header_end|>", "<|eot|>", "<|python_start|>", "<|python_end|>")

TEMPLATES = [
    *(
        JinjaTemplate(
            name=name,
            source=f"https://www.llama.com/docs/model-cards-and-prompt-formats/{name}/",
            text=jinja("llama3", name=name),
            stop=("<|eot_id|>", "<|eom_id|>"),
            tokens=_LLAMA3,
            steady=True,
        )
        for name in ("llama3_1", "llama3_2")  # one text; 3.3 has it too
    ),
    JinjaTemplate(
        name="llama4",
        source="https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama4/processing_llama4.py",
        text=jinja("llama4", name="llama4"),
        stop=("<|eot|>", "<|eom|>"),
        tokens=_LLAMA4,
        steady=True,
    ),
]
