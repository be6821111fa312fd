"""What an extended vocabulary is worth to a model: tokens, loss per byte and speed, beside training without it.

Usage: vocabulary.py MODEL [--seconds S] [--pieces N] [--min-count N] [--rate R] [--rows-rate R] [--batch-size N]

MODEL learns the bundled Korean texts in two ways, each for so many seconds of training: all of it with its own tokens;
and with pieces that ``lmf vocab extend`` learned from the same texts, first the new rows alone, and then all of it.
The texts that are measured are others. Everything is done by the commands that users type. How many steps fit into the
time is tried before each run; what a run took in the end stands in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

TEXTS, HELD_OUT = "korean", "korean-heldout"
FUZZ = 100_000  # texts on which the extended tokenizer is tried
ROWS = 0.2  # share of the time in which the new rows learn alone
TRIED = 4  # steps that are taken to see how long one takes; the first of them does not count


def lmf(*args: object) -> str:
    """Run a command and return what it prints."""
    command = [sys.executable, "-m", "lmf_cli", *map(str, args)]
    print(f"$ lmf {' '.join(command[3:])}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")
    return done.stdout


def seconds(run: Path) -> list[float]:
    """Return how long each step of a run took."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry["tokens"] / entry["tokens_per_second"] for entry in entries if "tokens_per_second" in entry]


def train(out: Path, budget: float, *arguments: object) -> float:
    """Do a run of so many steps as fit into a time. Returns the seconds that they took."""
    trial = out.with_name(f"{out.name}-trial")
    lmf("pretrain", *arguments, "--steps", TRIED, "--output", trial)
    each = sum(seconds(trial)[1:]) / (TRIED - 1)
    lmf("pretrain", *arguments, "--steps", max(1, int(budget / each)), "--output", out)
    return sum(seconds(out))


def loss_of(table: str) -> tuple[float, float]:
    """Return the losses per byte in a report."""
    found = re.search(r"loss per byte \(nats\) \| ([\d.]+) \| ([\d.]+)", table)
    assert found, table
    return float(found[1]), float(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--pieces", type=int, default=4000)
    parser.add_argument("--min-count", type=int, default=2, help="how often a piece occurs in the training texts")
    parser.add_argument("--rate", type=float, default=3e-4, help="peak learning rate of both ways")
    parser.add_argument("--rows-rate", type=float, default=1.5e-3, help="peak learning rate of the new rows alone")
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("lmf-vocab", "torch", "transformers", "tokenizers"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{date.today()}, {machine}, Python {platform.python_version()}, {versions}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pieces = ("--pieces", options.pieces, "--min-count", options.min_count)
        print(lmf("vocab", "extend", options.model, folder / "tokenizer", "--data", TEXTS, *pieces))
        tried = ("--base", options.model, "--data", TEXTS, "--count", FUZZ)
        print(lmf("vocab", "check", folder / "tokenizer", *tried))
        extended = ("--tokenizer", folder / "tokenizer", "--init", "weighted", "--data", HELD_OUT)
        print(lmf("vocab", "apply", options.model, folder / "extended", *extended))
        print(lmf("vocab", "report", options.model, folder / "extended", "--data", HELD_OUT))
        common = ("--data", TEXTS, "--batch-size", options.batch_size, "--max-tokens", 2048, "--no-save-best")
        rate = ("--learning-rate", options.rate)
        plain = train(folder / "plain", options.seconds, "full", "--model", options.model, *common, *rate)
        alone = ("--train-new-tokens-only", "--learning-rate", options.rows_rate)
        budget = ROWS * options.seconds
        rows = train(folder / "rows", budget, "freeze", "--model", folder / "extended", *common, *alone)
        rest = train(folder / "all", plain - rows, "full", "--model", folder / "rows", *common, *rate)
        table = lmf("vocab", "report", folder / "plain", folder / "all", "--data", HELD_OUT)
        before = loss_of(lmf("vocab", "report", options.model, folder / "rows", "--data", HELD_OUT))
        after = loss_of(table)
        print(table)
        print("\n| | loss per byte before | after | seconds of training |\n|---|--:|--:|--:|")
        print(f"| own tokens | {before[0]:.4f} | {after[0]:.4f} | {plain:.0f} |")
        print(f"| extended; {before[1]:.4f} after the rows alone | | {after[1]:.4f} | {rows + rest:.0f} |")


if __name__ == "__main__":
    main()
