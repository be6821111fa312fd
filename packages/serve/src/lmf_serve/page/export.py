"""The tab that writes a model for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from lmf import ConfigError, Plugins

from .jobs import Jobs
from .running import Running
from .train import model_box, positional, template_box

_GGUF = ("--type", ("auto", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"))
PRECISIONS = {"hf": ("--dtype", ("auto", "float32", "bfloat16", "float16")), "gguf": _GGUF, "ollama": _GGUF}
"""The flag for the precision of each kind of export, and what it takes."""
KINDS = [
    ("a folder for transformers, vLLM, SGLang", "hf"),
    ("a GGUF file for llama.cpp, LM Studio", "gguf"),
    ("a folder for Ollama", "ollama"),
]


def tab(place: gr.Tab, plugins: Plugins, here: Sequence[str], jobs: Jobs) -> Running:
    """Draw the tab; ``here`` are the models that are known."""
    with gr.Row():
        model = model_box(plugins, place, here, elem_id="export-model")
        kind = gr.Dropdown(KINDS, value="hf", label="kind", info="For which programs.", elem_id="export-kind")
        precision = gr.Dropdown(PRECISIONS["hf"][1], value="auto", label="precision", info="As it is, or another.")
    with gr.Row():
        template = template_box(plugins, elem_id="export-template")
        out = gr.Textbox(
            "exported", label="out", info="A new folder, or a new file that ends in .gguf.", elem_id="export-out"
        )

    def chosen(name: str) -> Any:
        return gr.update(choices=PRECISIONS[name][1], value="auto")

    def compose(name: str | None, what: str, numbers: str, form: str, place: str) -> list[str]:
        if not name or not place.strip():
            raise ConfigError("choose a model and a place for what is written")
        flags = [PRECISIONS[what][0], numbers] if numbers != "auto" else []
        flags += ["--template", form] if form not in (None, "", "auto") else []
        return ["export", what, *flags, *positional(name, place.strip())]

    kind.change(chosen, kind, precision, api_visibility="private")
    return Running(jobs, "export", compose, [model, kind, precision, template, out])
