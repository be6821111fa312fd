"""The loss from hidden states: torch's own cross-entropy in float64, and every gradient, without the logits."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from lmf.encoding.encoder import IGNORED, Example
from lmf.losses import linear_cross_entropy
from lmf.testing import tiny_model
from lmf.training.loss import Learned, find_head, token_loss
from lmf.training.packing import ATTENTION, pack, pad
from peft import LoraConfig, get_peft_model
from test_packing import EXAMPLES, PACKED, PADDED, SIZES, family
from torch.utils._python_dispatch import TorchDispatchMode

K, D, V = 23, 12, 37
VARIANTS = {
    "plain": {},
    "bias": {"bias": True},
    "weights": {"weights": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 2.0},
    "smoothing": {"smoothing": 0.1},
    "z_loss": {"z_loss": 1e-2},
    "all": {"bias": True, "weights": True, "scale": 0.5, "softcap": 3.0, "smoothing": 0.3, "z_loss": 0.1},
}


def tensors(variant, dtype=torch.float32):
    torch.manual_seed(0)
    given = {"hidden": torch.randn(K, D), "weight": torch.randn(V, D)}
    if variant.get("bias"):
        given["bias"] = torch.randn(V)
    differentiable = {name: tensor.to(dtype).requires_grad_() for name, tensor in given.items()}
    weights = torch.rand(K) if variant.get("weights") else None
    return differentiable, torch.randint(0, V, (K,)), weights


def reference(given, targets, weights, scale=1.0, softcap=None, smoothing=0.0, z_loss=0.0):
    """The loss as its definition says, from all logits at once."""
    logits = scale * F.linear(given["hidden"], given["weight"], given.get("bias"))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    losses = losses + z_loss * logits.logsumexp(1) ** 2
    return (losses if weights is None else losses * weights).sum()


def numbers(variant):
    return {name: variant[name] for name in ("scale", "softcap", "smoothing", "z_loss") if name in variant}


def test_where_no_gradient_is_wanted_none_is_made():
    given, targets, _ = tensors({})
    with torch.no_grad(), Products() as made:
        loss = linear_cross_entropy(**given, targets=targets)
    assert made.count == 1 and not loss.requires_grad
    with Products() as made:
        linear_cross_entropy(**given, targets=targets)
    assert made.count == 3


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in ("aten::mm", "aten::addmm", "aten::addmm_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("chunk", [1, 5 * V, V * K, None], ids=lambda chunk: f"chunk {chunk}")
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_loss_and_every_gradient_are_those_of_the_logits_in_float64(variant, chunk):
    given, targets, weights = tensors(variant)
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in given.items()}
    wide = None if weights is None else weights.double()
    want = reference(exact, targets, wide, **numbers(variant))
    loss = linear_cross_entropy(**given, targets=targets, weights=weights, chunk=chunk, **numbers(variant))
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    (0.3 * want).backward()
    (0.3 * loss).backward()
    for name, tensor in given.items():
        apart = (tensor.grad - exact[name].grad).norm() / exact[name].grad.norm()
        assert apart < 1e-6, f"{name}: {apart}"


def test_bfloat16_is_as_near_to_float64_as_torch_is_from_bfloat16_logits():
    given, targets, _ = tensors({}, torch.bfloat16)
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in given.items()}
    usual = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
    want = reference(exact, targets, None)
    theirs = F.cross_entropy(F.linear(usual["hidden"], usual["weight"]).float(), targets, reduction="sum")
    ours = linear_cross_entropy(**given, targets=targets)
    for loss in (want, theirs, ours):
        loss.backward()
    for name, tensor in given.items():
        far = [
            (each.grad.double() - exact[name].grad).norm() / exact[name].grad.norm() for each in (tensor, usual[name])
        ]
        assert far[0] < 1.5 * far[1] and far[1] > 0, f"{name}: {far}"


def test_under_autocast_matrices_are_multiplied_in_its_precision_and_gradients_keep_that_of_the_weights():
    given, targets, _ = tensors({})
    low = {name: tensor.detach().bfloat16() for name, tensor in given.items()}
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(**given, targets=targets)
    assert loss.item() == linear_cross_entropy(**low, targets=targets).item()
    loss.backward()
    assert {tensor.grad.dtype for tensor in given.values()} == {torch.float32}


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen):
    given, targets, _ = tensors({})
    linear_cross_entropy(**given, targets=targets).backward()
    some = {name: tensor.detach().requires_grad_(name != frozen) for name, tensor in given.items()}
    linear_cross_entropy(**some, targets=targets).backward()
    other = "hidden" if frozen == "weight" else "weight"
    assert some[frozen].grad is None
    assert torch.equal(some[other].grad, given[other].grad)


def test_no_prediction_costs_nothing_and_still_has_gradients():
    given, _, _ = tensors({})
    loss = linear_cross_entropy(given["hidden"][:0], given["weight"], torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert given["weight"].grad.abs().sum() == 0


def test_logits_exist_for_no_more_rows_than_a_chunk_has():
    rows = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[1:] == (V,):
                rows.add(len(result))
            return result

    given, targets, _ = tensors({})
    with Watch():
        linear_cross_entropy(**given, targets=targets, chunk=4 * V)
    assert rows == {4, K % 4, D}  # the last is the head, transposed


@pytest.mark.parametrize("name", [*PACKED, *PADDED])
def test_the_parts_of_a_known_family_are_found_so_no_logits_are_made(name):
    packed = name in PACKED
    model = family(name, ATTENTION if packed else "eager")
    assert find_head(model, packed) is not None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft
def test_the_parts_of_a_model_inside_an_adapter_are_found():
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    assert find_head(model, packed=False) is not None


class Odd(transformers.LlamaForCausalLM):
    """A model whose logits are not what its parts give."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output


@pytest.mark.parametrize("make", [pack, pad])
def test_a_model_that_does_more_than_its_parts_is_called_as_a_whole(make):
    torch.manual_seed(0)
    model = Odd(transformers.LlamaConfig(**SIZES)).eval()
    model.set_attn_implementation(ATTENTION if make is pack else "eager")
    assert find_head(model, make is pack) is None
    want = 0.0
    model.set_attn_implementation("eager")
    for example in EXAMPLES:
        logits = model(torch.tensor([example.ids])).logits[0, :-1]
        labels = torch.tensor(example.labels[1:], dtype=torch.long)
        want += F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item()
    model.set_attn_implementation(ATTENTION if make is pack else "eager")
    assert token_loss(model, make(EXAMPLES)).item() == pytest.approx(want, rel=1e-5)


def test_trying_a_model_leaves_its_modes_and_random_numbers_alone():
    model = tiny_model(dropout=0.5).train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    assert find_head(model, packed=False) is not None
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_trying_a_model_under_autocast_leaves_its_weights_their_gradients():
    model, example = tiny_model(), Example([5, 6, 7], [IGNORED, 6, 7], "")
    with torch.autocast("cpu", torch.bfloat16):
        loss = token_loss(model, pad([example]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_head_of_another_size_is_tried_anew():
    model = tiny_model()
    assert find_head(model, packed=False) is not None
    model.resize_token_embeddings(320)
    head = find_head(model, packed=False)
    assert head is not None and head.linear is model.get_output_embeddings()


def test_the_module_that_processes_share_gives_the_loss_of_the_objective():
    class Twice:
        def loss(self, model, batch):
            return 2 * token_loss(model, batch)

    model, batch = tiny_model().eval(), pad([Example([5, 6, 7], [IGNORED, 6, 7], "")])
    assert Learned(model, Twice())(batch).item() == 2 * token_loss(model, batch).item()
