"""Formats of LMFlow that differ from the official ones, for models that were trained with them.

The text is what LMFlow wrote, so that such a model can be trained further and asked. What is trained
is not: here it is the reply and its end, and every reply has an end. ``docs/templates.md`` lists what
differs. ``NAME_for_tool`` are formats of LMFlow alone: they also show what a tool returned.
"""

from dataclasses import replace

from lmf import Template

from .chatml import CHATML
from .gemma import GEMMA
from .llama import LLAMA2, LLAMA3
from .phi import PHI3

_FOLDER = "https://github.com/OptimalScale/LMFlow/blob/main/src/lmflow/utils/conversation_template"

_LLAMA2 = replace(
    LLAMA2,
    name="lmflow_llama2",
    source=f"{_FOLDER}/llama.py",
    reply="{content}{eos}",
    strip=False,
)

_DEEPSEEK_R1 = Template(  # without the thought that the official format has
    name="lmflow_deepseek_r1",
    source=f"{_FOLDER}/deepseek.py",
    start="{bos}",
    system="{content}",
    user="<｜User｜>{content}",
    assistant="<｜Assistant｜>",
    reply="{content}<｜end▁of▁sentence｜>",
    stop=("<｜end▁of▁sentence｜>",),
    tokens=("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
)

TEMPLATES = [
    _DEEPSEEK_R1,
    replace(_DEEPSEEK_R1, name="lmflow_deepseek_r1_distill"),
    # The system text stands bare before the first turn.
    replace(
        GEMMA,
        name="lmflow_gemma",
        source=f"{_FOLDER}/gemma.py",
        system="{content}",
        system_in_user=False,
        strip=False,
    ),
    replace(GEMMA, name="lmflow_gemma3", source=f"{_FOLDER}/gemma.py", after_reply="\n\n"),
    # LMFlow ended only the last reply, with {eos}. In the official format the mark of the next turn
    # ends every reply; written as its end, the mark is learned and the text between turns stays.
    Template(
        name="lmflow_hymba",
        source=f"{_FOLDER}/hymba.py",
        system="<extra_id_0>System{content}\n\n<extra_id_1>",
        user="User\n{content}\n",
        assistant="<extra_id_1>Assistant\n",
        reply="{content}\n<extra_id_1>",
        default_system="",
        stop=("<extra_id_1>", "{eos}"),
    ),
    _LLAMA2,
    replace(_LLAMA2, name="llama2_for_tool", tool="{bos}[INST] {content} [/INST]"),
    replace(
        LLAMA3,
        name="llama3_for_tool",
        source=f"{_FOLDER}/llama.py",
        tool="<|start_header_id|>tool<|end_header_id|>\n\n{content}<|eot_id|>",
        strip=False,
    ),
    replace(PHI3, name="lmflow_phi3", source=f"{_FOLDER}/phi.py", start="{bos}"),
    replace(CHATML, name="lmflow_qwen2", source=f"{_FOLDER}/qwen.py"),
    # The default of QwQ-32B-Preview, and no thought.
    replace(
        CHATML,
        name="lmflow_qwen_qwq",
        source=f"{_FOLDER}/qwen.py",
        default_system=(
            "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. "
            "You should think step-by-step."
        ),
    ),
    replace(
        CHATML,
        name="qwen2_for_tool",
        source=f"{_FOLDER}/qwen.py",
        tool="<|im_start|>tool\n{content}<|im_end|>\n",
    ),
]
