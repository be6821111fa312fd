"""Deltas: a tuned model comes out bit for bit, with its own base and no other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from terminal import lmf
from transformers import AutoModelForCausalLM, AutoTokenizer


def changed(base: Path, folder: Path, dtype: torch.dtype = torch.float32, rows: int = 0, shard: str = "5GB") -> Path:
    """A model of the same shape with other weights, and with more rows of embeddings if that is wanted."""
    model = AutoModelForCausalLM.from_pretrained(base).to(dtype)
    if rows:
        model.resize_token_embeddings(model.config.vocab_size + rows, mean_resizing=False)
    torch.manual_seed(rows + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        next(model.parameters())[0, 0] = -0.0  # which no subtraction gives back
    model.save_pretrained(folder, max_shard_size=shard)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def bits(folder: Path) -> dict[str, bytes]:
    tensors = {name: each for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}
    return {name: each.contiguous().view(torch.uint8).numpy().tobytes() for name, each in tensors.items()}


@pytest.fixture
def half(tiny, tmp_path) -> Path:
    return changed(tiny, tmp_path / "half", torch.bfloat16)


@pytest.mark.parametrize(("rows", "shard"), [(0, "5GB"), (5, "5GB"), (0, "100KB")])
def test_a_tuned_model_comes_out_bit_for_bit(tiny, tmp_path, rows, shard):
    tuned = changed(tiny, tmp_path / "tuned", rows=rows, shard=shard)
    assert lmf("export", "delta", "make", str(tiny), str(tuned), str(tmp_path / "delta")).code == 0
    assert not list((tmp_path / "delta").glob("model*"))  # nobody takes it for a model
    done = lmf("export", "delta", "apply", str(tiny), str(tmp_path / "delta"), str(tmp_path / "again"))
    assert (done.code, done.err) == (0, "")
    assert bits(tmp_path / "again") == bits(tuned)
    AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    AutoTokenizer.from_pretrained(tmp_path / "again")


def test_precision_is_kept(half, tmp_path):
    tuned = changed(half, tmp_path / "tuned", torch.bfloat16)
    lmf("export", "delta", "make", str(half), str(tuned), str(tmp_path / "delta"))
    lmf("export", "delta", "apply", str(half), str(tmp_path / "delta"), str(tmp_path / "again"))
    assert bits(tmp_path / "again") == bits(tuned)


def test_with_another_base_nothing_is_written(tiny, tmp_path):
    tuned, other = changed(tiny, tmp_path / "tuned"), changed(tiny, tmp_path / "other")
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(other)
        model.model.layers[0].mlp.up_proj.weight[3, 4] += 1e-3
    model.save_pretrained(other)
    lmf("export", "delta", "make", str(tiny), str(tuned), str(tmp_path / "delta"))
    done = lmf("export", "delta", "apply", str(other), str(tmp_path / "delta"), str(tmp_path / "again"))
    assert done.code == 1
    assert "is not the base that" in done.err
    assert not list(tmp_path.glob("*again*"))


def test_models_of_two_precisions_have_no_delta(tiny, half, tmp_path):
    done = lmf("export", "delta", "make", str(tiny), str(half), str(tmp_path / "delta"))
    assert done.code == 1
    assert "has the type torch.float32" in done.err and "--dtype changes the precision" in done.err
    assert not list(tmp_path.glob("*delta*"))


def test_a_delta_of_lmflow_is_applied(tiny, tmp_path):
    """Its script subtracts the values of the base from those of the tuned model, in place."""
    tuned = changed(tiny, tmp_path / "tuned")
    theirs = shutil.copytree(tuned, tmp_path / "theirs")
    base, whole = load_file(tiny / "model.safetensors"), load_file(tuned / "model.safetensors")
    save_file({n: t - base[n] for n, t in whole.items()}, theirs / "model.safetensors", metadata={"format": "pt"})
    assert lmf("export", "delta", "apply", str(tiny), str(theirs), str(tmp_path / "again")).code == 0
    again = load_file(tmp_path / "again/model.safetensors")
    assert max(float((again[name] - tensor).abs().max()) for name, tensor in whole.items()) < 1e-6


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: "{", "is damaged"),
        (lambda v: json.dumps(v | {"files": ["../model.safetensors"]}), "is damaged"),
        (lambda v: json.dumps(v | {"files": ["delta-9.safetensors"]}), "lacks delta-9.safetensors"),
        (lambda v: json.dumps(v | {"tensors": dict([*v["tensors"].items()][1:])}), "does not tell of"),
        (lambda v: json.dumps(v | {"tensors": {}}), "is damaged"),
        (lambda v: json.dumps(v | {"tensors": {"a": {"dtype": "Tensor", "sha256": "x"}}}), "is damaged"),
    ],
)
def test_a_damaged_delta_is_refused(tiny, tmp_path, change, told):
    tuned = changed(tiny, tmp_path / "tuned")
    lmf("export", "delta", "make", str(tiny), str(tuned), str(tmp_path / "delta"))
    file = tmp_path / "delta/delta.json"
    file.write_text(change(json.loads(file.read_text())))
    done = lmf("export", "delta", "apply", str(tiny), str(tmp_path / "delta"), str(tmp_path / "again"))
    assert done.code == 1
    assert told in done.err
    assert not list(tmp_path.glob("*again*"))
