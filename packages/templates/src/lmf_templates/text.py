"""Reads the Jinja texts of this package."""

from importlib.resources import files
from json import dumps


def jinja(file: str, **variables: str | int) -> str:
    """Return the text of ``jinja/FILE.jinja`` behind lines that set its variables."""
    lines = [f"{{%- set {name} = {dumps(value)} %}}\n" for name, value in variables.items()]
    return "".join(lines) + (files(__package__) / "jinja" / f"{file}.jinja").read_text(encoding="utf-8")
