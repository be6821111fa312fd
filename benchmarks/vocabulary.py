"""What an extended vocabulary is worth to a model: tokens, loss per byte and speed, beside training without it.

Usage: vocabulary.py MODEL [--seconds S] [--rates R ...] [--batch-size N]

MODEL learns Korean in two ways, each for so many seconds of training by LoRA at the same rate: with its own tokens, and
with pieces that ``lmf vocab extend`` learned from the same texts, whose rows are trained too. This is done with two
corpora: prose, the texts bundled with lmf-vocab, in which a new piece occurs some ten times; and notices of markets,
written by a grammar with few words, in which each occurs some hundred times. The texts that are measured are others.
Everything is done by the commands that users type. How many steps fit into the time is tried before.
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
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from korean_notices import notices

FUZZ = 100_000  # texts on which an extended tokenizer is tried
TRIED = 4  # steps that are taken to see how long one takes; the first of them does not count
NOTICES, HELD_OUT = 1500, 60  # how many are learned from and measured
RANK = 64
FOLDER = tempfile.TemporaryDirectory()


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts, and how many pieces are learned from them.

    Attributes:
        name: What it is called in the tables.
        texts: What is learned from.
        held_out: What is measured.
        pieces: The most new pieces.
        least: The fewest times that each occurs.
    """

    name: str
    texts: object
    held_out: object
    pieces: int
    least: int


def lmf(*args: object) -> str:
    """Run a command and return what it prints."""
    command = [sys.executable, "-m", "lmf_cli", *map(str, args)]
    print(f"$ lmf {' '.join(command[3:])}".replace(f"{FOLDER.name}/", ""), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")
    return done.stdout.replace(f"{FOLDER.name}/", "")


def seconds(run: Path) -> list[float]:
    """Return how long each step of a run took."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry["tokens"] / entry["tokens_per_second"] for entry in entries if "tokens_per_second" in entry]


def train(out: Path, steps: int, *arguments: object) -> float:
    """Do a run. Returns the seconds that its steps took."""
    lmf("pretrain", "lora", *arguments, "--rank", RANK, "--steps", steps, "--no-save-best", "--output", out)
    return sum(seconds(out))


def step(out: Path, *arguments: object) -> float:
    """Return how long a step takes."""
    train(out, TRIED, *arguments)
    return sum(seconds(out)[1:]) / (TRIED - 1)


def loss_of(table: str) -> tuple[float, float]:
    """Return the losses per byte in a report."""
    found = re.search(r"loss per byte \(nats\) \| ([\d.]+) \| ([\d.]+)", table)
    assert found, table
    return float(found[1]), float(found[2])


def write(path: Path, texts: Iterable[str]) -> Path:
    """Write texts as records."""
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return path


def measure(corpus: Corpus, folder: Path, options: argparse.Namespace) -> list[str]:
    """Extend a model for a corpus and train it in both ways. Returns a row of the last table for each rate."""
    folder.mkdir()
    tokenizer, extended = folder / "tokenizer", folder / "extended"
    pieces = ("--pieces", corpus.pieces, "--min-count", corpus.least)
    print(lmf("vocab", "extend", options.model, tokenizer, "--data", corpus.texts, *pieces))
    print(lmf("vocab", "check", tokenizer, "--base", options.model, "--data", corpus.texts, "--count", FUZZ))
    begun = ("--init", "weighted", "--data", corpus.held_out)
    print(lmf("vocab", "apply", options.model, extended, "--tokenizer", tokenizer, *begun))
    table = lmf("vocab", "report", options.model, extended, "--data", corpus.held_out)
    print(table)
    before = loss_of(table)
    common = ("--data", corpus.texts, "--batch-size", options.batch_size)
    ways = (
        (folder / "own", ("--model", options.model, *common)),
        (folder / "new", ("--model", extended, "--train-new-tokens-only", *common)),
    )
    steps = [max(1, int(options.seconds / step(out.with_name(f"{out.name}-trial"), *way))) for out, way in ways]
    rows = []
    for rate in options.rates:
        outs = [out.with_name(f"{out.name}-{rate}") for out, _ in ways]
        arguments = [(*way, "--learning-rate", rate) for _, way in ways]
        took = [train(out, count, *each) for out, count, each in zip(outs, steps, arguments, strict=True)]
        table = lmf("vocab", "report", *outs, "--data", corpus.held_out)
        print(table)
        for way, first, last, time, count in zip(
            ("own tokens", "extended"), before, loss_of(table), took, steps, strict=True
        ):
            rows.append(f"| {corpus.name} | {rate} | {way} | {first:.4f} | {last:.4f} | {time:.0f} | {count} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=150, help="time of training of each run")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.5e-3, 3e-3], help="peak learning rates")
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("lmf-vocab", "torch", "transformers", "tokenizers"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{date.today()}, {machine}, Python {platform.python_version()}, {versions}\n")
    folder = Path(FOLDER.name)
    learned = write(folder / "notices.jsonl", notices(NOTICES, 0))
    measured = write(folder / "notices-heldout.jsonl", notices(HELD_OUT, 1))
    corpora = [Corpus("notices", learned, measured, 1000, 20), Corpus("prose", "korean", "korean-heldout", 8000, 3)]
    rows = [row for each in corpora for row in measure(each, folder / each.name, options)]
    print("\n| corpus | rate | | loss per byte before | after | seconds of training | steps |")
    print("|---|--:|---|--:|--:|--:|--:|", *rows, sep="\n")


if __name__ == "__main__":
    main()
