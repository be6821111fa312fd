"""Full fine-tuning and freezing: exactly what was asked for changes, bit for bit nothing else."""

import json
from pathlib import Path

import lmf.training.learner
import pytest
import torch
from lmf import ConfigError
from lmf.config import make
from lmf.testing import TINY, tiny_checkpoint, tiny_model
from lmf_full import FreezeOptions, build_freeze
from safetensors import safe_open
from tinyrun import PLUGINS, plan, run, talks, weights


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 12)


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors that differ."""
    one, other = weights(before), weights(after)
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def trained(model: torch.nn.Module, **options: object) -> set[str]:
    """Names of the parameters that freeze leaves trainable."""
    tuner = build_freeze(make(FreezeOptions, options), TINY)
    return {name for name, p in tuner.prepare(model).named_parameters() if p.requires_grad}


def layer(number: int) -> set[str]:
    return {name for name, _ in tiny_model().named_parameters() if f"layers.{number}." in name}


ALL = {name for name, _ in tiny_model().named_parameters()}


def test_full_fine_tuning_changes_every_tensor(tiny, data, tmp_path):
    output = run(tiny, data, tmp_path / "out", "full", steps=3, batch_size=6)
    assert changed(tiny, output) == set(weights(tiny))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"last_layers": 1}, layer(3)),
        ({"first_layers": 2}, layer(0) | layer(1)),
        ({"first_layers": 1, "last_layers": 1}, layer(0) | layer(3)),
        ({"last_layers": 4}, layer(0) | layer(1) | layer(2) | layer(3)),
        ({"modules": ("lm_head",)}, {"lm_head.weight"}),
        ({"modules": ("norm",)}, {"model.norm.weight"}),
        ({"modules": ("layers.2.mlp",)}, {name for name in layer(2) if ".mlp." in name}),
        ({"modules": ("q_proj", "v_proj")}, {name for name in ALL if "q_proj" in name or "v_proj" in name}),
        ({"modules": ("embed_tokens",), "last_layers": 1}, {"model.embed_tokens.weight"} | layer(3)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_freezing_trains_what_is_named_and_nothing_else(options, expected, tiny, data, tmp_path):
    assert trained(tiny_model(), **options) == expected
    output = run(tiny, data, tmp_path / "out", "freeze", options=options, steps=3, batch_size=6)
    assert changed(tiny, output) == expected


def test_frozen_parameters_have_no_optimizer_state(tiny, data, tmp_path):
    output = run(tiny, data, tmp_path / "out", "freeze", options={"last_layers": 1}, steps=2, batch_size=6)
    with safe_open(output / "checkpoints/step-000002/optimizer.safetensors", framework="pt") as state:
        owners = {key.rpartition("/")[0] for key in state.keys()}  # noqa: SIM118 (not a mapping)
    assert owners == layer(3)


def test_tied_embeddings_are_trained_together(tmp_path, data):
    model = tiny_checkpoint(tmp_path / "model", tied=True)
    output = run(model, data, tmp_path / "out", "freeze", options={"modules": ("lm_head",)}, steps=2, batch_size=6)
    assert changed(model, output) == {"model.embed_tokens.weight"}


def test_new_tokens_are_trained_beside_what_is_named():
    model = build_freeze(make(FreezeOptions, {"last_layers": 1}), TINY).prepare(tiny_model(), [5])
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == layer(3) | {"model.embed_tokens.weight", "lm_head.weight"}


def test_matrices_decay_and_norms_do_not():
    for name in ("full", "freeze"):
        method = PLUGINS.methods[name]
        options = make(method.options, {"last_layers": 1} if name == "freeze" else {})
        model = tiny_model()
        tuner = method.build(options, TINY)
        groups = tuner.groups(tuner.prepare(model), 0.5, 0.1)
        assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.1), (0.5, 0.0)]
        decayed, plain = ({id(p) for p in group["params"]} for group in groups)
        names = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert decayed == {id(p) for n, p in names.items() if "norm" not in n}
        assert plain == {id(p) for n, p in names.items() if "norm" in n}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_layers": 5}, "--first-layers 0 and --last-layers 5 are more than the 4 decoder layers of the model."),
        ({"first_layers": 3, "last_layers": 2}, "--first-layers 3 and --last-layers 2 are more than the 4 decoder lay"),
        ({"modules": ("mpl",)}, "--modules mpl: the model has no such module. It has act_fn, down_proj, embed_tokens,"),
        ({"modules": ("proj",)}, "--modules proj: the model has no such module."),
        ({"modules": ("3",), "last_layers": 9}, "--first-layers 0 and --last-layers 9 are more than the 4 decoder lay"),
    ],
)
def test_what_the_model_does_not_have_is_refused(options, message, tiny, data, tmp_path):
    with pytest.raises(ConfigError) as refused:
        run(tiny, data, tmp_path / "out", "freeze", options=options)
    assert str(refused.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_freezing_everything_is_refused_before_the_model_is_loaded(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(lmf.training.learner, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError) as refused:
        run(tiny, data, tmp_path / "out", "freeze")
    assert str(refused.value) == (
        "freeze trains nothing so far: give --last-layers, --first-layers, --modules or --train-new-tokens-only."
    )


@pytest.mark.parametrize("options", [{"last_layers": -1}, {"first_layers": 1.5}, {"modules": ("",)}])
def test_options_are_checked(options):
    with pytest.raises(ConfigError, match=f"^--{next(iter(options)).replace('_', '-')} is "):
        make(FreezeOptions, options)


def test_a_frozen_run_saves_a_whole_model(tiny, data, tmp_path):
    output = run(tiny, data, tmp_path / "out", "freeze", options={"last_layers": 1}, steps=1)
    assert set(weights(output)) == set(weights(tiny))
    assert json.loads((output / "config.json").read_text())["num_hidden_layers"] == 4
    assert plan(output, data, tmp_path / "next").model.folder == output
