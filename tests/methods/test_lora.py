"""LoRA: plain peft as the reference, what is trained, and adapters that last."""

import copy
import dataclasses
import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tinyrun
import torch
import torch.nn.functional as F
from lmf import ConfigError, LmfError, Plugins
from lmf.config import make
from lmf.encoding.encoder import Example
from lmf.errors import Interrupted
from lmf.generate.opening import open_model
from lmf.testing import TINY, check_method, tiny_checkpoint, tiny_model, tiny_tokenizer
from lmf.training.loss import find_head, token_loss
from lmf.training.packing import pad
from lmf_cli.app import build as command_line
from lmf_lora import LoraOptions, build, lmf_methods
from lmf_lora.linear import UpdatedEmbedding
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)
from typer.testing import CliRunner

# peft 0.21 asks transformers 5.23 for `is_gradient_checkpointing`, an old name; here where the tests call it directly
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = torch.randint(10, 300, (4, 16), generator=torch.Generator().manual_seed(0))
NEW = [3, 5]  # ids that are taken for new tokens
TALK_IDS = torch.cat([IDS, torch.tensor(NEW * 2)[:, None]], dim=1)  # with new tokens in them
ATTENTION = ("q_proj", "v_proj")
README = (Path(__file__).parents[2] / "packages/methods/lora/README.md").read_text()
FILES = ["adapter_config.json", "adapter_model.safetensors"]

# Settings, and what they mean to peft, written down a second time
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "gaussian": ({"init": "gaussian"}, {"init_lora_weights": "gaussian"}),
    "pissa": ({"init": "pissa"}, {"init_lora_weights": "pissa"}),
    "olora": ({"init": "olora"}, {"init_lora_weights": "olora"}),
    "rslora": ({"rslora": True, "rank": 4}, {"use_rslora": True, "r": 4}),
    "dora": ({"dora": True}, {"use_dora": True}),
    "all-linear": ({"target": ("all-linear",), "alpha": 5.0}, {"target_modules": "all-linear", "lora_alpha": 5}),
    "dropout": ({"dropout": 0.5}, {"lora_dropout": 0.5}),
    "lora_only": ({"bias": "lora_only", "target": ATTENTION}, {"bias": "lora_only", "target_modules": [*ATTENTION]}),
    "all": ({"bias": "all", "target": ATTENTION}, {"bias": "all", "target_modules": [*ATTENTION]}),
    "head": ({"modules_to_save": ("lm_head",)}, {"modules_to_save": ["lm_head"]}),
    "everything": (
        {
            "init": "pissa",
            "rslora": True,
            "dora": True,
            "dropout": 0.1,
            "bias": "all",
            "modules_to_save": ("model.norm",),
        },
        {
            "init_lora_weights": "pissa",
            "use_rslora": True,
            "use_dora": True,
            "lora_dropout": 0.1,
            "bias": "all",
            "modules_to_save": ["model.norm"],
        },
    ),
}
cases = pytest.mark.parametrize(("options", "settings"), CASES.values(), ids=CASES.keys())


def biased_model(seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """A random Llama with 2 layers and a bias in every linear layer but the head."""
    small: dict[str, Any] = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**small, attention_bias=True, mlp_bias=True, **config))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # transformers begins with zeros
                nn.init.normal_(parameter, std=0.1)
        return model


def gpt2() -> GPT2LMHeadModel:
    """A random GPT-2: its linear layers are stored transposed (Conv1D), its head is tied."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=64))


GPT2 = dataclasses.replace(TINY, projections=("c_attn", "c_proj", "c_fc"))


def prepared(
    base: nn.Module, new_tokens: Sequence[int] = (), *, seed: int = 1, spec: Any = TINY, **options: Any
) -> Any:
    """A tuner, and a copy of a model that it prepared."""
    tuner = build(make(LoraOptions, options), spec)
    torch.manual_seed(seed)
    return tuner, tuner.prepare(copy.deepcopy(base), new_tokens)


def learn(model: Any, ids: torch.Tensor = IDS, count: int = 3) -> Any:
    """Train what is to be trained on one batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    torch.manual_seed(2)
    for _ in range(count):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """The names of tensors that are not the same bits."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def assert_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Every tensor of float64 is the same but for rounding, which the steps of the optimizer magnify."""
    assert one.keys() == other.keys()
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


