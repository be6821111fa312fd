"""From a plan to examples and a model: what is held out, which tokens are new, which precision is used."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import (
    ConfigError,
    DataError,
    Kernel,
    LmfError,
    ModelSpec,
    Plugins,
    RunSettings,
    Sampling,
    Tuner,
    TuningMethod,
    hookimpl,
)
from lmf.config import make
from lmf.encoding.encoder import Example
from lmf.encoding.examples import Examples
from lmf.encoding.material import encode_data, split
from lmf.generate.opening import open_model, reply
from lmf.plan import make_plan
from lmf.report import Reporter
from lmf.testing import tiny_checkpoint, tiny_model, tiny_tokenizer
from lmf.training.learner import compute_dtype, load_learner, unlearned
from lmf.training.loop import train
from lmf_full import FullOptions
from tinyrun import PLUGINS, Notes, log, plan, run, sha256, talks, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

CPU = torch.device("cpu")
LLAMA3 = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 12)


def examples(*lengths: int) -> Examples:
    """Examples of these lengths; the second half of each is learned."""
    return Examples(
        Example([*range(n)], [-100] * (n // 2) + [*range(n // 2, n)], f"file:{i}") for i, n in enumerate(lengths, 1)
    )


# Examples


@pytest.mark.parametrize(("part", "count"), [(0.5, 10), (0.1, 2), (0.01, 1)])
def test_what_is_held_out_is_a_function_of_the_seed(part, count):
    all_ = examples(*range(10, 30))
    order = list(all_)
    chosen = set()
    for seed in range(8):
        random.seed(seed)  # the global generator must not matter
        train_, held_out = split(all_, part, 3)
        chosen.add(tuple(e.where for e in held_out))
        assert len(held_out) == count
        assert sorted([*train_, *held_out], key=order.index) == order
        for half in (train_, held_out):
            assert list(half) == sorted(half, key=order.index)
    assert len(chosen) == 1
    assert len({tuple(e.where for e in split(all_, part, seed)[1]) for seed in range(20)}) > 5


def test_a_split_leaves_something_to_train_on():
    with pytest.raises(DataError, match=r"^--eval-split 0\.5 leaves nothing to train on: there are 1 examples\.$"):
        split(examples(10), 0.5, 0)


def test_all_examples_of_a_record_are_held_out_together():
    several = Examples(Example([1, 2], [1, 2], f"file:{i // 3}") for i in range(60))
    train_, held_out = split(several, 0.25, 0)
    assert len(held_out) == 15
    assert not {e.where for e in train_} & {e.where for e in held_out}
    blocks = Examples(Example([i, 2], [i, 2], "file:1") for i in range(8))  # of one document
    assert [len(half) for half in split(blocks, 0.25, 0)] == [6, 2]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", ["<|im_end|>", "<|endoftext|>", None])
def test_the_end_of_a_reply_is_learned_whatever_the_padding_token_is(pad, side, tmp_path, data):
    model = tiny_checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side=side)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(model)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    material = encode_data(plan(model, data, tmp_path / "out"), Reporter())
    assert len(material.train) == 12
    for example in material.train:
        assert example.labels[-2] == end  # a newline follows that is not trained
        assert example.labels.count(end) == 1


# Templates


def test_the_chat_template_that_a_model_brings_is_kept(tmp_path, data):
    model = tiny_checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    own = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.chat_template = own
    tokenizer.save_pretrained(model)
    report = Notes()
    output = run(model, data, tmp_path / "out", steps=1, template="auto", report=report)
    assert "template auto: the model's own; a reply ends with <|im_end|>" in report.notes
    assert AutoTokenizer.from_pretrained(output).chat_template == own
    report = Notes()
    output = run(model, data, tmp_path / "given", steps=1, template="llama3", report=report)
    assert AutoTokenizer.from_pretrained(output).chat_template == PLUGINS.templates["llama3"].jinja()


def test_a_model_without_a_chat_template_gets_that_of_its_family(tiny, data, tmp_path):
    report = Notes()
    material = encode_data(plan(tiny, data, tmp_path / "out", template="auto"), report)
    expected = PLUGINS.models["llama"].template
    assert material.template is PLUGINS.templates[expected]
    assert f"template {expected}: the model brings none; the default of llama" in report.notes


def test_generation_ends_where_the_template_ends_a_reply(tiny, data, tmp_path):
    material = encode_data(plan(tiny, data, tmp_path / "out", template="llama3"), Reporter())
    learner = load_learner(plan(tiny, data, tmp_path / "out"), material, CPU, Reporter())
    config = learner.model.generation_config
    ids = material.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|eot_id|>"])  # the model's own, and the template's
    assert config.eos_token_id == sorted(ids)
    assert config.pad_token_id == material.tokenizer.eos_token_id


def test_a_reply_that_is_nothing_but_a_thought_is_refused_where_none_is_wanted(tiny, data, tmp_path):
    thought = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>hm</think>"}]
    lines = data.read_text().splitlines()
    lines[2:2] = [json.dumps({"messages": thought})] * 22
    file = tmp_path / "thoughts.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(DataError) as told:
        encode_data(plan(tiny, file, tmp_path / "out", reasoning="disable"), Reporter())
    first, *_, last = str(told.value).splitlines()
    assert first == (
        f"{file}:3: messages[1] is nothing but a thought; without it there is no reply to learn. "
        "Leave the record out, or choose another --reasoning."
    )
    assert (len(str(told.value).splitlines()), last) == (21, "... and 2 more")
    report = Notes()
    skipping = plan(tiny, file, tmp_path / "out", reasoning="disable", on_bad_record="skip", max_dropped=1)
    assert len(encode_data(skipping, report).train) == 12
    assert f"skipped: {first}" in report.notes
    assert len(encode_data(plan(tiny, file, tmp_path / "out"), Reporter()).train) == 34


# New tokens


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("method", "options"), [("full", {}), ("freeze", {"last_layers": 1})])
def test_tokens_that_the_model_lacks_are_added_trained_and_saved(method, options, tied, tmp_path, data):
    model = tiny_checkpoint(tmp_path / "model", tied=tied)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert not set(LLAMA3) & set(tokenizer.get_vocab())
    report = Notes()
    output = run(
        *(model, data, tmp_path / "out", method),
        **{"options": options, "steps": 3, "template": "llama3", "report": report},
    )
    assert f"the tokenizer gets the template's tokens {', '.join(LLAMA3)}" in report.notes
    assert f"the base model never learned {', '.join(LLAMA3)}: their embeddings are trained too" in report.notes
    saved = AutoTokenizer.from_pretrained(output)
    ids = saved.convert_tokens_to_ids(LLAMA3)
    assert ids == [len(tokenizer), len(tokenizer) + 1, len(tokenizer) + 2]
    assert json.loads((output / "lmf.json").read_text())["new_tokens"] == ids
    rows = len(weights(output)["model.embed_tokens.weight"])
    assert rows == len(weights(model)["model.embed_tokens.weight"]) + 3 == len(saved)
    chatter = open_model(str(output), PLUGINS)
    assert chatter.template is PLUGINS.templates["llama3"]
    prompt = torch.tensor([[*ids, 50, 60, *ids]])
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(output).eval()(prompt).logits
        assert torch.equal(chatter.model(prompt).logits, theirs)
    assert isinstance(reply(chatter, "one", Sampling(max_tokens=3)), str)


def test_the_rows_of_new_tokens_are_trained(tiny, data, tmp_path):
    """Their rows as they were before the first step, by the same seed, against those given out."""
    settings = {"template": "llama3", "steps": 2, "options": {"last_layers": 1}}
    made = plan(tiny, data, tmp_path / "out", "freeze", **settings)
    torch.manual_seed(0)
    material = encode_data(made, Reporter())
    start = load_learner(made, material, CPU, Reporter()).model.get_input_embeddings().weight.detach().clone()
    with pytest.raises(LmfError, match=r"^The records of this plan were given away by an earlier run"):
        train(made)
    after = weights(run(tiny, data, tmp_path / "out", "freeze", **settings))["model.embed_tokens.weight"]
    ids = list(material.added)
    assert (start[ids] != after[ids]).any(dim=1).all()


def test_rows_that_a_base_model_reserved_are_found(tiny, data, tmp_path):
    """Near-zero rows, as Llama 3 has them, and rows that are all the same; rows that were learned are not found."""
    material = encode_data(plan(tiny, data, tmp_path / "out"), Reporter())
    start, end = material.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    model = tiny_model(vocab_size=len(material.tokenizer))
    weight = model.get_input_embeddings().weight.data
    assert unlearned(model, material) == []
    learned = weight[end].clone()
    weight[end] = 0
    assert unlearned(model, material) == [end]
    weight[end] = learned * 1e-4
    assert unlearned(model, material) == [end]
    weight[end] = weight[start]
    assert unlearned(model, material) == [start, end]
    weight[end] = learned
    weight[7] = learned  # a token that the template does not use
    assert unlearned(model, material) == []


def test_reserved_rows_are_trained_by_a_method_that_freezes_the_rest(tmp_path, data):
    model = tiny_model(vocab_size=len(tiny_tokenizer()))
    model.get_input_embeddings().weight.data[2] = 0
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    report = Notes()
    output = run(
        tmp_path / "model", data, tmp_path / "out", "freeze", options={"last_layers": 1}, steps=1, report=report
    )
    assert "the base model never learned <|im_end|>: their embeddings are trained too" in report.notes
    assert weights(output)["model.embed_tokens.weight"][2].any()


def test_spare_rows_of_a_model_are_used_before_it_grows(tmp_path, data):
    tiny_model(vocab_size=len(tiny_tokenizer()) + 8).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    output = run(tmp_path / "model", data, tmp_path / "out", steps=1, template="llama3")
    assert len(weights(output)["model.embed_tokens.weight"]) == len(tiny_tokenizer()) + 8


# Precision and attention


def test_auto_precision_is_bfloat16_only_where_the_hardware_has_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert compute_dtype("auto", CPU) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert compute_dtype("auto", CPU) == torch.bfloat16
    assert compute_dtype("float32", CPU) == torch.float32
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16
    cuda = torch.device("cuda")
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert compute_dtype("auto", cuda) == dtype


def test_in_bfloat16_what_is_trained_keeps_full_precision(tiny, data, tmp_path):
    settings: dict[str, Any] = {"options": {"last_layers": 1}, "steps": 4, "batch_size": 6}
    made = plan(tiny, data, tmp_path / "out", "freeze", dtype="bfloat16", **settings)
    learner = load_learner(made, encode_data(made, Reporter()), CPU, Reporter())
    kinds = {(p.requires_grad, p.dtype) for p in learner.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    low, full = (run(tiny, data, tmp_path / kind, "freeze", dtype=kind, **settings) for kind in ("bfloat16", "float32"))
    pairs = [[line["loss"] for line in log(output, "loss")] for output in (low, full)]
    assert pairs[0] == pytest.approx(pairs[1], rel=0.01)
    assert pairs[0] != pairs[1]
    open_model(str(low), PLUGINS)


def test_a_given_kernel_is_used_on_padded_rows(tiny, data, tmp_path):
    class Module:
        @staticmethod
        @hookimpl
        def lmf_kernels() -> list[Kernel]:
            return [Kernel(name="plain", summary="Slow.", why_not=lambda: None, load=lambda: "eager")]

    plugins = Plugins()
    plugins.register("acme-plain", Module)
    values = {"model": str(tiny), "data": str(data), "output": tmp_path / "out", "template": "chatml", "steps": 2}
    values |= {"learning_rate": 1e-3, "dtype": "float32"}
    report = Notes()
    train(make_plan(plugins, "train", "full", make(RunSettings, values | {"attention": "plain"})), report)
    assert any(note.startswith("examples are padded: the kernel plain; ") for note in report.notes)
    packed = run(tiny, data, tmp_path / "packed", steps=2)
    ours, theirs = ([line["loss"] for line in log(output, "loss")] for output in (packed, tmp_path / "out"))
    assert ours == pytest.approx(theirs, rel=1e-5)


# What is refused


def test_examples_longer_than_the_model_are_refused(tmp_path):
    model = tiny_checkpoint(tmp_path / "model")
    talk = {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two " * 600}]}
    (tmp_path / "long.jsonl").write_text(json.dumps(talk))
    with pytest.raises(
        ConfigError, match=r"Examples have up to [\d,]+ tokens, but the model has 512 positions\. Lower"
    ):
        run(model, tmp_path / "long.jsonl", tmp_path / "out", max_tokens=2000)
    assert not (tmp_path / "out").exists()


def test_a_method_that_trains_nothing_is_refused(tiny, data, tmp_path):
    class Frozen(Tuner):
        def prepare(self, model: Any, new_tokens: Any = ()) -> Any:
            return model.requires_grad_(False)

    def build(options: Any, spec: ModelSpec) -> Tuner:
        return Frozen()

    class Module:
        @staticmethod
        @hookimpl
        def lmf_methods() -> list[TuningMethod]:
            return [TuningMethod(name="frozen", summary="Nothing.", options=FullOptions, build=build)]

    plugins = Plugins()
    plugins.register("acme-frozen", Module)
    settings = make(RunSettings, {"model": str(tiny), "data": str(data), "output": tmp_path / "out"})
    with pytest.raises(ConfigError, match=r"^The method 'frozen' leaves no parameter to train with these settings\.$"):
        train(make_plan(plugins, "train", "frozen", settings))
    assert not (tmp_path / "out").exists()


def test_pretraining_needs_no_template(tiny, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "the user and the assistant say hello"}\n' * 3)
    output = run(tiny, tmp_path / "text.jsonl", tmp_path / "out", objective="pretrain", steps=1, sample="the user")
    record = json.loads((output / "lmf.json").read_text())
    assert record["template"] is None
    assert AutoTokenizer.from_pretrained(output).chat_template is None
    assert open_model(str(output), PLUGINS).template is None
    assert sha256(output / "model.safetensors") != sha256(tiny / "model.safetensors")


def test_all_records_that_were_skipped_are_listed_in_the_output(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 10)
    tool = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [%s]}'
    declared = tool % '{"name": "f", "parameters": {}}'
    data.write_text(data.read_text() + f'{{"messages": []}}\n{declared}\n', encoding="utf-8")
    report = Notes()
    settings = {"on_bad_record": "skip", "max_dropped": 0.5, "steps": 1, "report": report}
    output = run(tiny, data, tmp_path / "out", **settings)
    bad, refused = (output / "skipped.txt").read_text().splitlines()
    assert bad.startswith(f"{data}:11: ") and refused.startswith(f"{data}:12: ")
    assert f"2 bad records were left out: see {output / 'skipped.txt'}" in report.notes
    assert json.loads((output / "lmf.json").read_text())["surveys"][0]["refused"] == 1
    assert not (run(tiny, talks(tmp_path / "good.jsonl", 10), tmp_path / "good", steps=1) / "skipped.txt").exists()
