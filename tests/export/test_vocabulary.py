"""Tokenizers in GGUF: llama.cpp reads the tokens that transformers reads."""

import json
from pathlib import Path

import pytest
from gguf import GGUFWriter
from lmf import LmfError
from lmf.generate.opening import open_model
from lmf.models import load_tokenizer
from lmf.sources import Source
from lmf.splits import SPLITS
from lmf.testing import tiny_model
from lmf_export import llama_cpp
from lmf_export.ggufs import write_gguf
from lmf_export.vocabulary import write_vocabulary
from tinyrun import PLUGINS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

needs_llama_cpp = pytest.mark.skipif(not llama_cpp.installed(), reason="the package cyllama is not installed")
ROOT = Path(__file__).parents[2]
CORPUS = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))]
CORPUS += [(ROOT / "tests/core/test_encode.py").read_text(encoding="utf-8"), "naïve Straße 你好，世界 😀 мир ①Ⅷ½ " * 20]
TEXTS = [
    "",
    "a",
    " a",
    "  two  spaces and a tab\tor\n\ntwo new lines \n \n",
    "It's I'll WE'RE they'd don't 'tis",
    "1 12 123 1234 12345678 3.14 ٣٤ ①②③ Ⅷ ½ x2y",
    "HTTPServerError camelCase snake_case UPPER lower Ünïcödé Straße",
    "你好，世界。こんにちは 안녕하세요 Привет नमस्ते שלום",
    "😀👍🏽 e\u0301 \u200d\u00a0\u3000x",
    "!!! ??? ... /// \\\\ --- ___ <|not|> </s >",
    "path/to/file.py:10\r\n\tdef f(x): return x**2  # ok\r\n",
    "<|im_start|>user\nHi 12<|im_end|>\n<|im_start|>assistant\n",
    "<keep>two  words<keep> three",
    *(text[at : at + 400] for text in CORPUS for at in range(0, min(len(text), 4000), 400)),
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(name: str) -> Tokenizer:
    """Train a tokenizer that splits texts so."""
    split = SPLITS[name]
    made = Tokenizer(models.BPE(ignore_merges=split.whole))
    parts: list = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
    if split.pattern:
        parts.append(pre_tokenizers.Split(Regex(split.pattern), "isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split.pattern))
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def of_characters(before: str) -> Tokenizer:
    """Train a tokenizer like that of Llama 2 ("always" a space before a text), Gemma ("never") or Mistral ("first")."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if before == "first":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)  # type: ignore[assignment]
    else:
        steps = [normalizers.Prepend("▁")] * (before == "always") + [normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=[*SPECIAL, *bytes_], show_progress=False)
    # words with the space before them, as sentencepiece trains; the pipeline of reading has no such split
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")  # type: ignore[assignment]
    trained.train_from_iterator(CORPUS, trainer)
    told = json.loads(trained.to_str())
    whole = json.loads(made.to_str())
    whole["model"] |= {"vocab": told["model"]["vocab"], "merges": told["model"]["merges"]}
    whole["added_tokens"] = [each for each in told["added_tokens"] if not each["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(whole))


def in_llama_cpp(tokenizer: PreTrainedTokenizerFast, folder: Path, texts: list[str] = TEXTS) -> list[list[int]]:
    """Return what llama.cpp makes of texts."""
    tiny_model(vocab_size=len(tokenizer) + 3).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_gguf(open_model(str(folder / "model"), PLUGINS), folder / "model.gguf", "f32", "model", first=False)
    return llama_cpp.read(folder / "model.gguf", texts, [1], [], first=False).ids


def theirs(tokenizer: PreTrainedTokenizerFast, texts: list[str] = TEXTS) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@needs_llama_cpp
@pytest.mark.parametrize("name", SPLITS)
def test_byte_level(name, tmp_path):
    made = byte_level(name)
    made.add_tokens([AddedToken("<keep>", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    assert in_llama_cpp(tokenizer, tmp_path) == theirs(tokenizer)
    again = load_tokenizer(Source("model.gguf", str(tmp_path), gguf="model.gguf"))
    plain = [text for text in TEXTS if "<keep>" not in text]  # transformers takes it for a special token
    assert theirs(again, plain) == theirs(tokenizer, plain)


@needs_llama_cpp
@pytest.mark.parametrize("before", ["always", "never"])
def test_of_characters(before, tmp_path):
    made = of_characters(before)
    made.add_tokens([AddedToken("<keep>", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert in_llama_cpp(tokenizer, tmp_path) == theirs(tokenizer)


@needs_llama_cpp
def test_a_space_before_the_first_text_only(tmp_path):
    """Chats begin with a special token, so there is none; llama.cpp cannot tell the two apart."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=of_characters("first"), bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}</s>{% endfor %}"
    prompts = [f"<|im_start|>{text}" for text in TEXTS if "<keep>" not in text]
    assert in_llama_cpp(tokenizer, tmp_path, prompts) == theirs(tokenizer, prompts)


def write(tokenizer, rows: int | None = None):
    options = {"ends": [5], "first": False, "chats": False}
    write_vocabulary(GGUFWriter(None, "llama"), tokenizer, rows=rows or len(tokenizer), **options)


def test_what_llama_cpp_cannot_be_told():
    made = byte_level("gpt-2")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(LmfError, match=r"no name in llama.cpp for how this tokenizer splits text \(Punctuation, Byte"):
        write(PreTrainedTokenizerFast(tokenizer_object=made))
    lower = byte_level("gpt-2")
    lower.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # type: ignore[assignment]
    with pytest.raises(LmfError, match=r"changes texts before it splits them, and llama\.cpp does not: Lowercase"):
        write(PreTrainedTokenizerFast(tokenizer_object=lower))
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(LmfError, match="with BPE tokenizers, and this one is WordLevel"):
        write(PreTrainedTokenizerFast(tokenizer_object=words))
    with pytest.raises(LmfError, match="the token 1499, and the embedding of the model only 1400 rows"):
        write(PreTrainedTokenizerFast(tokenizer_object=byte_level("gpt-2")), rows=1400)