# Plain peft is the reference


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("lora_only", "all", "everything")])
def test_lora_keeps_the_promises_of_a_tuning_method(name, tmp_path):
    options = make(LoraOptions, CASES[name][0])
    [method] = lmf_methods()
    torch.manual_seed(0)
    check_method(dataclasses.replace(method, build=lambda _, spec: build(options, spec)), tmp_path)


@cases
def test_logits_and_gradients_are_those_of_plain_peft(options, settings):
    base = biased_model()
    ours = prepared(base, **options)[1]
    torch.manual_seed(1)
    common = {"r": 16, "lora_alpha": 32, "target_modules": list(TINY.projections), "task_type": "CAUSAL_LM"}
    reference = get_peft_model(copy.deepcopy(base), LoraConfig(**common | settings))
    assert different(state(ours), state(reference)) == []
    for model in (ours.double(), reference.double()):  # so that what remains is no more than rounding
        learn(model)  # away from B = 0
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert_near(state(ours), state(reference))
    assert_near({"": logits(ours)}, {"": logits(reference)})
    gradients = [{n: p.grad for n, p in model.named_parameters() if p.requires_grad} for model in (ours, reference)]
    assert len(gradients[0]) >= 8
    assert_near(*gradients)


def test_a_plain_update_keeps_its_input_and_no_copy_of_it():
    """In bfloat16, peft keeps the input in float32 besides, once for each layer."""
    layer = prepared(biased_model().bfloat16(), rank=4)[1].get_base_model().model.layers[0].self_attn
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(1, 50, layer.q_proj.in_features, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for each in (layer.q_proj, layer.k_proj, layer.v_proj):
            each(x)
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    activations = sum(size for place, size in kept.items() if place not in parameters)
    assert activations == x.numel() * 2 + 3 * 50 * 4 * 2  # x, and A(x) of each


@cases
def test_plain_peft_loads_what_is_saved_on_the_original_base(options, settings, tmp_path):
    base = biased_model()
    tuner, model = prepared(base, **options)
    tuner.save(learn(model), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    assert (logits(base) - logits(model)).abs().max() > 0.01


@cases
def test_a_saved_adapter_is_put_back_bit_for_bit(options, settings, tmp_path):
    base = biased_model()
    tuner, model = prepared(base, NEW, **options)
    tuner.save(learn(model, TALK_IDS), tmp_path / "a")
    other, again = prepared(base, NEW, seed=5, **options)
    other.load(again, tmp_path / "a")
    assert different(state(model), state(again)) == []
    other.save(again, tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# peft's conversion loads the start as a second adapter, and warns of what it does itself
@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights of the model:UserWarning")
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_decomposed_update_is_saved_as_peft_converts_it(init, tmp_path):
    tuner, model = prepared(tiny_model(), init=init)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = init
    tuner.save(learn(model), tmp_path / "ours")
    model.save_pretrained(tmp_path / "peft", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    assert different(*(load_file(tmp_path / by / FILES[1]) for by in ("ours", "peft"))) == []
    ours, theirs = (LoraConfig.from_pretrained(str(tmp_path / by)) for by in ("ours", "peft"))
    assert (ours.r, ours.lora_alpha, ours.init_lora_weights) == (32, 64, True)
    assert (theirs.r, theirs.lora_alpha, theirs.init_lora_weights) == (32, 64, True)


@cases
def test_the_merged_model_gives_the_same_logits(options, settings):
    model = learn(prepared(biased_model(), **options)[1])
    before = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), before, rtol=0, atol=1e-5)


@cases
def test_the_base_and_only_the_base_stays_frozen(options, settings):
    model = prepared(biased_model(), NEW, **options)[1]
    before, trained = state(model), {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(different(before, state(learn(model, TALK_IDS)))) == trained
    usual = ("lora_A", "lora_B", "lora_magnitude_vector", "trainable_tokens_delta", "modules_to_save")
    rest = {name for name in trained if not any(part in name for part in usual)}
    assert all(name.endswith("bias") for name in rest)
    assert bool(rest) == ("bias" in options)


# What every setting does


def test_the_update_is_scaled_by_alpha_over_rank_or_over_its_root():
    layer = "base_model.model.model.layers.1.mlp.up_proj"
    for options, scale in (({}, 6 / 4), ({"rslora": True}, 6 / math.sqrt(4))):
        base = tiny_model()
        model = prepared(base, rank=4, alpha=6.0, **options)[1]
        module = model.get_submodule(layer)
        a, b = module.lora_A.default.weight, module.lora_B.default.weight
        nn.init.normal_(b)
        assert a.shape == (4, 64)
        assert b.shape == (128, 4)
        weight = base.model.layers[1].mlp.up_proj.weight + scale * b @ a
        x = torch.randn(3, 64)
        torch.testing.assert_close(module(x), x @ weight.T)


def test_dora_learns_the_length_of_each_row_of_the_weight_apart():
    base = tiny_model()
    model = prepared(base, rank=4, alpha=6.0, dora=True)[1]
    module = model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
    nn.init.normal_(module.lora_B.default.weight, std=0.1)
    magnitude = module.lora_magnitude_vector.default.weight
    original = base.model.layers[1].mlp.up_proj.weight
    torch.testing.assert_close(magnitude.data, original.data.norm(dim=1))
    magnitude.data *= 2
    moved = original + 6 / 4 * module.lora_B.default.weight @ module.lora_A.default.weight
    weight = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)  # arXiv 2402.09353, eq. 5
    x = torch.randn(3, 64)
    torch.testing.assert_close(module(x), x @ weight.T, rtol=1e-4, atol=1e-5)


def test_dropout_is_decided_by_the_seed_and_only_in_training():
    model = learn(prepared(tiny_model(), dropout=0.5)[1])

    def in_training(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.train()(input_ids=IDS).logits.detach()

    assert torch.equal(in_training(3), in_training(3))
    assert not torch.equal(in_training(3), in_training(4))
    assert torch.equal(logits(model), logits(model))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_decomposition_changes_the_base_but_not_the_model(init):
    base = tiny_model()
    model = prepared(base, init=init)[1]
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    original = base.model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(layer.base_layer.weight, original)
    torch.testing.assert_close(logits(model), logits(base), rtol=0, atol=1e-5)
    if init == "pissa":  # the rest has no more of the 16 largest singular values, arXiv 2404.02948
        left = torch.linalg.svdvals(layer.base_layer.weight.data)
        torch.testing.assert_close(left[:48], torch.linalg.svdvals(original.data)[16:], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"bias": "all"}, {"modules_to_save": ("norm", "lm_head")}])
def test_the_learning_rates_are_those_of_the_loraplus_optimizer_of_peft(options):
    tuner, model = prepared(biased_model(), NEW, lr_ratio=16.0, **options)
    reference = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.001, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}

    def of_each(groups: list[dict[str, Any]], key: str) -> dict[str, float]:
        return {names[id(p)]: group[key] for group in groups for p in group["params"]}

    groups = tuner.groups(model, 0.001, 0.1)
    assert of_each(groups, "lr") == of_each(reference.param_groups, "lr")
    assert len(of_each(groups, "lr")) == len(names)
    for name, decay in of_each(groups, "weight_decay").items():
        assert decay == (0.1 if model.get_parameter(name).ndim >= 2 else 0), name


