"""The benchmarks of one GPU and of scaling go through to the end, and what they compute is right."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import gpu
import scaling
import synthetic

CPU = torch.device("cpu")
TINY = gpu.SHAPES["tiny"]
# Of the tiny shape: width 64, 4 layers, 4 heads of 16 and 2 of keys and values, 128 inside, 300 tokens
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
ENDS, NORM = 2 * 300 * 64, 64
ALL = ENDS + 4 * LAYER + NORM


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"WARM": 1, "TIMED": 2, "DRAWS": 3, "SWITCHES": 4}.items():
        monkeypatch.setattr(gpu, name, number)


def steps(tmp_path: Path, case: str) -> synthetic.Run:
    given = next(each for each in gpu.CASES if each.name == case)
    return synthetic.Run(synthetic.plan(TINY, tmp_path, given.method, given.options, dtype="float32"), CPU)


def test_the_suite_e2e_measures_everything_on_a_tiny_model_and_its_bytes_are_those_of_arithmetic(short, tmp_path):
    gpu.main(["--suite", "e2e", "--shape", "tiny", "--device", "cpu", "--results", str(tmp_path)])
    rows = json.loads((tmp_path / "cpu-e2e.json").read_text())["rows"]
    memory = {(row["case"], row["setting"]): row for row in rows if row["part"] == "memory"}
    assert memory.keys() == {(case.name, setting) for case in gpu.CASES for setting in gpu.SETTINGS}
    full, lisa, layers = (memory[name, gpu.PAPER] for name in ("full", "LISA E+H+2L", "LISA 2L"))
    counters = 4  # bytes of AdamW's number of steps, one for each tensor
    assert full["gradients"] == 4 * ALL
    assert full["state"] == 8 * ALL + counters * (2 + 4 * 9 + 1)
    assert lisa["state"] == 8 * (ENDS + NORM + 2 * LAYER) + counters * (3 + 2 * 9)
    assert layers["gradients"] == 4 * 2 * LAYER
    assert memory["full", gpu.OURS]["gradients"] == 4 * 300 * 64  # never more than one, and this is the largest
    assert memory["full", gpu.OURS]["counted"] < full["counted"]
    speeds = {row["case"]: row["tokens/s"] for row in rows if row["part"] == "speed"}
    assert speeds.keys() == {case.name for case in gpu.CASES if case.timed} | {gpu.STOCK}
    assert all(rate > 0 for rate in speeds.values())
    (switches,) = (row for row in rows if row["part"] == "switches")
    assert switches["state"] == dict.fromkeys(["0", "2", "4"], lisa["state"])
    text = (tmp_path / "cpu-e2e.txt").read_text()
    assert "tiny, 4 documents of 128 tokens in one row" in text


def test_without_a_gpu_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"finds no GPU here\. .* with --shape tiny --device cpu"):
        gpu.main(["--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="too slow for these models; give --shape tiny"):
        gpu.main(["--device", "cpu", "--results", str(tmp_path)])


def test_what_does_not_fit_or_has_no_time_is_a_row_with_the_reason_and_the_suite_goes_on(tmp_path):
    bench = gpu.Bench(CPU, ["tiny"], gpu.Clock(1), tmp_path, tmp_path / "x.json")

    def too_large() -> gpu.Row:
        raise torch.OutOfMemoryError("CUDA out of memory")

    what = {"part": "memory", "shape": "tiny", "setting": gpu.PAPER}
    bench.add(too_large, **what, case="full")
    bench.clock = gpu.Clock(0)
    bench.add(dict, **what, case="E+H")
    table = list(gpu.memory_tables(bench.rows))
    assert table[-2:] == ["full          out of memory", "E+H           skipped: the time is up"]


def test_a_target_is_met_missed_or_not_measured():
    def speed(case: str, rate: float) -> gpu.Row:
        return {"part": "speed", "shape": "llama-2-7b", "case": case, "tokens/s": rate}

    table = {
        line[:46].strip(): line.split()[-1] for line in gpu.target_table([speed("full", 9500), speed("LISA 2L", 1)])
    }
    assert table["full, tokens/s"] == "met"
    assert table["LISA 2L, tokens/s"] == "missed"
    assert table["LISA E+H+2L, tokens/s"] == "measured"  # not measured


def test_memory_is_forecast_without_a_gpu_and_the_paper_stands_beside_llama_2_7b_only(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "CASES", gpu.CASES[:1])
    monkeypatch.setattr(gpu, "DRAWS", 2)
    gpu.main(["--forecast", "--shape", "tiny", "--results", str(tmp_path)])
    lines = (tmp_path / "gpu-forecast.txt").read_text().splitlines()
    assert "FORECAST, not measured, as for a cpu" in lines
    assert [line.split()[-1] for line in lines if line.startswith("full  ")][:2] == ["-", "-"]
    row = {"part": "memory", "shape": "llama-2-7b", "setting": gpu.PAPER, "case": "full", "counted": 1e9}
    assert list(gpu.memory_tables([row]))[-1].split() == ["full", "1.00", "59"]


@pytest.mark.parametrize("case", ["full", "LoRA r16", "LISA E+H+2L", "LISA 2L", "E+H"])
def test_the_work_of_a_step_is_what_torch_counts_in_its_multiplications(case, tmp_path):
    run, lengths = steps(tmp_path, case), [20, 30]
    batch = synthetic.batch(lengths, TINY.vocabulary, CPU)
    at = run.deepest(5)
    run.step(at, batch)  # tries the head, which is work of its own
    aten = torch.ops.aten
    in_place = {aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1]}  # which torch leaves out
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        run.step(at, batch)
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for name, flops in counted.items() if name in (aten.mm, aten.addmm, aten.addmm_))
    # causal scores and their use for the values, forward, and twice that backward in each layer that it passes
    passes = 4 + 2 * sum(number >= run.tuner.active[0] for number in range(4)) if case == "LISA 2L" else 12
    attention = 4 * TINY.width * (20**2 + 30**2) // 2 * passes
    assert sum(synthetic.work(run, lengths, len(batch.index))) == products + attention


def test_an_exponent_is_that_of_the_power_and_a_steeper_slope_is_told():
    points = [{"x": float(x), "seconds": 3.0 * x**1.5, "bytes": 7.0 * x} for x in (10, 100, 1000)]
    assert scaling.exponent(points, "seconds") == pytest.approx(1.5)
    assert scaling.local_exponents(points, "bytes") == pytest.approx([1.0, 1.0])
    curve = scaling.Curve(
        name="cost", axis="tokens", xs=(10, 100, 1000), measure=lambda x: "", slopes={"seconds": 1.0, "bytes": 1.0}
    )
    assert list(scaling.surprises(curve, points)) == [
        "cost: seconds from 10 to 100 tokens: exponent 1.50, at most 1 was expected",
        "cost: seconds from 100 to 1,000 tokens: exponent 1.50, at most 1 was expected",
    ]


def test_points_that_are_measured_are_kept_and_those_that_were_not_are_tried_again(tmp_path):
    asked = []

    def measure(x: int) -> scaling.Point | str:
        asked.append(x)
        return "needs 20.0 GB, and 10.0 GB are free" if asked.count(2) == 1 and x == 2 else {"x": x, "seconds": x}

    curve = scaling.Curve(name="cost", axis="tokens", xs=(1, 2), measure=measure, slopes={"seconds": 1.0})
    first = scaling.Results(tmp_path / "found.json")
    first.fill(curve)
    assert list(first.missing(curve)) == ["2: needs 20.0 GB, and 10.0 GB are free"]
    again = scaling.Results(tmp_path / "found.json")
    again.fill(curve)
    assert asked == [1, 2, 2]
    assert again.points(curve) == [{"x": 1, "seconds": 1}, {"x": 2, "seconds": 2}]


def test_a_run_on_records_is_measured_in_a_process_of_its_own():
    point = scaling._records(40, True)
    assert isinstance(point, dict), point
    assert point["x"] == 40
    assert point["seconds to the first step"] > point["seconds a step"] > 0
    assert point["bytes to the first step"] > 0


def test_a_step_that_does_not_fit_is_left_out_with_what_it_needs(monkeypatch):
    monkeypatch.setattr(scaling, "_free", lambda: 0)
    assert scaling._step("full", 1, 64, [8]) == "needs 0.0 GB, and 0.0 GB are free"
