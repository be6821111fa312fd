"""Everything that can be known of a run before a model is loaded.

``make_plan`` resolves every name, reads and checks the data, and looks at the model's
files and the output folder. What is wrong is said here, in a second, with nothing written.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .config import as_written, flag
from .data.mixture import held_out_data, training_data
from .data.reading import Data
from .data.records import Records
from .data.streaming import RecordStream
from .errors import ConfigError, LmfError, did_you_mean
from .evaluate.sources import Items, find_tasks, limited, read_items
from .parallel.choice import ONE, Sharing, check_sharing, sharing_of
from .parallel.words import started_again
from .plugins import Plugins
from .rope import scaling_of
from .runs import LOCK_FILE, RUN_FILE, checkpoints, read_run, resume_command
from .settings import AUTO, AUTO_TOKENS, LOOKUP, NEWEST, Opening, RunSettings
from .sources import Source, find_model
from .specs import Kernel, Objective, Optimizer, TuningMethod
from .templates.choose import named_template
from .templates.jinja import AnyTemplate

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run, with every name resolved and its data read.

    Attributes:
        plugins: What is installed.
        objective: What is learned.
        method: Which parameters learn.
        settings: The settings of every run.
        objective_options: The objective's own settings.
        method_options: The method's own settings.
        origins: For each setting, where its value came from: ``default``, ``flag`` or a file.
        model: Where the base model is.
        template: The template that was asked for, or the checkpoint's; None for the tokenizer's own.
        kernels: The kernels to compute parts of the model with, by the names of the parts.
        optimizer: The optimizer.
        data: The training records.
        held_out: The records to measure the loss on; empty without ``--eval-data``.
        tasks: The problems of the benchmarks to measure; empty without ``--eval-tasks``.
        stream: With ``--streaming``, what reads the training records, of which ``data`` then has none.
        sharing: How the processes share the model.
    """

    plugins: Plugins
    objective: Objective
    method: TuningMethod
    settings: RunSettings
    objective_options: Any
    method_options: Any
    origins: Mapping[str, str]
    model: Source
    template: AnyTemplate | None
    kernels: Mapping[str, Kernel]
    optimizer: Optimizer
    data: Data
    held_out: Data
    tasks: tuple[Items, ...] = ()
    stream: RecordStream | None
    sharing: Sharing = ONE

    def asked(self, kernel: Kernel) -> bool:
        """Tell whether a kernel was asked for by its name."""
        named = {self.settings.attention, *self.settings.kernels}
        return kernel.name in {name and name.rpartition(":")[2] for name in named}

    def having(self, **settings: Any) -> Plan:
        """Return the same run with other settings."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **settings))

    def values(self) -> dict[str, Any]:
        """Return every setting by name, as run.toml holds them."""
        values: dict[str, Any] = {"objective": self.plugins.objectives.qualified(self.objective)}
        values["method"] = self.plugins.methods.qualified(self.method)
        for part in (self.settings, self.objective_options, self.method_options):
            values |= {f.name: as_written(f, getattr(part, f.name)) for f in dataclasses.fields(part)}
        return values


def check_opening(model: str, opening: Opening, plugins: Plugins) -> None:
    """Refuse what is misspelt of a model to talk to.

    Args:
        model: An output folder of a run, or anything that ``--model`` takes.
        opening: How it is to be opened.
        plugins: What is installed.

    Raises:
        LmfError: There is no such model or template.
    """
    named_template(opening.template, plugins)
    for name in filter(None, (model, opening.draft_model)):
        if not (Path(name) / RUN_FILE).exists() and not (name == LOOKUP == opening.draft_model):
            find_model(name, plugins)


def make_plan(
    plugins: Plugins,
    objective: str,
    method: str,
    settings: RunSettings,
    objective_options: Any = None,
    method_options: Any = None,
    origins: Mapping[str, str] | None = None,
) -> Plan:
    """Resolve and check a run.

    Args:
        plugins: What is installed.
        objective: Name of the objective.
        method: Name of the tuning method.
        settings: The settings of every run.
        objective_options: An object of the objective's options class; its defaults if None.
        method_options: An object of the method's options class; its defaults if None.
        origins: Where each setting came from, for reports.

    Raises:
        LmfError: A name is unknown, a file is missing or wrong, or the output folder is in use.
    """
    goal, way = plugins.objectives[objective], plugins.methods[method]
    if settings.resume and settings.overwrite:
        raise ConfigError("--resume continues a run and --overwrite deletes it; give one of them.")
    if started_again() or settings.resume == AUTO:
        settings = _started_or_continued(settings)
    if settings.learning_rate is None:
        settings = dataclasses.replace(settings, learning_rate=way.learning_rate)
        origins = {**(origins or {}), "learning_rate": f"default of {way.name}"}
    rope = scaling_of(settings.rope, settings.rope_factor)
    template = named_template(settings.template, plugins)
    optimizer = plugins.optimizers[settings.optimizer]
    if reason := optimizer.why_not():
        raise LmfError(f"--optimizer {optimizer.name} cannot run here: {reason}.")
    kernels = _kernels(settings, plugins)
    for tracker in settings.log:
        if tracker not in TRACKERS:
            raise ConfigError(
                f"--log {tracker}: no such tracker.{did_you_mean(tracker, TRACKERS)} Trackers: {', '.join(TRACKERS)}."
            )
        if importlib.util.find_spec(TRACKERS[tracker]) is None:
            raise LmfError(f"--log {tracker} needs the package {tracker}: pip install {TRACKERS[tracker]}")
    if settings.eval_data and settings.eval_split:
        raise ConfigError("--eval-data and --eval-split are two ways to the same thing; give one of them.")
    if settings.patience and not (settings.eval_data or settings.eval_split):
        raise ConfigError("--patience needs held-out data: give --eval-data or --eval-split.")
    if settings.step_in_backward:
        _check_one_pass(settings)
    sharing = sharing_of(settings)
    check_sharing(sharing, settings, settings.learning_rate or way.learning_rate, way, optimizer)
    stream = RecordStream(settings, goal.data, plugins) if settings.streaming else None
    if stream:
        notes = [f"{source.path}: streamed, format {source.format}" for source in stream.sources]
        data = Data(Records(), stream.sources, notes=notes)
    else:
        data = training_data(settings, goal.data, plugins)
    held_out = held_out_data(settings, goal.data, plugins)
    model = dataclasses.replace(find_model(settings.model, plugins, settings.allow_pickle), rope=rope)
    if template is None and model.template:
        template = plugins.templates[model.template]
    plan = Plan(
        plugins=plugins,
        objective=goal,
        method=way,
        settings=settings,
        objective_options=objective_options if objective_options is not None else goal.options(),
        method_options=method_options if method_options is not None else way.options(),
        origins=origins or {},
        model=model,
        template=template,
        kernels=kernels,
        optimizer=optimizer,
        data=data,
        held_out=held_out,
        tasks=_tasks(settings, plugins),
        stream=stream,
        sharing=sharing,
    )
    check_output(plan)
    return plan


def _kernels(settings: RunSettings, plugins: Plugins) -> dict[str, Kernel]:
    """Return the kernels of a run by the names of the parts that they compute."""
    names = settings.kernels
    if len(names) > 1 and {"auto", "none"} & set(names):
        raise ConfigError(f"--kernels {','.join(names)}: give auto or none alone, or names.")
    found: dict[str, Kernel] = {}
    if names == ("auto",):
        for _, kernel in plugins.kernels.all():
            if kernel.automatic and kernel.part not in found and kernel.reason() is None:
                found[kernel.part] = kernel
    given = [("kernels", name) for name in names if name not in ("auto", "none")]
    asked: dict[str, Kernel] = {}
    for flag_, name in [*given, *([("attention", settings.attention)] if settings.attention else [])]:
        kernel = plugins.kernels[name]
        if flag_ == "attention" and kernel.part != "attention":
            raise ConfigError(f"--attention {name}: that kernel computes {kernel.part}; give it to --kernels.")
        if asked.setdefault(kernel.part, kernel) is not kernel:
            raise ConfigError(f"Two kernels for {kernel.part}: {asked[kernel.part].name} and {name}; give one of them.")
        if reason := kernel.reason():
            raise LmfError(f"--{flag_} {name} cannot run here: {reason}.")
    return found | asked


def _started_or_continued(settings: RunSettings) -> RunSettings:
    """Return the settings that continue the run in the output folder, or start it where it has saved nothing yet."""
    return dataclasses.replace(settings, resume=NEWEST if checkpoints(settings.output) else AUTO, overwrite=False)


def _tasks(settings: RunSettings, plugins: Plugins) -> tuple[Items, ...]:
    """Read the problems of the benchmarks to measure while a model is trained."""
    tasks = [task for task, _ in find_tasks(settings.eval_tasks, plugins).values()]
    if unsafe := [task.name for task in tasks if task.runs_code]:
        raise ConfigError(f"--eval-tasks {unsafe[0]} runs what the model writes; measure it afterwards, by lmf eval.")
    if long := [task.name for task in tasks if task.of_length]:
        raise ConfigError(f"--eval-tasks {long[0]} asks at several lengths; measure it afterwards, by lmf eval.")
    return tuple(limited(read_items(task, plugins), settings.eval_limit) for task in tasks)


def _check_one_pass(settings: RunSettings) -> None:
    """Raise ConfigError unless each step has all its gradients after one forward pass, and nothing waits for all."""
    if settings.clip:
        raise ConfigError(
            f"--clip {settings.clip} needs the norm of all gradients, but with --step-in-backward there is never more "
            "than one. Add --clip 0."
        )
    most = settings.batch_size * settings.max_tokens
    if settings.micro_batch_tokens == AUTO_TOKENS:
        raise ConfigError(f"--step-in-backward needs every step in one forward pass; give --micro-batch-tokens {most}.")
    if most > settings.micro_batch_tokens:
        raise ConfigError(
            f"--step-in-backward needs every step in one forward pass, but {settings.batch_size} examples of up to "
            f"{settings.max_tokens} tokens are more than --micro-batch-tokens {settings.micro_batch_tokens}: gradients "
            f"would be accumulated.\nLower --batch-size or --max-tokens, or give --micro-batch-tokens {most}."
        )


def check_folder(option: str, folder: Path) -> None:
    """Raise ConfigError if a folder cannot be made, or not be written into.

    Args:
        option: What names it.
        folder: What it names.
    """
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not existing.is_dir():
        raise ConfigError(f"{option} {folder}: {existing} is a file; it must be a folder.")
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {folder}: {existing} is not writable.")


def check_output(plan: Plan) -> None:
    """Raise ConfigError if the output folder is not free for this run."""
    settings, output = plan.settings, plan.settings.output
    check_folder("--output", output)
    nothing = (LOCK_FILE, f".{RUN_FILE}.partial")  # of a run that was killed before it had begun
    used = output.is_dir() and any(p.name not in nothing for p in output.iterdir())
    ours = (output / RUN_FILE).exists()
    if settings.continues:
        if not ours:
            raise ConfigError(f"--resume: there is no run in {output}.")
        check_same_run(plan, read_run(output))
        there = [folder.name for folder in checkpoints(output)]
        if settings.resume not in (NEWEST, *there):
            near = did_you_mean(str(settings.resume), there)
            raise ConfigError(
                f"--resume {settings.resume}: {output} has no such checkpoint.{near}\n"
                f"Checkpoints: {', '.join(there) or 'none'}."
            )
    elif used and not ours:
        raise ConfigError(f"--output {output} holds files that are not a run of lmf. Choose another folder.")
    elif settings.resume == AUTO and ours and not checkpoints(output) and read_run(output).get("status") != "finished":
        check_same_run(plan, read_run(output))
    elif used and not settings.overwrite:
        raise ConfigError(
            f"--output {output} holds a run already.\n"
            "Add --resume to continue it, --overwrite to replace it, or choose another folder."
        )
    elif used:
        for name, path in _inputs(plan):
            if path.resolve().is_relative_to(output.resolve()):
                raise ConfigError(f"--overwrite would delete the {name} {path}, which is in --output {output}.")


NOTED = frozenset({"micro_batch_tokens", "gradient_checkpointing"})  # another sum of the same numbers
# the data are compared by their contents
MAY_CHANGE = frozenset(
    {
        *("resume", "overwrite", "output", "save_every", "keep", "log", "data", "eval_data", "on_bad_record"),
        *("parallel", "offload", "deepspeed", "timeout"),
        *NOTED,
    }
)


def check_same_run(plan: Plan, run: Mapping[str, Any]) -> None:
    """Raise ConfigError if a run would go on with other settings, data or model than it began with."""
    now = {name: _plain(value) for name, value in plan.values().items()}
    changed = [
        f"  {flag(name)}: {run['settings'].get(name)!r} then, {value!r} now"
        for name, value in now.items()
        if name not in MAY_CHANGE and run["settings"].get(name) != value
    ]
    for key, data in (("data", plan.data), ("held_out_data", plan.held_out)):
        then = [(Path(source["path"]).name, source["sha256"], source.get("weight", "")) for source in run[key]]
        for old, new in zip_longest(then, [(s.path.name, s.sha256, s.weight) for s in data.sources]):
            if old is None or new is None or old[1:] != new[1:]:
                changed.append(f"  {key.replace('_', ' ')}: {_file(old)} then, {_file(new)} now")
    if changed:
        raise ConfigError(
            f"--resume: the run in {plan.settings.output} began with something else:\n"
            + "\n".join(changed)
            + f"\nContinue it as it was: {resume_command(plan.objective.name, plan.settings.output)}"
        )


def _inputs(plan: Plan) -> list[tuple[str, Path]]:
    """Return the files and folders that the run reads, and what each is."""
    sources = (*plan.data.sources, *plan.held_out.sources)
    data = [("data", source.path) for source in sources if source.path.exists()]  # others are no files
    return [*data, *([("model", plan.model.folder)] if plan.model.folder else [])]


def _file(entry: tuple[str, str, str] | None) -> str:
    if not entry:
        return "no file"
    name, sha256, weight = entry
    return f"{name} (sha256 {sha256[:12]}{f', weight {weight}' if weight else ''})"


def _plain(value: Any) -> Any:
    """Return a setting as JSON gives it back."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
