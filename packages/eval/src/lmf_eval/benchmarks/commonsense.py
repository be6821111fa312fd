"""Questions of common sense: HellaSwag, PIQA, WinoGrande, BoolQ, Social IQa and CommonsenseQA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lmf import EvalTask, Problem
from lmf.evaluate.metrics import ACC, ACC_NORM

from .choices import HARNESS, LETTERS, lettered, one_of


def hellaswag(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of ``Rowan/hellaswag``: how a description of a scene goes on."""
    context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    return one_of([_clean(ending) for ending in record["endings"]], int(record["label"]), _clean(context))


def _clean(text: str) -> str:
    """Take out the marks in brackets that the part from WikiHow has; titles end with a full stop."""
    marked = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", marked).replace("  ", " ")


def piqa(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of ``baber/piqa``: by which of two ways a goal is reached."""
    return one_of((record["sol1"], record["sol2"]), record["label"], f"Question: {record['goal']}\nAnswer:")


def winogrande(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of ``allenai/winogrande``.

    Which of two names fits into a sentence is judged by how likely each makes what follows (partial scoring,
    arXiv:1806.02847), so the prompts differ and the choices do not.
    """
    before, after = record["sentence"].split("_", 1)
    prompts = tuple(before + record[option] for option in ("option1", "option2"))
    return one_of((after.strip(),) * 2, int(record["answer"]) - 1, prompts=prompts)


def boolq(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of BoolQ in ``aps/super_glue``: a question of yes or no about a passage."""
    prompt = f"{record['passage']}\nQuestion: {record['question']}?\nAnswer:"
    return one_of(("no", "yes"), int(record["label"]), prompt)


def social_iqa(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of ``lighteval/siqa``: why people act, and what they then feel or do."""
    choices = tuple(record[answer] for answer in ("answerA", "answerB", "answerC"))
    return one_of(choices, int(record["label"]) - 1, f"Q: {record['context']} {record['question']}\nA:")


def commonsense_qa(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of ``tau/commonsense_qa``: five concepts, chosen by their letters."""
    prompt = f"Question: {record['question'].strip()}\n{lettered(record['choices']['text'])}Answer:"
    return one_of(LETTERS, LETTERS.index(record["answerKey"]), prompt)


TASKS = [
    EvalTask(
        name="hellaswag",
        summary="HellaSwag: which of four endings a description of a scene has.",
        source=f"arXiv:1905.07830, {HARNESS}",
        version=1,
        data="hellaswag",
        asks="choices",
        problems=hellaswag,
        metrics=(ACC, ACC_NORM),
        examples="hellaswag-train",
        groups=("commonsense_qa_eval",),
    ),
    EvalTask(
        name="piqa",
        summary="PIQA: which of two ways reaches a goal in the physical world.",
        source=f"arXiv:1911.11641, {HARNESS}",
        version=1,
        data="piqa",
        asks="choices",
        problems=piqa,
        metrics=(ACC, ACC_NORM),
        examples="piqa-train",
        groups=("commonsense_qa_eval",),
    ),
    EvalTask(
        name="winogrande",
        summary="WinoGrande: which of two names a sentence means, judged by how likely its rest is.",
        source=f"arXiv:1907.10641, {HARNESS}",
        version=1,
        data="winogrande",
        asks="choices",
        problems=winogrande,
        metrics=(ACC,),
        examples="winogrande-train",
        groups=("commonsense_qa_eval",),
    ),
    EvalTask(
        name="boolq",
        summary="BoolQ: questions of yes or no about a passage of Wikipedia.",
        source=f"arXiv:1905.10044, {HARNESS}",
        version=1,
        data="boolq",
        asks="choices",
        problems=boolq,
        metrics=(ACC,),
        examples="boolq-train",
        groups=("commonsense_qa_eval",),
    ),
    EvalTask(
        name="social_iqa",
        summary="Social IQa: why people act, and what they feel and do then.",
        source=f"arXiv:1904.09728, {HARNESS}",
        version=1,
        data="social-iqa",
        asks="choices",
        problems=social_iqa,
        metrics=(ACC,),
        examples="social-iqa-train",
    ),
    EvalTask(
        name="commonsense_qa",
        summary="CommonsenseQA: five concepts each, chosen by their letters.",
        source=f"arXiv:1811.00937, {HARNESS}",
        version=1,
        data="commonsense-qa",
        asks="choices",
        problems=commonsense_qa,
        metrics=(ACC,),
        examples="commonsense-qa-train",
    ),
]
