"""Replies: what transformers would write, up to where the template ends a reply."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import ConfigError, LmfError, Message, Sampling, Template, UnknownName
from lmf.config import make
from lmf.encoding.encoder import Encoder
from lmf.errors import Interrupted
from lmf.generate.caches import Part, reading
from lmf.generate.opening import Chatter, open_model, reply
from lmf.testing import tiny_checkpoint, tiny_model
from lmf.training import packing
from tinyrun import PLUGINS, run, stop_at, talks
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 12)


@pytest.fixture(scope="module")
def finished(tiny, data, tmp_path_factory) -> Path:
    """A run that taught the model some words, so that its replies are not only noise."""
    return run(tiny, data, tmp_path_factory.mktemp("finished") / "out", steps=25, batch_size=12, learning_rate=3e-3)


@pytest.fixture(scope="module")
def chatter(finished) -> Chatter:
    return open_model(str(finished), PLUGINS)


def answer(chatter: Chatter, prompt: str, *, system: str | None = None, prefill: str = "", **options: Any) -> str:
    return reply(chatter, prompt, make(Sampling, options), system=system, prefill=prefill)


def theirs(folder: Path, ids: list[int], count: int) -> str:
    """Return what transformers generates."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    row = torch.tensor([ids])
    out = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=count, do_sample=False)
    return str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))


@pytest.mark.parametrize("prompt", ["0 the", "what is one?", "", "<|im_end|>", "\u00fcber \U0001f600"])
def test_a_greedy_reply_is_what_transformers_generates(prompt, finished, chatter):
    tokenizer = AutoTokenizer.from_pretrained(finished)
    ids = chatter.encoder.prompt([Message("user", prompt)])
    if "<|" not in prompt:  # which transformers would read as a control token
        messages = [{"role": "user", "content": prompt}]
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    expected = theirs(finished, ids, 40)
    assert answer(chatter, prompt, max_tokens=40) == expected
    assert expected


@pytest.mark.parametrize("system", [None, "", "answer one"])
@pytest.mark.parametrize("prefill", ["", "the user", " and"])
def test_a_reply_goes_on_from_a_system_message_and_its_own_beginning(system, prefill, finished, chatter):
    tokenizer = AutoTokenizer.from_pretrained(finished)
    opening = [] if system is None else [{"role": "system", "content": system}]
    messages = [*opening, {"role": "user", "content": "what"}]
    begun = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + prefill
    expected = theirs(finished, tokenizer(begun, add_special_tokens=False)["input_ids"], 20)
    assert answer(chatter, "what", system=system, prefill=prefill, max_tokens=20) == expected


def test_a_text_goes_on_from_its_beginning_and_has_no_system_message(tiny):
    plain = open_model(str(tiny), PLUGINS)
    expected = theirs(tiny, plain.tokenizer("the user say")["input_ids"], 9)
    assert answer(plain, "the user say", max_tokens=9) == expected
    assert answer(plain, "the user", prefill=" say", max_tokens=9) == expected
    with pytest.raises(ConfigError, match="has no template, so there can be one text and nothing else"):
        answer(plain, "the user", system="Be brief.")


def test_a_model_in_training_replies_as_an_ordinary_one_and_stays_as_it_was(finished, chatter):
    """The loop asks for a sample in the middle of training, with its own attention."""
    model = AutoModelForCausalLM.from_pretrained(finished, attn_implementation=packing.ATTENTION).train()
    text = answer(dataclasses.replace(chatter, model=model), "what is one?", max_tokens=20)
    assert text == answer(chatter, "what is one?", max_tokens=20)
    assert model.training
    assert model.config._attn_implementation == packing.ATTENTION


def test_a_model_is_put_back_when_generation_fails():
    model = tiny_model().train()
    with pytest.raises(RuntimeError, match="mine"), reading(model):
        assert (model.training, model.config._attn_implementation) == (False, packing.ATTENTION)
        raise RuntimeError("mine")
    assert (model.training, model.config._attn_implementation) == (True, "sdpa")


