"""A benchmark as a TOML file beside its data, without code.

name = "capitals"
asks = "choices"
data = "capitals.jsonl"
prompt = "Question: {question}\\nAnswer:"
choices = "options"
answer = "gold"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config import make, option, read_toml
from ..errors import ConfigError, DataError, LmfError, PluginError
from ..plugins import Plugins
from .task import EvalTask, Problem

_KEY = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    name: str = option(help="The name of the task.")
    asks: Literal["choices", "reply", "likelihood"] = option(help="How the model is asked.")
    data: str = option(help="A file, relative to this one, or anything else that --data takes.")
    prompt: str = option("", "What stands before the reply; {key} is replaced by what the record has there.")
    answer: str = option("answer", "The key of the right reply; of choices, its number from 0, its letter or its text.")
    choices: tuple[str, ...] = option((), "The key of the list of choices, or the choices.")
    instructions: str = option("", "What stands before all examples.")
    part: str = option("", "The key of the part of the benchmark that a record belongs to.")
    metrics: tuple[str, ...] = option((), "Names of figures; the usual ones by default.")
    shots: int = option(0, "How many examples stand before each problem.", min=0)
    examples: str = option("", "Where they come from; the other problems by default.")
    continues: bool = option(True, "The prompt is a text to be continued: no template unless one is asked for.")
    between: str = option(" ", "What stands between a prompt and its reply.")
    apart: str = option("\n\n", "What stands between two examples.")
    stop: tuple[str, ...] = option((), "Texts that end a reply.")
    max_tokens: int = option(256, "Longest reply in tokens.", min=1)
    version: int = option(1, "Raise it when the figures change.", min=1)
    source: str = option("a file", "Where the benchmark comes from.")


def read_task(file: Path, plugins: Plugins) -> EvalTask:
    """Read a task.

    Args:
        file: The file.
        plugins: Where the figures are looked up.

    Raises:
        ConfigError: The file is not TOML, or a setting is wrong.
    """
    try:
        found = make(_File, _known(read_toml(file), file))
        metrics = tuple(plugins.metrics[name] for name in found.metrics)
    except LmfError as error:
        raise ConfigError(f"--task {file}: {error}") from None
    task = EvalTask(
        name=found.name,
        summary=f"Of {file}.",
        source=found.source,
        version=found.version,
        data=_beside(file, found.data),
        asks=found.asks,
        problems=_problems(found),
        metrics=metrics,
        shots=found.shots,
        examples=_beside(file, found.examples) if found.examples else "",
        continues=found.continues,
        between=found.between,
        apart=found.apart,
        stop=found.stop,
        max_tokens=found.max_tokens,
    )
    try:
        plugins.tasks.check(task, file.name)
    except PluginError as error:
        raise ConfigError(f"--task {file}: {error}.") from None
    return task


def _known(values: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    known = _File.__dataclass_fields__
    if unknown := [name for name in values if name not in known]:
        raise ConfigError(f"no setting is called {unknown[0]!r}; there are {', '.join(known)}")
    return values


def _beside(file: Path, name: str) -> str:
    near = file.parent / name
    return str(near) if near.exists() else name


def _problems(found: _File) -> Callable[[Mapping[str, Any]], list[Problem]]:
    def problems(record: Mapping[str, Any]) -> list[Problem]:
        prompt = _filled(found.prompt, record)
        part = str(record[found.part]) if found.part else ""
        shared: dict[str, Any] = {"prompt": prompt, "instructions": _filled(found.instructions, record), "part": part}
        answer = record[found.answer]
        if found.asks == "choices":
            choices = _choices(found.choices, record)
            return [Problem(choices=choices, right=_right(answer, choices), **shared)]
        answers = [str(each) for each in answer] if isinstance(answer, list) else [str(answer)]
        if not answers:
            raise DataError(f"{found.answer!r} is an empty list")
        return [Problem(answer=answers[0], references=tuple(answers[1:]), **shared)]

    return problems


def _filled(text: str, record: Mapping[str, Any]) -> str:
    return _KEY.sub(lambda match: str(record[match[1]]), text)


def _choices(given: Sequence[str], record: Mapping[str, Any]) -> tuple[str, ...]:
    found = record[given[0]] if len(given) == 1 else given
    if not isinstance(found, list | tuple) or not found:
        raise DataError(f"{given[0] if given else 'choices'!r} is {found!r}; it must be a list of texts")
    return tuple(map(str, found))


def _right(answer: Any, choices: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers that a gold answer stands for: a number, a text, a letter, or a list of them."""
    if isinstance(answer, list):
        return tuple(number for each in answer for number in _right(each, choices))
    if isinstance(answer, bool):
        return (int(answer),)
    if isinstance(answer, int):
        return (answer,)
    text = str(answer)
    if text in choices:
        return (choices.index(text),)
    if re.fullmatch("[A-Z]", text):
        return (ord(text) - ord("A"),)
    if text.isdigit():
        return (int(text),)
    raise DataError(f"the answer {text!r} is none of the choices")
