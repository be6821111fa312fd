"""LISA on weights that FSDP2 has sharded, and what it refuses there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lmf import ConfigError, LmfError, RunSettings
from lmf.config import make
from lmf.testing import TINY, tiny_model
from lmf_lisa import LisaOptions, build
from lmf_lisa.sampling import drawn
from lmf_lisa.tuner import LisaTuner
from safetensors.torch import load_file, save_file
from tinyrun import far, processes, run, talks
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

STEPS, LAYERS = 8, 4


def tuner(**options: Any) -> LisaTuner:
    made = build(make(LisaOptions, options), TINY)
    assert isinstance(made, LisaTuner)
    made.configure(RunSettings(model="m", data=("d",)))
    return made


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def train(folder: Path, ranks: int, rank: int, **options: Any) -> None:
    """Step the tiny model, each process on its share, and write gradients, weights and the size of the state."""
    lisa = tuner(interval=2, active_layers=1, **options)
    model: Any = lisa.prepare(tiny_model())
    if ranks > 1:
        dist.init_process_group("gloo")
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.AdamW(lisa.groups(model, 1e-4, 0.0), fused=True)
    found: dict[str, torch.Tensor] = {}
    sizes = []
    for step in range(STEPS):
        lisa.before_step(step, optimizer)
        ids = torch.randint(8, 300, (4, 8), generator=torch.Generator().manual_seed(step))
        mine = ids.chunk(ranks)[rank]
        model(input_ids=mine, labels=mine).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[f"{step}/{name}"] = whole(parameter.grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tensors = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
        assert all(isinstance(t, DTensor) == (ranks > 1) for t in tensors)
        local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
        sizes.append(sum(t.numel() for t in local))
        trained = {p for p in model.parameters() if p.requires_grad}
        assert options or set(optimizer.state) == trained
    found |= {f"after/{name}": whole(parameter) for name, parameter in model.named_parameters()}
    if rank == 0:
        save_file(found, folder / f"{ranks}.safetensors")
        (folder / f"{ranks}.json").write_text(json.dumps(sizes))
    if ranks > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"state": "keep"}], ids=str)
def test_two_processes_of_fsdp2_compute_what_one_does_over_switches(options, tmp_path):
    train(tmp_path, 1, 0, **options)
    assert processes(2, lambda rank: train(tmp_path, 2, rank, **options)) == [0, 0]
    one, two = load_file(tmp_path / "1.safetensors"), load_file(tmp_path / "2.safetensors")
    weights, gradients = ({n for n in one if n.startswith("after") == after} for after in (True, False))
    apart = [far({n: two[n] for n in names}, {n: one[n] for n in names}) for names in (gradients, weights)]
    print(f"\n  gradients apart by {apart[0]:.1e}, weights by {apart[1]:.1e}")
    assert one.keys() == two.keys()
    assert max(apart) < 1e-5
    for step in range(STEPS):
        layers = {int(name.split("layers.")[1][0]) for name in two if name.startswith(f"{step}/") and "layers" in name}
        assert layers == set(drawn("uniform", 0, step // 2, LAYERS, 1))
    assert len({drawn("uniform", 0, step // 2, LAYERS, 1) for step in range(STEPS)}) > 2
    alone, half = (json.loads((tmp_path / f"{ranks}.json").read_text()) for ranks in (1, 2))
    assert half == [size / 2 for size in alone]  # every tensor of the tiny model has an even number of rows
    assert options or len(set(alone)) == 1  # what is left is dropped


def sharded(rank: int, message: str, low: bool, **options: Any) -> None:
    lisa = tuner(**options)
    model: Any = lisa.prepare(tiny_model())
    dist.init_process_group("gloo")
    for layer in model.model.layers:
        fully_shard(layer.bfloat16() if low else layer)
    optimizer = torch.optim.AdamW(lisa.groups(model, 1e-4, 0.0))
    with pytest.raises(LmfError, match=message):
        lisa.before_step(0, optimizer)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("low", "options", "message"),
    [
        (True, {}, r"^LISA trains weights in float32 .* FSDP2 fixes the precision .* Load the model in float32, and"),
        (False, {"state": "park"}, r"^--state park moves .* Use --state reset or --state keep\.$"),
    ],
    ids=["weights of 16 bits", "park"],
)
def test_sharded_weights_that_would_have_to_change_are_refused(low, options, message):
    assert processes(2, lambda rank: sharded(rank, message, low, **options)) == [0, 0]


@pytest.mark.parametrize(
    ("parallel", "dtype", "state", "message"),
    [
        ("zero2", "float32", "reset", "^LISA cannot run under DeepSpeed: ZeRO copies what is"),
        ("fsdp", "auto", "reset", "Give --dtype float32 instead of --dtype auto, or --parallel ddp"),
        ("fsdp", "float32", "park", r"Use --state reset or --state keep\.$"),
    ],
)
def test_what_cannot_be_right_is_refused_before_a_model_is_loaded(parallel, dtype, state, message):
    lisa = build(make(LisaOptions, {"state": state}), TINY)
    with pytest.raises(ConfigError, match=message):
        lisa.configure(RunSettings(model="no such model", data=("d",), dtype=dtype, parallel=parallel))


def test_fsdp2_with_weights_of_32_bits_is_not_refused():
    build(LisaOptions(), TINY).configure(RunSettings(model="m", data=("d",), dtype="float32", parallel="fsdp"))


def test_a_run_under_zero_ends_with_the_reason_and_writes_nothing(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 8)
    with pytest.raises(
        ConfigError, match="The method lisa does not work with --parallel zero3; it does with ddp, fsdp"
    ):
        run(tiny, data, tmp_path / "out", "lisa", steps=2, parallel="zero3")
    assert not (tmp_path / "out").exists()
