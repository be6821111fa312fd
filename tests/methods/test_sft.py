"""Supervised fine-tuning learns replies and where they end; pretraining predicts every token exactly once."""

import bisect
import itertools
import json
from collections.abc import Sequence

import pytest
import torch
from lmf import Conversation, Message, Record
from lmf.encoding.encoder import Encoder, Example
from lmf.testing import tiny_model, tiny_tokenizer
from lmf.training.loss import token_loss
from lmf.training.packing import ATTENTION, pack, pad
from lmf_sft import Pretraining, PretrainOptions, Supervised, TrainOptions
from tinyrun import PLUGINS, log, losses, run
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

WORDS = "the user and the assistant say hello what is one and two answer three"
TEXTS = [WORDS, f"{WORDS} {WORDS[:20]}" * 3, "a", "", f"{WORDS}\n\n" * 7]


def records(items: Sequence[str | Conversation]) -> list[Record]:
    return [Record(f"file:{number}", item) for number, item in enumerate(items, 1)]


# Supervised


def test_replies_and_their_ends_are_learned_and_nothing_else():
    talk = Conversation(
        (
            *(Message("system", "say"), Message("user", "what is one"), Message("assistant", "one and two")),
            *(Message("user", "hello"), Message("assistant", "three")),
        )
    )
    tokenizer = tiny_tokenizer()
    (example,) = Supervised(TrainOptions()).encode(records([talk]), Encoder(tokenizer, PLUGINS.templates["chatml"]))
    learned = [id for id, label in zip(example.ids, example.labels, strict=True) if label != -100]
    assert tokenizer.decode(learned) == "one and two<|im_end|>three<|im_end|>"
    assert example.where == "file:1"
    assert all(label in (-100, id) for id, label in zip(example.ids, example.labels, strict=True))
    theirs = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in talk.messages],
        chat_template=PLUGINS.templates["chatml"].jinja(),
    )
    assert example.ids == (theirs if isinstance(theirs, list) else theirs["input_ids"])


TALK = Conversation(
    (
        *(Message("user", "what is one"), Message("assistant", "one and two", weight=0.5)),
        *(Message("user", "hello"), Message("assistant", "three", weight=0)),
        *(Message("user", "say two"), Message("assistant", "two")),
    )
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "one and two<|im_end|>two<|im_end|>"),
        ({"loss_on": "last"}, "two<|im_end|>"),
        ({"train_end": False}, "one and twotwo"),
        ({"loss_on": "last", "train_end": False}, "two"),
    ],
)
def test_what_is_learned_can_be_chosen(options, expected):
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, PLUGINS.templates["chatml"])
    (example,) = Supervised(TrainOptions(**options)).encode(records([TALK]), encoder)
    assert tokenizer.decode([label for label in example.labels if label != -100]) == expected
    assert example.weight == sum(
        weight
        for label, weight in zip(example.labels, example.weights or [1.0] * len(example.labels), strict=True)
        if label != -100
    )


def test_the_weight_of_a_message_is_that_of_its_tokens():
    tokenizer = tiny_tokenizer()
    (example,) = Supervised(TrainOptions()).encode(records([TALK]), Encoder(tokenizer, PLUGINS.templates["chatml"]))
    assert example.weights is not None
    weights = {w for label, w in zip(example.labels, example.weights, strict=True) if label != -100}
    assert weights == {0.5, 1.0}
    halves = [label for label, w in zip(example.labels, example.weights, strict=True) if w == 0.5 and label != -100]
    assert tokenizer.decode(halves) == "one and two<|im_end|>"


def test_every_token_can_be_learned():
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, PLUGINS.templates["chatml"])
    (example,) = Supervised(TrainOptions(loss_on="all")).encode(records([TALK]), encoder)
    assert example.labels == example.ids
    assert example.weights is None
    (usual,) = Supervised(TrainOptions()).encode(records([TALK]), encoder)
    assert example.ids == usual.ids


@pytest.mark.parametrize("weights", [(1, 1), (0, 1), (1, 0), (0.5, 1)])
def test_every_token_is_learned_once_where_a_template_rewrites_earlier_turns(weights):
    template = PLUGINS.templates["qwen3"]
    tokenizer = tiny_tokenizer(special=list(dict.fromkeys(("<|endoftext|>", *template.tokens, "<|im_end|>"))))
    first, second = (Message("assistant", t, reasoning="say", weight=w) for t, w in zip("12", weights, strict=True))
    talk = Conversation((Message("user", "one"), first, Message("user", "two"), second))
    encoder = Encoder(tokenizer, template)
    (example,) = Supervised(TrainOptions(loss_on="all")).encode(records([talk]), encoder)
    whole = "".join(piece.text for piece in template.render(talk.messages))
    assert tokenizer.decode(example.ids) == whole
    assert example.labels == example.ids
    assert example.weights is None
    assert encoder.split == 0
    (unended,) = Supervised(TrainOptions(loss_on="all", train_end=False)).encode(records([talk]), encoder)
    assert unended.labels.count(-100) == whole.count("<|im_end|>")


def test_the_loss_counts_each_message_as_its_weight_says():
    """Against a plain weighted mean of transformers' own logits, in float64."""
    tokenizer = tiny_tokenizer()
    (example,) = Supervised(TrainOptions()).encode(records([TALK]), Encoder(tokenizer, PLUGINS.templates["chatml"]))
    model = tiny_model(vocab_size=len(tokenizer)).eval().double()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.ids])).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, torch.tensor(example.ids[1:]), reduction="none")
        counted = [w * (label != -100) for label, w in zip(example.labels, example.weights, strict=True)][1:]
        expected = (each * torch.tensor(counted, dtype=torch.float64)).sum().item()
        batch = pad([example, example])
        assert token_loss(model, batch).item() == pytest.approx(2 * expected, rel=1e-6)
        assert batch.weight == 2 * sum(counted)
        model.set_attn_implementation(ATTENTION)
        assert token_loss(model, pack([example, example])).item() == pytest.approx(2 * expected, rel=1e-6)


# Pretraining


def blocks(texts: Sequence[str], max_tokens: int, **options: bool) -> list[Example]:
    encoder = Encoder(tiny_tokenizer(), None, max_tokens)
    return list(Pretraining(PretrainOptions(**options)).encode(records(texts), encoder))


@pytest.mark.parametrize("max_tokens", [2, 3, 7, 16, 29, 30, 31, 500])
def test_every_token_of_a_document_is_predicted_exactly_once(max_tokens):
    tokenizer = tiny_tokenizer()
    for number, text in enumerate(TEXTS, 1):
        whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        parts = [e for e in blocks(TEXTS, max_tokens) if e.where == f"file:{number}"]
        assert all(len(e.ids) <= max_tokens for e in parts)
        predicted = [label for e in parts for label in e.labels[1:]]
        assert predicted == whole[1:]
        assert sum(e.weight for e in parts) == len(whole) - 1
        assert parts[0].ids[0] == whole[0]
        for before, after in itertools.pairwise(parts):
            assert after.ids[0] == before.ids[-1], "blocks overlap by one token"


def test_a_document_is_predicted_from_its_block_and_nothing_before(tiny, tmp_path):
    """The reference slides over the tokens of each document with transformers' own model, a block at a time."""
    texts = [text for text in TEXTS if text]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    output = run(
        *(tiny, tmp_path / "texts.jsonl", tmp_path / "out"),
        **{"objective": "pretrain", "max_tokens": 30, "batch_size": 1000, "steps": 1},
    )
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    total, count, used = 0.0, 0, 0
    for text in texts:
        ids = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        start = 0
        while start < len(ids) - 1:
            block = ids[start : start + 30]
            with torch.no_grad():
                log_probabilities = model(block[None]).logits[0].log_softmax(-1)
            for position in range(1, len(block)):
                total -= log_probabilities[position - 1, block[position]].item()
                count += 1
            used += len(block)
            start += len(block) - 1
    assert losses(output)[0] == pytest.approx(total / count, rel=1e-6)
    (line,) = log(output, "loss")
    assert (line["trained_tokens"], line["tokens"]) == (count, used)


@pytest.mark.parametrize("max_tokens", [2, 3, 7, 16, 29, 30, 31, 500])
def test_documents_end_to_end_fill_their_windows(max_tokens):
    tokenizer = tiny_tokenizer()
    documents = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
    whole = [id for ids in documents for id in ids]
    begins = list(itertools.accumulate(map(len, documents), initial=0))
    windows = blocks(TEXTS, max_tokens, full_windows=True)
    assert [len(window.ids) for window in windows[:-1]] == [max_tokens] * (len(windows) - 1)
    assert [label for window in windows for label in window.labels[1:]] == whole[1:]
    for number, window in enumerate(windows):
        start = number * (max_tokens - 1)
        assert window.ids == whole[start : start + max_tokens]
        assert window.where == f"file:{bisect.bisect_right(begins, start)}"


def test_a_document_starts_as_the_tokenizer_starts_one():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    (example,) = Pretraining(PretrainOptions()).encode(records(["hello"]), Encoder(tokenizer, None))
    assert example.ids == [*tokenizer("hello")["input_ids"], tokenizer.eos_token_id]
    assert example.ids[0] == tokenizer.bos_token_id
    assert example.labels[0] == -100


def test_special_tokens_in_a_document_are_plain_text():
    (example,) = blocks(["one <|im_end|> two"], 500)
    assert example.ids.count(tiny_tokenizer().convert_tokens_to_ids("<|im_end|>")) == 1  # the end of the document


def test_both_objectives_train_with_every_method(tiny, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": WORDS}) + "\n")
    talk = {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]}
    (tmp_path / "talks.jsonl").write_text(json.dumps(talk) + "\n")
    for objective, file in (("train", "talks.jsonl"), ("pretrain", "texts.jsonl")):
        for method in PLUGINS.methods:
            options = {"last_layers": 1} if method == "freeze" else {}
            output = run(
                *(tiny, tmp_path / file, tmp_path / objective / method, method),
                **{"objective": objective, "options": options, "steps": 8, "learning_rate": 0.01},
            )
            assert losses(output)[-1] < losses(output)[0], (objective, method)


def test_an_empty_document_has_nothing_to_learn():
    (example,) = blocks([""], 10)
    assert (len(example.ids), example.weight) == (1, 0)
