"""Conversation templates and model families: one module for each line of models.

``lmflow`` and ``genie`` are apart: the formats of two older systems, for the models trained with them.
"""

from lmf import JinjaTemplate, ModelSpec, Template, hookimpl

from . import (
    baichuan,
    base,
    chatglm2,
    chatml,
    cohere,
    deepseek,
    deepseek_chat,
    early,
    falcon,
    gemma,
    genie,
    glm,
    gpt_oss,
    granite,
    internlm,
    llama,
    llama_tools,
    lmflow,
    mistral,
    mistral_tools,
    olmo,
    phi,
    phi4,
    qwen,
    smollm,
    yi,
)

LINES = (base, chatml, gemma, llama, mistral, phi, yi, internlm, baichuan, chatglm2, deepseek_chat, early)
OLDER = (lmflow, genie)
# formats with tools, reasoning or both, and some of newer models without
TOOLS = (qwen, deepseek, glm, granite, smollm, llama_tools, mistral_tools, cohere, gpt_oss, falcon, phi4, olmo)
FAMILIES = (base, qwen, gemma, llama, mistral, phi, glm, granite, smollm, cohere, gpt_oss, olmo)


@hookimpl
def lmf_templates() -> list[Template | JinjaTemplate]:
    return [template for line in (*LINES, *OLDER, *TOOLS) for template in line.TEMPLATES]


@hookimpl
def lmf_models() -> list[ModelSpec]:
    return [family for line in FAMILIES for family in line.FAMILIES]
