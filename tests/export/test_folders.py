"""``lmf export hf`` and ``check``: folders that plain transformers loads, and that are what lmf trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lmf import Message
from lmf.generate.opening import open_model
from safetensors.torch import load_file, save_file
from terminal import lmf, lmf_without_torch, tree
from tinyrun import PLUGINS, run, talks
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
RIGHT = [
    "transformers loads it: LlamaForCausalLM",
    "its logits are finite numbers",
    "its logits are those in lmf, but for 0",
    "its chat template gives the ids of lmf for 11 of 11 prompts",
    "it stops where replies end",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 12)


@pytest.fixture(scope="module")
def lora(tiny, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "out"
    return run(tiny, data, out, "lora", options={"rank": 4}, steps=4, learning_rate=0.02, template="chatml")


@pytest.fixture(scope="module")
def full(tiny, data, tmp_path_factory) -> Path:
    return run(tiny, data, tmp_path_factory.mktemp("full") / "out", steps=2, template="chatml")


@pytest.fixture(scope="module")
def exported(lora, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    done = lmf("export", "hf", str(lora), str(out))
    assert (done.code, done.err) == (0, "")
    return out


def findings(out: str) -> list[str]:
    return [line.removeprefix("ok   ") for line in out.splitlines() if line.startswith("ok   ")]


def test_what_is_written_was_examined(lora, tmp_path):
    done = lmf("export", "hf", str(lora), str(tmp_path / "model"))
    told = findings(done.out)
    assert [each.rpartition(" but for ")[0] or each for each in told] == [
        each.rpartition(" but for ")[0] or each for each in RIGHT
    ]
    assert done.out.endswith(f"saved {tmp_path / 'model'}\n")


def test_an_adapter_is_in_the_weights(lora, exported):
    ids = torch.arange(3, 90)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(exported)(ids).logits
        ours = open_model(str(lora), PLUGINS).model(ids).logits
    assert (theirs - ours).abs().max() < 1e-5
    assert not (exported / "adapter_config.json").exists()


def test_the_folder_needs_nothing_of_lmf(lora, exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    said = [("system", "S"), ("user", "Hi"), ("assistant", "Ho"), ("user", "And?")]
    messages = [{"role": role, "content": text} for role, text in said]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    chatter = open_model(str(lora), PLUGINS)
    assert ids == chatter.ids([Message(role, text) for role, text in said])  # type: ignore[arg-type]
    stops = json.loads((exported / "generation_config.json").read_text())["eos_token_id"]
    assert chatter.encoder.end_ids <= {*(stops if isinstance(stops, list) else [stops])}


@pytest.mark.parametrize("which", ["lora", "full"])
def test_the_output_of_a_run_is_right_as_it_is(which, request):
    done = lmf("export", "check", str(request.getfixturevalue(which)))
    assert (done.code, done.err) == (0, "")
    assert len(findings(done.out)) == 5


def test_a_model_of_texts_has_no_template(tiny):
    done = lmf("export", "check", str(tiny))
    assert done.code == 0
    assert "it is a model of texts, without a template" in done.out


def test_precision_and_shards_are_those_that_are_asked_for(full, tmp_path):
    out = tmp_path / "model"
    assert lmf("export", "hf", str(full), str(out), "--dtype", "bfloat16", "--shard-size", "100KB").code == 0
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16


def test_another_template_goes_along(tiny, tmp_path):
    out = tmp_path / "model"
    assert lmf("export", "hf", str(tiny), str(out), "--template", "alpaca").code == 0
    assert "### Instruction" in AutoTokenizer.from_pretrained(out).chat_template


# What is wrong is found


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return shutil.copytree(exported, tmp_path / "copy")


def bad(folder: Path) -> str:
    done = lmf("export", "check", str(folder))
    assert done.code == 1
    return done.out + done.err


def test_a_template_that_writes_something_else_is_found(full, tmp_path):
    folder = shutil.copytree(full, tmp_path / "copy")
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(text.replace("<|im_start|>assistant", "<|im_start|>assistant:"))
    told = bad(folder)
    assert "BAD  its chat template writes another prompt for one turn, several turns" in told
    assert "1 of 5 checks failed." in told


def test_a_stop_that_is_missing_is_found(full, tmp_path):
    folder = shutil.copytree(full, tmp_path / "copy")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": 5}))
    assert "BAD  generation does not stop at <|im_end|>" in bad(folder)


def test_a_missing_tensor_is_found(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors.pop(next(name for name in tensors if "down_proj" in name))
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert "BAD  missing keys: ['model.layers." in bad(copy)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("hf nosuch out", "No model is called 'nosuch'."),
        ("hf {model} there", "there exists; name a place for something new."),
        ("hf {model} no/where", "there is no folder"),
        ("hf {model} out --dtype int4", "--dtype is 'int4'"),
        ("hf {model} out --shard-size big", "--shard-size is 'big'; write it as 500MB or 5GB."),
        ("hf {model} out --template chatlm", "No template is called 'chatlm'."),
        ("check nosuch", "No model is called 'nosuch'."),
        ("check smollm2-135m", "smollm2-135m is no folder"),
        ("check there", "there holds no model: config.json is missing."),
        ("delta make nosuch {model} out", "No model is called 'nosuch'."),
        ("delta make {model} there out", "there holds no model"),
        ("delta apply {model} there out", "there holds no model"),
        ("onnx {model} out", "No such command 'onnx'"),
    ],
)
def test_a_wrong_line_is_refused_and_nothing_is_written(tiny, tmp_path, monkeypatch, line, told):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    before = tree(tmp_path)
    done = lmf("export", *line.format(model=tiny).split())
    assert done.code in (1, 2)
    assert told in done.err
    assert tree(tmp_path) == before


def test_help_needs_no_torch():
    for line in ([], ["hf"], ["check"], ["delta"], ["delta", "make"]):
        assert lmf_without_torch("export", *line, "--help").code == 0
