"""From the names of tasks to their problems."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..conversation import Preference, Ranking, Unpaired
from ..data.inputs import exists
from ..data.originals import Original, read_objects, read_originals
from ..data.reading import DataFile
from ..errors import ConfigError, DataError, LmfError, UnknownName, several
from ..plugins import Plugins
from .task import FILE, EvalTask, Problem
from .tomlfile import read_task


@dataclass(frozen=True, slots=True)
class Item:
    """A problem and where it comes from.

    Attributes:
        where: The file and line.
        problem: The problem.
        key: What is the same wherever the same problem is asked: a hash of all that it holds.
    """

    where: str
    problem: Problem
    key: str


@dataclass(frozen=True, slots=True)
class Items:
    """What a task asks.

    Attributes:
        task: The task.
        items: Its problems, in the order of the data.
        examples: Those that may stand before a problem.
        sources: The files.
    """

    task: EvalTask
    items: tuple[Item, ...]
    examples: tuple[Item, ...]
    sources: tuple[DataFile, ...]


def find_tasks(names: Sequence[str], plugins: Plugins) -> dict[str, tuple[EvalTask, str]]:
    """Return the tasks that some names stand for, by their own names, each with the name that it was asked by.

    Args:
        names: A task, a group of tasks, a Python file with the hook ``lmf_tasks``, or a TOML file.
        plugins: What is installed; tasks of a Python file are added to it.

    Raises:
        UnknownName: There is no such task.
        LmfError: A file does not hold any.
    """
    return {task.name: (task, name) for name in names for task in _named(name, plugins)}


def groups_of(plugins: Plugins) -> dict[str, list[EvalTask]]:
    """Return the tasks of each group."""
    groups: dict[str, list[EvalTask]] = {}
    for _, task in plugins.tasks.all():
        for group in task.groups:
            groups.setdefault(group, []).append(task)
    return groups


def read_items(task: EvalTask, plugins: Plugins, data: str | None = None) -> Items:
    """Read the problems of a task.

    Args:
        task: The task.
        plugins: Where data sets and formats are looked up.
        data: Other data than the task's own.

    Raises:
        DataError: The data are not here, or a record cannot be used; every problem is named.
    """
    name = data or task.data
    if not name:
        raise ConfigError(f"The task {task.name} has no data of its own; name some: --data PATH.")
    items, sources = _read(task, name, plugins)
    if task.joined is not None:
        whole = task.joined.join(item.problem.answer for item in items)
        items = [item_of(f"{items[0].where} to {items[-1].where}", Problem(answer=whole))]
    examples: list[Item] = items
    if task.shots and task.examples:
        examples, more = _read(task, task.examples, plugins)
        sources += more
    return Items(task, tuple(items), tuple(examples), tuple(sources))


def limited(items: Items, count: int | None, seed: int | None = None) -> Items:
    """Return a task with fewer problems.

    Args:
        items: The task with all.
        count: How many; None for all.
        seed: Draws them; None for the first.
    """
    if count is None or count >= len(items.items):
        return items
    everything = range(len(items.items))
    numbers = everything[:count] if seed is None else sorted(random.Random(seed).sample(everything, count))
    return replace(items, items=tuple(items.items[number] for number in numbers))


def _named(name: str, plugins: Plugins) -> list[EvalTask]:
    if name.endswith((".py", ".toml")):
        if not exists(name):
            raise ConfigError(f"--task {name}: there is no such file.")
        return [read_task(Path(name), plugins)] if name.endswith(".toml") else _of_module(Path(name), plugins)
    groups = groups_of(plugins)
    if name in groups and name not in plugins.tasks:
        return groups[name]
    try:
        return [plugins.tasks[name]]
    except UnknownName as error:
        raise UnknownName("eval task", name, [*plugins.tasks, *groups], plugins.tasks.hints) from error


def _of_module(file: Path, plugins: Plugins) -> list[EvalTask]:
    """Run a Python file and return the tasks of its hook."""
    spec = importlib.util.spec_from_file_location(f"lmf_task_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    package = re.sub(r"[^a-z0-9._-]", "-", file.name.lower())
    try:
        spec.loader.exec_module(module)
        plugins.register(package, module)
    except Exception as error:  # whatever somebody else's code does
        raise LmfError(f"--task {file} cannot be used: {type(error).__name__}: {error}") from error
    tasks = [task for owner, task in plugins.tasks.all() if owner == package]
    if not tasks:
        raise LmfError(f"--task {file} defines no task; return some of the hook lmf_tasks.")
    return tasks


def _read(task: EvalTask, name: str, plugins: Plugins) -> tuple[list[Item], list[DataFile]]:
    read: Callable[..., Any] = read_objects if task.problems else read_originals
    try:
        found = read([name], plugins)
    except DataError as error:
        if name in plugins.datasets:
            raise DataError(f"{error}\n--data {task.name}=PATH takes a copy that you have.") from None
        raise
    problems: list[str] = []
    items: list[Item] = []
    for record in found.records:
        try:
            file = Path(record.where.rpartition(":")[0]).name
            made = list(task.problems({**record.object, FILE: file}) if task.problems else _of_record(record, task))
            for problem in made:
                check_problem(task, problem)
            items += [item_of(record.where, problem) for problem in made]
        except (DataError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            problems.append(f"{record.where}: {_cause(error)}")
    if problems:
        raise DataError(f"{several(problems)}\n{len(problems):,} of the records cannot be asked as {task.name}.")
    if not items:
        raise DataError(f"{name} holds no problem of the task {task.name}.")
    return items, found.sources


def _of_record(record: Original, task: EvalTask) -> Iterator[Problem]:
    """Yield what the replies of a record are, given what stands before them; or a text to be read."""
    content = record.data
    if isinstance(content, str):
        yield Problem(answer=content)
    elif isinstance(content, Preference):
        yield Problem(prompt=content.prompt.messages, answer=content.chosen[-1].content)
    else:
        talk = content.conversation if isinstance(content, Unpaired) else content
        if isinstance(talk, Ranking) or talk.messages[-1].role != "assistant":
            raise DataError("it has no reply that could be asked")
        places = [number for number, message in enumerate(talk.messages) if message.role == "assistant"]
        for place in places if task.replies == "all" else places[-1:]:
            reply = talk.messages[place]
            calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in reply.calls]
            more = {"calls": calls} if talk.tools else {}
            yield Problem(prompt=talk.messages[:place], answer=reply.content, tools=talk.tools, more=more)


def check_problem(task: EvalTask, problem: Problem) -> None:
    """Refuse a problem that a task cannot ask.

    Raises:
        DataError: Something is missing or contradicts itself.
    """
    if task.asks == "choices":
        if len(problem.choices) < 2:
            raise DataError(f"there is nothing to choose: {len(problem.choices)} choice")
        if any(not choice for choice in problem.choices):
            raise DataError(f"choice {problem.choices.index('') + 1} is empty")
        if not problem.right:
            raise DataError("no choice is said to be right")
        if not all(0 <= number < len(problem.choices) for number in problem.right):
            count = len(problem.choices)
            raise DataError(f"the right choice is number {max(problem.right)}, of {count} counted from 0")
        if problem.prompts and len(problem.prompts) != len(problem.choices):
            raise DataError(f"{len(problem.prompts)} prompts for {len(problem.choices)} choices")
    elif not problem.answer and not (task.asks == "reply" and (problem.references or problem.more)):
        raise DataError("it has no answer")
    if task.asks != "likelihood" and not (problem.prompt or problem.prompts):
        raise DataError("it asks nothing: the prompt is empty")


def item_of(where: str, problem: Problem) -> Item:
    """Return a problem that comes from some place, with its key."""
    text = json.dumps(asdict(problem), sort_keys=True, ensure_ascii=False, default=str)
    return Item(where, problem, hashlib.sha256(text.encode()).hexdigest()[:16])


def _cause(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the key {error.args[0]!r} is missing" if error.args else "a key is missing"
    return str(error).rstrip(".") or type(error).__name__
