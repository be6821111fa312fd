"""A hundred items each of four benchmarks, which come with this package: ``lmf eval MODEL --task samples``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmf import EvalTask, Problem
from lmf.evaluate.metrics import ACC, ACC_NORM

from ..answers import FLEXIBLE, STRICT
from .choices import one_of
from .medicine import pubmedqa
from .writing import gsm8k

GROUP = "samples"


def hellaswag(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record with a query, choices and the number of the right one."""
    return one_of(record["choices"], record["gold"], record["query"])


def truthfulqa(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem to find the best answer among false ones."""
    return one_of([record["best"], *record["incorrect"]], 0, f"Q: {record['question']}\nA:")


def _file(name: str) -> str:
    return str(Path(__file__).parents[1] / "data" / name)


TASKS = [
    EvalTask(
        name="hellaswag_sample",
        summary="100 items of HellaSwag.",
        source="arXiv:1905.07830, asked as by the lm-evaluation-harness",
        version=1,
        data=_file("hellaswag.jsonl"),
        asks="choices",
        problems=hellaswag,
        metrics=(ACC, ACC_NORM),
        groups=(GROUP,),
    ),
    EvalTask(
        name="pubmedqa_sample",
        summary="100 items of PubMedQA.",
        source="arXiv:1909.06146, asked as by the lm-evaluation-harness",
        version=1,
        data=_file("pubmedqa.jsonl"),
        asks="choices",
        problems=pubmedqa,
        metrics=(ACC,),
        groups=(GROUP,),
    ),
    EvalTask(
        name="truthfulqa_sample",
        summary="100 questions of TruthfulQA: the best answer among its false ones, without examples.",
        source="arXiv:2109.07958, its file TruthfulQA.csv",
        version=1,
        data=_file("truthfulqa.jsonl"),
        asks="choices",
        problems=truthfulqa,
        metrics=(ACC, ACC_NORM),
        groups=(GROUP,),
    ),
    EvalTask(
        name="gsm8k_sample",
        summary="100 items of GSM8K, after five others of them.",
        source="arXiv:2110.14168, asked as by the lm-evaluation-harness",
        version=1,
        data=_file("gsm8k.jsonl"),
        asks="reply",
        problems=gsm8k,
        metrics=(STRICT, FLEXIBLE),
        shots=5,
        continues=False,
        stop=("Question:", "</s>", "<|im_end|>"),
        groups=(GROUP,),
    ),
]
