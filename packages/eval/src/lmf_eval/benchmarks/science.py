"""Questions of natural science for schools: ARC and OpenBookQA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmf import EvalTask, Problem
from lmf.evaluate.metrics import ACC, ACC_NORM

from .choices import HARNESS, one_of


def arc(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of ``allenai/ai2_arc``; its choices have the letters A to E, or digits."""
    choices = record["choices"]
    right = list(choices["label"]).index(record["answerKey"])
    return one_of(choices["text"], right, f"Question: {record['question']}\nAnswer:")


def openbookqa(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of ``allenai/openbookqa``; the prompt is the question and nothing else."""
    choices = record["choices"]
    right = list(choices["label"]).index(record["answerKey"].lstrip())
    return one_of(choices["text"], right, record["question_stem"])


TASKS = [
    *(
        EvalTask(
            name=f"arc_{name}",
            summary=f"ARC, the {name} questions: science for schools, the choices as texts.",
            source=f"arXiv:1803.05457, {HARNESS}",
            version=1,
            data=f"arc-{name}",
            asks="choices",
            problems=arc,
            metrics=(ACC, ACC_NORM),
            examples=f"arc-{name}-train",
            groups=("commonsense_qa_eval",),
        )
        for name in ("easy", "challenge")
    ),
    EvalTask(
        name="openbookqa",
        summary="OpenBookQA: elementary science, which the question combines with common knowledge.",
        source=f"arXiv:1809.02789, {HARNESS}",
        version=1,
        data="openbookqa",
        asks="choices",
        problems=openbookqa,
        metrics=(ACC, ACC_NORM),
        examples="openbookqa-train",
        groups=("commonsense_qa_eval",),
    ),
]
