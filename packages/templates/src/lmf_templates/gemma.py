"""Gemma 1 to 3, which share one format.

The official template of Gemma 1 and 2 refuses a system message. Here, as in the official
template of Gemma 3, its text and an empty line open the next user turn.
"""

from dataclasses import replace

from lmf import ModelSpec, Template

from .llama import PROJECTIONS

GEMMA = Template(
    name="gemma",
    source="https://ai.google.dev/gemma/docs/core/prompt-structure",
    start="{bos}",
    system="{content}\n\n",
    system_in_user=True,
    user="<start_of_turn>user\n{content}<end_of_turn>\n",
    assistant="<start_of_turn>model\n",
    reply="{content}<end_of_turn>",
    after_reply="\n",
    strip=True,
    stop=("<end_of_turn>",),
    tokens=("<start_of_turn>", "<end_of_turn>"),
)

TEMPLATES = [GEMMA, replace(GEMMA, name="gemma2"), replace(GEMMA, name="gemma3")]

FAMILIES = [
    ModelSpec(
        name=name,
        model_types=frozenset({model_type}),
        template="gemma",
        projections=PROJECTIONS,
    )
    for name, model_type in (
        ("gemma", "gemma"),
        ("gemma2", "gemma2"),
        ("gemma3", "gemma3_text"),  # "gemma3" is the model that also sees; its layers lie elsewhere
    )
]
