"""Loading models and tokenizers: what would only seem to work is refused, and nothing foreign is run."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmf_smollm2
import pytest
import torch
import transformers
from lmf import LmfError, Plugins
from lmf.models import load_config, load_model, load_tokenizer, load_weights
from lmf.sources import Source, find_model
from lmf.testing import tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

PLUGINS = Plugins(only=["lmf-templates", "lmf-smollm2"])
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return shutil.copytree(tiny, tmp_path / "model")


def load(folder: Path, allow_pickle: bool = False, trust_remote_code: bool = False) -> PreTrainedModel:
    """Find a model and load its tokenizer and weights, as a run does."""
    source = find_model(str(folder), PLUGINS, allow_pickle)
    load_tokenizer(source, trust_remote_code)
    return load_model(source, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)


def refusal(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(LmfError) as caught:
        call(*args, **options)
    return str(caught.value)


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def setting(name: str, **values: Any) -> Callable[[Path], Any]:
    """Change keys of a JSON file."""

    def change(folder: Path) -> None:
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(settings | values), encoding="utf-8")

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any], file: str = WEIGHTS) -> Callable[[Path], Any]:
    """Change tensors of a safetensors file."""

    def apply(folder: Path) -> None:
        found = load_file(folder / file)
        change(found)
        save_file(found, folder / file, {"format": "pt"})

    return apply


def put(value: float) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda found: found["model.norm.weight"].__setitem__(3, value)


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Change the header of the weights, and nothing behind it."""

    def apply(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        start = 8 + struct.unpack("<Q", raw[:8])[0]
        entries = json.loads(raw[8:start])
        change(entries)
        changed = json.dumps(entries).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(changed)) + changed + raw[start:])

    return apply


def without(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [(folder / name).unlink() for name in names]


# Good models


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", ["5GB", "300KB"])
def test_a_model_loads_bit_for_bit_whole_or_in_shards(tiny: Path, tmp_path: Path, tied: bool, size: str) -> None:
    shutil.copytree(tiny, tmp_path, ignore=shutil.ignore_patterns(WEIGHTS), dirs_exist_ok=True)
    own = tiny_model(tied=tied)
    own.save_pretrained(tmp_path, max_shard_size=size)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if size == "5GB" else 3)
    assert_same(load(tmp_path), own)


def test_a_model_is_loaded_in_the_precision_that_is_asked_for(tiny: Path) -> None:
    source = Source(str(tiny), str(tiny))
    assert load_model(source).dtype == torch.float32
    low = load_model(source, torch.bfloat16)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert load_model(source, attention="eager").config._attn_implementation == "eager"


