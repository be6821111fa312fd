"""``lmf bench kernels``: what is wrong or fails gets no time, and what is counted is what is there."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmf_kernels.bench.measure as measuring
import pytest
import torch
from lmf import ConfigError, layers
from lmf.testing import tiny_checkpoint
from lmf.training.parts import PLAIN
from lmf_kernels.bench import command, steps
from lmf_kernels.bench.cases import MODELS, Case, Random, Sizes, attention, documents, parts, sizes_of
from lmf_kernels.bench.measure import Limits, measure
from lmf_kernels.bench.tables import rows_of, steps_of, table
from tinyrun import PLUGINS
from transformers import PretrainedConfig

# numpy computes what is beyond the end of a document, and exponentials whose reciprocal is 0
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
CPU = torch.device("cpu")
SIZES = Sizes(name="small", hidden=64, inside=96, heads=4, keys=2, size=32, vocabulary=300, window=9, softcap=20.0)
CASES = [*parts(SIZES, 24), attention(SIZES, [5, 16, 3], "mixed")]
KNOWN = Limits(bandwidth=1e9, rate=1e12)
NAMES = [name for name in PLUGINS.kernels if name.startswith("lmf") and name != "lmf-hopper"]  # which needs a GPU
OURS = [PLUGINS.kernels[name] for name in NAMES]


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time few calls: the figures mean nothing here."""
    for name, number in (("WARM", 0), ("FEWEST", 1), ("MOST", 1)):
        monkeypatch.setattr(measuring, name, number)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.part} {case.name}")
def test_each_contender_is_compared_with_float64_and_timed(case):
    rows = list(rows_of(case, OURS, CPU, torch.float32, KNOWN, compiling=False))
    kernels = [kernel.name for kernel in OURS if kernel.part == case.part]
    assert [row["by"] for row in rows] == ["torch"] * case.eager + ["plain"] + kernels and kernels
    for row in rows:
        assert "why" not in row and 0 < row["error"] < 1e-5, row
        ways = ["both"] if case.together else ["forward", "backward"]
        for way, moved, flops in zip(ways, row["moved"], row["flops"], strict=False):
            if case.together:
                moved, flops = sum(row["moved"]), sum(row["flops"])
            assert row[f"{way} share"] == pytest.approx(max(moved / 1e9, flops / 1e12) / row[way])
    lines = list(table(rows))
    assert lines[0] == f"\n{case.part}, {case.name}" and len(lines) == 2 + len(rows)
    for line, row in zip(lines[2:], rows, strict=True):
        assert line.split()[0] == row["by"] and f"{row['error']:.1e}" in line and " us" in line


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.part)
def test_the_elements_that_must_be_moved_are_those_of_the_large_tensors(case):
    inputs, options = case.make(Random(CPU, torch.float32), 2**62)
    result = case.formula(*inputs, **options)
    outputs = result if isinstance(result, tuple) else (result,)
    large = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad and x.dim() > 1]
    kept = 0 if case.part == "rotary" else sum(x.numel() for x in large)  # what the backward pass reads again
    if case.part == "add_rms_norm":
        kept //= 2  # the sum, which has the gradient of both
        large = large[:1]
    ahead, back = case.moved
    read, written = sum(x.numel() for x in inputs if isinstance(x, torch.Tensor) and x.dim() > 1), 0
    if case.part == "rotary":
        read = sum(x.numel() for x in large)  # angles are small beside heads
    written = sum(x.numel() for x in outputs)
    assert (ahead, back) == (read + written, kept + written + sum(x.numel() for x in large))


def test_the_work_of_attention_is_that_of_the_pairs_that_are_seen():
    for window in (None, 1, 9, 100):
        sizes = replace(SIZES, window=window)
        seen = 0
        for length in (5, 16, 3):
            ahead = torch.arange(length)[:, None] - torch.arange(length)[None, :]
            seen += int(((ahead >= 0) & (ahead < (window or length))).sum())
        assert attention(sizes, [5, 16, 3], "").flops == (4.0 * seen * 32 * 4, 10.0 * seen * 32 * 4)


@pytest.mark.parametrize(("mean", "tokens"), [(128, 16384), (1000, 16384), (128, 100), (1, 7)])
def test_documents_are_about_as_long_as_is_said(mean, tokens):
    lengths = documents(mean, tokens)
    assert sum(lengths) == tokens and min(lengths) > 0
    assert 0.5 * mean < tokens / len(lengths) < 2 * mean or tokens < mean


NORM = CASES[0]


