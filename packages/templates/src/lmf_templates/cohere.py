"""Command R and Command R+ of Cohere."""

from lmf import JinjaTemplate, ModelSpec

from .llama import PROJECTIONS
from .text import jinja

TEMPLATES = [
    JinjaTemplate(
        name="command_r",
        source="https://huggingface.co/CohereForAI/c4ai-command-r-plus/blob/main/tokenizer_config.json",
        text=jinja("command_r"),
        stop=("<|END_OF_TURN_TOKEN|>",),
        tokens=(
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
        ),
    ),
]

FAMILIES = [
    ModelSpec(
        name="cohere",
        model_types=frozenset({"cohere"}),
        template="command_r",
        projections=PROJECTIONS,
    ),
]
