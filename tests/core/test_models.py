"""Models load whole or are refused, with the folder and the reason; nothing of theirs is executed."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lmf import LmfError, Plugins
from lmf.models import load_model, load_tokenizer, load_weights, match_template
from lmf.sources import cache_folder, checkpoints, family, find_model
from lmf.testing import tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

PLUGINS = Plugins()
Change = Callable[[Path], object]


def edit(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    """Return a change of the tensors in model.safetensors."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def configure(**values: object) -> Change:
    """Return a change of config.json; None removes a key."""

    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config |= values
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return apply


def remove(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def both(first: Change, second: Change) -> Change:
    return lambda folder: (first(folder), second(folder))


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    """Replace the weights by a pickle that leaves a mark when it is loaded."""
    (folder / "model.safetensors").unlink()

    class Canary:
        def __reduce__(self):
            return (Path.touch, (folder / "EXECUTED",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary()))


def remote_code(folder: Path) -> None:
    configure(model_type="acme", auto_map={"AutoConfig": "acme.C", "AutoModelForCausalLM": "acme.M"})(folder)
    (folder / "acme.py").write_text(f"open({str(folder / 'EXECUTED')!r}, 'w')\n")


def sharded(names: dict[str, str]) -> Change:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        index = {"metadata": {}, "weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return apply


def set_value(name: str, value: float) -> Change:
    return edit(lambda tensors: tensors[name].view(-1).__setitem__(3, value))


NORM = "model.layers.1.input_layernorm.weight"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
BAD: dict[str, tuple[Change, str]] = {
    "no config": (remove("config.json"), "config.json is missing"),
    "config is not JSON": (write("config.json", b"{"), "config.json is not readable as JSON"),
    "config is a list": (write("config.json", b"[]"), "must hold a JSON object"),
    "config without model_type": (configure(model_type=None), "no model_type"),
    "unknown model_type": (configure(model_type="acme-9"), "acme-9"),
    "no tokenizer": (remove(*TOKENIZER), "no tokenizer"),
    "tokenizer is garbage": (write("tokenizer.json", b"{}"), "cannot be loaded"),
    "no weights": (remove("model.safetensors"), "no weights"),
    "empty weights": (write("model.safetensors", b""), "not a safetensors file"),
    "garbage weights": (write("model.safetensors", b"\1" * 64), "not a safetensors file"),
    "header not JSON": (write("model.safetensors", struct.pack("<Q", 4) + b"abcd"), "not a safetensors file"),
    "cut weights": (cut, "cut or damaged"),
    "header only": (write("model.safetensors", struct.pack("<Q", 2) + b"{}"), "lacks weights"),
    "missing tensor": (edit(lambda t: t.pop(NORM)), NORM),
    "foreign tensor": (edit(lambda t: t.update(extra=torch.ones(2))), "extra"),
    "misshapen tensor": (edit(lambda t: t.update({NORM: torch.ones(3)})), NORM),
    "NaN": (set_value(NORM, float("nan")), "not finite"),
    "infinity": (set_value("lm_head.weight", float("inf")), "not finite"),
    "pickled": (pickled, "--allow-pickle"),
    "remote code": (remote_code, "--trust-remote-code"),
    "shard missing": (sharded({"lm_head.weight": "b.safetensors"}), "lacks b.safetensors"),
    "shard outside": (sharded({"lm_head.weight": "../b.safetensors"}), "not a file in the same folder"),
    "shard absolute": (sharded({"lm_head.weight": "/etc/passwd"}), "not a file in the same folder"),
    "index is not JSON": (
        both(sharded({}), write("model.safetensors.index.json", b"x")),
        "not readable as JSON",
    ),
    "adapter": (
        both(remove("config.json"), write("adapter_config.json", b'{"base_model_name_or_path": "B"}')),
        "holds an adapter for 'B'",
    ),
    "another vocabulary": (configure(vocab_size=17), "another shape"),
    "more layers": (configure(num_hidden_layers=5), "lacks weights"),
    "fewer layers": (configure(num_hidden_layers=3), "does not know"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_folder_is_refused_with_its_reason(name: str, tiny: Path, tmp_path: Path):
    change, reason = BAD[name]
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    change(folder)
    with pytest.raises(LmfError) as caught:
        source = find_model(str(folder), PLUGINS)
        load_tokenizer(source)
        load_model(source)
    assert reason in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (folder / "EXECUTED").exists()


def test_a_whole_folder_loads_sharded_or_not(tiny: Path, tmp_path: Path):
    whole = load_model(find_model(str(tiny), PLUGINS)).state_dict()
    tiny_model(vocab_size=len(tiny_tokenizer())).save_pretrained(tmp_path, max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    parts = load_model(find_model(str(tmp_path), PLUGINS)).state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_pickled_weights_load_when_they_are_allowed(tiny: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    model = load_model(find_model(str(folder), PLUGINS, allow_pickle=True), allow_pickle=True)
    assert torch.equal(model.state_dict()[NORM], tensors[NORM])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("smollm2-135", "Did you mean 'smollm2-135m'"),
        ("./nowhere", "no such folder"),
        (__file__, "is a file"),
    ],
)
def test_a_name_that_is_no_model_is_refused(name: str, reason: str):
    with pytest.raises(LmfError) as caught:
        find_model(name, PLUGINS)
    assert reason in str(caught.value)


def test_a_hub_id_that_cannot_be_reached_says_so():
    with pytest.raises(LmfError, match="acme/none cannot be loaded"):
        load_tokenizer(find_model("acme/none", PLUGINS))


def test_a_file_that_only_claims_to_be_gguf_is_refused(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF, not really")
    with pytest.raises(LmfError, match=r"model\.gguf"):
        load_tokenizer(find_model(str(tmp_path / "model.gguf"), PLUGINS))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(NORM), "lacks the tensors"),
        (lambda t: t.update(extra=torch.ones(2)), "'extra', which the model does not know"),
        (lambda t: t.update({NORM: torch.ones(3)}), "(3,), but the model's is (64,)"),
        (lambda t: t.update({NORM: torch.ones(64, dtype=torch.bfloat16)}), "torch.bfloat16"),
        (lambda t: t.update({NORM: torch.full((64,), float("nan"))}), "not finite"),
    ],
)
def test_weights_that_do_not_fit_a_model_are_refused(change, reason: str, tiny: Path, tmp_path: Path):
    shutil.copy(tiny / "model.safetensors", tmp_path)
    edit(change)(tmp_path)
    with pytest.raises(LmfError) as caught:
        load_weights(tiny_model(vocab_size=len(tiny_tokenizer())), tmp_path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_come_back_bit_for_bit(tied: bool, tmp_path: Path):
    model, other = tiny_model(seed=1, tied=tied), tiny_model(seed=2, tied=tied)
    model.save_pretrained(tmp_path)
    load_weights(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", PLUGINS.templates)
def test_a_template_is_found_by_its_own_jinja(name: str):
    template = PLUGINS.templates[name]
    tokenizer = tiny_tokenizer(special=("<|endoftext|>", *template.tokens, "</s>"))
    tokenizer.chat_template = template.jinja()
    found = match_template(tokenizer, PLUGINS)
    assert found is not None and found.jinja() == template.jinja()


def test_a_chat_template_that_nobody_knows_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}~{{ m.role }}~{{ m.content }}{% endfor %}"
    with pytest.raises(LmfError, match="No installed template renders what the model's own chat template does"):
        match_template(tokenizer, PLUGINS)
    tokenizer.chat_template = None
    assert match_template(tokenizer, PLUGINS) is None


def test_a_model_type_belongs_to_one_family():
    assert family("llama", PLUGINS).name == "llama"
    with pytest.raises(LmfError, match="Did you mean 'llama'"):
        family("lama", PLUGINS)


def test_checkpoints_and_the_cache_are_found(monkeypatch, tmp_path: Path):
    assert "smollm2-135m" in checkpoints(PLUGINS)
    monkeypatch.setenv("LMF_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LMF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lmf"
