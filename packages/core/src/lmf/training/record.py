"""What a run is, written into its folder and compared: with the other processes, and with the run it continues."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import socket
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from ..config import flag, to_toml
from ..encoding.material import Material
from ..errors import ConfigError
from ..models import fingerprint
from ..parallel.choice import started_by
from ..parallel.processes import Processes
from ..plan import NOTED, Plan
from ..report import Reporter
from ..runs import RUN_FILE, SETTINGS_FILE, SKIPPED_FILE, read_run, write_file, write_run
from .checkpoint import writing
from .learner import Learner

ALIKE = (  # what all processes must have alike
    *("family", "template_sha256", "optimizer", "new_tokens"),
    *("plugins", "versions", "python", "parallel", "processes"),
)
PATHS = frozenset({"model", "data", "eval_data", "output", "deepspeed"})  # which each machine may have elsewhere


class Record:
    """The record of a run.

    Args:
        plan: The run.
        material: What is learned from.
        learner: What learns.
        processes: The processes of the run.

    Attributes:
        values: What the record holds so far; whoever has more to say puts it here.
    """

    def __init__(self, plan: Plan, material: Material, learner: Learner, processes: Processes):
        self.plan, self.material, self.learner, self.processes = plan, material, learner, processes
        self.weights = fingerprint(learner.model) if processes.count > 1 else ""  # as they are before the first step
        self.values: dict[str, Any] = {}

    def write(self, status: str, done: int, best: dict[str, Any] | None) -> None:
        """Write it, and the settings beside it; the main process does."""
        if not self.processes.main:
            return
        output = self.plan.settings.output
        self.values |= {"status": status, "steps": done, "best": best, **self.describe()}
        self.values["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
        left_out = {"resume", "overwrite"}
        settings = {k: v for k, v in self.plan.values().items() if k not in left_out and v not in (None, ())}
        with writing(output / RUN_FILE):
            write_run(output, self.values)
            write_file(output / SETTINGS_FILE, to_toml(settings))

    def write_skipped(self, report: Reporter) -> None:
        """List the bad records of data that are not streamed."""
        data = [self.plan.data.skipped, self.plan.held_out.skipped, *(s.refused for s in self.material.surveys)]
        problems = [problem for part in data for problem in part]
        if problems and self.processes.main:
            file = self.plan.settings.output / SKIPPED_FILE
            with writing(file):
                write_file(file, "".join(f"{problem}\n" for problem in problems))
            report.note(f"{len(problems):,} bad records were left out: see {file}")

    def check_processes(self) -> None:
        """Refuse processes that would learn something else than this one, or with something else.

        Raises:
            ConfigError: They would.
        """
        now = self.describe()
        own = {key: now[key] for key in ALIKE}
        own["settings"] = {key: value for key, value in now["settings"].items() if key not in PATHS}
        own["data"] = [source["sha256"] for source in (*now["data"], *now["held_out_data"])]
        own["weights"] = self.weights
        (host, first), *others = self.processes.gather((socket.gethostname(), own))
        for rank, (other, facts) in enumerate(others, 1):
            for key, value in facts.items():
                if value != first[key]:
                    there, here = _different(value, first[key])
                    raise ConfigError(
                        f"The processes do not agree on {key}: {here} in process 0 ({host}), {there} in process {rank} "
                        f"({other}).\nGive every machine the same packages, settings and data."
                    )

    def go_on(self, report: Reporter) -> None:
        """Go on with the record in the folder.

        Raises:
            ConfigError: The same settings mean something else now: another template, another family.
        """
        output = self.plan.settings.output
        then, now = read_run(output), self.describe()
        for key in ("family", "base", "template", "template_sha256", "optimizer", "new_tokens"):
            if now[key] != then.get(key):
                raise ConfigError(
                    f"--resume: the run in {output} began with something else:\n"
                    f"  {key.replace('_', ' ')}: {then.get(key)!r} then, {now[key]!r} now"
                )
        for key in ("plugins", "versions", "python", "device", "processes", "kernels"):
            if now[key] != then.get(key, now[key]):
                report.note(f"{key} then: {then.get(key)}; now: {now[key]}. The numbers may differ a little")
        for key in sorted(NOTED):
            if now["settings"][key] != (before := then["settings"].get(key)):
                report.note(f"{flag(key)} then: {before}; now: {now['settings'][key]}. The numbers may differ a little")
        self.values = then

    def describe(self) -> dict[str, Any]:
        """Return what is run, with what and on what, as JSON values."""
        plan, surveys = self.plan, self.material.surveys
        return {
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in plan.values().items()},
            "family": plan.plugins.models.qualified(self.learner.spec),
            "base": self.learner.base,
            "template": self.material.template_name,
            "template_sha256": _sha256(self.material.template.jinja()) if self.material.template else None,
            "optimizer": plan.plugins.optimizers.qualified(plan.optimizer),
            "new_tokens": list(self.learner.new_tokens),
            "kernels": dict(self.learner.kernels),
            "data": [dataclasses.asdict(source) for source in plan.data.sources],
            "surveys": [dataclasses.asdict(survey) | {"refused": len(survey.refused)} for survey in surveys],
            "padding": self.learner.padding,
            "held_out_data": [dataclasses.asdict(source) for source in plan.held_out.sources],
            "plugins": {p.package: p.version for p in plan.plugins.installed if not p.problem},
            "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "safetensors")},
            "python": platform.python_version(),
            "device": str(self.processes.device),
            "processes": self.processes.count,
            "parallel": plan.sharing.way,
            "started_by": started_by(),
        }


def _different(a: Any, b: Any) -> tuple[str, str]:
    """Return what differs between two values, of mappings only that."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        return ", ".join(f"{key} {a.get(key)}" for key in keys), ", ".join(f"{key} {b.get(key)}" for key in keys)
    return str(a), str(b)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
