"""Phi-3 and Phi-3.5.

The official template also writes the token that ends a text, once, after a conversation that
ends with a reply. It is left out: the model stops at ``<|end|>``, and a conversation that goes on
must start with the same text.
"""

from lmf import ModelSpec, Template

PHI3 = Template(
    name="phi3",
    source="https://huggingface.co/microsoft/Phi-3-mini-4k-instruct/blob/main/tokenizer_config.json",
    system="<|system|>\n{content}<|end|>\n",
    user="<|user|>\n{content}<|end|>\n",
    assistant="<|assistant|>\n",
    reply="{content}<|end|>",
    after_reply="\n",
    stop=("<|end|>",),
    tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)

TEMPLATES = [PHI3]

FAMILIES = [
    ModelSpec(
        name="phi3",
        model_types=frozenset({"phi3"}),
        template="phi3",
        projections=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
]
