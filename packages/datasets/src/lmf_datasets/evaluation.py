"""Questions and texts to measure a model on."""

from __future__ import annotations

from lmf import DataSet

from .places import LMFLOW, ONLY_LMFLOW, card, github, hub

DATASETS = [
    DataSet(
        name="medmcqa",
        summary="MedMCQA: 182,822 questions of Indian medical examinations, four choices each (arXiv:2203.14371).",
        source="openlifescienceai/medmcqa on the hub; LMFlow's own form of it came without a checksum.",
        licence="Apache-2.0",
        homepage=card("openlifescienceai/medmcqa"),
        remote=(
            hub(
                "openlifescienceai/medmcqa",
                "data/train-00000-of-00001.parquet",
                "91c6572c454088bf71b679ad90aa8dffcd0d5868",
            ),
            hub(
                "openlifescienceai/medmcqa",
                "data/validation-00000-of-00001.parquet",
                "91c6572c454088bf71b679ad90aa8dffcd0d5868",
                sha256="b768a1ea34afc9f80d3106d9b21f80fa8a00ec450a1f6cd641af72ca9e591021",
            ),
        ),
    ),
    DataSet(
        name="medqa-usmle",
        summary="MedQA: 10,178 questions of American medical examinations, four choices each (arXiv:2009.13081).",
        source="GBaker/MedQA-USMLE-4-options on the hub; LMFlow's own form of it came without a checksum.",
        licence="CC-BY-4.0",
        homepage=card("GBaker/MedQA-USMLE-4-options"),
        remote=(
            hub(
                "GBaker/MedQA-USMLE-4-options",
                "phrases_no_exclude_train.jsonl",
                "0fb93dd23a7339b6dcd27e241cb9b5eca62d4d18",
                sha256="3a65baf760f17c395058d6699315a7ce8aa767c50cb193fea87ceb94dd790324",
            ),
        ),
    ),
    DataSet(
        name="pubmedqa",
        summary="PubMedQA: 1,000 questions of biomedical research, answered yes, no or maybe (arXiv:1909.06146).",
        source="PubMedQA's labelled part, from its repository; LMFlow's own form of it came without a checksum.",
        licence="MIT",
        size=2_584_787,
        homepage="https://github.com/pubmedqa/pubmedqa",
        remote=(
            github(
                "pubmedqa/pubmedqa",
                "1cbae8e92f72f20c8d3747cbb3bf5bc53554d997",
                "data/ori_pqal.json",
                sha256="8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d",
                bytes=2_584_787,
            ),
        ),
    ),
    *(
        DataSet(
            name=name,
            summary=f"LMFlow's measure: {summary}.",
            source="LMFlow's benchmark (its documentation, page benchmark).",
            format="text2text",
            homepage=LMFLOW,
            unavailable=ONLY_LMFLOW,
        )
        for name, summary in (
            ("gpt4_en_eval", "the log-likelihood of GPT-4's replies in English"),
            ("gpt4_zh_eval", "the log-likelihood of GPT-4's replies in Chinese"),
            ("wiki_en_eval", "the log-likelihood of texts of the English Wikipedia"),
            ("wiki_zh_eval", "the log-likelihood of texts of the Chinese Wikipedia"),
            ("multiturn_dialog_eval", "the log-likelihood of replies in dialogues"),
            ("common_sense_eval", "the log-likelihood of right answers in eight public tests of common sense"),
            ("lmflow_chat_en_dialog_multiturn_single_nll_text2text", "the last replies of dialogues in English"),
            ("lmflow_chat_cn_dialog_multiturn_single_nll_text2text", "the last replies of dialogues in Chinese"),
            ("lmflow_chat_en_dialog_multiturn_nll_text2text_nosharp", "all replies of dialogues in English"),
            ("lmflow_chat_cn_dialog_multiturn_nll_text2text_nosharp", "all replies of dialogues in Chinese"),
        )
    ),
]
