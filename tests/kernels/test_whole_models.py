"""Runs with kernels for all parts against runs without: the same losses, in models of each kind."""

import json
from pathlib import Path
from typing import Any

import lmf
import pytest
import torch
from lmf import layers
from lmf.config import make
from lmf.errors import ConfigError, LmfError
from lmf.generate.opening import open_model
from lmf.plan import make_plan
from lmf.testing import check_kernel, tiny_checkpoint
from lmf.training.lean import lean, undo
from lmf.training.loop import train
from lmf.training.parts import Parts
from lmf_kernels import glu, rms_norm, rotary
from tinyrun import PLUGINS, Notes, apart, run, talks
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen2Config

# of numpy, which computes what is beyond the end of a document, too
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
NAMES = tuple(name for name in PLUGINS.kernels if name.startswith("lmf") and name != "lmf-hopper")  # in Triton
SMALL = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 16}
FAMILIES: dict[str, Any] = {
    "llama": None,
    "qwen2": Qwen2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, sliding_window=8, query_pre_attn_scalar=16),
    "mistral": MistralConfig(**SMALL, sliding_window=8),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 20)


def model_of(family: str, tiny: Path, folder: Path) -> Path:
    """Return a random model of a family, with the tokenizer of the tiny one."""
    if family == "llama":
        return tiny
    tiny_checkpoint(folder)
    config = FAMILIES[family]
    config.vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    for file in [*folder.glob("*.safetensors"), folder / "config.json"]:
        file.unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_ten_steps_with_kernels_are_those_without(family, tiny, data, tmp_path):
    model = model_of(family, tiny, tmp_path / "model")
    settings: dict[str, Any] = {"steps": 10, "batch_size": 1, "max_tokens": 32, "learning_rate": 1e-3}
    notes = Notes()
    names = [name for name in NAMES if not (family == "gemma2" and name == "lmf-add-rms-norm")]  # a norm comes between
    with_kernels = run(model, data, tmp_path / "with", kernels=tuple(names), report=notes, **settings)
    without = run(model, data, tmp_path / "without", kernels=("none",), **settings)
    (told,) = (note for note in notes.notes if note.startswith("kernels: "))
    assert all(f"{name} (" in told for name in names), told
    of_run = json.loads((with_kernels / "lmf.json").read_text())["kernels"]
    assert of_run == {PLUGINS.kernels[name].part: name for name in names}
    found = apart(with_kernels, without)
    print(f"\n  {family}: {found}")
    assert max(found["loss"], found["gradient_norm"]) <= 1e-5 and found["weights"] <= 1e-3
    open_model(str(with_kernels), PLUGINS)


def test_in_bfloat16_they_are_close(tiny, data, tmp_path):
    settings: dict[str, Any] = {"steps": 3, "batch_size": 1, "max_tokens": 32, "dtype": "bfloat16"}
    with_kernels = run(tiny, data, tmp_path / "with", kernels=NAMES, **settings)
    without = run(tiny, data, tmp_path / "without", kernels=("none",), **settings)
    assert apart(with_kernels, without)["loss"] <= 1e-2


def test_lora_keeps_its_names_and_values_with_kernels(tiny, data, tmp_path):
    settings: dict[str, Any] = {"steps": 3, "batch_size": 2, "max_tokens": 32, "options": {"rank": 4}}
    with_kernels = run(tiny, data, tmp_path / "with", "lora", kernels=NAMES, **settings)
    without = run(tiny, data, tmp_path / "without", "lora", kernels=("none",), **settings)
    assert apart(with_kernels, without)["loss"] <= 1e-5


