"""The page from its start to its end."""

from __future__ import annotations

import os
import signal
import socket
import sys

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.themes import Default
from lmf import Plugins

from ..command import accepting
from . import answer, evaluate, export, models, train
from .chat import Talking
from .fence import Fence
from .jobs import Jobs
from .running import Running

TITLE = "lmf"
USER = "lmf"  # who logs in with the key


def page(plugins: Plugins, jobs: Jobs) -> gr.Blocks:
    """Return the page."""
    here = models.known(plugins)  # once: it walks the current folder
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        with gr.Tab("Chat") as place:
            tabs: list[Talking | Running] = [Talking(place, plugins, here, jobs)]
        tabs_of = {"Train": train, "Answer": answer, "Evaluate": evaluate, "Export": export}
        if "eval" not in plugins.commands:
            del tabs_of["Evaluate"]
        for name, each in tabs_of.items():
            with gr.Tab(name) as place:
                tabs.append(each.tab(place, plugins, here, jobs))
        for tab in tabs:  # what runs already, when the page is loaded again
            for function, inputs, outputs in tab.first:
                blocks.load(function, inputs, outputs, api_visibility="private", show_progress="hidden")
    return blocks.queue(default_concurrency_limit=8)


def run(plugins: Plugins, key: str | None, local: bool, listening: socket.socket) -> None:
    """Show the page until a signal comes.

    Args:
        plugins: What is installed.
        key: What users log in with; None for no login.
        local: Whether only this machine can reach the page.
        listening: Where requests come in.
    """
    jobs = Jobs()
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page(plugins, jobs),
        path="",
        auth=(USER, key) if key else None,
        auth_message=f"The user is {USER}, the password the key that the page was started with.",
        footer_links=[],
        css=".log textarea { font-family: var(--font-mono) }",
        theme=Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        max_file_size="1kb",  # nothing is uploaded
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    print(f"the page is at {accepting(listening)}; Ctrl-C ends it, and all that it has started", flush=True)
    for number in (signal.SIGTERM, signal.SIGHUP):  # uvicorn raises them again at its end, which must not be ours
        signal.signal(number, lambda given, _: sys.exit(128 + given))
    config = uvicorn.Config(
        Fence(app, local=local), log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        jobs.close()
