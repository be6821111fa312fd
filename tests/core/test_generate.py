"""Replies: what transformers would write, up to where the template ends a reply."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import ConfigError, LmfError, Message, Template, UnknownName
from lmf.encoding.encoder import Encoder
from lmf.errors import Interrupted
from lmf.generate import Chatter, open_model, ordinary_attention, reply
from lmf.testing import tiny_checkpoint, tiny_model, tiny_tokenizer
from lmf.training import packing
from tinyrun import PLUGINS, run, stop_at, talks
from transformers import AutoModelForCausalLM, AutoTokenizer


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


def answer(chatter: Chatter, prompt: str, **options: Any) -> str:
    return reply(chatter.model, chatter.tokenizer, chatter.encoder, prompt, **options)


@pytest.mark.parametrize("prompt", ["0 the", "what is one?", "", "<|im_end|>", "\u00fcber \U0001f600"])
def test_a_greedy_reply_is_what_transformers_generates(prompt, finished, chatter):
    tokenizer, model = AutoTokenizer.from_pretrained(finished), AutoModelForCausalLM.from_pretrained(finished)
    ids = torch.tensor([chatter.encoder.prompt([Message("user", prompt)])])
    if "<|" not in prompt:  # which transformers would read as a control token
        messages = [{"role": "user", "content": prompt}]
        theirs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert torch.equal(theirs["input_ids"], ids)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert answer(chatter, prompt, max_new_tokens=40) == expected
    assert expected


@pytest.mark.parametrize("system", [None, "", "answer one"])
@pytest.mark.parametrize("prefill", ["", "the user", " and"])
def test_a_reply_goes_on_from_a_system_message_and_its_own_beginning(system, prefill, finished, chatter):
    tokenizer, model = AutoTokenizer.from_pretrained(finished), AutoModelForCausalLM.from_pretrained(finished)
    opening = [] if system is None else [{"role": "system", "content": system}]
    messages = [*opening, {"role": "user", "content": "what"}]
    begun = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + prefill
    ids = tokenizer(begun, add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert answer(chatter, "what", system=system, prefill=prefill, max_new_tokens=20) == expected


def test_a_text_goes_on_from_its_beginning_and_has_no_system_message(tiny):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    encoder = Encoder(tokenizer, None)
    whole = reply(model, tokenizer, encoder, "the user say", max_new_tokens=9)
    assert reply(model, tokenizer, encoder, "the user", prefill=" say", max_new_tokens=9) == whole
    with pytest.raises(ConfigError, match="has no template; a system message has no place in it"):
        reply(model, tokenizer, encoder, "the user", system="Be brief.")


def test_a_packed_model_replies_as_an_ordinary_one(finished, chatter):
    """The loop asks for a sample in the middle of training, with its own attention."""
    model = AutoModelForCausalLM.from_pretrained(finished, attn_implementation=packing.ATTENTION).train()
    text = reply(model, chatter.tokenizer, chatter.encoder, "what is one?", max_new_tokens=20)
    assert text == answer(chatter, "what is one?", max_new_tokens=20)
    assert model.training
    assert model.config._attn_implementation == packing.ATTENTION


def test_a_model_is_put_back_when_generation_fails():
    model = tiny_model().train()
    model.set_attn_implementation(packing.ATTENTION)
    with pytest.raises(RuntimeError, match="mine"), ordinary_attention(model):
        assert (model.training, model.config._attn_implementation) == (False, "sdpa")
        raise RuntimeError("mine")
    assert (model.training, model.config._attn_implementation) == (True, packing.ATTENTION)


class Script:
    """A model that writes given tokens, whatever it is asked."""

    def __init__(self, text: list[int]):
        self.model, self.text = tiny_model(), text

    def __enter__(self) -> Any:
        model, text = self.model, iter(self.text)

        def forward(input_ids: torch.Tensor, **_: Any) -> Any:
            logits = torch.zeros(1, input_ids.shape[1], 300)
            logits[0, -1, next(text)] = 1
            return type("Output", (dict,), {"logits": logits, "past_key_values": None})()

        model.forward = forward
        return model

    def __exit__(self, *_: Any) -> None:
        del self.model.forward


@pytest.mark.parametrize(
    ("stop", "special"),
    [("<|im_end|>", ("<|endoftext|>", "<|im_start|>", "<|im_end|>")), ("\n\nUser:", ("<|endoftext|>",))],
    ids=["a token", "several tokens"],
)
def test_a_reply_ends_at_the_stop_of_its_template_and_without_it(stop, special):
    tokenizer = tiny_tokenizer(special=special)
    template = Template(
        name="t", source="here", user="{content}", assistant="A:", reply="{content}" + stop, stop=(stop,)
    )
    text = f"hello{stop} never reached"
    with Script(tokenizer(text, add_special_tokens=False)["input_ids"]) as model:
        assert reply(model, tokenizer, Encoder(tokenizer, template), "one") == "hello"


def test_a_reply_ends_at_the_end_token_of_the_tokenizer_too():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    with Script(tokenizer("hello<|endoftext|>never", add_special_tokens=False)["input_ids"]) as model:
        assert reply(model, tokenizer, Encoder(tokenizer, PLUGINS.templates["chatml"]), "one") == "hello"


def test_a_text_is_continued_without_a_template(tiny):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    ids = torch.tensor([tokenizer("the user and")["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert reply(model, tokenizer, Encoder(tokenizer, None), "the user and", max_new_tokens=10) == expected


def test_above_temperature_0_tokens_are_drawn(chatter):
    torch.manual_seed(0)
    texts = {answer(chatter, "one", max_new_tokens=8, temperature=2.0) for _ in range(5)}
    torch.manual_seed(0)
    assert {answer(chatter, "one", max_new_tokens=8, temperature=2.0) for _ in range(5)} == texts
    assert len(texts) > 1


def test_what_is_streamed_is_what_is_returned(chatter):
    parts: list[str] = []
    text = answer(chatter, "4 what is one two", max_new_tokens=30, stream=parts.append)
    assert "".join(parts) == text
    assert len(parts) > 1


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
