"""Benchmarks, and ``lmf eval``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmf import Command, EvalTask, Metric, hookimpl

from .answers import METRICS
from .benchmarks import commonsense, exams, lengths, lmflow, medicine, samples, science, truthfulness, writing
from .texts import TEXT_METRICS
from .tools import TOOL_METRICS


def build() -> Mapping[str, Any]:
    from . import command

    return {"run": command.run, "compare": command.compare, "tasks": command.tasks}


@hookimpl
def lmf_commands() -> list[Command]:
    return [Command(name="eval", summary="Measure a model on benchmarks, and compare models.", build=build)]


@hookimpl
def lmf_tasks() -> list[EvalTask]:
    modules = (samples, science, commonsense, exams, medicine, truthfulness, writing, lmflow, lengths)
    return [task for module in modules for task in module.TASKS]


@hookimpl
def lmf_metrics() -> list[Metric]:
    return [*TEXT_METRICS.values(), *METRICS, *TOOL_METRICS]