def test_without_a_ratio_everything_learns_at_one_rate():
    tuner, model = prepared(tiny_model())
    assert {group["lr"] for group in tuner.groups(model, 0.001, 0.1)} == {0.001}


@pytest.mark.parametrize(
    ("bias", "where"),
    [
        ("lora_only", {"self_attn.q_proj"}),
        ("all", {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}),
    ],
)
def test_bias_trains_those_of_the_updated_layers_or_all(bias, where):
    model = prepared(biased_model(), bias=bias, target=("q_proj",))[1]
    trained = [n for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")]
    assert {n.removesuffix(".bias").removesuffix(".base_layer").partition("layers.")[2][2:] for n in trained} == where


def test_a_module_to_save_is_the_named_one_and_no_other_whose_name_ends_alike():
    model = prepared(tiny_model(), modules_to_save=("norm",))[1]
    whole = [n for n, p in model.named_parameters() if p.requires_grad and "modules_to_save" in n]
    assert whole == ["base_model.model.model.norm.modules_to_save.default.weight"]  # not input_layernorm


def test_modules_that_are_saved_whole_get_no_update():
    model = prepared(tiny_model(), modules_to_save=("mlp", "up_proj"))[1]
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert not [n for n in trained if ".mlp." in n and "lora" in n]
    assert len([n for n in trained if ".mlp.modules_to_save." in n]) == 12
    assert [n for n in trained if "q_proj.lora_A" in n]


# Targets


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (("auto",), set(TINY.projections)),
        (("all-linear",), set(TINY.projections)),
        (("q_proj", "mlp.up_proj"), {"q_proj", "up_proj"}),
        (("lm_head",), {"lm_head"}),
        (("model.layers.2.self_attn.q_proj",), {"q_proj"}),
    ],
)
def test_target_chooses_the_layers(target, names):
    model = prepared(tiny_model(), target=target)[1]
    updated = [n for n, _ in model.named_parameters() if "lora_A" in n]
    assert {n.split(".lora_A")[0].rpartition(".")[2] for n in updated} == names
    assert len(updated) == {("lm_head",): 1, ("model.layers.2.self_attn.q_proj",): 1}.get(target, 4 * len(names))


