"""Every variant of every kernel compiles for the GPUs it is for, and takes no more of one than it did."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "benchmarks/results/compiled.json"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Compile all variants, in a process that does not interpret kernels."""
    line = [sys.executable, ROOT / "benchmarks/compiled.py"]
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def test_no_variant_needs_more_registers_than_there_are(found):
    known = json.loads(RECORDED.read_text())["rows"]
    assert found.keys() == known.keys(), "the variants are others: python benchmarks/compiled.py --record"
    worse = {
        name: (row["spills"], known[name]["spills"])
        for name, row in found.items()
        if row["spills"] > known[name]["spills"]
    }
    assert not worse, f"instructions that spill registers, now and as recorded: {worse}"


def test_shared_memory_is_within_that_of_each_gpu(found):
    most = {"sm80": 163 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024}
    assert not {name: row for name, row in found.items() if row["shared"] > most[name.rpartition(" ")[2]]}