def test_what_ends_a_reply_are_the_template_s_stops_the_tokenizer_s_end_and_those_of_the_model(tiny):
    chatter = open_model(str(tiny), PLUGINS, "chatml")
    known = chatter.tokenizer.get_vocab()
    chatter.model.generation_config.eos_token_id = [known["a"], known["b"]]
    chatter.tokenizer.eos_token = "<|endoftext|>"
    other = dataclasses.replace(chatter, encoder=Encoder(chatter.tokenizer, chatter.template))
    assert other.stops() == ({known[t] for t in ("a", "b", "<|im_end|>", "<|endoftext|>")}, [])
    end = "\n\nUser:"
    template = Template(name="t", source="here", user="{content}", assistant="A:", reply="{content}" + end, stop=(end,))
    texts = dataclasses.replace(chatter, encoder=Encoder(chatter.tokenizer, template))
    assert texts.stops() == ({known["a"], known["b"], known["<|endoftext|>"]}, [end])


# Opening


def test_a_folder_a_template_by_name_and_the_template_of_the_checkpoint(tiny, finished):
    plain = open_model(str(tiny), PLUGINS)
    assert plain.template is None
    assert plain.encoder.template is None
    assert open_model(str(tiny), PLUGINS, "chatml").template is PLUGINS.templates["chatml"]
    ran = open_model(str(finished), PLUGINS)
    assert ran.template is PLUGINS.templates["chatml"]
    assert not ran.model.training
    assert open_model(str(finished), PLUGINS, "plain").template is PLUGINS.templates["plain"]
    with pytest.raises(UnknownName, match=r"No template is called 'chatmll'\. Did you mean 'chatml'\?"):
        open_model(str(finished), PLUGINS, "chatmll")


def test_a_model_opened_from_a_run_is_that_run_s_model(finished, chatter):
    ids = torch.randint(3, 280, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(finished).eval()(ids).logits
        assert torch.equal(chatter.model(ids).logits, theirs)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, loading by itself
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ("lm_head",)}], ids=["lora", "lora and a whole module"])
def test_an_adapter_is_opened_on_its_base(options, tiny, data, tmp_path):
    from peft import AutoPeftModelForCausalLM

    output = run(tiny, data, tmp_path / "out", "lora", options=options, steps=3, learning_rate=0.01, template="llama3")
    ids = torch.randint(3, 280, (1, 20), generator=torch.Generator().manual_seed(0))
    opened = open_model(str(output), PLUGINS)
    base = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        ours = opened.model(ids).logits
        assert torch.equal(ours, AutoPeftModelForCausalLM.from_pretrained(output).eval()(ids).logits)
        assert not torch.allclose(ours[..., : base.config.vocab_size], base(ids).logits, atol=1e-3)


def test_a_run_that_is_not_finished_is_not_opened(tiny, data, tmp_path):
    with pytest.raises(Interrupted):
        run(tiny, data, tmp_path, steps=3, report=stop_at(1))
    with pytest.raises(LmfError, match=rf"^The run in {tmp_path} is interrupted; continue it with --resume first\.$"):
        open_model(str(tmp_path), PLUGINS)


def test_a_run_whose_template_is_not_installed_says_so(finished, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    record = json.loads((output / "lmf.json").read_text())
    (output / "lmf.json").write_text(json.dumps(record | {"template": "acme-chat:acme"}))
    with pytest.raises(UnknownName, match="No template is called 'acme-chat:acme'"):
        open_model(str(output), PLUGINS)
    assert open_model(str(output), PLUGINS, "chatml").template is PLUGINS.templates["chatml"]


def test_the_template_of_a_model_is_its_own(tmp_path):
    model = tiny_checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = PLUGINS.templates["chatml"].jinja()
    tokenizer.save_pretrained(model)
    own = open_model(str(model), PLUGINS).template
    assert own is not None and (own.name, own.stop) == ("auto", ("<|im_end|>",))
    assert own.jinja() == PLUGINS.templates["chatml"].jinja()
    assert open_model(str(model), PLUGINS, "zephyr").template is PLUGINS.templates["zephyr"]


def test_a_model_without_the_faster_attention_is_read_in_the_middle_of_training():
    """Gemma 2 bounds its scores, which only the slower attention of transformers does."""
    config = Gemma2Config(vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=16)
    model = Gemma2ForCausalLM(config)
    model.set_attn_implementation(packing.ATTENTION)
    with reading(model) as runner:
        (logits,) = runner.forward([Part(runner.begin(), [1, 2, 3], 3)])
    assert (model.config._attn_implementation, model.training) == (packing.ATTENTION, True)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(logits, model.eval()(torch.tensor([[1, 2, 3]])).logits[0], rtol=0, atol=1e-4)
