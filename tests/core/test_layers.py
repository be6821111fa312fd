"""Parts of a decoder: their definitions in float64, every gradient, what they keep, and where they are put."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from lmf.layers import glu, rms_norm, rotary
from lmf.testing import tiny_model
from lmf.training.lean import lean
from peft import LoraConfig, get_peft_model
from test_packing import PACKED, SIZES, assert_same_gradients, family, gradients
from torch import nn


def plain_norm(x, weight, offset):
    return (weight + 1 if offset else weight) * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def plain_glu(gate, up, activation):
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


def plain_rotary(x, cos, sin):
    x, rest = x[..., :8], x[..., 8:]
    return torch.cat([x * cos + torch.cat([-x[..., 4:], x[..., :4]], dim=-1) * sin, rest], dim=-1)


def angles():
    angle = torch.randn(2, 5, 8)
    return angle.cos(), angle.sin()


def our_rotary(x):
    cos, sin = angles()
    return rotary(x, x[:, :1], cos.to(x), sin.to(x))[0]


def their_rotary(x):
    cos, sin = angles()
    return plain_rotary(x, cos.to(x).unsqueeze(1), sin.to(x).unsqueeze(1))


BLOCKS = {
    "rms_norm": (
        lambda x, w: rms_norm(x, w, 1e-6),
        lambda x, w: plain_norm(x, w, False),
        [(2, 7, 24), (24,)],
    ),
    "rms_norm, offset": (
        lambda x, w: rms_norm(x, w, 1e-6, offset=True),
        lambda x, w: plain_norm(x, w, True),
        [(2, 7, 24), (24,)],
    ),
    "glu, silu": (lambda a, b: glu(a, b, "silu"), lambda a, b: plain_glu(a, b, "silu"), [(2, 7, 24)] * 2),
    "glu, gelu": (lambda a, b: glu(a, b, "gelu"), lambda a, b: plain_glu(a, b, "gelu"), [(2, 7, 24)] * 2),
    "rotary": (our_rotary, their_rotary, [(2, 3, 5, 8)]),
    "rotary, a part": (our_rotary, their_rotary, [(2, 3, 5, 12)]),
}
each_block = pytest.mark.parametrize(("block", "plain", "shapes"), BLOCKS.values(), ids=BLOCKS)


def with_gradients(function, given, dtype):
    given = [x.to(dtype).requires_grad_() for x in given]
    torch.manual_seed(1)  # the angles
    result = function(*given)
    result.backward(torch.linspace(-1, 1, result.numel()).view(result.shape).to(result.dtype))
    return [result.detach(), *(x.grad for x in given)]


@each_block
def test_a_block_and_every_gradient_are_its_definition_in_float64(block, plain, shapes):
    torch.manual_seed(0)
    given = [torch.randn(shape) for shape in shapes]
    want = with_gradients(plain, given, torch.float64)
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        for ours, exact in zip(with_gradients(block, given, dtype), want, strict=True):
            assert ours.dtype == dtype
            assert (ours - exact).norm() <= allowed * exact.norm()


@each_block
def test_in_bfloat16_a_block_is_as_near_to_float64_as_plain_torch(block, plain, shapes):
    torch.manual_seed(0)
    given = [torch.randn(shape).bfloat16() for shape in shapes]
    exact = with_gradients(plain, given, torch.float64)
    usual = with_gradients(plain, given, torch.bfloat16)
    ours = with_gradients(block, given, torch.bfloat16)
    for mine, theirs, want in zip(ours, usual, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - want).norm() < 1.5 * (theirs - want).norm()


def kept(function, *given):
    """Return the storage kept for the backward pass beside what was given, in elements."""
    given = [x.requires_grad_() for x in given]
    found = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: found.update({x.data_ptr(): x.numel()}) or x, lambda x: x):
        function(*given)
    return sum(size for place, size in found.items() if place not in {x.data_ptr() for x in given})


def test_a_norm_keeps_a_number_a_row_and_a_gated_unit_nothing():
    x = torch.randn(7, 24)
    assert kept(lambda x, w: rms_norm(x, w, 1e-6), x, torch.randn(24)) == 7
    assert kept(lambda a, b: glu(a, b, "silu"), x, x.clone()) == 0
    assert kept(lambda x, w: plain_norm(x, w, False), x, torch.randn(24)) > 7 * 24


def test_what_is_frozen_gets_no_gradient():
    x, weight = torch.randn(7, 24, requires_grad=True), torch.randn(24)
    rms_norm(x, weight, 1e-6).sum().backward()
    assert weight.grad is None and x.grad is not None


# in a model

WHOLE = ("llama", "qwen2", "qwen2, window", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral", "granite")


def exchanged(model: nn.Module) -> dict[str, int]:
    """Make a model lean and return how many parts of each kind were exchanged."""
    before = [type(module) for module in model.modules()]
    lean(model)
    kinds = {"norm": 0, "mlp": 0, "attention": 0}
    for module, kind in zip(model.modules(), before, strict=True):
        if type(module) is not kind:
            assert isinstance(module, kind) and type(module).__name__ == kind.__name__
            kinds[next(name for name in kinds if name in kind.__name__.lower())] += 1
    return kinds


@pytest.mark.parametrize("name", PACKED)
def test_a_lean_model_has_the_loss_and_gradients_of_plain_transformers(name):
    model, ids = family(name), torch.arange(3, 25).view(2, 11)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    lighter = copy.deepcopy(model)
    layers = SIZES["num_hidden_layers"]
    parts = exchanged(lighter)
    if name in WHOLE:
        assert parts["mlp"] == parts["attention"] == layers and parts["norm"] > 2 * layers
    losses = [each(ids, labels=ids).loss for each in (model, lighter)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert_same_gradients(gradients(lighter, losses[1]), gradients(model, losses[0]))
    assert model.state_dict().keys() == lighter.state_dict().keys()


def test_a_rotation_of_neighbours_and_a_norm_by_mean_and_variance_are_left():
    assert exchanged(family("cohere")) == {"norm": 0, "mlp": 3, "attention": 0}


class Dropping(nn.Module):
    """Looks like the gated unit of Llama and drops, or has a factor."""

    def __init__(self, p=0.0, factor=1.0):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.act_fn, self.dropout, self.factor = nn.SiLU(), nn.Dropout(p), factor

    def forward(self, x):
        return self.down_proj(self.dropout(self.act_fn(self.gate_proj(x)) * self.up_proj(x))) * self.factor


def test_a_part_that_only_looks_alike_is_left():
    torch.manual_seed(0)
    for odd in (Dropping(p=0.5), Dropping(factor=2.0)):
        lean(odd.eval())
        assert type(odd) is Dropping and not odd.training
    same = Dropping()
    lean(same)
    assert type(same) is not Dropping


def test_a_part_that_gives_only_zeros_is_left():
    silent = Dropping()
    nn.init.zeros_(silent.down_proj.weight)
    nn.init.zeros_(silent.down_proj.bias)
    lean(silent)
    assert type(silent) is Dropping


def test_two_models_of_one_family_share_the_classes_and_other_models_are_left_alone():
    one, two, untouched = (transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)) for _ in range(3))
    lean(one)
    lean(two)
    assert [type(module) for module in one.modules()] == [type(module) for module in two.modules()]
    assert type(untouched.model.norm) is type(untouched.model.layers[0].input_layernorm) is not type(one.model.norm)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft
def test_an_adapter_can_be_put_on_a_lean_model():
    model = tiny_model()
    plain = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    lean(model)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapted.load_state_dict(plain.state_dict())
    ids = torch.arange(3, 25).view(2, 11)
    losses = [each(input_ids=ids, labels=ids).loss for each in (plain, adapted)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert_same_gradients(gradients(adapted, losses[1]), gradients(plain, losses[0]))
