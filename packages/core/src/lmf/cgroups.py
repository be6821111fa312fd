"""What the control groups of this process leave of the machine, as in a container."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

OWN, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def memory(own: Path = OWN, root: Path = ROOT) -> list[int]:
    """Return the limits of memory in bytes.

    Args:
        own: The file that names the groups, a line each: ``0::/path``, or ``9:memory:/path`` of version 1.
        root: Where they are mounted.
    """
    folders = list(_folders("memory", own, root))
    texts = [_read(folder, name) for folder in folders for name in ("memory.max", "memory.limit_in_bytes")]
    return [int(text) for text in texts if text.isdecimal()]


def cores(own: Path = OWN, root: Path = ROOT) -> int | None:
    """Return how many cores there is time for, rounded up; None without a limit. See ``memory`` for the arguments."""
    limits = []
    for folder in _folders("cpu", own, root):
        texts = _read(folder, "cpu.max").split() or [
            _read(folder, f"cpu.cfs_{what}_us") for what in ("quota", "period")
        ]
        if all(text.isdecimal() for text in texts):  # not "max", "-1" or nothing
            limits.append(math.ceil(int(texts[0]) / int(texts[1])))
    return max(1, min(limits)) if limits else None


def _folders(controller: str, own: Path, root: Path) -> Iterator[Path]:
    """Yield the folders of the groups that this process is in: each is limited by those that it is in."""
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        folder = base / path.lstrip("/")
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(base))


def _read(folder: Path, name: str) -> str:
    file = folder / name
    return file.read_text().strip() if file.exists() else ""