def test_auto_passes_over_projections_that_the_model_lacks():
    spec = dataclasses.replace(TINY, projections=("q_proj", "c_attn"))
    model = prepared(tiny_model(), spec=spec)[1]
    assert all("q_proj" in n for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": ("q_prj",)},
            "--target q_prj fits no linear layer. Did you mean 'q_proj'?\n"
            "The model has down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj.",
        ),
        ({"target": ("q_proj", "proj")}, "--target proj fits no linear layer."),
        ({"target": ("self_attn",)}, "--target self_attn fits no linear layer."),
        ({"target": ("embed_tokens",)}, "--target embed_tokens fits no linear layer."),
        (
            {"target": ("q_proj",), "modules_to_save": ("self_attn",)},
            "--target q_proj fits no linear layer outside --modules-to-save.",
        ),
        ({"target": ()}, "--target is empty; give auto, all-linear, or the names of layers."),
        ({"target": ("auto", "lm_head")}, "--target auto stands for several layers; give it alone."),
        ({"modules_to_save": ("lmhead",)}, "--modules-to-save lmhead fits no module. Did you mean 'lm_head'?"),
        (
            {"modules_to_save": ("layers",)},
            "--modules-to-save layers is a list of modules; name modules that are in it.",
        ),
        ({"modules_to_save": ("model",)}, "--target auto fits no linear layer outside --modules-to-save."),
        ({"bias": "all"}, "--bias all: the model has no biases."),
        ({"bias": "lora_only"}, "--bias lora_only: the layers of --target have no biases."),
        (
            {"init": "pissa", "rank": 33},
            "--rank 33 is more than --init pissa can take from model.layers.0.self_attn.k_proj: "
            "its smaller side is 32.",
        ),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(options, message):
    with pytest.raises(ConfigError) as error:
        prepared(tiny_model(), **options)
    assert message in str(error.value)


def test_auto_on_a_model_of_another_kind_names_its_layers():
    with pytest.raises(ConfigError) as error:
        prepared(gpt2())
    assert str(error.value) == "--target auto fits no linear layer.\nThe model has c_attn, c_fc, c_proj, lm_head."


def test_an_update_of_a_tied_head_is_refused():
    with pytest.raises(ConfigError, match="--target lm_head: it is one matrix with the input embeddings"):
        prepared(tiny_model(tied=True), target=("lm_head",))


@pytest.mark.parametrize("init", ["default", "pissa"])
@pytest.mark.parametrize("dora", [False, True])
def test_transposed_layers_are_updated_too(init, dora, tmp_path):
    tuner, model = prepared(gpt2(), NEW, spec=GPT2, init=init, dora=dora)
    tuner.save(learn(model, TALK_IDS), tmp_path)
    loaded = PeftModel.from_pretrained(gpt2(), str(tmp_path))
    torch.testing.assert_close(logits(loaded, TALK_IDS), logits(model, TALK_IDS), rtol=0, atol=1e-5)
    other, again = prepared(gpt2(), NEW, spec=GPT2, seed=5, init=init, dora=dora)
    other.load(again, tmp_path)
    assert different(state(model), state(again)) == []


