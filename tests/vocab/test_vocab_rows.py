"""``lmf vocab apply``: old rows as they were, bit for bit, and new ones that begin where they are told to."""

import json
from collections import Counter

import pytest
import torch
from lmf import Plugins
from lmf.generate.opening import open_model
from lmf.models import added_tokens
from lmf.testing import tiny_model, tiny_tokenizer
from lmf_vocab.applying import apply
from lmf_vocab.bases import open_base, write
from lmf_vocab.command import Applying
from lmf_vocab.measuring import chatter_of, count, loss_per_byte
from lmf_vocab.merging import learn
from lmf_vocab.rows import change_of
from lmf_vocab.vocabulary import vocabulary_of
from safetensors.torch import load_file
from terminal import lmf
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

PLUGINS = Plugins()
TEXTS = ["가나다 라마 가나다", "라마 바사 가나다 the user", "바사바사 가나"]
OLD = 300  # ids of the tiny tokenizer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


@pytest.fixture(scope="module", params=["tied", "untied", "padded"])
def model(request, tmp_path_factory):
    """A tiny model: one matrix for both ends, two, or one with more rows than there are tokens."""
    folder = tmp_path_factory.mktemp("model") / request.param
    rows = 350 if request.param == "padded" else OLD
    made = tiny_model(vocab_size=rows, tied=request.param != "untied")
    made.generation_config.eos_token_id = [2, 0]
    made.save_pretrained(folder)
    tiny_tokenizer(OLD).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model, tmp_path_factory):
    """Its tokenizer with 20 pieces more."""
    base = open_base(str(model), PLUGINS)
    learn(base.vocabulary, Counter(word for text in TEXTS for word in base.vocabulary.words(text)), 20, fewest=1)
    folder = tmp_path_factory.mktemp("tokenizer") / "out"
    write(base, folder)
    return folder


def ends(folder) -> list[torch.Tensor]:
    """Return the embeddings, and the head where it is a matrix of its own."""
    tensors = load_file(folder / "model.safetensors")
    return [tensors[name] for name in ("model.embed_tokens.weight", "lm_head.weight") if name in tensors]


def applied(model, tokenizer, out, **settings):
    apply(str(model), out, Applying(tokenizer=str(tokenizer), **settings), PLUGINS)
    return ends(out)


def replaced(model, tokenizer) -> list[tuple[list[int], list[int]]]:
    """Return for each new piece what plain transformers cuts it into without it: ids, and their bytes."""
    old, new = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(tokenizer)
    byte = {character: number for number, character in bytes_to_unicode().items()}
    found = []
    for id in range(len(old), len(new)):
        piece = new.convert_ids_to_tokens(id)
        text = bytes(byte[c] for c in piece)
        cut = [token.id for token in old.backend_tokenizer.model.tokenize(piece)]
        assert b"".join(bytes(byte[c] for c in old.convert_ids_to_tokens(i)) for i in cut) == text
        found.append((cut, [len(old.convert_ids_to_tokens(i)) for i in cut]))
    return found


def test_old_rows_stay_bit_for_bit_and_there_are_rows_for_a_multiple_of_64(model, tokenizer, tmp_path):
    before = ends(model)
    for init in ("mean-of-pieces", "weighted", "random", "copy:the"):
        after = applied(model, tokenizer, tmp_path / init.replace(":", "-"), init=init)
        assert len(after) == len(before)
        for old, new in zip(before, after, strict=True):
            assert torch.equal(new[:OLD], old[:OLD])
            assert len(new) == (384 if len(old) == 350 else 320)


def test_new_rows_are_means_of_the_rows_that_they_replace(model, tokenizer, tmp_path):
    parts = replaced(model, tokenizer)
    for init, weigh in (("mean-of-pieces", lambda n: 1.0), ("weighted", float)):
        for old, new in zip(ends(model), applied(model, tokenizer, tmp_path / init, init=init), strict=True):
            for row, (ids, sizes) in enumerate(parts, OLD):
                weights = torch.tensor([weigh(n) for n in sizes], dtype=torch.float64)
                expected = (weights[:, None] * old[ids].double()).sum(0) / weights.sum()
                torch.testing.assert_close(new[row].double(), expected, rtol=1e-6, atol=1e-7)


