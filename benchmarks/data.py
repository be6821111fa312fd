"""Encoding an Alpaca-like file: speed beside the bare tokenizer, and peak memory beside the size of the file.

Usage: data.py MODEL [RECORDS] [REPEATS]

MODEL is a folder with a tokenizer. The file holds made-up instructions and replies of the lengths
that Alpaca has, made of the sentences of the data set ``cards``. Each repeat runs, one after the
other in a fresh process: ``bare``, encode_batch of tokenizers over the finished texts, with all its
threads; ``lmf``, what a run does from the file's records to examples; and both without the work, to
know what the imports take.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

PARTS = ("bare", "lmf", "auto", "read", "nothing")


def make(file: Path, records: int) -> None:
    """Write the file: instructions of 5 to 40 words, a third with an input, replies of 5 to 250 words."""
    import lmf_smollm2

    rng = random.Random(0)
    cards = [json.loads(line) for line in (lmf_smollm2.DATA / "cards.jsonl").read_text().splitlines()]
    words = " ".join(message["content"] for card in cards for message in card["messages"]).split()

    def text(low: int, high: int) -> str:
        count = round(low * (high / low) ** rng.random())  # as many short ones as long ones
        start = rng.randrange(len(words) - count)
        return " ".join(words[start : start + count])

    with file.open("w", encoding="utf-8") as stream:
        for _ in range(records):
            record = {"instruction": text(5, 40), "input": "", "output": text(5, 250)}
            if rng.random() < 1 / 3:
                record["input"] = text(5, 60)
            stream.write(json.dumps(record) + "\n")


def run(part: str, model: str, file: Path) -> None:
    """Do one part in this process, and print seconds, tokens and peak memory in bytes."""
    from lmf import Plugins, RunSettings
    from lmf.data.reading import read
    from lmf.encoding.encoder import Encoder
    from lmf.models import load_tokenizer
    from lmf.sources import find_model
    from lmf.templates.choose import own_template
    from lmf_sft import Supervised, TrainOptions

    assert RunSettings
    plugins = Plugins()
    tokenizer = load_tokenizer(find_model(model, plugins))
    encoder = Encoder(tokenizer, own_template(tokenizer) if part == "auto" else plugins.templates["chatml"])
    seconds, tokens = 0.0, 0
    if part == "bare":
        texts = [
            "".join(p.text for p in plugins.templates["chatml"].render(r.data.messages))  # type: ignore[union-attr]
            for r in read([str(file)], "conversation", plugins).records
        ]
        start = time.perf_counter()
        tokens = sum(len(e.ids) for e in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
        seconds = time.perf_counter() - start
    elif part != "nothing":
        start = time.perf_counter()
        data = read([str(file)], "conversation", plugins)
        if part != "read":
            start = time.perf_counter()
            examples = Supervised(TrainOptions()).encode(data.records, encoder)
            tokens = sum(len(e.ids) for e in examples)
        seconds = time.perf_counter() - start
    print(json.dumps([seconds, tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def main(model: str, records: int = 50_000, repeats: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "alpaca.jsonl"
        make(file, records)
        size = file.stat().st_size
        found: dict[str, list[list[float]]] = {part: [] for part in PARTS}
        for _ in range(repeats):
            for part in PARTS:
                command = [sys.executable, __file__, "--part", part, model, str(file)]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[part].append(json.loads(out.stdout))
    names = ("tokenizers", "transformers", "torch")
    print(f"{date.today()}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print(f"{records:,} records, {size / 1e6:.1f} MB; medians of {repeats} runs in turn\n")
    seconds = {part: statistics.median(run[0] for run in found[part]) for part in PARTS}
    tokens = found["lmf"][0][1]
    base = statistics.median(run[2] for run in found["nothing"])
    print(f"{'':8}{'seconds':>9}{'tokens/s':>12}{'of bare':>9}{'memory above imports, of the file':>36}")
    for part in ("bare", "lmf", "auto", "read"):
        memory = statistics.median(run[2] for run in found[part]) - base
        rate = f"{tokens / seconds[part]:12,.0f}{seconds['bare'] / seconds[part]:9.2f}" if part != "read" else " " * 21
        print(f"{part:8}{seconds[part]:9.2f}{rate}{memory / 1e6:26,.0f} MB {memory / size:6.2f}")


if __name__ == "__main__":
    if sys.argv[1] == "--part":
        run(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main(sys.argv[1], *map(int, sys.argv[2:]))
