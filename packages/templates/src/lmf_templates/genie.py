"""Formats of LLM-Genie that differ from the official ones, for models that were trained with them.

LLM-Genie took them from LLaMA-Efficient-Tuning. Every turn starts with the token that begins a text,
behind what separates it from the turn before. The text is what LLM-Genie wrote; ``docs/templates.md``
lists what differs.
"""

from dataclasses import replace

from lmf import Template

from .llama import LLAMA2

_SOURCE = "https://github.com/hiyouga/LLaMA-Factory/blob/e5b72c6a/src/llmtuner/extras/template.py"

_CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAMA2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, toxic, "
    "dangerous, or illegal content. Please ensure that your responses are socially unbiased and positive "
    "in nature.\nIf a question does not make any sense, or is not factually coherent, explain why instead "
    "of answering something not correct. If you don't know the answer to a question, please don't share "
    "false information."
)


def _genie(
    name: str,
    *,
    user: str,
    assistant: str,
    system: str,
    between: str,
    default_system: str | None = None,
    end: str = "{eos}",
    tokens: tuple[str, ...] = (),
) -> Template:
    """Return a format whose turns are apart by ``between`` and a new start."""
    return Template(
        name=f"genie_{name}",
        source=_SOURCE,
        start="{bos}",
        system=system,
        user=user,
        assistant=assistant,
        reply="{content}" + end,
        after_reply=between + "{bos}",
        default_system=default_system,
        stop=(end,),
        tokens=tokens,
    )


def _llama2(name: str, default_system: str) -> Template:
    return replace(
        LLAMA2,
        name=f"genie_{name}",
        source=_SOURCE,
        user="{bos}[INST] {content} [/INST] ",
        reply="{content}{eos}",
        default_system=default_system,
        strip=False,
    )


TEMPLATES = [
    _genie(
        "default",
        user="Human: {content}\n",
        assistant="Assistant: ",
        system="{content}\n",
        between="\n",
        default_system=_CURIOUS_USER,
    ),
    _llama2("llama2", _LLAMA2_SYSTEM),
    _llama2("llama2_zh", "You are a helpful assistant. 你是一个乐于助人的助手。"),
    _genie(
        "alpaca",
        user="### Instruction:\n{content}\n\n",
        assistant="### Response:\n",
        system="{content}\n\n",
        between="\n\n",
        default_system=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
    ),
    _genie(
        "vicuna",
        user="USER: {content} ",
        assistant="ASSISTANT: ",
        system="{content}",
        between="",
        default_system=_CURIOUS_USER,
    ),
    _genie("belle", user="Human: {content}\n\n", assistant="Belle: ", system="{content}\n\n", between="\n\n"),
    _genie("linly", user="User: {content}\n", assistant="Bot: ", system="{content}\n", between="\n"),
    _genie("billa", user="Human: {content}\n", assistant="Assistant: ", system="{content}\n", between="\n"),
    _genie(
        "ziya",
        user="<human>:{content}\n",
        assistant="<bot>:",
        system="{content}\n",
        between="\n",
        tokens=("<human>", "<bot>"),
    ),
    _genie(
        "aquila",
        user="Human: {content}###",
        assistant="Assistant: ",
        system="{content}###",
        between="###",
        default_system=_CURIOUS_USER.replace("user", "human"),
    ),
    _genie(
        "intern",
        user="<|User|>:{content}<eoh>\n",
        assistant="<|Bot|>:",
        system="{content}\n",
        between="\n",
        tokens=("<eoh>",),
    ),
    # The token that opens a user's turn was made to end a reply too, so only the first turn has its own.
    Template(
        name="genie_baichuan",
        source=_SOURCE,
        system="{content}<reserved_102>",
        system_in_user=True,
        user="{bos}{content}<reserved_103>",
        assistant="",
        reply="{content}<reserved_102>",
        default_system="",
        stop=("<reserved_102>", "{eos}"),
        tokens=("<reserved_102>", "<reserved_103>"),
    ),
    _genie(
        "starchat",
        user="<|user|>\n{content}<|end|>\n",
        assistant="<|assistant|>",
        system="<|system|>\n{content}<|end|>\n",
        between="\n",
        default_system="",
        end="<|end|>",
        tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    _genie(
        "chatml",
        user="<|im_start|>user\n{content}<|im_end|>\n",
        assistant="<|im_start|>assistant\n",
        system="<|im_start|>system\n{content}<|im_end|>\n",
        between="\n",
        default_system="You are a helpful assistant.",
        end="<|im_end|>",
        tokens=("<|im_start|>", "<|im_end|>"),
    ),
]
