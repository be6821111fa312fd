"""Every variant of every kernel compiles for the GPUs it is for, and takes no more of one than it did.

To compile them all takes minutes, so that was recorded, with the hash of the sources; here some are compiled.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

ROOT = Path(__file__).parents[2]
RECORDED: dict[str, Any] = json.loads((ROOT / "benchmarks/results/compiled.json").read_text())
SHARED = {"sm80": 163 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024}  # bytes that a program may have
MATRIX = {"sm80": "HMMA", "sm90": "HGMMA", "sm100": "UTCHMMA"}


def test_the_kernels_are_those_that_were_compiled(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import compiled

    assert RECORDED["sources"] == compiled.hash_of_sources(), "compile them: python benchmarks/compiled.py --record"
    assert RECORDED["triton"] == triton.__version__


@pytest.mark.parametrize(
    "words", ["bf16 4096", "attention forward bf16 128 sm", "attention keys bf16 64 sm90", "hopper bf16 128"]
)
def test_some_are_compiled_as_recorded(words):
    line = [sys.executable, ROOT / "benchmarks/compiled.py", "--json", "--only", words]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rows"]
    assert found and found == {name: RECORDED["rows"][name] for name in found}


def test_all_fit_their_gpus():
    rows = {name: (row, name.rpartition(" ")[2]) for name, row in RECORDED["rows"].items()}
    assert not {name: row for name, (row, gpu) in rows.items() if row["shared"] > SHARED[gpu]}
    low = {name: each for name, each in rows.items() if name.startswith("attention") and "fp32" not in name}
    assert not [name for name, (row, gpu) in low.items() if not row["matrix"].get(MATRIX[gpu])]
    spilt = {name: row["spills"] for name, (row, _) in rows.items() if row["spills"] and "fp32" not in name}
    widest = {name for name in spilt if "rms_norm backward" in name and "16384" in name}  # few models are so wide
    assert max(spilt[name] for name in widest) < 20
    assert spilt.keys() - widest == {
        *(f"attention keys {dtype} 80 window softcap sm80" for dtype in ("bf16", "fp16")),
        *(f"attention keys {dtype} 256 window softcap sm90" for dtype in ("bf16", "fp16")),
        "add and rms_norm backward bf16 4096 frozen sm100",
    }
