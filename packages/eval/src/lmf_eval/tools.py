"""Figures of calls of tools, as Qwen's evaluation of plugins has them: the right tool, its arguments, needless calls.

They read calls in the notation of the model's template, where Qwen's read its ReAct prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from lmf import Metric, Problem, ToolCall, Written

from .texts import rouge


def _wanted(problem: Problem) -> Mapping[str, Any] | None:
    """Return the first call that a problem expects."""
    return next(iter(problem.more.get("calls", ())), None)


def _first(written: Written) -> ToolCall | None:
    return next(iter(written.calls[0]), None) if written.calls else None


def _where_called(
    value: Callable[[Mapping[str, Any], ToolCall | None], float],
) -> Callable[[Problem, Written], tuple[float, float]]:
    """Return a measure of the problems that expect a call."""

    def measure(problem: Problem, written: Written) -> tuple[float, float]:
        wanted = _wanted(problem)
        return (0.0, 0.0) if wanted is None else (value(wanted, _first(written)), 1.0)

    return measure


def _same_arguments(wanted: Mapping[str, Any], call: ToolCall | None) -> float:
    """Return ROUGE-L of the arguments as JSON; 0 where another tool is called."""
    if call is None or call.name != wanted["name"]:
        return 0.0
    texts = [json.dumps(each, ensure_ascii=False) for each in (dict(call.arguments), wanted["arguments"])]
    return rouge(texts[0], texts[1:], "rougeL")


def _same_tool(wanted: Mapping[str, Any], call: ToolCall | None) -> float:
    return float(call is not None and call.name == wanted["name"])


def _needless(problem: Problem, written: Written) -> tuple[float, float]:
    return (0.0, 0.0) if _wanted(problem) else (float(_first(written) is not None), 1.0)


SELECTION = Metric(
    name="tool_selection",
    measure=_where_called(lambda wanted, call: float(call is not None and call.name == wanted["name"])),
)
ARGUMENTS = Metric(name="tool_arguments", measure=_where_called(_same_arguments))
FALSE_POSITIVE = Metric(name="tool_false_positive", measure=_needless, higher=False)
TOOL_METRICS = (SELECTION, ARGUMENTS, FALSE_POSITIVE)
