"""What the kernels of lmf-kernels take of GPUs that need not be there: registers, shared memory, spills.

Usage: compiled.py [--only WORDS] [--json | --record]

Compiles every variant that a kernel may choose for sm80 (A100), sm90 (H100, H200) and sm100 (B200); some minutes.
--record writes results/compiled.json and results/compiled.txt, and refuses variants that spill more registers than
before. tests/kernels/test_compiling.py refuses kernels that are others than those recorded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
SOURCES = ROOT / "packages/kernels/src/lmf_kernels"
ARCHITECTURES = (80, 90, 100)


def hash_of_sources() -> str:
    """Return the SHA-256 of all modules with kernels."""
    found = hashlib.sha256()
    for file in sorted(SOURCES.glob("*.py")):
        if any(word in file.read_text() for word in ("triton.jit", "gluon.jit", "def variants")):
            found.update(file.read_bytes())
    return found.hexdigest()


def rows_of(module: str, architecture: int, only: str) -> dict[str, dict[str, Any]]:
    """Compile the variants of a module whose name has the words."""
    from lmf_kernels.compiling import compiled

    found = {}
    for variant in import_module(f"lmf_kernels.{module}").variants(architecture):
        name = f"{variant.name} sm{architecture}"
        if only in name:
            found[name] = asdict(compiled(variant, architecture))
    return found


def worse(rows: Mapping[str, Any]) -> dict[str, str]:
    """Return the variants that spill more registers than recorded."""
    file = RESULTS / "compiled.json"
    known = json.loads(file.read_text())["rows"] if file.exists() else {}
    spilt = {name: (row["spills"], known[name]["spills"]) for name, row in rows.items() if name in known}
    return {name: f"{now} now, {then} recorded" for name, (now, then) in spilt.items() if now > then}


def main() -> int:
    parser = argparse.ArgumentParser(description="What kernels take of a GPU, by compiling them.")
    parser.add_argument("--only", default="", help="variants whose name has these words")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/compiled.json and .txt")
    options = parser.parse_args()
    if options.record and options.only:
        parser.error("--record is of all variants, without --only")
    os.environ.pop("TRITON_INTERPRET", None)  # what is interpreted cannot be compiled
    from lmf_kernels import MODULES

    rows: dict[str, Any] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(rows_of, name, each, options.only) for name in MODULES for each in ARCHITECTURES]
        for job in jobs:
            rows |= job.result()
    head = f"{date.today()}, Python {platform.python_version()}, triton {version('triton')}"
    found = {"head": head, "triton": version("triton"), "sources": hash_of_sources(), "rows": rows}
    wide = max(map(len, rows), default=0)
    lines = [head, "", f"{'variant':{wide}}  registers  shared bytes  spills  instructions of tensor cores"]
    for name, row in rows.items():
        matrix = ", ".join(f"{count} {kind}" for kind, count in row["matrix"].items())
        lines.append(f"{name:{wide}}{row['registers']:11}{row['shared']:14,}{row['spills']:8}  {matrix}".rstrip())
    print(json.dumps(found) if options.json else "\n".join(lines))
    if more := worse(rows):
        print("\n".join(f"{name}: spills {words}" for name, words in more.items()), file=sys.stderr)
        return 1
    if options.record:
        (RESULTS / "compiled.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "compiled.txt").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
