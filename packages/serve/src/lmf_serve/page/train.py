"""The tab that tunes a model."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.components import Component
from lmf import ConfigError, LmfError, Plugins, RunSettings
from lmf.runs import LOG_FILE, read_log
from lmf.settings import OUT

from . import models
from .forms import Box, boxes, rows
from .jobs import LMF, Job, Jobs
from .running import Running

USUAL = ("epochs", "learning_rate", "batch_size", "max_tokens", "eval_split", "sample")
FILES = ("*.jsonl", "*.json", "*.csv", "*.parquet")
PREVIEW_SECONDS = 120.0


def tab(place: gr.Tab, plugins: Plugins, here: Sequence[str], jobs: Jobs) -> Running:
    """Draw the tab; ``here`` are the models that are known."""
    with gr.Row():
        objective = gr.Dropdown(sorted(plugins.objectives), value="train", label="objective", info="What is learned.")
        method = gr.Dropdown(sorted(plugins.methods), value="lora", label="method", info="Which parameters learn.")
        model = model_box(plugins, place, here, elem_id="train-model")
    with gr.Row():
        data = data_box(plugins, multiselect=True, elem_id="train-data")
        template = template_box(plugins, elem_id="train-template")
        info = "Folder for the tuned model; must not exist yet."
        output = gr.Textbox(str(OUT), label="output", info=info, elem_id="train-output")
    first = [
        Box("model", str, None, model),
        Box("data", tuple[str, ...], (), data),
        Box("template", str, "auto", template),
        Box("output", Path, OUT, output),
    ]
    with gr.Row():
        first += boxes("train", RunSettings, USUAL)
    more = {("objective", name): _options(name, each.options) for name, each in sorted(plugins.objectives.items())}
    more |= {("method", name): _options(name, each.options) for name, each in sorted(plugins.methods.items())}
    with gr.Accordion("All other settings", open=False):
        first += rows("train", RunSettings, leave=[box.name for box in first])
    with gr.Accordion("What the model reads of the data, and what of it is learned", open=False):
        look = gr.Button("Preview", elem_id="train-preview")
        shown = gr.Textbox(
            label="the first records",
            lines=16,
            max_lines=40,
            interactive=False,
            elem_id="train-shown",
            elem_classes="log",
        )
    groups = [group for group, _ in more.values()]

    def visible(goal: str, way: str) -> list[Any]:
        return [gr.update(visible=key in (("objective", goal), ("method", way))) for key in more]

    gr.on([objective.change, method.change], visible, [objective, method], groups, api_visibility="private")
    records = [box for box in first if box.name in ("format", "columns")]
    previewed = [model, data, template, *(box.shown for box in records)]

    def preview(name: str | None, sources: Sequence[str], form: str | None, *values: Any) -> str:
        flags = [part for box, value in zip(records, values, strict=True) for part in box.flags(value)]
        return _preview(name, sources, form, flags)

    look.click(preview, previewed, shown, api_visibility="private")
    every = [*((None, box) for box in first), *((key, box) for key, (_, found) in more.items() for box in found)]

    def compose(goal: str, way: str, *values: Any) -> list[str]:
        chosen = (None, ("objective", goal), ("method", way))
        given = zip(every, values, strict=True)
        found = {box.name: box.flags(value) for (key, box), value in given if key in chosen}
        for name in ("model", "data"):
            if not found[name]:
                raise ConfigError(f"choose what to give to --{name}")
        return [goal, way, *(part for flags in found.values() for part in flags)]

    def draw() -> list[Component]:
        words = {"color_title": " ", "y_title": "nats per token", "height": 260, "elem_id": "train-plot"}
        return [gr.LinePlot(x="step", y="loss", color="of", **words)]  # type: ignore[arg-type]

    inputs = [objective, method, *(box.shown for _, box in every)]
    return Running(jobs, "train", compose, inputs, draw, lambda job: [_curve(job)])


def model_box(plugins: Plugins, place: gr.Tab, here: Sequence[str], label: str = "model", **words: Any) -> gr.Dropdown:
    """Return a box for a model: one that is known here when its tab is opened, or anything that ``--model`` takes."""
    info = words.pop("info", "A folder, a GGUF file, a checkpoint name or a hub id.")
    box = gr.Dropdown(
        list(here), value=None, label=label, info=info, allow_custom_value=True, interactive=True, **words
    )
    place.select(lambda: gr.update(choices=models.known(plugins)), None, box, api_visibility="private")
    return box


def data_box(plugins: Plugins, **words: Any) -> gr.Dropdown:
    """Return a box for data: installed sets, files in the current folder, or anything that ``--data`` takes."""
    here = [str(path) for pattern in FILES for path in sorted(Path().glob(pattern))]
    sets = sorted(name for name, each in plugins.datasets.items() if each.files)
    info = "Files, folders or data set names."
    return gr.Dropdown(
        [*sets, *here], value=None, label="data", info=info, allow_custom_value=True, interactive=True, **words
    )


def template_box(plugins: Plugins, **words: Any) -> gr.Dropdown:
    """Return a box for a template."""
    info = "A name, a Jinja file, or auto, the model's own."
    choices = ["auto", *sorted(plugins.templates)]
    return gr.Dropdown(choices, value="auto", label="template", info=info, allow_custom_value=True, **words)


def positional(*given: str) -> list[str]:
    """Return what stands behind the flags of a command, so that none of it is taken for a flag."""
    return ["--", *given] if any(each.startswith("-") for each in given) else [*given]


def _options(name: str, kind: type) -> tuple[gr.Group, list[Box]]:
    """Draw the options of an objective or a method, which are seen while it is chosen."""
    with gr.Group(visible=name in ("train", "lora")) as group:
        return group, rows(f"train-{name}", kind)


def _preview(model: str | None, data: Sequence[str], template: str | None, flags: Sequence[str]) -> str:
    if not model or not data:
        raise gr.Error("Choose a model and data first.")
    command = ["data", "preview", "--model", model, "--template", template or "auto", "--records", "2", *flags]
    try:
        done = subprocess.run(
            [*LMF, *command, "--", *data],
            **{"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": PREVIEW_SECONDS},
        )
    except subprocess.TimeoutExpired:
        raise gr.Error(f"lmf data preview took more than {PREVIEW_SECONDS:g} seconds.") from None
    return done.stdout if done.returncode == 0 else done.stderr


def _curve(job: Job) -> Any:
    """Return the loss of a run so far; nothing while its folder is not there."""
    given = dict(zip(job.arguments, job.arguments[1:], strict=False))
    folder = Path(given.get("--output", str(OUT)))
    try:
        if (folder / LOG_FILE).stat().st_mtime < job.began:  # of an earlier run
            return None
        log = read_log(folder)
    except (OSError, LmfError):  # it is being replaced
        return None
    points = [(each["step"], each["loss"], "training") for each in log if "loss" in each]
    points += [(each["step"], each["eval_loss"], "held out") for each in log if "eval_loss" in each]
    return pd.DataFrame(points, columns=["step", "loss", "of"])
