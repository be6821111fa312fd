"""What LMFlow measures: how likely a model finds given texts, and the perplexity.

LMFlow's ``nll`` is the sum over the tokens of a text, averaged over texts: figures compare only where tokenizer and
data are the same. The figures per byte and per word compare across tokenizers, too.
"""

from __future__ import annotations

from lmf import EvalTask
from lmf.evaluate.metrics import LMFLOW_PERPLEXITY, NLL_TOKEN, PERPLEXITY

COMMON_SENSE = {
    "arc_c": "the hard questions of ARC",
    "arc_e": "the easy questions of ARC",
    "winogrande": "WinoGrande",
    "obqa": "OpenBookQA",
    "piqa": "PIQA",
    "hellaswag": "HellaSwag",
    "siqa": "Social IQa",
    "boolq": "BoolQ",
}
TEXTS = {
    "gpt4_en_eval": ("GPT-4's replies in English", ("all_nll_eval",)),
    "gpt4_zh_eval": ("GPT-4's replies in Chinese", ("all_nll_eval",)),
    "wiki_zh_eval": ("texts of the Chinese Wikipedia", ("wiki_eval", "all_nll_eval")),
    "wiki_en_eval": ("texts of the English Wikipedia", ("wiki_eval", "all_nll_eval")),
    "multiturn_dialog_eval": ("replies in dialogues", ()),
}
CHATS = {
    "cn_dialog_multiturn_nll_text2text_nosharp": "all replies of dialogues in Chinese",
    "cn_dialog_multiturn_single_nll_text2text": "the last replies of dialogues in Chinese",
    "en_dialog_multiturn_nll_text2text_nosharp": "all replies of dialogues in English",
    "en_dialog_multiturn_single_nll_text2text": "the last replies of dialogues in English",
}


def _likelihood(name: str, what: str, groups: tuple[str, ...]) -> EvalTask:
    return EvalTask(
        name=name,
        summary=f"LMFlow's measure: the log-likelihood of {what}.",
        source="LMFlow's benchmark (examples/benchmarking.py)",
        version=1,
        data=name,
        asks="likelihood",
        between="",
        groups=groups,
    )


TASKS = [
    *(
        _likelihood(f"common_sense_eval_{name}", f"right answers in {what}", ("commonsense_nll_eval", "all_nll_eval"))
        for name, what in COMMON_SENSE.items()
    ),
    *(_likelihood(name, what, groups) for name, (what, groups) in TEXTS.items()),
    *(
        _likelihood(
            f"lmflow_chat_{name}",
            what,
            ("lmflow_chat_nll_eval", *(("lmflow_chat_zh_nll_eval",) if name.startswith("cn_") else ()), "all_nll_eval"),
        )
        for name, what in CHATS.items()
    ),
    EvalTask(
        name="nll",
        summary="The log-likelihood of replies or texts; --data names them.",
        source="LMFlow's metric nll (examples/evaluation.py)",
        version=1,
        data="",
        asks="likelihood",
        between="",
    ),
    EvalTask(
        name="perplexity",
        summary="The perplexity of all texts read as one; --data names them.",
        source="LMFlow's metric ppl (examples/evaluation.py)",
        version=1,
        data="",
        asks="likelihood",
        metrics=(PERPLEXITY, LMFLOW_PERPLEXITY, NLL_TOKEN),
        between="",
        joined="\n\n",
    ),
]
