"""Llama and its formats, from the fine-tunes of the first Llama to Llama 3."""

from lmf import ModelSpec, Template

# Every turn starts a text of its own, and a space stands before the end of a reply.
LLAMA2 = Template(
    name="llama2",
    source="https://github.com/meta-llama/llama/blob/main/llama/generation.py",
    system="<<SYS>>\n{content}\n<</SYS>>\n\n",
    system_in_user=True,
    user="{bos}[INST] {content} [/INST]",
    assistant="",
    reply=" {content} {eos}",
    strip=True,
    stop=("{eos}",),
)

# Llama 3.0. From 3.1 on, the official template also writes the date into a system message.
LLAMA3 = Template(
    name="llama3",
    source="https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/",
    start="{bos}",
    system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
    reply="{content}<|eot_id|>",
    strip=True,
    stop=("<|eot_id|>",),
    tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)

TEMPLATES = [
    # Stanford's format is for one turn. Further turns follow after an empty line.
    Template(
        name="alpaca",
        source="https://github.com/tatsu-lab/stanford_alpaca/blob/main/train.py",
        start="{bos}",
        system="{content}\n\n",
        user="### Instruction:\n{content}\n\n",
        assistant="### Response:",
        reply="{content}{eos}",
        after_reply="\n\n",
        default_system=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        stop=("{eos}",),
    ),
    # The space before a reply belongs to it: with the prompt it would be a token that the model
    # never saw in front of a word. The same holds for llama2 and mistral.
    Template(
        name="vicuna",
        source="https://github.com/lm-sys/FastChat/blob/main/docs/vicuna_weights_version.md",
        start="{bos}",
        system="{content} ",
        user="USER: {content} ",
        assistant="ASSISTANT:",
        reply=" {content}{eos}",
        default_system=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions."
        ),
        stop=("{eos}",),
    ),
    LLAMA2,
    LLAMA3,
]

# The names of Llama's linear layers; Qwen, Gemma, Mistral and many more took them over. Where experts stand
# in place of the MLP, their weights are no linear layers, and adapters attach to the attention alone.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PROJECTIONS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

FAMILIES = [
    ModelSpec(
        name="llama",
        model_types=frozenset({"llama"}),
        template="llama3",  # its tokens are in the vocabulary of every Llama 3, base models too
        projections=PROJECTIONS,
    ),
]
