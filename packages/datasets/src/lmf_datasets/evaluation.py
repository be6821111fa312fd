"""Questions and texts to measure a model on."""

from __future__ import annotations

from collections.abc import Iterable

from lmf import DataSet

from .places import LMFLOW, ONLY_LMFLOW, card, github, hub

# The hub's own copy of every data set as Parquet, in a branch that may change.
PARQUET = "refs%2Fconvert%2Fparquet"
CMMLU = """
agronomy anatomy ancient_chinese arts astronomy business_ethics chinese_civil_service_exam chinese_driving_rule
chinese_food_culture chinese_foreign_policy chinese_history chinese_literature chinese_teacher_qualification
clinical_knowledge college_actuarial_science college_education college_engineering_hydrology college_law
college_mathematics college_medical_statistics college_medicine computer_science computer_security conceptual_physics
construction_project_management economics education electrical_engineering elementary_chinese elementary_commonsense
elementary_information_and_technology elementary_mathematics ethnology food_science genetics global_facts
high_school_biology high_school_chemistry high_school_geography high_school_mathematics high_school_physics
high_school_politics human_sexuality international_law journalism jurisprudence legal_and_moral_basis logical
machine_learning management marketing marxist_theory modern_chinese nutrition philosophy professional_accounting
professional_law professional_medicine professional_psychology public_relations security_study sociology
sports_science traditional_chinese_medicine virology world_history world_religions
"""
CEVAL = """
accountant advanced_mathematics art_studies basic_medicine business_administration chinese_language_and_literature
civil_servant clinical_medicine college_chemistry college_economics college_physics college_programming
computer_architecture computer_network discrete_mathematics education_science electrical_engineer
environmental_impact_assessment_engineer fire_engineer high_school_biology high_school_chemistry high_school_chinese
high_school_geography high_school_history high_school_mathematics high_school_physics high_school_politics
ideological_and_moral_cultivation law legal_professional logic mao_zedong_thought marxism metrology_engineer
middle_school_biology middle_school_chemistry middle_school_geography middle_school_history middle_school_mathematics
middle_school_physics middle_school_politics modern_chinese_history operating_system physician plant_protection
probability_and_statistics professional_tour_guide sports_science tax_accountant teacher_qualification
urban_and_rural_planner veterinary_medicine
"""


