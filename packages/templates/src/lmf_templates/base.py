"""Models that were never taught a conversation, and the formats without markup for them.

``plain`` writes the prompt, a newline and the reply. It is the format for base models and for
data that are completions: it adds no token, so nothing has to be learned besides the text.
``empty`` writes not even the newline, and starts every turn as a text of its own.
"""

from dataclasses import replace

from lmf import ModelSpec, Template

_EMPTY = Template(
    name="empty",
    source="https://github.com/OptimalScale/LMFlow/blob/main/src/lmflow/utils/conversation_template/base.py",
    user="{bos}{content}",
    assistant="",
    reply="{content}{eos}",
    stop=("{eos}",),
)

TEMPLATES = [
    Template(
        name="plain",
        source="https://arxiv.org/abs/2005.14165",  # section 2 and appendix B: texts that end with a token
        start="{bos}",
        system="{content}\n",
        user="{content}\n",
        assistant="",
        reply="{content}{eos}",
        stop=("{eos}",),
    ),
    _EMPTY,
    replace(_EMPTY, name="disable"),  # LMFlow's other name for it
    replace(_EMPTY, name="vanilla"),  # and LLM-Genie's
    replace(_EMPTY, name="empty_no_special_tokens", user="{content}"),
]

_PROJECTIONS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")

FAMILIES = [
    ModelSpec(
        name="gpt2",
        model_types=frozenset({"gpt2"}),
        template="plain",
        layers="transformer.h",
        projections=("c_attn", "c_proj", "c_fc"),  # c_proj closes both the attention and the MLP
    ),
    ModelSpec(
        name="gpt_neox",  # Pythia
        model_types=frozenset({"gpt_neox"}),
        template="plain",
        layers="gpt_neox.layers",
        projections=_PROJECTIONS,
    ),
    ModelSpec(
        name="bloom",
        model_types=frozenset({"bloom"}),
        template="plain",
        layers="transformer.h",
        projections=_PROJECTIONS,
    ),
    ModelSpec(
        name="falcon",
        model_types=frozenset({"falcon"}),
        template="plain",
        layers="transformer.h",
        projections=_PROJECTIONS,
    ),
]