def test_olora_on_transposed_layers_is_refused():
    with pytest.raises(ConfigError, match=r"--init olora: peft decomposes .*c_attn the wrong way round"):
        prepared(gpt2(), spec=GPT2, init="olora")


# Tokens that the base never learned


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_only_the_rows_of_new_tokens_change(tied):
    base = tiny_model(tied=tied)
    merged = learn(prepared(base, NEW)[1], TALK_IDS).merge_and_unload()
    for before, after in (
        (base.model.embed_tokens.weight, merged.model.embed_tokens.weight),
        (base.lm_head.weight, merged.lm_head.weight),
    ):
        changed = [row for row in range(300) if not torch.equal(before[row], after[row])]
        assert changed == NEW
    assert torch.equal(merged.model.embed_tokens.weight, merged.lm_head.weight) == tied


def gemma3(**config: Any) -> Gemma3ForCausalLM:
    """A random Gemma 3 with 2 layers: its embeddings are multiplied by a factor, its head is tied."""
    small: dict[str, Any] = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gemma3ForCausalLM(Gemma3TextConfig(**small, **config))


ROWS = {
    "untied": tiny_model,
    "tied": lambda: tiny_model(tied=True),
    "scaled embeddings": gemma3,
    "padding is trained": lambda: gemma3(pad_token_id=NEW[0]),
}


