"""Encoding an Alpaca-like file: speed beside the bare tokenizer, and peak memory beside the size of the file.

Usage: data.py MODEL [RECORDS] [REPEATS]

MODEL is what --model takes. The file holds made-up instructions and replies of the lengths that
Alpaca has, made of the words of the data set ``cards``. Each repeat runs, one after the other in
a fresh process:

- one: what ``chatml`` takes for a file of one record, which is what everything costs at least;
- bare: encode_batch of the library tokenizers over the finished texts, with all its threads;
- chatml, auto: what a run does between reading and learning, with a named template and with the
  model's own: render, encode, mark what is learned, check the lengths, count, keep;
- read: only reading;
- stream, stream x4: a pass over the file, and over four such files, with --streaming.

Memory is the highest resident set (Linux) above that before the first record was read.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

PARTS = ("one", "bare", "chatml", "auto", "read", "stream", "stream x4")

SPEEDS = {"bare", "chatml", "auto", "stream", "stream x4"}


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


def memory(what: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def run(part: str, model: str, file: str) -> None:
    """Do one part in this process, and print seconds, tokens and bytes of memory."""
    from lmf import Plugins, RunSettings
    from lmf.data.reading import read
    from lmf.encoding.material import encode_data
    from lmf.encoding.stream import Stream
    from lmf.models import load_tokenizer
    from lmf.plan import make_plan
    from lmf.report import Reporter
    from lmf.sources import find_model

    plugins = Plugins()
    tokenizer = load_tokenizer(find_model(model, plugins))
    streaming = part.startswith("stream")
    files = (file,) * (4 if part == "stream x4" else 1)
    settings = RunSettings(
        model=model,
        data=files,
        output=Path(tempfile.gettempdir()) / "lmf-benchmark-data",
        template="auto" if part == "auto" else "chatml",
        streaming=streaming,
        steps=1 if streaming else None,
        cache=False,
    )
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident set so far
    before = memory("VmRSS")
    tokens = 0
    if part == "bare":
        records = read(files, "conversation", plugins).records
        chatml = plugins.templates["chatml"]
        texts = ["".join(p.text for p in chatml.render(record.data.messages)) for record in records]  # type: ignore[union-attr]
        start = time.perf_counter()
        encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        tokens = sum(len(encoding.ids) for encoding in encodings)
    elif part == "read":
        start = time.perf_counter()
        read(files, "conversation", plugins)
    else:
        plan = make_plan(plugins, "train", "full", settings)
        start = time.perf_counter()
        train = encode_data(plan, Reporter()).train
        if isinstance(train, Stream):
            for batch in train.batches(16):
                if train.position.passed:
                    break
                tokens += sum(len(example.ids) for example in batch)
        else:
            tokens = sum(train.lengths)
    print(json.dumps([time.perf_counter() - start, tokens, memory("VmHWM") - before]))


def main(model: str, records: int = 50_000, repeats: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "alpaca.jsonl"
        make(file, records)
        one = Path(folder) / "one.jsonl"
        with file.open(encoding="utf-8") as lines:
            one.write_text(next(lines), encoding="utf-8")
        size = file.stat().st_size
        found: dict[str, list[list[float]]] = {part: [] for part in PARTS}
        for _ in range(repeats):
            for part in PARTS:
                command = [sys.executable, __file__, "--part", part, model, str(one if part == "one" else file)]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[part].append(json.loads(out.stdout.splitlines()[-1]))
    names = ("tokenizers", "transformers", "torch")
    print(f"{date.today()}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print(f"{records:,} records, {size / 1e6:.1f} MB, model {Path(model).name}; medians of {repeats} runs in turn\n")
    print(f"{'':10}{'seconds':>9}{'tokens/s':>12}{'of bare':>9}{'memory':>12}")
    bare = statistics.median(tokens / seconds for seconds, tokens, _ in found["bare"])
    for part, runs in found.items():
        seconds, tokens, used = (statistics.median(column) for column in zip(*runs, strict=True))
        rate = f"{tokens / seconds:12,.0f}{tokens / seconds / bare:9.2f}" if part in SPEEDS else " " * 21
        print(f"{part:10}{seconds:9.2f}{rate}{used / 1e6:9,.0f} MB")


if __name__ == "__main__":
    if sys.argv[1] == "--part":
        run(sys.argv[2], sys.argv[3], sys.argv[4])
    else:
        main(sys.argv[1], *map(int, sys.argv[2:]))
