"""Perplexity beyond the length that a model was trained on, by how its positions are scaled; nothing is trained.

Usage: longer_context.py [--tokens N] [--factor F] [--types NAME,...] [--results FILE]

SmolLM2-135M-Instruct, trained on 8,192 tokens, in fp32 on the CPU, reads one text, that of the task long_ppl, of twice
as many tokens, and the 1,024 tokens before each mark are scored: the same tokens for all ways, so differences between
ways are those of the scaling, and differences between marks those of the text besides. It is one pass over the whole
text, so dynamic has the angles of that length at every mark. The script fails if no way is better than none beyond the
trained length.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
NONE = "none"
TYPES = (NONE, "linear", "ntk", "dynamic", "yarn", "llama3")
MARKS = (2048, 4096, 8192, 12288, 16384)
SCORED = 1024  # tokens before each mark


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=MARKS[-1])
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--results", type=Path, default=HERE / "results/longer_context.json")
    given = parser.parse_args(arguments)
    marks = [mark for mark in MARKS if mark <= given.tokens]
    found: dict[str, Any] = {
        "model": MODEL,
        "factor": given.factor,
        "marks": marks,
        "scored": SCORED,
        "date": str(date.today()),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "lmf-core", "lmf-eval")},
        "perplexity": {},
    }
    for kind in given.types.split(","):
        began = time.perf_counter()
        found["perplexity"][kind], found["trained"] = perplexities(kind, given.factor, marks)
        print(f"{kind}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        given.results.write_text(json.dumps(found, indent=2) + "\n")
        given.results.with_suffix(".txt").write_text(report(found))
    print(report(found))
    beyond = [number for number, mark in enumerate(marks) if mark > found["trained"]]
    before = found["perplexity"].pop(NONE, None)
    if before and not any(values[n] < before[n] for values in found["perplexity"].values() for n in beyond):
        raise SystemExit("no way is better than none beyond the trained length")


def opened(kind: str, factor: float) -> Any:
    """Open the model as lmf opens it."""
    from lmf import Plugins
    from lmf.generate.opening import open_model
    from lmf.models import quiet
    from lmf.rope import Scaling

    quiet()
    chatter = open_model(MODEL, Plugins(), rope=None if kind == NONE else Scaling(kind, factor))
    chatter.model.to(torch.float32)
    return chatter


@torch.no_grad()
def perplexities(kind: str, factor: float, marks: Sequence[int]) -> tuple[list[float], int]:
    """Return the perplexity of the tokens before each mark, and the length that the model was trained on."""
    from lmf import Plugins
    from lmf.evaluate.sources import find_tasks, read_items
    from lmf.models import load_config
    from lmf.sources import find_model

    chatter, plugins = opened(kind, factor), Plugins()
    (item,) = read_items(find_tasks(["long_ppl"], plugins)["long_ppl"][0], plugins).items
    ids = torch.tensor(chatter.encoder.plain(item.problem.answer)[: marks[-1]])
    places = torch.cat([torch.arange(mark - SCORED, mark) for mark in marks])  # of the tokens that are scored
    model: Any = chatter.model
    logits = model(ids[None], logits_to_keep=places - 1, use_cache=False).logits[0].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[places], reduction="none")
    trained = load_config(find_model(MODEL, plugins)).max_position_embeddings
    return [math.exp(part.mean()) for part in losses.split(SCORED)], trained


def report(found: dict[str, Any]) -> str:
    """Return the figures as text."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [f"{found['machine']}, Python {found['python']}, {versions}, {found['date']}", ""]
    lines.append(
        f"{found['model']}, trained on {found['trained']:,} tokens, factor {found['factor']:g}; nothing is trained"
    )
    lines.append(
        f"perplexity of the {found['scored']:,} tokens before each mark of one text of {found['marks'][-1]:,} tokens"
    )
    lines.append(f"{'':10}" + "".join(f"{mark:>10,}" for mark in found["marks"]))
    lines += [f"{kind:10}" + "".join(f"{v:10.2f}" for v in values) for kind, values in found["perplexity"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
