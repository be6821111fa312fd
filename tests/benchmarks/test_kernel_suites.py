"""The suites of kernels go through to the end on a CPU, and targets are read from the right rows."""

import json
import sys
from pathlib import Path
from typing import Any

import lmf_kernels.bench.measure as measuring
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu
import kernel_suites as suites

# numpy computes what is beyond the end of a document, and exponentials whose reciprocal is 0
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (("WARM", 0), ("FEWEST", 1), ("MOST", 1)):
        monkeypatch.setattr(measuring, name, number)


@pytest.mark.parametrize("suite", ["kernels", "attn"])
def test_a_suite_measures_everything_on_a_tiny_model(suite, tmp_path):
    gpu.main(["--suite", suite, "--shape", "tiny", "--device", "cpu", "--results", str(tmp_path)])
    rows = json.loads((tmp_path / f"cpu-{suite}.json").read_text())["rows"]
    assert not [row for row in rows if "why" in row]
    ours = {row["by"] for row in rows if row["by"].startswith("lmf")}
    if suite == "attn":
        assert ours >= {"lmf"}
    else:
        assert ours >= {"lmf-rms-norm", "lmf-add-rms-norm", "lmf-glu", "lmf-rotary", "lmf-cross-entropy"}
    text = (tmp_path / f"cpu-{suite}.txt").read_text()
    assert "not measured" in text and all(f"  {row['by']}" in text for row in rows)
    assert not (tmp_path / f"cpu-{suite}.partial.json").exists()
    assert (tmp_path / f"cpu-{suite}.png").read_bytes().startswith(b"\x89PNG")


def test_the_sweep_has_what_is_to_be_measured():
    names = [case.name for case in suites.sweep()]
    assert len(names) == len(set(names))
    for size, heads in ((64, 64), (128, 32), (256, 16)):
        for length in suites.LENGTHS:
            assert f"D {size}, {heads}/{heads} heads, documents of {length}" in names
    assert "D 128, 32/8 heads, documents of 8192" in names and "D 128, 32/4 heads, documents of 2048" in names
    assert "D 128, 32/32 heads, documents of 16384, window of 4096" in names
    assert "D 64, 64/16 heads, documents of 1000 on average" in names
    asked = {name for name, *_ in suites.attention_targets([])} | {name for name, *_ in suites.part_targets([])}
    assert len(asked) == len([*suites.attention_targets([]), *suites.part_targets([])])


def test_targets_of_attention_are_read_from_the_rows():
    def row(case: Any, by: str, forward: float) -> dict[str, Any]:
        return {"case": case.name, "by": by, "forward": forward, "backward": 2 * forward, "forward share": 0.7}

    dense = suites.sweep()[1]
    assert dense.name.endswith("documents of 8192")
    speed = dense.flops[0] / 500e12  # seconds, at 500 TFLOP/s
    rows = [row(dense, "lmf", speed), row(dense, "torch-flash", 1.3 * speed), row(dense, "torch-cudnn", 0.8 * speed)]
    rows.append(row(dense, "lmf-hopper", speed))
    met = {line[:50].strip(): line.split()[-1] for line in suites.target_lines(suites.attention_targets(rows))}
    assert met["D 128, 8192: forward, torch-flash / lmf"] == met["D 128, 8192: forward, TFLOP/s"] == "met"
    assert met["D 128, 8192: forward, torch-cudnn / lmf-hopper"] == "missed"
    assert met["D 128, 8192: backward, TFLOP/s"] == "met" and met["D 128, 4096: forward, TFLOP/s"] == "measured"


def test_targets_of_other_parts_are_read_from_the_rows():
    def row(part: str, by: str, case: str = suites.MODEL, **figures: float) -> dict[str, Any]:
        return {"part": part, "case": case, "by": by, **figures}

    rows = [row("glu", "lmf-glu", forward=1.0, **{"forward share": 0.9}), row("glu", "liger-glu", forward=0.9)]
    loss = {"both": 0.0449, "memory": 2 * 4096 * (128256 + 8192) + 0.7e9}
    rows.append(row("linear_cross_entropy", "lmf-cross-entropy", **loss))
    met = {line[:50].strip(): line.split()[-1] for line in suites.target_lines(suites.part_targets(rows))}
    assert met["lmf-glu, forward, share of the limit"] == "met"
    assert met["lmf-glu, forward, liger's time / ours"] == "missed"
    assert met["lmf-cross-entropy, ms"] == "met" and met["lmf-cross-entropy, GB beside gradients"] == "missed"


def test_what_is_left_when_the_time_is_up_is_not_measured(tmp_path):
    bench = gpu.Bench(gpu.torch.device("cpu"), ["tiny"], gpu.Clock(0), tmp_path, tmp_path / "x.json")
    bench.extend({"part": "glu", "case": "tiny", "by": str(number)} for number in range(5))
    assert not bench.rows and "not measured" in bench.missing()
