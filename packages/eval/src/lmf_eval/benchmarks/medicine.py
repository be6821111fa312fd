"""Questions of medicine: MedQA, MedMCQA and PubMedQA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmf import EvalTask, Problem
from lmf.evaluate.metrics import ACC, ACC_NORM
from lmf.evaluate.task import FILE

from .choices import HARNESS, LETTERS, lettered, one_of

DECISIONS = ("yes", "no", "maybe")


def medqa_usmle(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of ``GBaker/MedQA-USMLE-4-options-hf``, or of the set that it was made of."""
    if "sent1" in record:
        question, right = record["sent1"], record["label"]
        options = [record[f"ending{number}"] for number in range(4)]
    else:
        question, right = record["question"], LETTERS.index(record["answer_idx"])
        options = [record["options"][letter] for letter in LETTERS[:4]]
    return one_of(LETTERS[:4], right, f"Question: {question}\n{lettered(options)}Answer:")


def medmcqa(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of ``openlifescienceai/medmcqa``."""
    options = [record[name] for name in ("opa", "opb", "opc", "opd")]
    prompt = f"Question: {record['question']}\nChoices:\n{lettered(options)}Answer:"
    return one_of(LETTERS[:4], record["cop"], prompt)


def pubmedqa(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of ``ori_pqal.json``, one object with a record for each article, or that of one record.

    The file has 1,000 problems. The lm-evaluation-harness asks 500 of them, the authors' test set.
    """
    records = [record] if "QUESTION" in record else [each for key, each in record.items() if key != FILE]
    return [problem for each in records for problem in _abstract(each)]


def _abstract(record: Mapping[str, Any]) -> list[Problem]:
    abstract = "\n".join(record["CONTEXTS"])
    prompt = f"Abstract: {abstract}\nQuestion: {record['QUESTION']}\nAnswer:"
    return one_of(DECISIONS, DECISIONS.index(record["final_decision"]), prompt)


TASKS = [
    EvalTask(
        name="medqa_usmle",
        summary="MedQA: questions of American medical examinations, four choices by their letters.",
        source=f"arXiv:2009.13081, {HARNESS} (medqa_4options)",
        version=1,
        data="medqa-usmle-test",
        asks="choices",
        problems=medqa_usmle,
        metrics=(ACC, ACC_NORM),
        examples="medqa-usmle",
    ),
    EvalTask(
        name="medmcqa",
        summary="MedMCQA: questions of Indian medical examinations, four choices by their letters.",
        source=f"arXiv:2203.14371, {HARNESS}",
        version=1,
        data="medmcqa-validation",
        asks="choices",
        problems=medmcqa,
        metrics=(ACC, ACC_NORM),
        examples="medmcqa-train",
    ),
    EvalTask(
        name="pubmedqa",
        summary="PubMedQA: whether an abstract answers its question yes, no or maybe.",
        source=f"arXiv:1909.06146, {HARNESS}",
        version=1,
        data="pubmedqa",
        asks="choices",
        problems=pubmedqa,
        metrics=(ACC,),
    ),
]
