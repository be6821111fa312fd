"""Mistral, and what was made from it: OpenChat and Zephyr.

``mistral`` is version 1 of Mistral's format: Mistral 7B Instruct v0.1 and v0.2, Mixtral 8x7B.
Versions 2 and 3 turn [INST] into tokens, drop the spaces around them, and move the system text
to the last user turn, where each new turn would change the text before it.
"""

from lmf import ModelSpec, Template

from .llama import ATTENTION, PROJECTIONS

TEMPLATES = [
    Template(
        name="mistral",
        source="https://github.com/mistralai/cookbook/blob/main/concept-deep-dive/tokenization/chat_templates.md",
        start="{bos}",
        system="{content}\n\n",
        system_in_user=True,
        user=" [INST] {content} [/INST]",
        assistant="",
        reply=" {content}{eos}",
        stop=("{eos}",),
    ),
    Template(
        name="openchat",  # OpenChat 3.5
        source="https://huggingface.co/openchat/openchat-3.5-0106/blob/main/tokenizer_config.json",
        start="{bos}",
        system="GPT4 Correct System: {content}<|end_of_turn|>",
        user="GPT4 Correct User: {content}<|end_of_turn|>",
        assistant="GPT4 Correct Assistant:",
        reply=" {content}<|end_of_turn|>",
        stop=("<|end_of_turn|>",),
        tokens=("<|end_of_turn|>",),
    ),
    # The official template writes no token for the beginning. <|user|> and its like are plain text.
    Template(
        name="zephyr",
        source="https://huggingface.co/HuggingFaceH4/zephyr-7b-beta/blob/main/tokenizer_config.json",
        system="<|system|>\n{content}{eos}\n",
        user="<|user|>\n{content}{eos}\n",
        assistant="<|assistant|>\n",
        reply="{content}{eos}",
        after_reply="\n",
        stop=("{eos}",),
    ),
]

FAMILIES = [
    ModelSpec(
        name="mistral",
        model_types=frozenset({"mistral"}),
        template="mistral",
        projections=PROJECTIONS,
    ),
    ModelSpec(
        name="mixtral",
        model_types=frozenset({"mixtral"}),
        template="mistral",
        projections=ATTENTION,
    ),
]
