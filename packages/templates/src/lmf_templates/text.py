"""Reads the Jinja texts of this package."""

from json import dumps
from pathlib import Path


def jinja(file: str, **variables: str | int) -> str:
    """Return the text of ``jinja/FILE.jinja`` behind lines that set its variables."""
    lines = [f"{{%- set {name} = {dumps(value)} %}}\n" for name, value in variables.items()]
    return "".join(lines) + Path(__file__).with_name("jinja").joinpath(f"{file}.jinja").read_text(encoding="utf-8")
