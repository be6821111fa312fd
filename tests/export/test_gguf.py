"""``lmf export gguf``: what gguf, transformers and llama.cpp read of the file is the model."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from gguf import GGUFReader, GGUFWriter, quants
from lmf import LmfError, Message, Sampling
from lmf.generate.caches import reading
from lmf.generate.opening import open_model
from lmf.testing import tiny_tokenizer
from lmf_export import architectures, llama_cpp, vocabulary
from lmf_export.command import Packing
from lmf_export.findings import jinja_of
from lmf_export.ggufs import parts
from lmf_export.packing import write_file
from terminal import lmf, lmf_without_torch, tree
from tinyrun import PLUGINS, run, talks
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

needs_llama_cpp = pytest.mark.skipif(not llama_cpp.installed(), reason="the package cyllama is not installed")
SHAPE = {
    **{"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0},
}
WIDE = {"head_dim": 32}
GEMMA = {**WIDE, "query_pre_attn_scalar": 32, "sliding_window": 16}
POSITIONS = {"rope_theta": 10000.0, "factor": 4.0}
YARN = {**POSITIONS, "rope_type": "yarn", "original_max_position_embeddings": 128}
LLAMA3 = {
    **{**POSITIONS, "rope_type": "llama3", "original_max_position_embeddings": 64},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
LONG = {"rope_theta": 10000.0, "rope_type": "longrope"}
LONG |= {"short_factor": [1 + i / 10 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama with biases, tied": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("Llama", {"rope_parameters": {**POSITIONS, "rope_type": "linear"}}),
    "mistral": ("Mistral", {**WIDE, "sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2, yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {**WIDE, "tie_word_embeddings": True}),
    "gemma": ("Gemma", WIDE),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3Text", {**GEMMA, "num_hidden_layers": 7}),
    "phi3": ("Phi3", {"rope_parameters": {**POSITIONS, "rope_type": "default", "partial_rotary_factor": 0.5}}),
    "phi3, long": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 256}),
}
READ = {  # what transformers reads of a file, too, and the settings that it does not look for there
    "llama": {},
    "qwen2": {},
    "mistral": {},
    "qwen3": {"head_dim": 128},
    "gemma2": {"query_pre_attn_scalar": 256, "head_dim": 256},
    "gemma3": {"query_pre_attn_scalar": 256, "head_dim": 256},
    # transformers has 32,000 as what Phi 3 pads with, whatever the file says
    "phi3": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "vocab_size": 32064},
}


SERVER = """
import json, sys, urllib.request
import xllamacpp

order = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.port, params.warmup = order["file"], 512, 0, False
server = xllamacpp.Server(params)
body = {"messages": order["said"], "temperature": 0, "max_tokens": 24}
request = urllib.request.Request(
    server.listening_address + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
)
answer = json.load(urllib.request.urlopen(request))
told = {"content": answer["choices"][0]["message"]["content"], "prompt_tokens": answer["usage"]["prompt_tokens"]}
print(json.dumps(told))
"""


def reply(chatter, talk: list[Message], sampling: Sampling) -> str:
    with reading(chatter.model) as runner:
        engine = chatter.engine(runner)
        replies = engine.submit(chatter.ids(talk), sampling)
        engine.finish(replies)
    return replies[0].text


def random_model(folder: Path, family: str, **more) -> Path:
    """Write a model whose norms and biases are not what they are at first, and none of whose logits are near 0."""
    name, settings = FAMILIES[family]
    tokenizer = tiny_tokenizer()
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **settings, **more})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 4 if parameter.ndim > 1 else parameter + torch.randn_like(parameter) / 4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def found(told) -> str:
    return "\n".join(f"{right} {text}" for right, text in told)


@needs_llama_cpp
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_the_model(family, tmp_path):
    """Its logits, from its own code, are those of transformers."""
    folder = random_model(tmp_path / "model", family)
    told = write_file(str(folder), tmp_path / "model.gguf", PLUGINS, Packing(template="chatml"))
    assert all(right is not False for right, _ in told)
    assert "True llama.cpp reads the tokens of lmf in 12 of 12 prompts" in found(told)
    apart = next(text for _, text in told if "computes these logits" in text)
    assert float(apart.split("but for ")[1].split("%")[0]) <= 0.06


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["auto", "f32", "q8_0"])
def test_a_model_in_16_bits(kind, tmp_path):
    folder = random_model(tmp_path / "model", "gemma2")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    told = write_file(str(folder), tmp_path / "a.gguf", PLUGINS, Packing(type=kind, template="chatml"))
    assert all(right is not False for right, _ in told)
    types = {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    assert types == {"F32", {"auto": "BF16", "f32": "F32", "q8_0": "Q8_0"}[kind]}


@pytest.mark.parametrize("family", READ)
def test_transformers_reads_the_file(family, tmp_path):
    folder = random_model(tmp_path / "model", family, **READ[family])
    write_file(str(folder), tmp_path / "model.gguf", PLUGINS, Packing())
    options = {"gguf_file": "model.gguf", "quantization_config": GgufConfig(dequantize=True)}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        assert (theirs(ids).logits - ours).abs().max() < 1e-4 * ours.abs().max()


@pytest.fixture(scope="module")
def lora(tiny, tmp_path_factory) -> Path:
    data = talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 12)
    out = tmp_path_factory.mktemp("lora") / "out"
    return run(tiny, data, out, "lora", options={"rank": 4}, steps=4, learning_rate=0.02, template="chatml")


def test_an_adapter_is_in_the_weights(lora, tmp_path):
    done = lmf("export", "gguf", str(lora), str(tmp_path / "a.gguf"))
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(f"saved {tmp_path / 'a.gguf'}\n")
    options = {"gguf_file": "a.gguf", "quantization_config": GgufConfig(dequantize=True)}
    ids = torch.arange(3, 90)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options)(ids).logits
        ours = open_model(str(lora), PLUGINS).model(ids).logits
    assert (theirs - ours).abs().max() < 1e-5


def test_tokenizer_template_and_stops_are_inside(lora, tmp_path):
    write_file(str(lora), tmp_path / "a.gguf", PLUGINS, Packing())
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    chatter = open_model(str(lora), PLUGINS)
    messages = [Message("system", "S"), Message("user", "hello 12"), Message("assistant", "Ho"), Message("user", "a?")]
    said = [{"role": each.role, "content": each.content} for each in messages]
    assert theirs.apply_chat_template(said, add_generation_prompt=True, return_dict=False) == chatter.ids(messages)
    assert "generation %}" not in theirs.chat_template
    assert theirs.eos_token_id in chatter.encoder.end_ids


@pytest.mark.parametrize(("kind", "bits"), [("f16", 2e-3), ("bf16", 4e-3), ("q8_0", 1e-2)])
def test_smaller_types(kind, bits, tiny, tmp_path):
    """The bounds are those of rounding: half of 2^-10, of 2^-7 and, in blocks of 32, of the largest by 127."""
    told = write_file(str(tiny), tmp_path / "a.gguf", PLUGINS, Packing(type=kind))
    assert all(right is not False for right, _ in told)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    for part in parts(model):
        tensor = stored[part.name]
        assert tensor.tensor_type.name.lower() == (kind if part.tensor.ndim > 1 else "f32")
        values = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).copy())
        own = part.change(part.tensor.detach()).float()
        assert (values - own).abs().max() <= bits * own.abs().max()


@pytest.mark.real
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the package xllamacpp is not installed")
def test_the_server_of_llama_cpp_writes_the_same(tmp_path):
    """Its own Jinja, tokenizer and stops, from a conversation to the greedy reply."""
    write_file("smollm2-135m", tmp_path / "a.gguf", PLUGINS, Packing())
    talk = [Message("user", "Name two  colours."), Message("assistant", "Red, blue."), Message("user", "And 12 + 30?")]
    said = [{"role": each.role, "content": each.content} for each in talk]
    order = {"file": str(tmp_path / "a.gguf"), "said": said}
    done = subprocess.run([sys.executable, "-c", SERVER], input=json.dumps(order), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    chatter = open_model("smollm2-135m", PLUGINS)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "content": reply(chatter, talk, Sampling(max_tokens=24)),
        "prompt_tokens": len(chatter.ids(talk)),
    }


@needs_llama_cpp
def test_small_types_are_made_by_llama_cpp(tmp_path):
    folder = random_model(tmp_path / "model", "llama", hidden_size=256, intermediate_size=256)
    told = write_file(str(folder), tmp_path / "a.gguf", PLUGINS, Packing(type="q4_k_m"))
    kinds = {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds == {"F32", "Q4_K", "Q6_K"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "model"]
    assert "True llama.cpp reads the tokens" in found(told)


def test_without_llama_cpp(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "installed", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LmfError, match=r"made by llama\.cpp, which is not installed here: pip install"):
        write_file(str(tiny), tmp_path / "a.gguf", PLUGINS, Packing(type="q4_k_m"))
    told = write_file(str(tiny), tmp_path / "a.gguf", PLUGINS, Packing())
    assert "None not tried in llama.cpp; to have it tried: pip install 'lmf-export[llama-cpp]'" in found(told)


WRONG = {
    "rows of queries in another order": (architectures, "_neighbours", lambda tensor, heads: tensor),
    "another base of the rotation": (GGUFWriter, "add_rope_freq_base", lambda writer, base: None),
    "no chat template": (GGUFWriter, "add_chat_template", lambda writer, text: None),
    "few merges": (vocabulary, "_merges", lambda model: [list(pair) for pair in model["merges"][:3]]),
}


@needs_llama_cpp
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_not_written(what, tmp_path, monkeypatch):
    """The checks are able to fail, each for its reason."""
    folder = random_model(tmp_path / "model", "llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    place, name, wrong = WRONG[what]
    monkeypatch.setattr(place, name, wrong)
    with pytest.raises(LmfError, match="The file would not be right, and was not written"):
        write_file(str(folder), tmp_path / "a.gguf", PLUGINS, Packing(template="chatml"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tensor_of_zeros_is_no_small_type(tmp_path, monkeypatch):
    folder = random_model(tmp_path / "model", "llama")
    monkeypatch.setattr(llama_cpp, "quantizes", lambda: True)
    monkeypatch.setattr(llama_cpp, "installed", lambda: False)
    monkeypatch.setattr(llama_cpp, "quantize", lambda whole, file, kind: shutil.copy(whole, file))
    monkeypatch.setattr(architectures, "_neighbours", lambda tensor, heads: torch.zeros_like(tensor))
    with pytest.raises(LmfError, match=r"but for 100.00% of the norm \(blk.0.attn_[qk].weight\)"):
        write_file(str(folder), tmp_path / "a.gguf", PLUGINS, Packing(type="q2_k"))


def test_what_a_run_was_told_of_thoughts_is_in_the_template():
    template = replace(PLUGINS.templates["qwen3"], variables={"enable_thinking": False})
    alone = replace(template, text=jinja_of(template), variables={})
    told, other = (
        "".join(piece.text for piece in each.render([Message("user", "Hi")], reply=True)) for each in (alone, template)
    )
    assert told == other
    assert "</think>" in told


def test_values_that_are_too_large(tmp_path):
    folder = random_model(tmp_path / "model", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(folder)
    with pytest.raises(LmfError, match=r"blk\.0\.ffn_up\.weight has values that are too large for this type"):
        write_file(str(folder), tmp_path / "a.gguf", PLUGINS, Packing(type="f16"))
    assert not (tmp_path / "a.gguf").exists()


REFUSED = {
    "GPTNeoX": ({}, "lmf writes GGUF for llama, mistral, .*, and this model is of type 'gpt_neox'"),
    "Llama": ({"hidden_act": "gelu"}, "llama.cpp computes 'silu' in llama, and this model 'gelu'"),
    "Gemma2": ({**WIDE, "query_pre_attn_scalar": 64}, "attention by the root of 32, and this model by that of 64"),
    "Gemma3Text": ({**GEMMA, "layer_types": ["full_attention"] * 2}, "the layers sliding_attention, .* repeated"),
    "Qwen3": ({"rope_parameters": {**POSITIONS, "rope_type": "dynamic"}}, "no positions of qwen3 by 'dynamic'"),
    "Qwen2": ({"rope_parameters": {**YARN, "beta_fast": 16.0}}, "with its usual settings only.*beta_fast"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_llama_cpp_computes_otherwise(name, tmp_path, tiny):
    settings, words = REFUSED[name]
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**{**SHAPE, **settings}))
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(LmfError, match=words):
        write_file(str(tmp_path / "model"), tmp_path / "a.gguf", PLUGINS, Packing())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gguf", "no-such", "a.gguf"], "no-such"),
        (["gguf", "{tiny}", "a.bin"], "a.bin must end in .gguf"),
        (["gguf", "{tiny}", "there.gguf"], "there.gguf exists"),
        (["gguf", "{tiny}", "no/a.gguf"], "there is no folder"),
        (["gguf", "{tiny}", "a.gguf", "--type", "q9"], "'q9'"),
        (["gguf", "{tiny}", "a.gguf", "--template", "chatlm"], "chatml"),
        (["ollama", "{tiny}", "there"], "there exists"),
    ],
)
def test_bad_input(arguments, words, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.gguf").write_text("kept")
    (tmp_path / "there").mkdir()
    before = tree(tmp_path)
    done = lmf_without_torch("export", *(each.format(tiny=tiny) for each in arguments))
    assert done.code == 2
    assert words in done.err
    assert tree(tmp_path) == before