def test_a_tokenizer_is_loaded_as_it_was_saved(tiny: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(Source(str(tiny), str(tiny)))
    assert tokenizer("what is one").input_ids == tiny_tokenizer()("what is one").input_ids
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not {"is_local", "local_files_only"} & saved.keys()


def test_a_config_is_loaded(tiny: Path) -> None:
    assert load_config(Source(str(tiny), str(tiny))).model_type == "llama"


def test_the_frequencies_that_old_llamas_carry_along_do_no_harm(model: Path) -> None:
    own = load(model)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors(lambda found: found.update({name: torch.ones(8)}))(model)
    assert_same(load(model), own)


def test_large_weights_are_finite_even_if_their_sum_is_not(model: Path) -> None:
    tensors(lambda found: found["model.norm.weight"].fill_(3e38))(model)
    assert load(model).model.norm.weight.sum() == float("inf")


# Bad models

UP = "model.layers.1.mlp.up_proj.weight"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing tensor": (tensors(lambda t: t.pop(UP)), "{folder} lacks weights for " + UP + ": they would be random"),
    "missing head": (tensors(lambda t: t.pop("lm_head.weight")), "{folder} lacks weights for lm_head.weight"),
    "more layers in config": (
        setting("config.json", num_hidden_layers=5),
        "{folder} lacks weights for model.layers.4.input_layernorm.weight, model.layers.4.mlp.down_proj.weight, "
        "model.layers.4.mlp.gate_proj.weight and 6 more: they would be random",
    ),
    "fewer layers in config": (
        setting("config.json", num_hidden_layers=3),
        "{folder} has weights its architecture does not know: model.layers.3.input_layernorm.weight",
    ),
    "extra tensor": (
        tensors(lambda t: t.update(extra=torch.zeros(2))),
        "{folder} has weights its architecture does not know: extra.",
    ),
    "wrong shape": (
        tensors(lambda t: t.update({UP: torch.zeros(64, 128)})),
        "{folder} has weights of another shape for " + UP + ": they would be random",
    ),
    "another width in config": (
        setting("config.json", hidden_size=32),
        "{folder} has weights of another shape for lm_head.weight",
    ),
    "NaN": (tensors(put(float("nan"))), "{folder} has weights that are not finite numbers: model.norm.weight."),
    "inf": (tensors(put(float("inf"))), "{folder} has weights that are not finite numbers: model.norm.weight."),
    "overlapping tensors": (
        header(lambda h: h[UP].update(data_offsets=h["model.norm.weight"]["data_offsets"])),
        "{folder} cannot be loaded: ",
    ),
    "another dtype in the header": (
        header(lambda h: h[UP].update(dtype="F16")),
        "{folder} cannot be loaded: Error while deserializing header",
    ),
    "unknown model_type": (
        setting("config.json", model_type="lama"),
        "{folder} cannot be loaded: The checkpoint you are ",
    ),
    "no language model": (setting("config.json", model_type="vit"), "{folder} cannot be loaded: Unrecognized config"),
    "unknown dtype": (setting("config.json", dtype="banana"), "{folder} cannot be loaded: module 'torch' has no attri"),
    "text for a number": (
        setting("config.json", num_hidden_layers="four"),
        "{folder} cannot be loaded: Validation error for field 'num_hidden_layers'",
    ),
    "no heads": (setting("config.json", num_attention_heads=0), "{folder} cannot be loaded: "),
    "no vocabulary": (
        lambda folder: [
            without("tokenizer.json")(folder),
            setting("tokenizer_config.json", tokenizer_class="LlamaTokenizer")(folder),
        ],
        "{folder} holds no tokenizer: its vocabulary is empty. Copy it from the base model.",
    ),
    "no vocabulary and no class": (without("tokenizer.json"), "{folder} cannot be loaded: "),
    "a tokenizer of an unknown kind": (
        setting("tokenizer.json", model={"type": "Magic", "vocab": {}}),
        "{folder} cannot be loaded: ",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD)
@pytest.mark.filterwarnings("ignore")  # what transformers thinks of bad models is not the point
def test_a_bad_model_is_refused_naming_folder_and_cause(
    model: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(model)
    assert message.format(folder=model) in refusal(load, model)


def test_a_cut_shard_that_names_no_tensor_is_refused(model: Path) -> None:
    tiny_model().save_pretrained(model, max_shard_size="300KB")
    (model / WEIGHTS).unlink(missing_ok=True)
    file = sorted(model.glob("*.safetensors"))[0]
    tensors(lambda found: found.pop(min(found)), file.name)(model)
    assert "lacks weights for" in refusal(load, model)


def test_a_cut_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(9))
    source = find_model(str(tmp_path / "m.gguf"), PLUGINS)
    assert refusal(load_tokenizer, source).startswith(f"{tmp_path}/m.gguf cannot be loaded: ")


def test_a_hub_id_that_cannot_be_reached_is_refused() -> None:
    message = refusal(load_tokenizer, find_model("acme/large", PLUGINS))
    assert message.startswith("acme/large is no folder here, and the hub did not give it: ")


# Nothing foreign is run


class Canary:
    """Leaves a file behind if somebody unpickles it."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def pickled(folder: Path, weights: Any) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def test_pickled_weights_are_loaded_only_where_they_are_allowed(model: Path) -> None:
    own = load(model)
    pickled(model, own.state_dict())
    assert "--allow-pickle" in refusal(load, model)
    assert refusal(load_model, Source(str(model), str(model))).startswith(f"{model} cannot be loaded: ")
    assert_same(load(model, allow_pickle=True), own)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_pickle_that_runs_code_is_never_run(model: Path, tmp_path: Path, allow_pickle: bool) -> None:
    pickled(model, {"model.norm.weight": Canary(tmp_path / "canary")})
    (model / "training_args.bin").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    assert refusal(load, model, allow_pickle=allow_pickle).startswith(f"{model} ")
    assert not (tmp_path / "canary").exists()
    pickle.loads((model / "training_args.bin").read_bytes()).close()  # and the canary works
    assert (tmp_path / "canary").exists()


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({canary!r}).touch()
class Config(LlamaConfig):
    model_type = "acme"
class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.fixture
def with_code(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a type that only its own code knows; the code leaves the file ``canary`` behind."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (model / "code.py").write_text(CODE.format(canary=str(tmp_path / "canary")), encoding="utf-8")
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    setting("config.json", model_type="acme", auto_map=names)(model)
    return model


def test_code_of_a_model_is_not_run_unless_it_is_trusted(with_code: Path, tmp_path: Path) -> None:
    source = Source(str(with_code), str(with_code))
    for load_it in (load_config, load_model):
        assert refusal(load_it, source) == (
            f"{with_code} brings Python code of its own, and running it is off.\n"
            "Read that code; add --trust-remote-code if you trust it."
        )
    assert not (tmp_path / "canary").exists()


def test_code_of_a_model_is_run_if_it_is_trusted(with_code: Path, tmp_path: Path) -> None:
    assert type(load(with_code, trust_remote_code=True)).__name__ == "Model"
    assert (tmp_path / "canary").exists()


def test_code_of_a_tokenizer_is_not_run_unless_it_is_trusted(model: Path, tmp_path: Path) -> None:
    (model / "code.py").write_text(CODE.format(canary=str(tmp_path / "canary")), encoding="utf-8")
    names = {"AutoTokenizer": ["code.Tokenizer", None]}
    setting("tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=names)(model)
    assert "--trust-remote-code" in refusal(load, model)
    assert not (tmp_path / "canary").exists()


def test_code_beside_a_model_that_transformers_knows_is_not_run(model: Path, tmp_path: Path) -> None:
    (model / "code.py").write_text(CODE.format(canary=str(tmp_path / "canary")), encoding="utf-8")
    setting("config.json", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})(model)
    assert type(load(model)) is transformers.LlamaForCausalLM
    assert not (tmp_path / "canary").exists()


# Weights into a model


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_copied_bit_for_bit_into_a_model(tmp_path: Path, tied: bool) -> None:
    saved, other = tiny_model(seed=1, tied=tied), tiny_model(seed=2, tied=tied)
    saved.save_pretrained(tmp_path)
    parameters = [id(p) for p in other.parameters()]
    load_weights(other, tmp_path)
    assert_same(other, saved)
    assert [id(p) for p in other.parameters()] == parameters  # an optimizer that holds them goes on


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop(UP), "{folder} lacks the tensors " + UP + "."),
        (lambda t: t.update(extra=torch.zeros(2)), "{file} has the tensor 'extra', which the model does not know."),
        (
            lambda t: t.update({UP: torch.zeros(64, 128)}),
            "{file}: " + UP + " is (64, 128), but the model's is (128, 64).",
        ),
        (
            lambda t: t.update({UP: t[UP].half()}),
            "{file}: " + UP + " is torch.float16, but the model's is torch.float32.",
        ),
        (put(float("nan")), "{file}: model.norm.weight holds values that are not finite numbers."),
        (put(-float("inf")), "{file}: model.norm.weight holds values that are not finite numbers."),
    ],
)
def test_weights_that_do_not_fit_are_refused(model: Path, damage: Callable[..., Any], message: str) -> None:
    tensors(damage)(model)
    assert refusal(load_weights, tiny_model(), model) == message.format(folder=model, file=model / WEIGHTS)


def test_damaged_weights_are_refused(model: Path) -> None:
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:5000])
    assert refusal(load_weights, tiny_model(), model).startswith(f"{model / WEIGHTS} cannot be read: ")


def test_a_folder_without_weights_fills_no_model(tmp_path: Path) -> None:
    assert refusal(load_weights, tiny_model(), tmp_path).startswith(f"{tmp_path} lacks the tensors lm_head.weight, ")


# The real model


@pytest.mark.real
def test_the_real_model_loads_from_gguf_and_from_what_was_made_of_it() -> None:
    from lmf_smollm2.convert import _weights

    source = find_model(str(_weights()), PLUGINS)
    tokenizer, model = load_tokenizer(source), load_model(source, torch.float32)
    checkpoint = find_model("smollm2-135m", PLUGINS)
    assert checkpoint.folder == lmf_smollm2.folder()
    assert_same(load_model(checkpoint), model)
    assert load_tokenizer(checkpoint)("What is one and two?").input_ids == tokenizer("What is one and two?").input_ids
    plain = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    assert_same(plain, model)
