"""Runs a command and measures it from outside, alike for every tool."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

BREAK = re.compile(rb"[\r\n]")  # a progress bar ends its lines with the former


@dataclass(frozen=True, kw_only=True)
class Watched:
    """How a process went.

    Attributes:
        status: Its exit status.
        wall: Seconds from its start to its end.
        cpu: CPU seconds of it and all processes that it started.
        peak: Highest resident set of the largest of them, in bytes.
        ends: Wall and CPU seconds from the start to the end of each step.
    """

    status: int
    wall: float
    cpu: float
    peak: int
    ends: list[tuple[float, float]]


def watch(command: Sequence[str], variables: Mapping[str, str], step: re.Pattern[str], log: Path) -> Watched:
    """Run a command; ``step`` matches the line that it prints after each step, ``log`` gets all lines."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(variables))
    assert process.stdout is not None
    ends = []
    with log.open("wb") as copy:
        for line in _lines(process.stdout.fileno()):
            if step.search(line.decode(errors="replace")):
                ends.append((round(time.perf_counter() - start, 3), round(_cpu(process.pid), 3)))
            copy.write(line + b"\n")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # so that nobody waits for it again
    return Watched(
        status=process.returncode,
        wall=round(time.perf_counter() - start, 3),
        cpu=round(usage.ru_utime + usage.ru_stime, 3),
        peak=usage.ru_maxrss * 1024,
        ends=ends,
    )


def _lines(stream: int) -> Iterator[bytes]:
    """Yield the lines as they come."""
    rest = b""
    while chunk := os.read(stream, 1 << 16):
        *lines, rest = BREAK.split(rest + chunk)
        yield from lines
    yield rest


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a process and all that it started."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])  # its own, and those of children that have ended
    return total


def environment(folder: Path, program: Path, threads: int) -> dict[str, str]:
    """Return the variables for a tool: no network, no GPU, its own programs first, so many threads."""
    home = folder / "cache"
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {  # all modules are compiled once, as those that pip installed are
        "PATH": f"{program}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(home),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "USE_HF": "1",  # otherwise ms-swift asks the network for files that are there
        "MODELSCOPE_CACHE": str(home / "modelscope"),
        "PYTHONUNBUFFERED": "1",
        "WANDB_DISABLED": "true",
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def versions(python: Path, package: str) -> dict[str, str]:
    """Return the version of a tool and of what it computes with, of those that its environment has."""
    names = [package, "torch", "transformers", "peft"]
    code = f"""
import json
from importlib.metadata import PackageNotFoundError, version
found = {{}}
for name in {names!r}:
    try: found[name] = version(name)
    except PackageNotFoundError: pass
print(json.dumps(found))
"""
    return json.loads(subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE).stdout)
