"""The tab that talks to a model, or to two side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component
from lmf import LmfError, Plugins

from .jobs import Jobs
from .models import MOST, Served
from .train import model_box

Talk = list[dict[str, Any]]


class Talking:
    """The models of the tab, and the conversation with each.

    Args:
        place: The tab.
        plugins: What is installed.
        here: The models that are known.
        jobs: Where their processes belong.
    """

    def __init__(self, place: gr.Tab, plugins: Plugins, here: Sequence[str], jobs: Jobs):
        self.jobs = jobs
        self.served: list[Served | None] = [None, None]
        with gr.Row():
            names = [
                model_box(plugins, place, here, elem_id="chat-model"),
                model_box(
                    plugins, place, here, "another model", info="To compare with, or empty.", elem_id="chat-other"
                ),
            ]
        with gr.Row():
            load = gr.Button("Load", variant="primary", elem_id="chat-load")
            unload = gr.Button("Unload", elem_id="chat-unload")
        status = gr.Markdown("", elem_id="chat-status")
        with gr.Row():
            look: Any = {"height": 420, "buttons": ["copy", "copy_all"]}
            talks = [
                gr.Chatbot(label="model", elem_id="chat-talk", **look),
                gr.Chatbot(label="another model", elem_id="chat-other-talk", visible=False, **look),
            ]
        said = gr.Textbox(label="message", lines=2, placeholder="Shift-Enter sends", elem_id="chat-said")
        with gr.Row():
            send = gr.Button("Send", variant="primary", elem_id="chat-send")
            stop = gr.Button("Stop", elem_id="chat-stop")
            clear = gr.Button("New conversation", elem_id="chat-clear")
        system = gr.Textbox(label="system message", lines=1, elem_id="chat-system")
        with gr.Accordion("How replies are drawn", open=False, elem_id="chat-drawing"):
            with gr.Row():
                drawing: dict[str, Component] = {
                    "temperature": gr.Slider(0, 2, 0.7, step=0.05, label="temperature", elem_id="chat-temperature"),
                    "max_tokens": gr.Slider(1, MOST, 512, step=1, label="most tokens", elem_id="chat-tokens"),
                    "top_p": gr.Slider(0.01, 1, 1, step=0.01, label="top p"),
                }
            with gr.Row():
                drawing |= {
                    "top_k": gr.Number(0, precision=0, minimum=0, label="top k", info="0 for no limit"),
                    "min_p": gr.Slider(0, 1, 0, step=0.01, label="min p"),
                    "repetition_penalty": gr.Slider(0.5, 2, 1, step=0.01, label="repetition penalty"),
                    "seed": gr.Textbox(label="seed", info="another each time, if empty", elem_id="chat-seed"),
                }
        self.drawing = tuple(drawing)
        self.first = ((self.loaded, None, [status, talks[1]]),)
        inputs = [said, system, *talks, *drawing.values()]
        private: Any = {"api_visibility": "private"}
        load.click(self._load, names, [status, talks[1]], **private)
        unload.click(self._unload, None, status, **private)
        begun: list[Any] = [
            trigger(self._answer, inputs, [said, *talks], show_progress="hidden", **private)
            for trigger in (send.click, said.submit)
        ]
        stop.click(None, None, None, cancels=begun)
        clear.click(lambda: ([], []), None, talks, cancels=begun, **private)

    def _load(self, *names: str | None) -> Any:
        if not names[0]:
            raise gr.Error("Choose a model.")
        self._unload()
        self.served = [Served(self.jobs, name) if name else None for name in names]
        for each in self.served:
            try:
                if each:
                    each.wait()
            except LmfError as error:
                self._unload()
                return f"**{each and each.name}: {error}**", gr.update(visible=False)
        return self.loaded()

    def loaded(self) -> Any:
        """Return what there is to show of the models."""
        ready = " and ".join(f"`{each.name}`" for each in self.served if each)
        return f"Ready: {ready}." if ready else "No model is loaded.", gr.update(visible=self.served[1] is not None)

    def _unload(self) -> str:
        for each in self.served:
            if each:
                each.close()
        self.served = [None, None]
        return "No model is loaded."

    async def _answer(self, said: str, system: str, one: Talk, two: Talk, *values: Any) -> AsyncIterator[Any]:
        if self.served[0] is None:
            raise gr.Error("Load a model first.")
        if not said.strip():
            return
        drawing = {name: value for name, value in zip(self.drawing, values, strict=True) if value not in (None, "")}
        if "seed" in drawing:
            drawing["seed"] = _number(drawing["seed"])
        before, asked = (one, two), _message("user", said)
        talks = [[*talk, asked] if each else talk for each, talk in zip(self.served, before, strict=True)]
        replies: list[str | None] = [None, None]

        def shown() -> tuple[Any, ...]:
            written = [[_message("assistant", reply)] if reply is not None else [] for reply in replies]
            return "", *(talk + more for talk, more in zip(talks, written, strict=True))

        yield shown()
        running = {
            at: each.reply(_messages(system, talk), drawing)
            for at, (each, talk) in enumerate(zip(self.served, talks, strict=True))
            if each
        }
        async for at, told in _together(running):
            if isinstance(told, LmfError):  # the other one may go on
                gr.Warning(str(told), duration=None)
                talks[at], replies[at] = before[at], None
            else:
                replies[at] = told
            yield shown()


def _number(seed: str) -> int:
    if not seed.strip().isdecimal():
        raise gr.Error(f"The seed is {seed!r}; it must be a whole number, or nothing.")
    return int(seed)


def _message(role: str, text: str) -> dict[str, Any]:
    """Return a message for the page: as a part, whose white space it does not touch."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _messages(system: str, talk: Talk) -> list[dict[str, str]]:
    """Return a conversation as OpenAI's API has it."""
    opening = [{"role": "system", "content": system}] if system.strip() else []
    return [*opening, *({"role": each["role"], "content": _text(each["content"])} for each in talk)]


def _text(content: Any) -> str:
    """Return the text of a message; the page gives it as text, or as a list of parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


async def _together(texts: Mapping[int, AsyncIterator[str]]) -> AsyncIterator[tuple[int, str | LmfError]]:
    """Yield what several iterators give, as it comes, an error as well; all end once nobody waits any more."""
    found: asyncio.Queue[tuple[int, str | LmfError] | None] = asyncio.Queue()

    async def read(at: int, iterator: AsyncIterator[str]) -> None:
        try:
            async for text in iterator:
                found.put_nowait((at, text))
        except LmfError as error:
            found.put_nowait((at, error))
        finally:
            found.put_nowait(None)

    tasks = [asyncio.create_task(read(at, iterator)) for at, iterator in texts.items()]
    try:
        for _ in tasks:
            while (new := await found.get()) is not None:
                yield new
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
