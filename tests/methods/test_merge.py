"""``lmf merge``: an adapter in the weights of its base, equal to the two apart, and no adapter that does nothing."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import LmfError
from lmf.generate.opening import open_model
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from terminal import lmf, lmf_without_torch, tree
from tinyrun import PLUGINS, run, talks
from transformers import AutoModelForCausalLM, AutoTokenizer

# peft 0.21 asks transformers 5.23 by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def make(base: Path, folder: Path, config: Any = None, **options: Any) -> Path:
    """An adapter that peft made and saved, with random updates."""
    torch.manual_seed(1)
    targets = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    config = config or LoraConfig(r=4, lora_alpha=8, **targets, **options)
    prepared = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in prepared.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    prepared.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory) -> Path:
    return make(tiny, tmp_path_factory.mktemp("adapters") / "adapter")


@pytest.fixture
def copy(adapter, tmp_path) -> Path:
    """An adapter to damage."""
    return shutil.copytree(adapter, tmp_path / "copy")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """An adapter of a run of lmf."""
    folder = tmp_path_factory.mktemp("run")
    data = talks(folder / "talks.jsonl", 12)
    options = {"rank": 4, "target": ("all-linear",)}
    return run(tiny, data, folder / "out", "lora", options=options, steps=8, learning_rate=0.02, template="llama3")


@pytest.fixture(scope="module")
def other(tiny, tmp_path_factory) -> Path:
    """A model of the same shape and name with other weights."""
    folder = tmp_path_factory.mktemp("elsewhere") / tiny.name
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


IDS = torch.randint(3, 280, (100, 12), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [5, 9]},
    ],
    ids=str,
)
def test_merged_weights_say_what_peft_says_with_the_adapter_beside_them(tiny, tmp_path, options):
    folder = make(tiny, tmp_path / "adapter", **options)
    done = lmf("merge", str(tiny), str(folder), str(tmp_path / "out"))
    assert (done.code, done.err) == (0, "")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / CONFIG).exists()
    assert (logits(theirs, IDS) - logits(ours, IDS)).abs().max() <= 1e-5
    assert (logits(theirs, IDS) - logits(AutoModelForCausalLM.from_pretrained(tiny), IDS)).abs().max() > 1e-2


def test_greedy_tokens_of_a_hundred_prompts_are_the_same(tiny, trained, tmp_path):
    done = lmf("merge", str(tiny), str(trained), str(tmp_path / "out"))
    assert done.code == 0
    beside, whole = open_model(str(trained), PLUGINS), open_model(str(tmp_path / "out"), PLUGINS)
    assert beside.context == whole.context and beside.stops() == whole.stops()

    def written(model: Any) -> torch.Tensor:
        return model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=20, do_sample=False)

    assert torch.equal(written(beside.model), written(whole.model))


def test_what_merging_changes_is_told(tiny, adapter, tmp_path):
    told = lmf("merge", str(tiny), str(adapter), str(tmp_path / "out")).out.splitlines()
    number = r"([\d.e-]+)"
    first = re.fullmatch(f"the adapter changes logits by up to {number}", told[0])
    second = re.fullmatch(f"merging changes them by up to {number}, which is {number} of that", told[1])
    assert first and second
    effect, apart, share = map(float, (first[1], second[1], second[2]))
    assert share == pytest.approx(apart / effect, rel=0.1)
    assert told[2] == f"saved {tmp_path / 'out'}"
    assert effect > 1e-2 and apart < 1e-5


def test_an_adapter_of_another_kind_is_merged_too(tiny, tmp_path):
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    folder = make(tiny, tmp_path / "adapter", config)
    assert lmf("merge", str(tiny), str(folder), str(tmp_path / "out")).code == 0
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)
    assert (
        logits(theirs, IDS) - logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), IDS)
    ).abs().max() <= 1e-5


def test_the_format_of_the_training_goes_with_the_merged_model(tiny, trained, tmp_path):
    lmf("merge", str(tiny), str(trained), str(tmp_path / "out"))
    beside, whole = open_model(str(trained), PLUGINS), open_model(str(tmp_path / "out"), PLUGINS)
    from lmf import Message

    for said in ([Message("user", "Hi")], [Message("system", "S"), Message("user", "Hi <|eot_id|>")]):
        assert beside.ids(said) == whole.ids(said)
    assert beside.tokenizer.get_vocab() == whole.tokenizer.get_vocab()


def test_precision_and_shards_are_those_that_are_asked_for(tiny, adapter, tmp_path):
    done = lmf("merge", str(tiny), str(adapter), str(tmp_path / "out"), "--dtype", "bfloat16", "--shard-size", "100KB")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_a_precision_that_cannot_hold_what_was_learned_is_refused(tiny, copy, tmp_path):
    tensors = load_file(copy / WEIGHTS)
    save_file({name: tensor * (1e-2 if "lora_B" in name else 1) for name, tensor in tensors.items()}, copy / WEIGHTS)
    done = lmf("merge", str(tiny), str(copy), str(tmp_path / "out"), "--dtype", "bfloat16")
    assert done.code == 1
    assert "In torch.bfloat16, merging loses too much of what was learned. Use --dtype float32." in done.err
    assert not (tmp_path / "out").exists()


# Adapters that do nothing, or another thing


def put(folder: Path, change: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, metadata={"format": "pt"})


BAD = {
    "empty": (lambda t: {}, "lacks tensors that its configuration tells of"),
    "foreign": (
        lambda t: {name.replace("layers.0", "layers.7"): each for name, each in t.items()},
        "has tensors that the model has no place for",
    ),
    "half": (lambda t: dict(list(t.items())[1:]), "lacks tensors that its configuration tells of"),
    "misshapen": (lambda t: {name: each[:2].contiguous() for name, each in t.items()}, "but the model's is"),
    "not a number": (lambda t: {name: each * torch.nan for name, each in t.items()}, "are not finite numbers"),
    "untrained": (
        lambda t: {name: torch.zeros_like(each) if "lora_B" in name else each for name, each in t.items()},
        "changes nothing: the logits with it are those of",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_adapter_that_is_not_whole_is_refused(tiny, copy, tmp_path, kind):
    change, told = BAD[kind]
    put(copy, change)
    before = tree(tmp_path)
    done = lmf("merge", str(tiny), str(copy), str(tmp_path / "out"))
    assert done.code == 1
    assert told in done.err
    assert str(copy) in done.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no configuration of an adapter"),
        ("[]", "is no configuration of an adapter"),
        ("{}", "is no configuration of an adapter"),
        ('{"peft_type": "MAGIC"}', "is no configuration of an adapter"),
        ('{"peft_type": "LORA", "r": "many", "target_modules": ["q_proj"]}', "does not fit the model"),
        ('{"peft_type": "LORA", "target_modules": ["nothing"]}', "does not fit the model"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(tiny, copy, tmp_path, text, told):
    (copy / CONFIG).write_text(text)
    done = lmf("merge", str(tiny), str(copy), str(tmp_path / "out"))
    assert done.code == 1
    assert told in done.err
    assert not (tmp_path / "out").exists()


def test_a_prompt_is_not_merged(tiny, tmp_path):
    config = PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    folder = make(tiny, tmp_path / "adapter", config)
    done = lmf("merge", str(tiny), str(folder), str(tmp_path / "out"))
    assert done.code == 1
    assert "an adapter of the type PREFIX_TUNING is no change of weights" in done.err


def test_a_pickle_is_not_loaded(tiny, copy, tmp_path):
    torch.save(load_file(copy / WEIGHTS), copy / "adapter_model.bin")
    (copy / WEIGHTS).unlink()
    done = lmf("merge", str(tiny), str(copy), str(tmp_path / "out"))
    assert done.code == 1
    assert "is a pickle, which can run code" in done.err


# Another base


def test_the_base_of_a_run_is_known_by_its_weights(trained, other, tmp_path):
    done = lmf("merge", str(other), str(trained), str(tmp_path / "out"))
    assert done.code == 2
    assert "whose weights are not those of" in done.err
    assert lmf("merge", str(other), str(trained), str(tmp_path / "out"), "--any-base").code == 0


def test_a_run_is_not_opened_on_a_base_that_has_changed(trained, other, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    record = json.loads((moved / "lmf.json").read_text())
    record["settings"]["model"] = str(other)
    (moved / "lmf.json").write_text(json.dumps(record))
    with pytest.raises(LmfError, match=r"was trained on other weights than .* has now"):
        open_model(str(moved), PLUGINS)


def test_the_base_of_other_adapters_is_known_by_its_name(tiny, copy, tmp_path):
    config = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "meta-llama/Llama-3.1-8B"}))
    done = lmf("merge", str(tiny), str(copy), str(tmp_path / "out"))
    assert done.code == 2
    assert f"{copy} was trained on meta-llama/Llama-3.1-8B, not on {tiny}. Give that one, or --any-base" in done.err
    assert lmf("merge", str(tiny), str(copy), str(tmp_path / "out"), "--any-base").code == 0


def test_a_base_in_another_precision_is_the_same_base(tiny, trained, tmp_path):
    half = tmp_path / tiny.name
    AutoModelForCausalLM.from_pretrained(tiny).to(torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(half)
    assert lmf("merge", str(half), str(trained), str(tmp_path / "out"), "--dtype", "float32").code == 0


# Wrong lines


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nosuch {adapter} out", "No model is called 'nosuch'."),
        ("{tiny} nosuch out", "nosuch holds no adapter: adapter_config.json is missing."),
        ("{tiny} {tiny} out", "holds no adapter: adapter_config.json is missing."),
        ("{tiny} {adapter} there", "there exists; name a place for something new."),
        ("{tiny} {adapter} no/where", "no/where cannot be written: there is no folder"),
        ("{tiny} {adapter} out --shard-size lots", "--shard-size is 'lots'; write it as 500MB or 5GB."),
        ("{tiny} {adapter} out --dtype int8", "--dtype is 'int8'; it must be one of auto, float32, bfloat16, float16."),
        ("{adapter} {tiny} out", "holds no adapter"),
    ],
)
def test_a_wrong_line_is_refused_and_nothing_is_written(tiny, adapter, tmp_path, monkeypatch, line, told):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    done = lmf("merge", *line.format(tiny=tiny, adapter=adapter).split())
    assert done.code in (1, 2)
    assert told in done.err
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]


def test_help_needs_no_torch():
    assert "ADAPTER is the output of a LoRA run" in " ".join(lmf_without_torch("merge", "--help").out.split())
