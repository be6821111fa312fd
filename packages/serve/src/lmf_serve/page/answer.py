"""The tab that has a model answer a whole data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from lmf import ConfigError, Plugins, Sampling

from .forms import rows
from .jobs import Job, Jobs
from .running import Running
from .train import data_box, model_box, positional

SHOWN = 50  # records
LONGEST = 400  # characters of each


def tab(place: gr.Tab, plugins: Plugins, here: Sequence[str], jobs: Jobs) -> Running:
    """Draw the tab; ``here`` are the models that are known."""
    with gr.Row():
        model = model_box(plugins, place, here, elem_id="answer-model")
        data = data_box(plugins, elem_id="answer-data")
        info = "File for the records with their replies."
        out = gr.Textbox("replies.jsonl", label="out", info=info, elem_id="answer-out")
    with gr.Accordion("How replies are drawn", open=False):
        found = rows("answer", Sampling)

    def compose(name: str | None, asked: str | None, file: str, *values: Any) -> list[str]:
        if not name or not asked or not file.strip():
            raise ConfigError("choose a model, data and a file for the replies")
        flags = [part for box, value in zip(found, values, strict=True) for part in box.flags(value)]
        return ["generate", "--in", asked, "--out", file.strip(), *flags, *positional(name)]

    def draw() -> list[Component]:
        headers = ["record", "reply"]
        return [gr.Dataframe(headers=headers, label="replies", wrap=True, interactive=False, elem_id="answer-table")]

    inputs = [model, data, out, *(box.shown for box in found)]
    return Running(jobs, "answer", compose, inputs, draw, lambda job: [_replies(job)])


def _replies(job: Job) -> list[list[str]]:
    """Return the first records that a job has written, and the replies to them; nothing before it has ended."""
    file = Path(job.arguments[job.arguments.index("--out") + 1])
    if job.code != 0 or not file.exists():
        return []
    with file.open(encoding="utf-8") as stream:
        records = [json.loads(line) for line, _ in zip(stream, range(SHOWN), strict=False)]
    told = []
    for record in records:
        replies = "\n\n".join(reply["text"] for reply in record.pop("replies"))
        told.append([json.dumps(record, ensure_ascii=False)[:LONGEST], replies[:LONGEST]])
    return told
