"""What each process is about to do, for whoever has to tell of one that died or hangs."""

from __future__ import annotations

import os
import time
from pathlib import Path

FOLDER = "_LMF_LAUNCH_FOLDER"  # the environment variable that names the folder of the launcher

LOST = "Another process of the run"  # how the error of a process begins that lost another one


def say(words: str) -> None:
    """Leave a word on what this process does now; nowhere, where nobody reads it."""
    if folder := os.environ.get(FOLDER):
        file = Path(folder, f"words-{os.environ.get('RANK', '0')}")
        new = file.with_suffix(".new")  # whoever is stopped in the middle of this leaves the word before
        new.write_text(f"{time.time()} {words}")
        new.replace(file)


def tell(error: str) -> None:
    """Leave the error that ends this process, as it was told; nowhere, where nobody reads it."""
    if folder := os.environ.get(FOLDER):
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        file = Path(folder, f"error-{start}-{os.environ.get('RANK', '0')}")
        file.write_text(error, encoding="utf-8", errors="backslashreplace")


def told(folder: Path, rank: int, start: int) -> str:
    """Return the error that ended a process of this machine after so many restarts, as it was told; "" without one."""
    file = folder / f"error-{start}-{rank}"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def started_again() -> bool:
    """Tell whether the launcher starts this process once more, after it had been at work."""
    folder, count = os.environ.get(FOLDER), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return count != "0" and folder is not None and Path(folder, f"words-{os.environ.get('RANK', '0')}").exists()


def last_words(folder: Path, rank: int) -> str:
    """Return what a process did last, and how long ago it said so."""
    try:
        when, _, words = (folder / f"words-{rank}").read_text().partition(" ")
        return f"{words}, {max(0.0, time.time() - float(when)):.0f} s ago"
    except (OSError, ValueError):
        return "not at work yet"