def _parts(repository: str, configs: str, licence: str, paper: str, *parts: tuple[str, str, str]) -> Iterable[DataSet]:
    """Return parts of a data set on the hub, in the hub's own copy.

    Args:
        repository: The data set.
        configs: Its configurations to take, parted by white space, a file each; "default" where it has none.
        licence: Its licence.
        paper: The number of its paper at arXiv.
        parts: Of each part the name here, the name there, and what it is.
    """
    for name, split, summary in parts:
        yield DataSet(
            name=name,
            summary=f"{summary} (arXiv:{paper}).",
            source=f"{repository} on the hub, its copy as Parquet.",
            licence=licence,
            homepage=card(repository),
            remote=tuple(hub(repository, f"{config}/{split}/0000.parquet", PARQUET) for config in configs.split()),
        )


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
    DataSet(
        name="medmcqa-train",
        summary="MedMCQA: the 182,822 questions to train on, or to take examples from (arXiv:2203.14371).",
        source="openlifescienceai/medmcqa on the hub.",
        licence="Apache-2.0",
        homepage=card("openlifescienceai/medmcqa"),
        remote=(
            hub(
                "openlifescienceai/medmcqa",
                "data/train-00000-of-00001.parquet",
                "91c6572c454088bf71b679ad90aa8dffcd0d5868",
            ),
        ),
    ),
    DataSet(
        name="medmcqa-validation",
        summary="MedMCQA: the 4,183 questions of its validation part, with answers (arXiv:2203.14371).",
        source="openlifescienceai/medmcqa on the hub.",
        licence="Apache-2.0",
        homepage=card("openlifescienceai/medmcqa"),
        remote=(
            hub(
                "openlifescienceai/medmcqa",
                "data/validation-00000-of-00001.parquet",
                "91c6572c454088bf71b679ad90aa8dffcd0d5868",
                sha256="b768a1ea34afc9f80d3106d9b21f80fa8a00ec450a1f6cd641af72ca9e591021",
            ),
        ),
    ),
    *_parts(
        "GBaker/MedQA-USMLE-4-options-hf",
        "default",
        "CC-BY-SA-4.0",
        "2009.13081",
        ("medqa-usmle-test", "test", "MedQA: the 1,273 questions of its test, four choices each"),
    ),
    *_parts(
        "allenai/ai2_arc",
        "ARC-Easy",
        "CC-BY-SA-4.0",
        "1803.05457",
        ("arc-easy", "test", "ARC: the 2,376 easy questions of its test"),
        ("arc-easy-train", "train", "ARC: 2,251 easy questions to take examples from"),
    ),
    *_parts(
        "allenai/ai2_arc",
        "ARC-Challenge",
        "CC-BY-SA-4.0",
        "1803.05457",
        ("arc-challenge", "test", "ARC: the 1,172 hard questions of its test"),
        ("arc-challenge-train", "train", "ARC: 1,119 hard questions to take examples from"),
    ),
    *_parts(
        "allenai/openbookqa",
        "main",
        "unknown",
        "1809.02789",
        ("openbookqa", "test", "OpenBookQA: the 500 questions of its test"),
        ("openbookqa-train", "train", "OpenBookQA: 4,957 questions to take examples from"),
    ),
    *_parts(
        "Rowan/hellaswag",
        "default",
        "MIT",
        "1905.07830",
        ("hellaswag", "validation", "HellaSwag: 10,042 scenes with four endings each"),
        ("hellaswag-train", "train", "HellaSwag: 39,905 scenes to take examples from"),
    ),
    *_parts(
        "baber/piqa",
        "default",
        "unknown",
        "1911.11641",
        ("piqa", "validation", "PIQA: 1,838 goals with two ways to reach each"),
        ("piqa-train", "train", "PIQA: 16,113 goals to take examples from"),
    ),
    *_parts(
        "allenai/winogrande",
        "winogrande_xl",
        "CC-BY",
        "1907.10641",
        ("winogrande", "validation", "WinoGrande: 1,267 sentences with two names to choose from"),
        ("winogrande-train", "train", "WinoGrande: 40,398 sentences to take examples from"),
    ),
    *_parts(
        "aps/super_glue",
        "boolq",
        "CC-BY-SA-3.0",
        "1905.10044",
        ("boolq", "validation", "BoolQ: 3,270 passages, each with a question of yes or no"),
        ("boolq-train", "train", "BoolQ: 9,427 passages to take examples from"),
    ),
    *_parts(
        "lighteval/siqa",
        "default",
        "unknown",
        "1904.09728",
        ("social-iqa", "validation", "Social IQa: 1,954 questions of why people act and what follows"),
        ("social-iqa-train", "train", "Social IQa: 33,410 questions to take examples from"),
    ),
    *_parts(
        "tau/commonsense_qa",
        "default",
        "MIT",
        "1811.00937",
        ("commonsense-qa", "validation", "CommonsenseQA: 1,221 questions with five choices each"),
        ("commonsense-qa-train", "train", "CommonsenseQA: 9,741 questions to take examples from"),
    ),
    *_parts(
        "cais/mmlu",
        "all",
        "MIT",
        "2009.03300",
        ("mmlu", "test", "MMLU: 14,042 questions of examinations in 57 subjects"),
        ("mmlu-dev", "dev", "MMLU: five examples for each of 57 subjects"),
    ),
    *_parts(
        "haonan-li/cmmlu",
        CMMLU,
        "CC-BY-NC-4.0",
        "2306.09212",
        ("cmmlu", "test", "CMMLU: more than 11,500 questions of Chinese examinations in 67 subjects"),
        ("cmmlu-dev", "dev", "CMMLU: five examples for each of 67 subjects"),
    ),
    *_parts(
        "ceval/ceval-exam",
        CEVAL,
        "CC-BY-NC-SA-4.0",
        "2305.08322",
        ("ceval", "val", "C-Eval: 1,346 questions of Chinese examinations in 52 subjects"),
        ("ceval-dev", "dev", "C-Eval: five examples for each of 52 subjects"),
    ),
    *_parts(
        "truthfulqa/truthful_qa",
        "multiple_choice",
        "Apache-2.0",
        "2109.07958",
        ("truthfulqa", "validation", "TruthfulQA: 817 questions with choices, true and false"),
    ),
    *(
        DataSet(
            name=name,
            summary=f"GSM8K: {what} (arXiv:2110.14168).",
            source="openai/grade-school-math, from its repository.",
            licence="MIT",
            size=size,
            homepage="https://github.com/openai/grade-school-math",
            remote=(
                github(
                    "openai/grade-school-math",
                    "3101c7d5072418e28b9008a6636bde82a006892c",
                    f"grade_school_math/data/{part}.jsonl",
                    sha256=sha256,
                    bytes=size,
                ),
            ),
        )
        for name, part, what, size, sha256 in (
            (
                "gsm8k",
                "test",
                "1,319 word problems of grade school to be measured on",
                749_738,
                "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            ),
            (
                "gsm8k-train",
                "train",
                "7,473 word problems of grade school to learn from",
                4_166_206,
                "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
            ),
        )
    ),
    DataSet(
        name="humaneval",
        summary="HumanEval: 164 Python functions to write, with tests (arXiv:2107.03374).",
        source="openai/human-eval, from its repository.",
        licence="MIT",
        homepage="https://github.com/openai/human-eval",
        remote=(
            github(
                "openai/human-eval",
                "6d43fb980f9fee3c892a914eda09951f772ad10d",
                "data/HumanEval.jsonl.gz",
                sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
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
            ("common_sense_eval_arc_c", "the log-likelihood of right answers in the hard questions of ARC"),
            ("common_sense_eval_arc_e", "the log-likelihood of right answers in the easy questions of ARC"),
            ("common_sense_eval_winogrande", "the log-likelihood of right answers in WinoGrande"),
            ("common_sense_eval_obqa", "the log-likelihood of right answers in OpenBookQA"),
            ("common_sense_eval_piqa", "the log-likelihood of right answers in PIQA"),
            ("common_sense_eval_hellaswag", "the log-likelihood of right answers in HellaSwag"),
            ("common_sense_eval_siqa", "the log-likelihood of right answers in Social IQa"),
            ("common_sense_eval_boolq", "the log-likelihood of right answers in BoolQ"),
            ("lmflow_chat_en_dialog_multiturn_single_nll_text2text", "the last replies of dialogues in English"),
            ("lmflow_chat_cn_dialog_multiturn_single_nll_text2text", "the last replies of dialogues in Chinese"),
            ("lmflow_chat_en_dialog_multiturn_nll_text2text_nosharp", "all replies of dialogues in English"),
            ("lmflow_chat_cn_dialog_multiturn_nll_text2text_nosharp", "all replies of dialogues in Chinese"),
        )
    ),
]