def test_new_rows_are_a_copy_or_as_random_as_the_old_ones(model, tokenizer, tmp_path):
    old = ends(model)[0]
    copied = applied(model, tokenizer, tmp_path / "copy", init="copy:user")[0]
    token = AutoTokenizer.from_pretrained(model)("user", add_special_tokens=False).input_ids
    assert len(token) == 1 and torch.equal(copied[OLD : OLD + 20], old[token].expand(20, -1))
    one = applied(model, tokenizer, tmp_path / "one", init="random", seed=1)[0]
    same = applied(model, tokenizer, tmp_path / "same", init="random", seed=1)[0]
    other = applied(model, tokenizer, tmp_path / "other", init="random", seed=2)[0]
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one[OLD : OLD + 20].std().item() == pytest.approx(old[:OLD].std().item(), rel=0.1)


def test_plain_transformers_loads_it_and_says_of_old_text_what_it_said(model, tokenizer, tmp_path):
    applied(model, tokenizer, tmp_path / "out")
    before, after = (AutoModelForCausalLM.from_pretrained(each) for each in (model, tmp_path / "out"))
    cut = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert after.config.vocab_size == len(after.get_input_embeddings().weight)
    assert added_tokens(after.config) == range(OLD, OLD + 20)
    assert after.generation_config.eos_token_id == [2, 0]
    ids = cut("the user and what is one", return_tensors="pt").input_ids
    assert torch.equal(
        ids, AutoTokenizer.from_pretrained(model)("the user and what is one", return_tensors="pt").input_ids
    )
    with torch.no_grad():
        assert torch.equal(before(ids).logits[..., :OLD], after(ids).logits[..., :OLD])
    assert cut.chat_template == AutoTokenizer.from_pretrained(model).chat_template


def test_a_pruned_vocabulary_takes_its_rows_and_special_tokens_along(model, tokenizer, data, tmp_path):
    done = lmf("vocab", "prune", str(model), str(tmp_path / "small"), "--data", str(data))
    assert done.code == 0, done.err
    applied(model, tmp_path / "small", tmp_path / "out")
    old, new = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(new) < len(old)
    before, after = ends(model), ends(tmp_path / "out")
    for piece, id in new.get_vocab().items():
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one[old.convert_tokens_to_ids(piece)], other[id])
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    stops = [new.convert_tokens_to_ids(old.convert_ids_to_tokens(id)) for id in (2, 0)]
    assert made.generation_config.eos_token_id == stops
    assert made.config.eos_token_id == stops[0]


def test_special_tokens_behind_all_pieces_get_their_new_ids_everywhere(data, tmp_path):
    folder = tmp_path / "base"
    tokenizer = tiny_tokenizer(OLD)
    tokenizer.add_special_tokens({"eos_token": "<|end|>", "pad_token": "<|pad|>"})
    made = tiny_model(vocab_size=OLD + 2)
    for config in (made.config, made.generation_config):
        config.eos_token_id, config.pad_token_id = OLD, OLD + 1
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done = lmf("vocab", "prune", str(folder), str(tmp_path / "small"), "--data", str(data))
    assert done.code == 0, done.err
    applied(folder, tmp_path / "small", tmp_path / "out")
    small, loaded = (each.from_pretrained(tmp_path / "out") for each in (AutoTokenizer, AutoModelForCausalLM))
    assert small.eos_token_id < OLD - 1
    for config in (loaded.config, loaded.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (small.eos_token_id, small.pad_token_id)


def test_new_tokens_that_were_pruned_are_no_new_tokens_any_more(model, tokenizer, data, tmp_path):
    applied(model, tokenizer, tmp_path / "large")
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"text": "가나다"}) + "\n")
    for name, few, base in (("some", one, str(model)), ("moved", one, None)):
        keep = ["--base", base] if base else []
        done = lmf("vocab", "prune", str(tmp_path / "large"), str(tmp_path / name), "--data", str(few), *keep)
        assert done.code == 0, done.err
        applied(tmp_path / "large", tmp_path / name, tmp_path / f"{name}-model")
        small = AutoTokenizer.from_pretrained(tmp_path / f"{name}-model")
        config = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-model").config
        new = [
            id
            for piece, id in small.get_vocab().items()
            if piece not in AutoTokenizer.from_pretrained(model).get_vocab()
        ]
        assert new and added_tokens(config) == range(min(new), max(new) + 1) == range(len(small) - len(new), len(small))
    (tmp_path / "none.jsonl").write_text('{"text": "the user"}\n')
    lmf("vocab", "prune", str(tmp_path / "large"), str(tmp_path / "none"), "--data", str(tmp_path / "none.jsonl"))
    applied(tmp_path / "large", tmp_path / "none", tmp_path / "none-model")
    assert not added_tokens(AutoModelForCausalLM.from_pretrained(tmp_path / "none-model").config)


def test_the_loss_per_byte_is_that_of_plain_torch(model, tokenizer, tmp_path):
    applied(model, tokenizer, tmp_path / "out", init="weighted")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    cut = AutoTokenizer.from_pretrained(tmp_path / "out")
    total = 0.0
    for text in TEXTS:
        ids = torch.tensor([[cut.bos_token_id, *cut(text, add_special_tokens=False).input_ids]])
        with torch.no_grad():
            logprobs = plain(ids).logits[0, :-1].log_softmax(-1)
        total -= logprobs.gather(1, ids[0, 1:, None]).sum().item()
    opened = open_model(str(tmp_path / "out"), PLUGINS)
    ours = loss_per_byte(chatter_of(opened.model, opened.tokenizer), TEXTS)
    assert ours == pytest.approx(total / sum(len(text.encode()) for text in TEXTS), rel=1e-6)


def test_the_loss_is_told_before_training_beside_random_rows(model, tokenizer, data, tmp_path):
    out = str(tmp_path / "out")
    done = lmf("vocab", "apply", str(model), out, "--tokenizer", str(tokenizer), "--data", str(data))
    told = [line.split(":")[0] for line in done.out.splitlines() if line.startswith("loss")]
    assert told == [
        "loss per byte before training with the old tokens",
        "loss per byte before training with the new tokens, --init random",
        "loss per byte before training with the new tokens, --init mean-of-pieces",
    ]


def test_bytes_in_new_pieces_are_counted_once(model, tokenizer):
    cut = AutoTokenizer.from_pretrained(tokenizer)
    found = count(cut, TEXTS, OLD)
    whole = 0
    for text in TEXTS:
        for token in cut.tokenize(text):
            whole += len(token) * (cut.convert_tokens_to_ids(token) >= OLD)  # one character a byte
    assert (found.covered, found.bytes) == (whole, sum(len(text.encode()) for text in TEXTS))


@pytest.mark.parametrize("wrong", ["another", "moved", "same", "special"])
def test_a_tokenizer_that_was_not_made_of_the_model_s_is_refused(model, wrong, smollm2, tmp_path):
    old = vocabulary_of(AutoTokenizer.from_pretrained(model), "old")
    folder = tmp_path / "other"
    base = open_base(str(model), PLUGINS)
    base.vocabulary.add(base.vocabulary.written("가나".encode()))
    write(base, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    names = sorted(vocab, key=vocab.__getitem__)
    message = "it was not made of"
    if wrong == "another":
        folder = smollm2
    elif wrong == "moved":
        vocab[names[100]], vocab[names[101]] = 101, 100
    elif wrong == "same":
        folder, message = model, "there is nothing to change"
    else:
        content["added_tokens"] = content["added_tokens"][:-1]
        vocab["<other>"] = vocab.pop(content["added_tokens"][-1]["content"])
        content["added_tokens"][-1]["content"] = "<other>"
    if wrong in ("moved", "special"):
        (folder / "tokenizer.json").write_text(json.dumps(content))
    done = lmf("vocab", "apply", str(model), str(tmp_path / "out"), "--tokenizer", str(folder))
    assert done.code == 2 and done.out == ""
    assert message in done.err
    assert not (tmp_path / "out").exists()
    assert old.ids == vocabulary_of(AutoTokenizer.from_pretrained(model), "old").ids


def test_a_model_with_fewer_rows_than_tokens_is_refused(tokenizer, tmp_path):
    folder = tmp_path / "short"
    tiny_model(vocab_size=200).save_pretrained(folder)
    tiny_tokenizer(OLD).save_pretrained(folder)
    done = lmf("vocab", "apply", str(folder), str(tmp_path / "out"), "--tokenizer", str(tokenizer))
    assert (done.code, done.out) == (2, "")
    assert "the tokenizer has the id 299 and the embeddings 200 rows: they do not belong together" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ("mean", "--init is 'mean'; it must be mean-of-pieces, weighted, random or copy:TOKEN."),
        ("copy:xyzzy", "--init copy:xyzzy: 'xyzzy' is no token of the model."),
    ],
)
def test_a_wrong_init_is_refused(model, tokenizer, tmp_path, init, told):
    done = lmf("vocab", "apply", str(model), str(tmp_path / "out"), "--tokenizer", str(tokenizer), "--init", init)
    assert (done.code, done.out, done.err) == (2, "", f"error: {told}\n")


def test_a_change_names_what_each_piece_replaces(model, tokenizer):
    old, new = (vocabulary_of(AutoTokenizer.from_pretrained(each), "x") for each in (model, tokenizer))
    change = change_of(old, new, "x")
    assert change.extends and change.count == OLD + 20
    assert [(list(change.parts[id]), list(change.bytes[id])) for id in sorted(change.parts)] == replaced(
        model, tokenizer
    )