def empty(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Forget to write the last row."""

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            result = torch.empty_like(x)
            result[:-1] = layers.rms_norm(x, weight, eps)[:-1]
            return result

        @staticmethod
        def backward(ctx: Any, *given: torch.Tensor) -> Any:
            return given[0], given[0].sum(0)

    return Norm.apply(x, weight)  # pyright: ignore


def windowless(*given: Any, window: int | None = None, **more: Any) -> torch.Tensor:
    return layers.attention(*given, **more)


def test_a_window_that_is_longer_than_what_is_compared_is_compared_all_the_same():
    case = attention(replace(SIZES, window=1500, softcap=None), [3000], "long")
    row = measure(case, windowless, CPU, torch.float32, KNOWN)
    assert row["why"].startswith("wrong: ")


def test_an_attention_known_by_name_has_no_figures():
    (kernel,) = (each for each in OURS if each.name == "lmf")
    named = replace(kernel, name="named", load=lambda: "sdpa")
    (row,) = rows_of(CASES[-1], [named], CPU, torch.float32, KNOWN, compiling=False, plain=False)
    assert row["by"] == "named" and row["why"] == "LmfError: transformers computes it, as 'sdpa'"


def fails(*_: Any) -> Any:
    raise RuntimeError("no kernel\nimage")


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x, weight, eps: layers.rms_norm(x, weight, eps) * 1.001, "wrong: 1.0e-03 from float64"),
        (
            lambda x, weight, eps: layers.rms_norm(x, weight.detach().requires_grad_(), eps),
            "LmfError: it gives no gradient of argument 1",
        ),
        (empty, "wrong: inf from float64"),
        (fails, "RuntimeError: no kernel image"),
    ],
)
def test_what_is_wrong_or_fails_gets_no_time(function, why):
    row = measure(NORM, function, CPU, torch.float32, KNOWN)
    assert row["why"].startswith(why) and "forward" not in row
    assert why in next(
        line for line in table([{"part": "rms_norm", "case": "small", "by": "x", **row}]) if "  x" in line
    )
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_step_of_adamw_is_compared_too():
    rows = list(steps_of(CPU, KNOWN, True, count=1024))
    assert len(rows) == 4 and not any("why" in row for row in rows)
    assert all(row["error"] < 1e-2 for row in rows)
    table_of = "\n".join(table(rows))
    assert all(row["by"] in table_of for row in rows)
    wrong = steps.Stepper(name="x", begin=lambda w, g: (lambda: None, lambda: w), moved=1)
    assert "wrong" in steps.measure_step(wrong, CPU, KNOWN, 1024)["why"]


def test_the_command_takes_the_sizes_of_a_model_and_writes_its_figures(tmp_path, capsys):
    folder = tiny_checkpoint(tmp_path / "model")
    wanted = {"model": str(folder), "tokens": 16, "dtype": "float32", "device": "cpu", "out": tmp_path / "x.json"}
    command.kernels(command.Wanted(**wanted, kernels=("lmf-glu", "liger-glu")))
    printed = capsys.readouterr().out
    assert f"glu, {folder}" in printed and "attention" not in printed
    assert "not measured: liger-glu: " in printed
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["by"] for row in rows] == ["torch", "plain", "lmf-glu"]


def test_a_model_without_these_sizes_is_refused():
    with pytest.raises(ConfigError, match="no intermediate_size that is one for all layers"):
        sizes_of("x", PretrainedConfig(hidden_size=8, num_attention_heads=2, intermediate_size=[8, 9], vocab_size=3))
    assert MODELS["Llama-3-8B"].keys == 8


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("", "--device cuda: "),
        ("--device cpu --kernels all,lmf", "--kernels all,lmf: give all alone, or names."),
        ("--device cpu --kernels lmf-gul", "No kernel is called 'lmf-gul'. Did you mean 'lmf-glu'"),
        ("--device cpu --tokens 3", "--tokens is 3; it must be at least 16."),
        ("--device cpu --model nosuch", "No model is called 'nosuch'."),
        ("--device cpu --tokens 16 --out /proc/x.json", "--out /proc/x.json cannot be written: "),
    ],
)
def test_wrong_flags_are_refused(flags, told, tmp_path):
    line = [sys.executable, "-m", "lmf_cli", "bench", "kernels", *flags.split()]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode and done.stderr.removeprefix("error: ").startswith(told), done.stderr
    assert not list(Path(tmp_path).iterdir())


def test_a_case_is_of_any_part_that_kernels_have():
    assert {case.part for case in CASES} == {kernel.part for kernel in OURS}
    assert all(hasattr(PLAIN, case.part) and isinstance(case, Case) for case in CASES)
