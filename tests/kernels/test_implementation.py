"""``attn_implementation="lmf"`` in plain transformers against its own eager attention."""

from typing import Any

import pytest
import torch
from lmf.testing import tiny_model
from lmf_kernels.implementation import attend, register
from transformers import AutoModelForCausalLM, Gemma2Config

# of numpy, which computes what is beyond the end of a document, too
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SMALL = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 5, "query_pre_attn_scalar": 16}


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    model: Any = tiny_model() if kind == "llama" else AutoModelForCausalLM.from_config(Gemma2Config(**SMALL))
    return model.eval()


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids of three texts of 9, 4 and 1 tokens, and which are no padding."""
    ids = torch.randint(8, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(3, 9, dtype=torch.long)
    for row, length in enumerate((9, 4, 1)):
        mask[row, slice(0, length) if side == "right" else slice(9 - length, 9)] = 1
    return ids, mask


def results(model: Any, name: str, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of what is no padding, and a gradient."""
    model.set_attn_implementation(name)
    model.zero_grad()
    logits = model(**inputs, use_cache=False).logits
    logits = logits[inputs["attention_mask"].bool()] if "attention_mask" in inputs else logits
    logits.logsumexp(-1).sum().backward()
    weight = model.get_submodule("model.layers.0.self_attn.k_proj").weight
    return logits.detach(), weight.grad.clone()


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_padding_is_not_attended_to(side, kind):
    ids, mask = padded(side)
    inputs = {"input_ids": ids} if side == "none" else {"input_ids": ids, "attention_mask": mask}
    model = model_of(kind)
    for ours, theirs in zip(*(results(model, name, **inputs) for name in (register(), "eager")), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)


def test_documents_end_to_end_are_read_apart():
    model = model_of("llama")
    model.set_attn_implementation(register())
    ids = torch.randint(8, 300, (1, 12), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, 5, 12], dtype=torch.int32)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 7, "max_length_k": 7}
    together = model(input_ids=ids, position_ids=positions, **lengths, use_cache=False).logits[0]
    apart = [model(input_ids=part, use_cache=False).logits[0] for part in (ids[:, :5], ids[:, 5:])]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_documents_are_told_by_their_positions(rows):
    ids = torch.randint(8, 300, (rows, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    model = model_of("llama")
    ours, theirs = (results(model, name, input_ids=ids, position_ids=positions) for name in (register(), "eager"))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "none"])
def test_under_autocast_it_computes_in_its_precision(side):
    ids, mask = padded(side)
    inputs = {"input_ids": ids} if side == "none" else {"input_ids": ids, "attention_mask": mask}
    model = model_of("llama")
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (results(model, name, **inputs)[0].float() for name in (register(), "sdpa"))
    assert float((ours - theirs).norm() / theirs.norm()) < 2e-2


def test_without_a_kernel_it_computes_plainly(monkeypatch):
    ids, mask = padded("left")
    model = model_of("llama")
    ours = results(model, register(), input_ids=ids, attention_mask=mask)
    monkeypatch.delenv("TRITON_INTERPRET")
    for a, b in zip(ours, results(model, register(), input_ids=ids, attention_mask=mask), strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def test_a_mask_of_pairs_is_refused():
    model = model_of("llama")
    model.set_attn_implementation(register())
    with pytest.raises(ValueError, match=r"has no masks but of \(rows, tokens\)"):
        model(input_ids=torch.arange(4)[None], attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_generation_with_a_cache_writes_the_same(kind, cache):
    ids, mask = padded("left")
    model = model_of(kind)
    written = []
    for name in (register(), "eager"):
        model.set_attn_implementation(name)
        written.append(
            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                cache_implementation=cache,
                disable_compile=True,
            )
        )
    assert torch.equal(*written)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dropout": 0.1}, "has no dropout"),
        ({"s_aux": torch.zeros(2)}, "has no sinks"),
        ({"is_causal": False}, "has no attention that is not causal"),
    ],
)
def test_what_it_does_not_compute_is_refused(asked, message):
    x = torch.zeros(1, 2, 3, 16)
    with pytest.raises(ValueError, match=message):
        attend(torch.nn.Module(), x, x, x, None, **asked)
    mask = torch.tensor([[1, 1, 1, 0]])
    with pytest.raises(ValueError, match="without padding among them only"):
        attend(torch.nn.Module(), x[:, :, :2], *[torch.zeros(1, 2, 4, 16)] * 2, mask)
