"""The tab that measures a model on benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from lmf import ConfigError, Evaluation, Plugins
from lmf.evaluate.sources import groups_of

from .forms import rows
from .jobs import Job, Jobs
from .running import Running
from .train import model_box, positional

HEAD = ["task", "figure", "value", "error", "items", "asked in"]


def tab(place: gr.Tab, plugins: Plugins, here: Sequence[str], jobs: Jobs) -> Running:
    """Draw the tab; ``here`` are the models that are known."""
    known = [*sorted(groups_of(plugins)), *plugins.tasks]
    with gr.Row():
        model = model_box(plugins, place, here, elem_id="evaluate-model")
        info = "Tasks or groups; a .toml or .py file of your own, too."
        words: dict[str, Any] = {"allow_custom_value": True, "multiselect": True, "elem_id": "evaluate-task"}
        tasks = gr.Dropdown(known, value=None, label="tasks", info=info, **words)
        out = gr.Textbox("eval/figures", label="out", info="Folder for the figures.", elem_id="evaluate-out")
    data = gr.Textbox("", label="data", info="Other data than a task has: TASK=PATH, a line each.", lines=1)
    with gr.Accordion("How a model is asked", open=False):
        found = rows("evaluate", Evaluation)

    def compose(name: str | None, asked: list[str] | None, folder: str, own: str, *values: Any) -> list[str]:
        if not name or not asked or not folder.strip():
            raise ConfigError("choose a model, tasks and a folder for the figures")
        flags = [part for box, value in zip(found, values, strict=True) for part in box.flags(value)]
        more = [part for line in own.splitlines() if line.strip() for part in ("--data", line.strip())]
        return ["eval", "run", "--task", ",".join(asked), "--out", folder.strip(), *more, *flags, *positional(name)]

    def draw() -> list[Component]:
        return [gr.Dataframe(headers=HEAD, label="figures", interactive=False, elem_id="evaluate-table")]

    inputs = [model, tasks, out, data, *(box.shown for box in found)]
    return Running(jobs, "evaluate", compose, inputs, draw, lambda job: [_figures(job)])


def _figures(job: Job) -> list[list[Any]]:
    """Return the figures that a job has written; nothing before it has ended."""
    file = Path(job.arguments[job.arguments.index("--out") + 1]) / "results.json"
    if job.code != 0 or not file.exists():
        return []
    tasks = json.loads(file.read_text(encoding="utf-8"))["tasks"]
    return [
        [name, figure, round(found["value"], 4), found["error"] and round(found["error"], 4), task["items"], task["in"]]
        for name, task in tasks.items()
        for figure, found in task["figures"].items()
    ]
