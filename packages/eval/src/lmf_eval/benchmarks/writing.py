"""Benchmarks in which a model writes: GSM8K, HumanEval, and LMFlow's accuracy on any data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmf import EvalTask, Problem

from ..answers import FLEXIBLE, FLEXIBLE_EXTRACT, RULES, STRICT, answer_metric
from ..code import pass_at
from ..texts import TEXT_METRICS
from ..tools import TOOL_METRICS
from .choices import HARNESS

FIGURES = ("genie_accuracy", "rouge_1", "rouge_2", "rouge_l", "bleu4_nltk", "bleu", "chrf", "f1")


def gsm8k(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of GSM8K; its answer ends with ``####`` and a number."""
    return [Problem(prompt=f"Question: {record['question']}\nAnswer:", answer=record["answer"])]


def humaneval(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record of HumanEval: the beginning of a function, which the reply goes on with."""
    more = {key: record[key] for key in ("prompt", "test", "entry_point")}
    return [Problem(prompt=record["prompt"], answer=record["canonical_solution"], more=more)]


TASKS = [
    EvalTask(
        name="gsm8k",
        summary="GSM8K: word problems of grade school, solved in words; the last number counts.",
        source=f"arXiv:2110.14168, {HARNESS}",
        version=1,
        data="gsm8k",
        asks="reply",
        problems=gsm8k,
        metrics=(STRICT, FLEXIBLE_EXTRACT, FLEXIBLE),
        shots=5,
        examples="gsm8k-train",
        continues=False,
        stop=("Question:", "</s>", "<|im_end|>"),
        groups=("math_eval",),
    ),
    EvalTask(
        name="humaneval",
        summary="HumanEval: 164 Python functions by their descriptions, run with tests.",
        source=f"arXiv:2107.03374, {HARNESS}",
        version=1,
        data="humaneval",
        asks="reply",
        problems=humaneval,
        metrics=(pass_at(1), pass_at(10)),
        between="",
        stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
        max_tokens=1024,
        runs_code=True,
    ),
    EvalTask(
        name="replies",
        summary="The replies to --data beside those that it has: LLM-Genie's figures and others (extra texts).",
        source="LLM-Genie's --do_predict",
        version=1,
        data="",
        asks="reply",
        metrics=tuple(TEXT_METRICS[name] for name in FIGURES),
        continues=False,
        max_tokens=512,
    ),
    EvalTask(
        name="tools",
        summary="Calls of tools in the dialogues of --data: the right tool, its arguments, needless calls.",
        source="Qwen's evaluation of plugins",
        version=1,
        data="",
        asks="reply",
        replies="all",
        metrics=TOOL_METRICS,
        continues=False,
    ),
    *(
        EvalTask(
            name=f"accuracy_{type}",
            summary=f"LMFlow's accuracy for replies of the type {type}; --data names questions and answers.",
            source="LMFlow's metric accuracy (examples/evaluation.py)",
            version=1,
            data="",
            asks="reply",
            metrics=(answer_metric(type),),
            between="",
            max_tokens=100,
        )
        for type in RULES
    ),
]