@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS.keys())
def test_loss_and_gradients_of_new_rows_are_those_of_plain_peft_without_its_logits(make):
    base = make()
    ours = prepared(base, NEW)[1]
    torch.manual_seed(1)
    rows = dict.fromkeys(["embed_tokens"] if base.config.tie_word_embeddings else ["embed_tokens", "lm_head"], NEW)
    settings = {"r": 16, "lora_alpha": 32, "target_modules": list(TINY.projections), "task_type": "CAUSAL_LM"}
    reference = get_peft_model(copy.deepcopy(base), LoraConfig(**settings, trainable_token_indices=rows))
    assert different(state(ours), state(reference)) == []
    for model in (ours.double(), reference.double()):
        learn(model, TALK_IDS)
        model.train()
    assert find_head(ours, packed=False) is not None and find_head(reference, packed=False) is None
    ids = TALK_IDS[0]
    loss = token_loss(ours, pad([Example(ids.tolist(), ids.tolist(), "")]))
    expected = F.cross_entropy(reference(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    for each in (loss, expected):
        each.backward()
    gradients = [{n: p.grad for n, p in model.named_parameters() if p.requires_grad} for model in (ours, reference)]
    assert any("trainable_tokens_delta" in name for name in gradients[0])
    assert_near(*gradients)
    assert_near({"": logits(ours, TALK_IDS)}, {"": logits(reference, TALK_IDS)})
    with ours.disable_adapter():
        torch.testing.assert_close(logits(ours.float(), TALK_IDS), logits(base, TALK_IDS))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_embeddings_with_trained_rows_make_no_copy_of_the_matrix(tied):
    model = prepared(tiny_model(tied=tied), NEW)[1]
    shapes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            shapes.append(tuple(getattr(result, "shape", ())))
            return result

    with Watch():
        model.get_input_embeddings()(TALK_IDS).sum().backward()
    assert (300, 64) not in shapes and (len(NEW), 64) in shapes


@pytest.mark.parametrize("make", [tiny_model, gemma3], ids=["plain", "scaled"])
def test_embeddings_with_trained_rows_are_those_of_peft_in_half_precision(make):
    embeddings = prepared(make().bfloat16(), NEW)[1].get_input_embeddings().token_adapter
    trained = embeddings.trainable_tokens_delta["default"]
    trained.data = torch.randn(len(NEW), trained.shape[1])
    found = embeddings(TALK_IDS)
    assert type(embeddings) is UpdatedEmbedding and found.dtype == torch.bfloat16
    assert torch.equal(found, TrainableTokensLayer.forward(embeddings, TALK_IDS))


def test_rows_of_another_adapter_are_looked_up_by_peft():
    model = prepared(tiny_model(tied=True), NEW)[1]
    others = {"embed_tokens": [int(id) for id in TALK_IDS[0][:3].unique()]}
    settings = {"target_modules": list(TINY.projections), "task_type": "CAUSAL_LM"}
    model.add_adapter("other", LoraConfig(**settings, trainable_token_indices=others))
    model.set_adapter("other")
    embeddings = model.get_input_embeddings().token_adapter
    trained = embeddings.trainable_tokens_delta["other"]
    trained.data = torch.randn_like(trained)
    assert torch.equal(embeddings(TALK_IDS), TrainableTokensLayer.forward(embeddings, TALK_IDS))


def test_without_new_tokens_the_embeddings_stay():
    assert not [n for n, p in prepared(tiny_model())[1].named_parameters() if p.requires_grad and "layers" not in n]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "options", [{}, {"modules_to_save": ("lm_head",)}, {"init": "pissa", "modules_to_save": ("embed_tokens",)}]
)
def test_a_folder_with_new_tokens_loads_by_itself_in_peft(tied, options, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_checkpoint(base, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>", "<|newer|>"]}, replace_extra_special_tokens=False)
    new = tokenizer.convert_tokens_to_ids(["<|new|>", "<|newer|>"])
    model.resize_token_embeddings(len(tokenizer))
    ids = torch.cat([IDS % 260, torch.tensor(new * 2)[:, None]], dim=1)
    tuner, model = prepared(model, new, **options)
    tuner.save(learn(model, ids), out)
    tokenizer.save_pretrained(out)
    loaded: Any = AutoPeftModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(loaded, ids), logits(model, ids), rtol=0, atol=1e-5)
    assert torch.equal(loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight) == tied


def test_rows_of_a_head_with_a_bias_are_refused():
    small = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    base = PhiForCausalLM(PhiConfig(**small, bos_token_id=0, eos_token_id=2))
    with pytest.raises(ConfigError) as error:
        prepared(base, NEW, target=("q_proj",))
    assert str(error.value) == (
        "There are tokens that the model never learned, so their rows of lm_head must be trained, "
        "but peft would leave out the bias of lm_head.\n"
        "Train it whole with --modules-to-save lm_head, or do without them: another --template, or "
        "no --train-new-tokens-only."
    )
    model = prepared(base, NEW, target=("q_proj",), modules_to_save=("lm_head",))[1]
    torch.testing.assert_close(logits(model), logits(base))


def test_rows_of_a_head_that_is_updated_are_refused():
    with pytest.raises(ConfigError, match="but --target lm_head updates all of them"):
        prepared(tiny_model(), NEW, target=("lm_head",))


# Loading refuses what is not the adapter of this model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tuner, model = prepared(tiny_model(), NEW, rank=4)
    tuner.save(learn(model, TALK_IDS), folder)
    return folder


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def edited(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / FILES[1])
        edit(tensors)
        save_file(tensors, folder / FILES[1])

    return change


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / FILES[0]).read_text())
        (folder / FILES[0]).write_text(json.dumps(config | changes))

    return change


