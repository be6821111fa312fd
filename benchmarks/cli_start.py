"""How long the command line takes to start: the median over fresh processes.

Usage: cli_start.py [RUNS]
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version

# modules are compiled once, as those that pip installed are
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "lmf --help": ["-m", "lmf_cli", "--help"],
    "lmf train lora --help": ["-m", "lmf_cli", "train", "lora", "--help"],
    "lmf plugins": ["-m", "lmf_cli", "plugins"],
}


def measure(command: Sequence[str]) -> tuple[float, float]:
    """Run Python once; return wall and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(runs: int = 15) -> None:
    print(f"{date.today()}, Python {platform.python_version()}, typer {version('typer')}, {platform.machine()}")
    print(f"median and best of {runs} runs, in seconds\n")
    print(f"{'command':24}{'wall':>8}{'best':>8}{'CPU':>8}{'best':>8}")
    for name, command in COMMANDS.items():
        measure(command)  # compiles, and fills the caches of the file system
        columns = list(zip(*(measure(command) for _ in range(runs)), strict=True))
        print(f"{name:24}" + "".join(f"{statistics.median(c):8.2f}{min(c):8.2f}" for c in columns))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
