"""What is asked for, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmf import ConfigError, EvalTask, Evaluation, Opening, Plugins
from lmf.evaluate.sources import Items, find_tasks, limited, read_items
from lmf.plan import check_folder, check_opening
from lmf.rope import scaling_of

from .command import Wanted

HARNESS = "lm-eval:"  # how the name of a task of the lm-evaluation-harness begins


@dataclass(frozen=True, slots=True)
class Order:
    """What is measured.

    Attributes:
        model: The model.
        wanted: The tasks and where figures go.
        evaluation: How problems are asked.
        plugins: What is installed.
        items: The problems of each task.
        files: The file that defines a task, of those that a file does.
        harness: Names of tasks of the lm-evaluation-harness.
        out: The folder for the results.
    """

    model: str
    wanted: Wanted
    evaluation: Evaluation
    plugins: Plugins
    items: tuple[Items, ...]
    files: Mapping[str, Path]
    harness: tuple[str, ...]
    out: Path

    def settings(self) -> dict[str, Any]:
        """Return all that decides on the figures of a task, by name."""
        adapter = None if self.wanted.adapter is None else str(self.wanted.adapter)
        lengths = list(self.evaluation.lengths) or None  # as JSON has them
        return {"model": self.model, "adapter": adapter, **asdict(self.evaluation), "lengths": lengths}


def make_order(model: str, wanted: Wanted, evaluation: Evaluation, plugins: Plugins) -> Order:
    """Find everything that is named, and read the problems.

    Raises:
        LmfError: Something is not there, or cannot be used.
    """
    scaling_of(evaluation.rope, evaluation.rope_factor)
    check_opening(model, Opening(template=opened_with(evaluation)), plugins)
    if wanted.adapter is not None and not wanted.adapter.is_dir():
        raise ConfigError(f"--adapter {wanted.adapter}: there is no such folder.")
    if evaluation.prompt_structure is not None and evaluation.template is not None:
        raise ConfigError("--prompt-structure and --template are two ways to ask; give one of them.")
    if evaluation.stride > evaluation.window:
        between = f"--stride {evaluation.stride} is more than --window {evaluation.window}"
        raise ConfigError(f"{between}: the tokens between two windows would be left out.")
    names = [name for name in wanted.task if not name.startswith(HARNESS)]
    harness = tuple(name.removeprefix(HARNESS) for name in wanted.task if name.startswith(HARNESS))
    found = find_tasks(names, plugins)
    tasks = [task for task, _ in found.values()]
    files = {task.name: Path(name).absolute() for task, name in found.values() if name.endswith((".py", ".toml"))}
    for task in tasks:
        if task.runs_code and not wanted.allow_code_execution:
            raise ConfigError(
                f"The task {task.name} runs what the model writes on this machine; --allow-code-execution allows it."
            )
    if evaluation.lengths and not any(task.of_length for task in tasks):
        raise ConfigError("--lengths: none of these tasks is by length, as passkey and long_ppl are.")
    data = _data(wanted.data, tasks)
    items = tuple(_items(task, plugins, data.get(task.name), evaluation) for task in tasks)
    out = wanted.out or Path("eval") / _name(model, wanted)
    check_folder("--out", out)
    return Order(model, wanted, evaluation, plugins, items, files, harness, out)


def _items(task: EvalTask, plugins: Plugins, data: str | None, evaluation: Evaluation) -> Items:
    """Read the problems of a task; those of one by length are made later, and limited then."""
    found = read_items(task, plugins, data)
    return found if task.of_length else limited(found, evaluation.limit, evaluation.seed)


def opened_with(evaluation: Evaluation) -> str:
    """Return the template that a model is opened with to be asked so."""
    return "auto" if evaluation.template in (None, "none") else str(evaluation.template)


def _data(given: Sequence[str], tasks: Sequence[EvalTask]) -> dict[str, str]:
    """Return the data of each task that --data names."""
    names = {task.name for task in tasks}
    found: dict[str, str] = {}
    for each in given:
        name, equals, place = each.partition("=")
        if not (equals and name in names):
            if len(names) != 1:
                raise ConfigError(f"--data {each}: write which of the tasks it is for: TASK={each}.")
            (name,), place = names, each
        found[name] = place
    return found


def _name(model: str, wanted: Wanted) -> str:
    return Path(str(wanted.adapter or model)).expanduser().absolute().name or "model"
