"""What the kernels of lmf-kernels take of GPUs that need not be there: registers, shared memory, spills.

Usage: compiled.py [--json | --record]

Compiles every variant that a kernel may choose for sm80 (A100), sm90 (H100, H200) and sm100 (B200). --record writes
results/compiled.json and results/compiled.txt, which tests/kernels/test_compiling.py compares with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def rows_of(part: str) -> dict[str, dict[str, Any]]:
    """Compile all variants of a part."""
    from lmf_kernels.compiling import ARCHITECTURES, compiled

    found = {}
    for architecture in ARCHITECTURES:
        for variant in import_module(f"lmf_kernels.{part}").variants():
            taken = compiled(variant, architecture)
            row = {"registers": taken.registers, "shared": taken.shared, "spills": taken.spills}
            found[f"{variant.name} sm{architecture}"] = row | {"matrix": dict(taken.matrix)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="What kernels take of a GPU, by compiling them.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/compiled.json and .txt")
    options = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # what is interpreted cannot be compiled
    from lmf_kernels import MODULES

    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = {name: row for part in pool.map(rows_of, MODULES) for name, row in part.items()}
    head = f"{date.today()}, Python {platform.python_version()}, triton {version('triton')}"
    found = {"head": head, "rows": rows}
    wide = max(map(len, rows))
    lines = [head, "", f"{'variant':{wide}}  registers  shared bytes  spills  instructions of tensor cores"]
    for name, row in rows.items():
        matrix = ", ".join(f"{count} {kind}" for kind, count in row["matrix"].items())
        lines.append(f"{name:{wide}}{row['registers']:11}{row['shared']:14,}{row['spills']:8}  {matrix}".rstrip())
    if options.record:
        (RESULTS / "compiled.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "compiled.txt").write_text("\n".join(lines) + "\n")
    print(json.dumps(found) if options.json else "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
