"""What kernels are tried on: the options of a definition, and what a model asks for."""

from types import SimpleNamespace
from typing import Any

import lmf
import pytest
import torch
from lmf import PluginError, layers, losses
from lmf.errors import LmfError
from lmf.testing import check_kernel
from lmf.training.parts import load_parts
from lmf.training.trials import trials
from tinyrun import Notes
from transformers import GPT2Config, MambaConfig, MistralConfig

CPU = torch.device("cpu")


def kernel(part: Any, function: Any, **more: Any) -> lmf.Kernel:
    return lmf.Kernel(name="acme", summary="x", part=part, **{"why_not": lambda: None, "load": lambda: function} | more)


def config(**sizes: Any) -> Any:
    found = MistralConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, sliding_window=4096)
    for name, value in sizes.items():
        setattr(found, name, value)
    return found


def parts_of(given: lmf.Kernel, config: Any, asked: bool = True) -> tuple[Any, list[str]]:
    notes = Notes()
    found = load_parts({given.part: given}, lambda _: asked, config, torch.float32, CPU, notes)
    return found, notes.notes


WRONG: dict[str, tuple[str, Any]] = {
    "the activation": ("glu", lambda gate, up, activation: layers.glu(gate, up, "silu")),
    "the offset": ("rms_norm", lambda x, weight, eps, *, offset=False: layers.rms_norm(x, weight, eps)),
    "eps": ("rms_norm", lambda x, weight, eps, *, offset=False: layers.rms_norm(x, weight, 1e-6, offset=offset)),
    "the residual": (
        "add_rms_norm",
        lambda x, residual, weight, eps, *, offset=False: (
            layers.rms_norm(x, weight, eps, offset=offset),
            residual + x,
        ),
    ),
    "angles of other rows": (
        "rotary",
        lambda q, k, cos, sin, dim=1: layers.rotary(q, k, cos[:1], sin[:1], dim),
    ),
    **{
        f"{name} of attention": (
            "attention",
            lambda q, k, v, bounds, *, name=name, **more: layers.attention(q, k, v, bounds, **more | {name: None}),
        )
        for name in ("scale", "window", "softcap")
    },
    **{
        f"{name} of the loss": (
            "linear_cross_entropy",
            lambda hidden, weight, targets, *, name=name, **more: losses.linear_cross_entropy(
                hidden, weight, targets, **{key: value for key, value in more.items() if key != name}
            ),
        )
        for name in ("bias", "weights", "scale", "softcap", "smoothing", "z_loss")
    },
}


@pytest.mark.parametrize("what", WRONG)
def test_a_kernel_that_ignores_an_argument_is_found(what):
    with pytest.raises(AssertionError, match="off by"):
        check_kernel(kernel(*WRONG[what]))


def test_a_kernel_may_refuse_an_option_but_not_all():
    def windowless(*given: Any, window: int | None = None, **more: Any) -> torch.Tensor:
        if window:
            raise LmfError("no window")
        return layers.attention(*given, **more)

    def nothing(*_: Any, **__: Any) -> Any:
        raise LmfError("nothing")

    check_kernel(kernel("attention", windowless))
    with pytest.raises(AssertionError, match="nothing"):
        check_kernel(kernel("attention", nothing))


@pytest.mark.parametrize(
    ("what", "more"),
    [
        ("window of attention", {}),
        ("softcap of attention", {"attn_logit_softcapping": 3.0}),
        ("softcap of the loss", {"final_logit_softcapping": 3.0}),
        ("scale of the loss", {"logit_scale": 0.5}),
        ("the activation", {}),
        ("the offset", {}),
    ],
)
def test_what_a_model_asks_for_is_tried_before_a_run(what, more):
    with pytest.raises(LmfError, match=r"^The kernel acme cannot compute .* here: it differs by"):
        parts_of(kernel(*WRONG[what]), config(**more))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1 in this model, and no kernel drops weights"),
        ({"v_head_dim": 8}, "the heads of values are of another size than those of queries"),
    ],
)
def test_attention_that_no_kernel_computes_is_left_out_or_refused(more, reason):
    found, notes = parts_of(kernel("attention", layers.attention), config(**more), asked=False)
    (note,) = notes
    assert not found.kernels and note.startswith(f"attention is computed without the kernel acme: {reason}")
    with pytest.raises(LmfError, match=f"^The kernel acme cannot compute attention here: {reason}"):
        parts_of(kernel("attention", layers.attention), config(**more))


def test_a_part_that_a_model_has_no_size_for_is_not_tried():
    for part in ("glu", "attention", "rotary"):
        assert not trials(part, MambaConfig(intermediate_size=None), torch.float32, CPU)
    assert not trials("glu", GPT2Config(), torch.float32, CPU)
    assert trials("rms_norm", MambaConfig(), torch.float32, CPU)
    widest = SimpleNamespace(intermediate_size=[8, 24, 16])
    widest.get_text_config = lambda: widest
    assert trials("glu", widest, torch.float32, CPU)[0][0][0].shape == (7, 24)


@pytest.mark.parametrize("loaded", [None, "flash"])
def test_what_is_no_function_is_no_kernel(loaded):
    given = kernel("glu", None, load=lambda: loaded)
    _, notes = parts_of(given, config(), asked=False)
    assert notes == [f"glu is computed without the kernel acme: load returned {loaded!r}, which is no function"]


def test_a_kernel_that_cannot_tell_whether_it_runs_does_not():
    def fails() -> str | None:
        raise RuntimeError("no driver")

    assert kernel("glu", layers.glu, why_not=fails).reason() == "it cannot tell: RuntimeError: no driver"


def test_a_kernel_of_an_unknown_part_is_refused():
    with pytest.raises(PluginError, match="the kernel 'acme' computes 'gul'; it must be attention, rms_norm,"):
        kernel("gul", layers.glu)
