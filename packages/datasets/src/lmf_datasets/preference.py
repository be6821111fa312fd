"""Replies that people or models have compared."""

from __future__ import annotations

from lmf import DataSet

from .places import card, hub, llama_factory

_HH_REVISION = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"
_HH = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
_ULTRAFEEDBACK = "argilla/ultrafeedback-binarized-preferences-cleaned"

DATASETS = [
    *(
        DataSet(
            name=name,
            summary=f"HH-RLHF: 160,800 pairs of replies, judged by people (arXiv:2204.05862). {whose} name for it.",
            source="Anthropic/hh-rlhf on the hub, its four training files.",
            licence="MIT",
            format="transcript-preference",
            homepage=card("Anthropic/hh-rlhf"),
            remote=tuple(hub("Anthropic/hh-rlhf", f"{part}/train.jsonl.gz", _HH_REVISION) for part in _HH),
        )
        for name, whose in (("hh_rlhf", "LMFlow's"), ("hh_rlhf_en", "LLM-Genie's"))
    ),
    DataSet(
        name="red_teaming",
        summary="38,961 attempts of people to make a model do harm, with transcripts (arXiv:2209.07858).",
        source="Anthropic/hh-rlhf on the hub, most likely what LMFlow had; LMFlow's copy came without a checksum.",
        licence="MIT",
        homepage=card("Anthropic/hh-rlhf"),
        remote=(hub("Anthropic/hh-rlhf", "red-team-attempts/red_team_attempts.jsonl.gz", _HH_REVISION),),
    ),
    *(
        DataSet(
            name=name,
            summary=f"{what} of replies by GPT-4, GPT-3.5 and OPT-IML, judged by GPT-4 (arXiv:2304.03277).",
            source="GPT-4-LLM, in the form that LLaMA-Factory 0.5.0 had.",
            licence="CC-BY-NC-4.0",
            format="alpaca-pair",
            homepage="https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM",
            remote=(llama_factory(file),),
        )
        for name, file, what in (
            ("comparison_gpt4_en", "comparison_gpt4_data_en.json", "Pairs"),
            ("comparison_gpt4_zh", "comparison_gpt4_data_zh.json", "Pairs, translated into Chinese,"),
        )
    ),
    *(
        DataSet(
            name=name,
            summary=f"OpenAssistant: pairs of replies to one prompt, ranked by people, {what} (arXiv:2304.07327).",
            source="OpenAssistant/oasst1, in the form that LLaMA-Factory 0.5.0 had.",
            licence="Apache-2.0",
            format="alpaca-pair",
            homepage=card("OpenAssistant/oasst1"),
            remote=(llama_factory(f"{name}.json"),),
        )
        for name, what in (("oaast_rm", "in many languages"), ("oaast_rm_zh", "in Chinese"))
    ),
    *(
        DataSet(
            name=name,
            summary="UltraFeedback: 60,917 pairs of replies, judged by GPT-4, without what is in TruthfulQA.",
            source=f"{_ULTRAFEEDBACK} on the hub.",
            licence="MIT",
            format="preference",
            homepage=card(_ULTRAFEEDBACK),
            remote=(hub(_ULTRAFEEDBACK, "data/train-00000-of-00001.parquet"),),
        )
        for name in ("ultrafeedback-binarized-preferences-cleaned", "ubpc")
    ),
    DataSet(
        name="dpo-mix-7k",
        summary="6,750 pairs of replies from Capybara, Orca and UltraFeedback.",
        source="argilla/dpo-mix-7k on the hub.",
        format="preference",
        homepage=card("argilla/dpo-mix-7k"),
        remote=(
            hub(
                "argilla/dpo-mix-7k",
                "data/train-00000-of-00001.parquet",
                "f8869fc91bde5c71a104667292addcbbfd15985d",
            ),
        ),
    ),
]
