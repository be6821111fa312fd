"""The part of a tab that starts a command, stops it, and shows what it says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import gradio as gr
from gradio.components import Component
from lmf import LmfError

from .jobs import Job, Jobs, command_of

SECONDS = 1.0  # between two looks at a command that runs
Compose = Callable[..., list[str]]  # from the values of the boxes to what stands behind ``lmf``


class Running:
    """A command of a tab, at most one at a time.

    Args:
        jobs: Where its processes belong.
        name: What the tab is called, for the names of its elements.
        compose: Makes the command of the values.
        inputs: The boxes with the values.
        draw: Draws more that is to be shown while a command runs.
        follow: Returns the values of that from the job.
    """

    def __init__(
        self,
        jobs: Jobs,
        name: str,
        compose: Compose,
        inputs: Sequence[Component],
        draw: Callable[[], Sequence[Component]] = tuple,
        follow: Callable[[Job], Sequence[Any]] = lambda job: (),
    ):
        self.jobs, self.compose = jobs, compose
        self.job: Job | None = None
        self._lock = threading.Lock()
        self._values = follow
        inputs = list(inputs)
        self.command = gr.Code(label="the command", language="shell", interactive=False, elem_id=f"{name}-command")
        with gr.Row():
            start = gr.Button("Start", variant="primary", elem_id=f"{name}-start")
            stop = gr.Button("Stop", elem_id=f"{name}-stop")
        self.status = gr.Markdown("", elem_id=f"{name}-status")
        more = draw()
        self.log = gr.Textbox(
            label="log", lines=12, max_lines=24, interactive=False, elem_id=f"{name}-log", elem_classes="log"
        )
        outputs = [self.status, self.log, *more]
        self._count = len(outputs)
        private: Any = {"api_visibility": "private", "show_progress": "hidden"}
        changes = [cast(Any, box).change for box in inputs]
        gr.on(changes, self._command, inputs, self.command, trigger_mode="always_last", **private)
        start.click(self._start, inputs, outputs, **private)
        stop.click(self._stop, None, self.status, **private)
        seen = gr.State()  # of a browser: the command whose end it shows
        gr.Timer(SECONDS).tick(self._look, seen, [*outputs, seen], **private)
        self.first = (self._command, inputs, self.command), (self._all, None, outputs)

    def _command(self, *values: Any) -> str:
        try:
            return command_of(self.compose(*values))
        except LmfError as error:
            return f"# {error}"

    def _start(self, *values: Any) -> Sequence[Any]:
        try:
            arguments = self.compose(*values)
        except LmfError as error:
            raise gr.Error(str(error)) from None
        with self._lock:
            if self.job and self.job.running:
                raise gr.Error("A command of this tab runs already; stop it first, or wait for its end.")
            self.job = self.jobs.start(arguments)
        return self._all()

    def _stop(self) -> str:
        if not self.job or not self.job.running:
            return "Nothing runs."
        self.job.stop()
        return "Stopping: it finishes what it is at."

    def _look(self, seen: float | None) -> Sequence[Any]:
        """Return what there is to show, and of which command the end is shown; nothing where that is seen."""
        job = self.job
        if job is None or seen == job.began:
            return [gr.skip()] * (self._count + 1)
        ended = not job.running
        return [*self._all(), job.began if ended else None]

    def _all(self) -> Sequence[Any]:
        if self.job is None:
            return [gr.skip()] * self._count
        code = self.job.code
        ended = "Done." if code == 0 else f"**It ended with code {code}**: the end of the log says why."
        return ["Running." if self.job.running else ended, self.job.said, *self._values(self.job)]
