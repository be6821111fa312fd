"""What an extended vocabulary is worth to a model: tokens, loss per byte and speed, beside training without it.

Usage: vocabulary.py MODEL [--pieces N] [--rate R] [--batch-size N]

MODEL learns the bundled Korean texts in two ways, in equal time: all of it with its own tokens for one epoch; and with
pieces that ``lmf vocab extend`` learned from the same texts, the new rows alone for an epoch, and then all of it in the
time that is left. The texts that are measured are others. Everything is done by the commands that users type.
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
RECORDS = 100  # of the training texts
FUZZ = 100_000  # texts on which the extended tokenizer is tried
SAFETY = 0.95  # share of the time that is left which steps are planned for


def lmf(*args: object) -> str:
    """Run a command and return what it prints."""
    command = [sys.executable, "-m", "lmf_cli", *map(str, args)]
    print(f"$ lmf {' '.join(command[3:])}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")
    return done.stdout


def seconds(run: Path) -> tuple[int, float]:
    """Return how many steps a run took, and the seconds that they took together."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "tokens_per_second" in entry]
    return len(steps), sum(entry["tokens"] / entry["tokens_per_second"] for entry in steps)


def loss_of(table: str) -> tuple[float, float]:
    """Return the losses per byte in a report."""
    found = re.search(r"loss per byte \(nats\) \| ([\d.]+) \| ([\d.]+)", table)
    assert found, table
    return float(found[1]), float(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--pieces", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=3e-4, help="peak learning rate of both ways")
    parser.add_argument("--rows-rate", type=float, default=5e-3, help="peak learning rate of the new rows alone")
    parser.add_argument("--batch-size", type=int, default=10)
    options = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("lmf-vocab", "torch", "transformers", "tokenizers"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{date.today()}, {machine}, Python {platform.python_version()}, {versions}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(lmf("vocab", "extend", options.model, folder / "tokenizer", "--data", TEXTS, "--pieces", options.pieces))
        tried = ("--base", options.model, "--data", TEXTS, "--count", FUZZ)
        print(lmf("vocab", "check", folder / "tokenizer", *tried))
        extended = ("--tokenizer", folder / "tokenizer", "--init", "weighted", "--data", HELD_OUT)
        print(lmf("vocab", "apply", options.model, folder / "extended", *extended))
        print(lmf("vocab", "report", options.model, folder / "extended", "--data", HELD_OUT))
        train(options, folder)
        table = lmf("vocab", "report", folder / "plain", folder / "all", "--data", HELD_OUT)
        print(table)
        before = loss_of(lmf("vocab", "report", options.model, folder / "rows", "--data", HELD_OUT))
        after = loss_of(table)
        times = [seconds(folder / "plain")[1], seconds(folder / "rows")[1] + seconds(folder / "all")[1]]
        print("\n| | loss per byte before | after | seconds of training |\n|---|--:|--:|--:|")
        print(f"| own tokens | {before[0]:.4f} | {after[0]:.4f} | {times[0]:.0f} |")
        print(f"| extended (after the rows alone: {before[1]:.4f}) | | {after[1]:.4f} | {times[1]:.0f} |")


def train(options: argparse.Namespace, folder: Path) -> None:
    """Train both ways, the second one no longer than the first."""
    common = ("--data", TEXTS, "--batch-size", options.batch_size, "--max-tokens", 2048, "--no-save-best")
    epoch = RECORDS // options.batch_size
    rate = ("--learning-rate", options.rate)
    lmf("pretrain", "full", "--model", options.model, *common, *rate, "--steps", epoch, "--output", folder / "plain")
    alone = ("--train-new-tokens-only", "--learning-rate", options.rows_rate, "--schedule", "constant")
    rows = ("pretrain", "freeze", "--model", folder / "extended", *common, *alone, "--steps", epoch)
    lmf(*rows, "--output", folder / "rows")
    # a step of all of the model takes longer than one of the rows: try two
    lmf("pretrain", "full", "--model", folder / "rows", *common, *rate, "--steps", 2, "--output", folder / "trial")
    trial = seconds(folder / "trial")
    left = seconds(folder / "plain")[1] - seconds(folder / "rows")[1]
    steps = int(SAFETY * left / (trial[1] / trial[0]))
    lmf("pretrain", "full", "--model", folder / "rows", *common, *rate, "--steps", steps, "--output", folder / "all")


if __name__ == "__main__":
    main()