def pickled(folder: Path) -> None:
    (folder / FILES[1]).unlink()
    torch.save({}, folder / "adapter_model.bin")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (
        lambda folder: (folder / FILES[1]).unlink(),
        "holds no adapter: adapter_model.safetensors is missing.",
    ),
    "no configuration": (
        lambda folder: (folder / FILES[0]).unlink(),
        "holds no adapter: adapter_config.json is missing.",
    ),
    "pickle": (pickled, "adapter_model.bin is a pickle, which can run code. Convert it to adapter_model.safetensors."),
    "empty": (edited(lambda t: t.clear()), "adapter_model.safetensors lacks the tensors base_model.model."),
    "foreign": (
        edited(lambda t: t.update({"base_model.model.transformer.h.0.c_attn.lora_A.weight": torch.ones(4, 64)})),
        "has the tensor 'base_model.model.transformer.h.0.c_attn.lora_A.weight', which the model does not know.",
    ),
    "missing": (edited(lambda t: t.pop(NAME)), f"adapter_model.safetensors lacks the tensors {NAME}."),
    "shape": (edited(lambda t: t.update({NAME: torch.ones(64, 8)})), f"{NAME} is (64, 8), but the model's is (64, 4)."),
    "zero-size": (edited(lambda t: t.update({NAME: torch.ones(0)})), f"{NAME} is (0,), but the model's is (64, 4)."),
    "whole numbers": (
        edited(lambda t: t.update({NAME: torch.ones(64, 4, dtype=torch.int32)})),
        f"{NAME} is torch.int32, but the model's is torch.float32.",
    ),
    "nan": (edited(lambda t: t[NAME].fill_(math.nan)), f"{NAME} holds values that are not finite numbers."),
    "infinity": (edited(lambda t: t[NAME][0].fill_(math.inf)), f"{NAME} holds values that are not finite numbers."),
    "cut": (
        lambda f: (f / FILES[1]).write_bytes((f / FILES[1]).read_bytes()[:-9]),
        "adapter_model.safetensors cannot be read:",
    ),
    "rank": (configured(r=8), "adapter_config.json: r is 8, but the model's is 4."),
    "alpha": (configured(lora_alpha=1), "adapter_config.json: lora_alpha is 1, but the model's is 32.0."),
    "rslora": (configured(use_rslora=True), "adapter_config.json: use_rslora is True, but the model's is False."),
    "rows": (configured(trainable_token_indices=None), "adapter_config.json: trainable_token_indices is None, but"),
    "fewer targets": (configured(target_modules=["q_proj"]), "adapter_config.json: target_modules is ['q_proj'], but"),
    "other targets": (
        configured(target_modules=[*TINY.projections, "c_attn"]),
        "adapter_config.json: target_modules is ['q_proj'",
    ),
    "no targets": (configured(target_modules=None), "adapter_config.json: target_modules is None, but the model's is"),
    "no JSON": (lambda folder: (folder / FILES[0]).write_text("{"), "adapter_config.json is not readable as JSON:"),
    "no object": (lambda folder: (folder / FILES[0]).write_text("[]"), "adapter_config.json must hold a JSON object."),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(spoil, message, saved, tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    spoil(tmp_path)
    tuner, model = prepared(tiny_model(), NEW, rank=4)
    before = state(model)
    with pytest.raises(LmfError) as error:
        tuner.load(model, tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert different(before, state(model)) == []


def test_a_loaded_adapter_has_an_effect(saved):
    tuner, model = prepared(tiny_model(), NEW, rank=4)
    before = logits(model)
    tuner.load(model, saved)
    assert (logits(model) - before).abs().max() > 0.01


@pytest.mark.parametrize(("base", "spec"), [(biased_model, TINY), (gpt2, GPT2)])
def test_a_decomposition_that_comes_out_otherwise_still_gives_the_same_model(base, spec, tmp_path, monkeypatch):
    options = {"spec": spec, "init": "pissa", "rank": 4, "dora": True}
    tuner, model = prepared(base(), **options)
    tuner.save(learn(model), tmp_path)
    svd = torch.linalg.svd

    def reordered(*arguments: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        """Another processor: signs are free, and near ties change places."""
        u, s, vh = svd(*arguments, **named)
        order = [0, 1, 2, 4, 3, *range(5, len(s))]
        return -u[:, order], s[order], -vh[order]

    monkeypatch.setattr(torch.linalg, "svd", reordered)
    other, again = prepared(base(), **options)
    assert different(other.start, tuner.start) == list(tuner.start)
    other.load(again, tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)
    other.save(again, tmp_path / "again")
    assert (tmp_path / "again" / FILES[1]).read_bytes() == (tmp_path / FILES[1]).read_bytes()


def test_the_saved_configuration_names_the_base_for_any_working_directory(tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    for name, wanted in (("base", str(tmp_path / "base")), ("owner/name", "owner/name")):
        base = tiny_model()
        base.name_or_path = name
        tuner, model = prepared(base)
        tuner.save(model, tmp_path / "out")
        assert json.loads((tmp_path / "out" / FILES[0]).read_text())["base_model_name_or_path"] == wanted


def test_an_adapter_with_whole_modules_loads_on_a_base_in_bfloat16(tmp_path):
    options = {"bias": "all", "modules_to_save": ("norm", "lm_head")}
    tuner, model = prepared(biased_model(), NEW, **options)
    tuner.save(learn(model, TALK_IDS), tmp_path)
    other, low = prepared(biased_model().to(torch.bfloat16), NEW, **options)
    other.load(low, tmp_path)
    torch.testing.assert_close(logits(low, TALK_IDS).float(), logits(model, TALK_IDS), rtol=0, atol=0.1)


# Training


def test_preparing_and_saving_are_silent(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tied in (False, True):
            tuner, model = prepared(tiny_model(tied=tied), NEW, modules_to_save=("norm",))
            tuner.save(model, tmp_path)
        prepared(tiny_model(tied=True), NEW, modules_to_save=("lm_head",))
        prepared(gpt2(), spec=GPT2)


# the name that every transformers 5 knows; 5.23 would rather have a new one
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"modules_to_save": ("lm_head",)}])
def test_gradient_checkpointing_does_not_change_the_gradients(options):
    gradients = []
    for recompute in (False, True):
        base = tiny_model()
        if recompute:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        model = prepared(base, NEW, **options)[1].train()
        torch.manual_seed(3)
        model(input_ids=TALK_IDS, labels=TALK_IDS).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert different(*gradients) == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tinyrun.talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 6)


RUN: dict[str, Any] = {"steps": 6, "batch_size": 4, "learning_rate": 0.01}


@pytest.mark.parametrize("options", [{}, {"init": "pissa", "dora": True}], ids=["default", "pissa"])
def test_a_resumed_run_gives_the_same_bits_as_one_that_was_never_stopped(options, checkpoint, data, tmp_path):
    def run(name: str, **more: Any) -> Path:
        own = {"dropout": 0.1, "lr_ratio": 4.0, **options}
        return tinyrun.run(checkpoint, data, tmp_path / name, "lora", options=own, **RUN, **more)

    straight = run("straight")
    with pytest.raises(Interrupted):
        run("stopped", report=tinyrun.stop_at(3))
    assert not (tmp_path / "stopped" / FILES[1]).exists()
    resumed = run("stopped", resume="newest")
    for name in FILES:
        assert (resumed / name).read_bytes() == (straight / name).read_bytes()
    assert tinyrun.losses(resumed) == tinyrun.losses(straight)


def test_what_a_run_gives_out_is_the_same_model_in_lmf_and_in_peft(checkpoint, data, tmp_path, monkeypatch):
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.get_input_embeddings().weight.data[1:3] = 0  # as bases have them that reserve tokens without learning them
    model.save_pretrained(base)
    for file in checkpoint.glob("*token*"):
        (base / file.name).write_bytes(file.read_bytes())
    out = tinyrun.run(base, data, tmp_path / "out", "lora", **RUN)
    assert json.loads((out / "lmf.json").read_text())["new_tokens"] == [1, 2]
    ids = torch.tensor([[1, 40, 41, 2, 50]])
    ours = logits(open_model(str(out), tinyrun.PLUGINS).model, ids)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    [snippet] = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(snippet, names)
    torch.testing.assert_close(ours, logits(names["merged"], ids), rtol=0, atol=1e-5)
    assert (ours - logits(model, ids)).abs().max() > 0.01


# The page


def test_the_page_lists_every_option_with_its_default():
    rows = re.findall(r"^\| `--([a-z-]+)` \| (.*?) ?\| ", README, re.M)
    told = {name.replace("-", "_"): default for name, default in rows}
    defaults = {f.name: f.default for f in dataclasses.fields(LoraOptions)}
    shown = {"False": "no", "()": "", "('auto',)": "auto", "0.0": "0", "1.0": "1", "32.0": "32"}
    assert told == {name: shown.get(str(default), str(default)) for name, default in defaults.items()}


def test_the_commands_of_the_page_are_accepted(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^lmf (train lora .*)$", README, re.M)
    assert len(lines) == 5
    for line in lines:
        words = line.replace("smollm2-135m", str(checkpoint)).replace("talks.jsonl", str(data)).split()
        done = CliRunner().invoke(command_line(Plugins()), ["plan", *words])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception}"


def test_describing_the_method_loads_neither_torch_nor_peft():
    code = (
        "import sys, lmf_lora; lmf_lora.lmf_methods(); sys.exit(any(name in sys.modules for name in ('torch', 'peft')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
