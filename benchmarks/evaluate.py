"""Evaluation beside the lm-evaluation-harness's own HF backend: speed, memory and decisions on the same items.

Usage: evaluate.py [--rounds N] [--tasks NAME,...] [--results FILE]

The items are those that come with lmf-eval (hellaswag_sample and truthfulqa_sample, 100 each), the model is
SmolLM2-135M-Instruct in fp32, on the CPU. The harness runs with a batch of 1, 8 and 16, and is compared by the best of
them. Each run is a process of its own, the tools take turns, and the figures are medians: seconds from the first
request to the last result, without loading; processor seconds of the same; the highest resident set of the process.
Log-likelihoods must agree within 1e-3 and all decisions must be the same, or the script fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
TASKS = ("hellaswag_sample", "truthfulqa_sample")
BATCHES = (1, 8, 16)  # of the harness
OURS = "lmf"
CLOSE = 1e-3  # nats, of the log-likelihood of a choice; the harness's own softmax in 32 bits is off by half of that


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--results", type=Path, default=HERE / "results/evaluate.txt")
    parser.add_argument("--run", nargs=3, metavar=("TOOL", "TASK", "FILE"), help="one run, in this process")
    given = parser.parse_args(arguments)
    if given.run:
        tool, task, file = given.run
        Path(file).write_text(json.dumps(run(tool, task)))
        return
    tools = [OURS, *(f"harness {size}" for size in BATCHES)]
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task in given.tasks.split(","):
        runs[task] = {tool: [] for tool in tools}
        for number in range(given.rounds):
            for tool in tools:
                found = apart(tool, task)
                runs[task][tool].append(found)
                print(f"{task}, round {number + 1}, {tool}: {found['seconds']:.1f} s", file=sys.stderr)
    given.results.write_text(report(runs))
    print(given.results.read_text())


def apart(tool: str, task: str) -> dict[str, Any]:
    """Run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--run", tool, task, str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HOME": folder})
        return json.loads(file.read_text())


def run(tool: str, task: str) -> dict[str, Any]:
    """Return what one tool does with a task: its log-likelihoods, time and memory."""
    from lmf import Plugins
    from lmf.evaluate.sources import find_tasks, read_items

    plugins = Plugins()
    items = read_items(find_tasks([task], plugins)[task][0], plugins)
    ask = ours(items, plugins) if tool == OURS else theirs(items, plugins, int(tool.split()[1]))
    wall, processor = time.perf_counter(), time.process_time()
    logprobs = ask()
    return {
        "seconds": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "logprobs": logprobs,
        "chosen": [chosen(item.problem.choices, values) for item, values in zip(items.items, logprobs, strict=True)],
    }


def ours(items: Any, plugins: Any) -> Callable[[], list[list[float]]]:
    """Return what asks all items by lmf."""
    import torch
    from lmf import Evaluation
    from lmf.evaluate.running import Evaluator
    from lmf.generate.caches import runner_for
    from lmf.generate.opening import open_model
    from lmf.models import quiet

    quiet()
    chatter = open_model(MODEL, plugins)
    chatter.model.to(torch.float32)
    runner = runner_for(chatter.model)

    def ask() -> list[list[float]]:
        evaluator = Evaluator(items, Evaluation(), chatter, runner)
        found = dict(one for some in evaluator.run() for one in some)
        return [list(found[number].logprobs) for number in range(len(items.items))]

    return ask


def theirs(items: Any, plugins: Any, batch: int) -> Callable[[], list[list[float]]]:
    """Return what asks all items by the harness's HF backend."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lmf.models import load_model, load_tokenizer
    from lmf.sources import find_model

    source = find_model(MODEL, plugins)
    model: Any = load_model(source).float().eval()
    backend = HFLM(pretrained=model, tokenizer=load_tokenizer(source), batch_size=batch, device="cpu")
    requests = [
        Instance("loglikelihood", {}, (item.problem.prompt, items.task.between + choice), number)
        for number, item in enumerate(items.items)
        for choice in item.problem.choices
    ]

    def ask() -> list[list[float]]:
        values = iter(backend.loglikelihood(requests, disable_tqdm=True))
        return [[next(values)[0] for _ in item.problem.choices] for item in items.items]

    return ask


def chosen(choices: Sequence[str], logprobs: Sequence[float]) -> list[int]:
    """Return which choice is the likeliest, and which for its length."""
    by_length = [value / len(choice) for value, choice in zip(logprobs, choices, strict=True)]
    return [values.index(max(values)) for values in (list(logprobs), by_length)]


def report(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Return the figures as text; fails where the tools disagree."""
    names = ("torch", "transformers", "lm-eval")
    head = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    lines = [f"{head}, {', '.join(f'{name} {version(name)}' for name in names)}, {date.today()}"]
    for task, tools in runs.items():
        count = len(tools[OURS][0]["chosen"])
        lines += ["", f"{task}, {count} items, medians of {len(tools[OURS])} rounds"]
        lines.append(f"{'':12} {'items/s':>9} {'items/CPU-s':>12} {'peak MiB':>9}")
        medians = {
            tool: {key: statistics.median(each[key] for each in found) for key in ("seconds", "processor", "peak")}
            for tool, found in tools.items()
        }
        for tool, found in medians.items():
            rates = f"{count / found['seconds']:9.2f} {count / found['processor']:12.2f}"
            lines.append(f"{tool:12} {rates} {found['peak'] / 2**20:9,.0f}")
        best = min((tool for tool in medians if tool != OURS), key=lambda tool: medians[tool]["seconds"])
        ratio = {key: medians[best][key] / medians[OURS][key] for key in ("seconds", "processor", "peak")}
        apart_by = 0.0
        for found in tools.values():
            for each in found:
                pairs = zip(each["logprobs"], tools[OURS][0]["logprobs"], strict=True)
                apart_by = max(apart_by, *(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True)))
                if each["chosen"] != tools[OURS][0]["chosen"]:
                    raise SystemExit(f"{task}: the tools decide differently")
        if apart_by > CLOSE:
            raise SystemExit(f"{task}: log-likelihoods are apart by {apart_by}")
        lines.append(
            f"beside {best}: {ratio['seconds']:.2f} times the items per second, {ratio['processor']:.2f} per CPU "
            f"second, {1 / ratio['peak']:.2f} of its memory; all {2 * count} decisions the same, log-likelihoods "
            f"within {apart_by:.1e}"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