def test_what_was_exchanged_is_taken_back(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    classes, names = [type(module) for module in model.modules()], list(model.state_dict())
    parts = {"rms_norm": rms_norm.rms_norm, "add_rms_norm": rms_norm.add_rms_norm, "glu": glu.glu}
    done = lean(model, Parts(**parts, rotary=rotary.rotary, kernels=dict.fromkeys(parts, "ours")))
    assert done == {"rms_norm": 9, "add_rms_norm": 4, "glu": 4, "rotary": 4}
    assert [type(module) for module in model.modules()] != classes and list(model.state_dict()) == names
    undo(model)
    assert [type(module) for module in model.modules()] == classes


def plan(plugins: lmf.Plugins, tiny: Path, data: Path, output: Path, **given: Any) -> Any:
    values = {"model": str(tiny), "data": str(data), "output": output, "template": "chatml", "dtype": "float32"}
    return make_plan(plugins, "train", "full", make(lmf.RunSettings, values | {"steps": 1} | given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kernels": ("auto", "lmf-glu")}, "give auto or none alone"),
        ({"kernels": ("lmf-gul",)}, "No kernel is called 'lmf-gul'. Did you mean 'lmf-glu'"),
        ({"attention": "lmf-glu"}, "that kernel computes glu; give it to --kernels"),
    ],
)
def test_kernels_that_are_misspelt_are_refused(given, message, tiny, data, tmp_path):
    with pytest.raises(LmfError, match=message):
        plan(PLUGINS, tiny, data, tmp_path, **given)


def test_where_there_is_no_gpu_a_kernel_that_is_asked_for_is_refused_and_auto_takes_none(
    tiny, data, tmp_path, monkeypatch
):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr("lmf_kernels.device.GPUS", ())
    with pytest.raises(LmfError, match=r"^--kernels lmf-glu cannot run here: there is no GPU here\.$"):
        plan(PLUGINS, tiny, data, tmp_path, kernels=("lmf-glu",))
    assert not plan(lmf.Plugins(), tiny, data, tmp_path).kernels


def broken(load: Any, *, automatic: bool, part: str = "rms_norm") -> lmf.Plugins:
    """Return plugins with one more kernel."""

    class Module:
        @staticmethod
        @lmf.hookimpl
        def lmf_kernels() -> list[lmf.Kernel]:
            given: dict[str, Any] = {"name": "acme", "summary": "x", "part": part}
            return [lmf.Kernel(**given, why_not=lambda: None, load=load, automatic=automatic)]

    plugins = lmf.Plugins()
    plugins.register("acme-more", Module)
    return plugins


def fails() -> None:
    raise RuntimeError("ptxas does not know sm_121")


def wrong() -> Any:
    return lambda x, weight, eps, offset=False: x * weight


@pytest.mark.parametrize(
    ("load", "reason"), [(fails, "ptxas does not know sm_121"), (wrong, "it differs by .* from plain PyTorch")]
)
def test_a_kernel_that_fails_is_left_out_unless_it_was_asked_for(load, reason, tiny, data, tmp_path):
    notes = Notes()
    plugins = broken(load, automatic=True)
    train(plan(plugins, tiny, data, tmp_path / "auto"), notes)
    assert any(note.startswith("rms_norm is computed without the kernel acme: ") for note in notes.notes)
    with pytest.raises(LmfError, match=f"^The kernel acme cannot compute rms_norm here: {reason}"):
        train(plan(plugins, tiny, data, tmp_path / "asked", kernels=("acme",)))
    assert not (tmp_path / "asked").exists()


def test_attention_is_tried_with_the_window_of_the_model_too(tiny, data, tmp_path):
    def windowless() -> Any:
        def attention(
            q: Any, k: Any, v: Any, bounds: Any, *, scale: Any = None, window: Any = None, softcap: Any = None
        ) -> Any:
            return layers.attention(q, k, v, bounds, scale=scale, softcap=softcap)

        return attention

    plugins = broken(windowless, automatic=False, part="attention")
    train(plan(plugins, tiny, data, tmp_path / "llama", attention="acme"))
    FAMILIES["mistral"].sliding_window = 2
    model = model_of("mistral", tiny, tmp_path / "model")
    FAMILIES["mistral"].sliding_window = 8
    with pytest.raises(LmfError, match=r"^The kernel acme cannot compute attention here: it differs by"):
        train(plan(plugins, model, data, tmp_path / "mistral", attention="acme"))


def test_a_kernel_that_is_asked_for_and_finds_nothing_to_do_is_an_error(data, tmp_path):
    from transformers import GPT2Config

    folder = tiny_checkpoint(tmp_path / "model")
    words = json.loads((folder / "config.json").read_text())["vocab_size"]
    for file in [*folder.glob("*.safetensors"), folder / "config.json"]:
        file.unlink()
    config = GPT2Config(vocab_size=words, n_embd=64, n_layer=1, n_head=4, n_positions=256, n_inner=96)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"^The kernel lmf-rms-norm computes rms_norm, and this model has no part"):
        train(plan(PLUGINS, folder, data, tmp_path / "out", kernels=("lmf-rms-norm",)))


@pytest.mark.parametrize("name", NAMES)
def test_our_kernels_keep_the_promises_of_a_kernel(name):
    check_kernel(PLUGINS.kernels[name])


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (wrong, r"acme, torch.float32, 1 heads of 64, .*: off by"),
        (lambda: "flash", "acme: of rms_norm, load must return a function"),
        (lambda: lambda *args, **more: rms_norm.rms_norm(*args, **more) * (1 + 1e-6 * torch.randn(())), "off by|again"),
    ],
)
def test_a_kernel_that_breaks_a_promise_is_found(load, message):
    with pytest.raises(AssertionError, match=message):
        check_kernel(broken(load, automatic=False).kernels["acme"])
