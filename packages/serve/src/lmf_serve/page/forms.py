"""Boxes for the settings of a class, and the flags that their values stand for."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Sequence
from typing import Any, Literal

import gradio as gr
from gradio.components import Component
from lmf.config import flag

WIDE = 3  # boxes beside each other
NOTHING = ""  # the choice of a setting that has no value unless it is given one


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """A setting on the page.

    Attributes:
        name: Its name.
        kind: Its type, without None.
        default: What it is where nothing is said; None where that is for the command to say.
        shown: What the user changes.
    """

    name: str
    kind: Any
    default: Any
    shown: Component

    def flags(self, value: Any) -> list[str]:
        """Return what to write for a value; nothing for the default."""
        if self.kind is bool:
            return [] if value == self.default else [flag(self.name) if value else f"--no-{flag(self.name)[2:]}"]
        if typing.get_origin(self.kind) is Literal:
            return [] if value in (None, NOTHING, str(self.default)) else [flag(self.name), value]
        if typing.get_origin(self.kind) is tuple:
            values = value if isinstance(value, list) else (value or "").splitlines()
            return [part for each in values if each.strip() for part in (flag(self.name), str(each))]
        text = str(value or "").strip()
        return [flag(self.name), text] if text and text != str(self.default) else []


def boxes(place: str, kind: type, only: Sequence[str]) -> list[Box]:
    """Return boxes for fields of a settings class, drawn where Gradio is drawing.

    Args:
        place: What the names of the elements begin with.
        kind: The class.
        only: The fields, in this order.
    """
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    return [_box(place, fields[name], bare(hints[name])) for name in only]


def rows(place: str, kind: type, leave: Collection[str] = ()) -> list[Box]:
    """Return boxes for the other fields of a settings class, some beside each other."""
    names = [f.name for f in dataclasses.fields(kind) if f.name not in leave]
    found: list[Box] = []
    for at in range(0, len(names), WIDE):
        with gr.Row():
            found += boxes(place, kind, names[at : at + WIDE])
    return found


def _box(place: str, f: dataclasses.Field[Any], kind: Any) -> Box:
    default = None if f.default is dataclasses.MISSING else f.default
    words: dict[str, Any] = {
        "label": f.name.replace("_", " "),
        "info": f.metadata["help"],
        "elem_id": f"{place}-{f.name}",
    }
    if kind is bool:
        return Box(f.name, kind, default, gr.Checkbox(bool(default), **words))
    if typing.get_origin(kind) is Literal:
        choices = [*([NOTHING] if default is None else []), *(str(choice) for choice in typing.get_args(kind))]
        return Box(f.name, kind, default, gr.Dropdown(choices, value=str(default or NOTHING), **words))
    usual = "\n".join(default) if isinstance(default, tuple) else str("" if default is None else default)
    if typing.get_origin(kind) is tuple:
        words |= {"info": f"{f.metadata['help']} One a line.", "lines": 2}
    return Box(f.name, kind, default, gr.Textbox("", placeholder=usual, **words))


def bare(hint: Any) -> Any:
    """Return T of ``T | None``."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint
