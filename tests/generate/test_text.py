"""The text of a reply while it is written: what transformers decodes in the end, without a part of a stop."""

import itertools
import random

import pytest
from lmf.generate.text import Writing
from lmf.testing import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

TOKENIZER = tiny_tokenizer()
TEXTS = [
    "the user and \U0001f600\U0001f601 say",
    "\u4f60\u597d, \u4e16\u754c",
    "e\u0301\u200d\U0001f469\u200d\U0001f680",
]
TEXTS += ["", " ", "a\ufffdb"]


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Return one like Llama 2's: spaces are a letter, the first one is left out, and rare letters are single bytes."""
    words = ["<unk>", "\u2581the", "\u2581user", "say", "\u2581", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = Tokenizer(models.BPE({word: id for id, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"))
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def written(writing: Writing, ids: list[int]) -> list[str]:
    """Return the parts of a text as they come."""
    parts = []
    for id in ids:
        parts.append(writing.add(id))
        if writing.stopped:
            break
    parts.append(writing.end())
    assert "".join(parts) == writing.text
    return parts


@pytest.mark.parametrize("text", TEXTS)
def test_the_parts_are_the_text_and_no_character_is_cut(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    parts = written(Writing(TOKENIZER), ids)
    assert "".join(parts) == text
    assert all(part.count("\ufffd") <= text.count("\ufffd") for part in parts)


def test_a_thousand_replies_of_random_tokens_are_what_transformers_decodes():
    """Random tokens are broken characters for the most part."""
    chance = random.Random(0)
    for _ in range(1000):
        ids = [chance.randrange(len(TOKENIZER)) for _ in range(chance.randrange(1, 40))]
        parts = written(Writing(TOKENIZER), ids)
        assert "".join(parts) == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_letters_of_several_tokens_are_shown_whole_by_a_tokenizer_of_bytes():
    tokenizer = fallback_tokenizer()
    ids = [1, *(5 + byte for byte in "\u4f60\U0001f600".encode()), 2]
    parts = written(Writing(tokenizer), ids)
    assert "".join(parts) == tokenizer.decode(ids) == "the\u4f60\U0001f600 user"
    assert [part for part in parts if part] == ["the", "\u4f60", "\U0001f600", " user"]


def test_a_text_that_goes_on_begins_with_its_space():
    tokenizer = fallback_tokenizer()
    assert written(Writing(tokenizer), [2, 3])[:2] == ["user", "say"]
    assert written(Writing(tokenizer, before=[1]), [2, 3])[:2] == [" user", "say"]


def test_special_tokens_are_no_text():
    ids = TOKENIZER("<|im_start|>the<|im_end|>")["input_ids"]
    assert "".join(written(Writing(TOKENIZER), ids)) == "the"


@pytest.mark.parametrize("stops", [["user"], ["er a"], ["zz", "and"], ["the user and say"], ["e", "user"]], ids=str)
def test_nothing_of_a_stop_is_ever_shown(stops):
    text = "the user and say hello, the user and all"
    parts = written(Writing(TOKENIZER, stops), TOKENIZER(text)["input_ids"])
    expected = text[: min(text.find(stop) for stop in stops if stop in text)]
    for shown in itertools.accumulate(parts):
        assert expected.startswith(shown)
    assert "".join(parts) == expected


def test_what_only_looks_like_a_stop_is_shown():
    writing = Writing(TOKENIZER, ["user!"])
    parts = written(writing, TOKENIZER("the user and use")["input_ids"])
    assert "".join(parts) == "the user and use"
    assert not writing.stopped
