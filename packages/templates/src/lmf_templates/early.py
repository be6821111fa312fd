"""Fine-tunes of 2023 with formats of their own: Aquila, StarChat and Ziya."""

from lmf import Template

TEMPLATES = [
    Template(
        name="aquila",
        source="https://github.com/FlagAI-Open/Aquila2/blob/main/predict.py",
        start="{bos}",
        system="{content}###",
        user="Human: {content}###",
        assistant="Assistant:",
        reply=" {content}{eos}",
        default_system=(
            "A chat between a curious human and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the human's questions."
        ),
        stop=("{eos}",),
    ),
    # A prompt ends right behind <|assistant|>: the newline is the first thing a reply says.
    Template(
        name="starchat",
        source="https://huggingface.co/HuggingFaceH4/starchat-beta",
        system="<|system|>\n{content}<|end|>\n",
        user="<|user|>\n{content}<|end|>\n",
        assistant="<|assistant|>",
        reply="\n{content}<|end|>",
        after_reply="\n",
        default_system="",
        stop=("<|end|>",),
        tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    Template(
        name="ziya",
        source="https://github.com/IDEA-CCNL/Fengshenbang-LM/blob/main/fengshen/examples/ziya_llama/finetune_ziya_llama.py",
        start="{bos}",
        system="{content}\n",
        user="<human>:{content}\n",
        assistant="<bot>:",
        reply="{content}{eos}",
        strip=True,
        stop=("{eos}",),
        tokens=("<human>", "<bot>"),
    ),
]
