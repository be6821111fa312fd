"""Opens a tokenizer to extend it, and writes what became of it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex
from lmf import ConfigError, Plugins
from lmf.models import load_tokenizer
from lmf.sources import Source, find_model
from lmf.splits import SPLITS

from .pieces import CONTROL, NORMAL, read_proto, read_ranks
from .vocabulary import Json, SentencePiece, Tiktoken, Vocabulary, vocabulary_of

MODEL = "tokenizer.model"
EXTRA = "extra.tiktoken"
PROBE = "Don't  stop: 12,5 km/h\n\n\t(나무 🙂 ß)\r\n  "  # text of many kinds, to try a pattern on
KNOWN = {  # by the number of pieces in a file of tiktoken: how it cuts words, and the first id after special tokens
    128000: (SPLITS["llama-bpe"].pattern, 128256),
    151643: (SPLITS["qwen2"].pattern, 151851),  # 208 special ones, as in Qwen's tokenization_qwen.py
    100256: (SPLITS["dbrx"].pattern, 100277),  # cl100k_base
    199998: (SPLITS["gpt-4o"].pattern, 200019),  # o200k_base
}


@dataclass(frozen=True, slots=True)
class Base:
    """A tokenizer that is to be extended.

    Attributes:
        name: What the user wrote.
        vocabulary: Its vocabulary.
        file: Its file of sentencepiece or tiktoken; None where it has only ``tokenizer.json``.
    """

    name: str
    vocabulary: Vocabulary
    file: Path | None


def open_base(name: str, plugins: Plugins, pattern: str | None = None, first: int | None = None) -> Base:
    """Open a tokenizer: a folder, a model of ``--model``, or a file of tiktoken.

    Args:
        name: What the user wrote.
        plugins: Where names of models are looked up.
        pattern: How a file of tiktoken cuts words, if lmf does not know it.
        first: The first new id after such a file, if lmf does not know it.

    Raises:
        LmfError: There is none, or it cannot be extended.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix != ".gguf":
        return Base(name, _tiktoken(path, pattern, first), path)
    if pattern is not None or first is not None:
        raise ConfigError(f"--pattern and --first-id are of tiktoken files, and {name} is none.")
    tokenizer = open_tokenizer(name, plugins)
    return Base(name, vocabulary_of(tokenizer, name), file if (file := path / MODEL).is_file() else None)


def open_tokenizer(name: str, plugins: Plugins) -> Any:
    """Load the tokenizer of a folder with or without a model, or of a model of ``--model``."""
    path = Path(name).expanduser()
    if path.is_file() and path.suffix != ".gguf":
        raise ConfigError(f"{name} is a file; name a folder with tokenizer.json, or a model.")
    if any((path / file).is_file() for file in ("tokenizer.json", MODEL)):
        return load_tokenizer(Source(name, str(path)))
    return load_tokenizer(find_model(name, plugins))


def write(base: Base, folder: Path) -> None:
    """Write an extended tokenizer into a folder, in all forms that the base has.

    Raises:
        ConfigError: The forms of the base do not belong together.
    """
    folder.mkdir()
    vocabulary = base.vocabulary
    if isinstance(vocabulary, Tiktoken):
        assert base.file
        (folder / base.file.name).write_bytes(base.file.read_bytes().rstrip(b"\n") + b"\n" + _ranks(vocabulary))
        (folder / EXTRA).write_bytes(_ranks(vocabulary))
        return
    assert isinstance(vocabulary, Json)
    vocabulary.extended().save_pretrained(folder)
    if base.file and isinstance(vocabulary, SentencePiece):
        (folder / MODEL).write_bytes(_extended(base.file, vocabulary))


def write_pruned(base: Base, pieces: Iterable[str], folder: Path) -> None:
    """Write a tokenizer with some of its pieces."""
    assert isinstance(base.vocabulary, Json)
    folder.mkdir()
    tokenizer = base.vocabulary.having(set(pieces))
    tokenizer.save_pretrained(folder)
    if base.file and isinstance(base.vocabulary, SentencePiece):
        model = _matching(base.file, base.vocabulary)
        ids = tokenizer.get_vocab()
        kept = [each for each in model.pieces if each.piece in ids]
        del model.pieces[:]
        model.pieces.extend(kept)
        model.trainer_spec.vocab_size = len(kept)
        (folder / MODEL).write_bytes(model.SerializeToString())


def _tiktoken(file: Path, pattern: str | None, first: int | None) -> Tiktoken:
    ranks = read_ranks(file.read_bytes())
    if not ranks:
        raise ConfigError(
            f"{file} is no file of tiktoken: its lines are not a piece in base64 and an id. Of another tokenizer, name "
            "the folder."
        )
    last = max(ranks.values())
    own = next(number for number, id in enumerate([*ranks.values(), None]) if number != id)  # before special tokens
    if own in KNOWN:
        pattern, first = pattern or KNOWN[own][0], first or max(KNOWN[own][1], last + 1)
    if pattern is None or first is None:
        raise ConfigError(
            f"{file} has {own:,} pieces, and lmf knows files of {', '.join(f'{n:,}' for n in KNOWN)}. Tell how it cuts "
            "words (--pattern) and the first id after its special tokens (--first-id)."
        )
    if first < own:
        raise ConfigError(f"--first-id is {first}, and {file} has the id {own - 1} itself.")
    check_pattern(pattern)
    return Tiktoken(ranks, pattern, max(first, last + 1))  # it may be extended already


def check_pattern(pattern: str) -> None:
    """Refuse what does not cut text into words.

    Raises:
        ConfigError: It is no regular expression, or leaves parts of text out.
    """
    try:
        found = "".join(word.group() for word in regex.finditer(pattern, PROBE))
    except regex.error as error:
        raise ConfigError(f"--pattern {pattern!r} is no regular expression: {error}.") from None
    if found != PROBE:
        raise ConfigError(f"--pattern {pattern!r} leaves parts of text out, which would be lost.")


def _matching(file: Path, vocabulary: Json) -> Any:
    """Return a model of sentencepiece that has the pieces of a ``tokenizer.json``."""
    model = read_proto(file, file.read_bytes())
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise ConfigError(f"{file} is not a byte pair encoding (its model_type is {model.trainer_spec.model_type}).")
    for number, each in enumerate(model.pieces):
        if vocabulary.ids.get(each.piece) != number:
            raise ConfigError(
                f"{file} and tokenizer.json do not belong together: {each.piece!r} has the id {number} in the one, and "
                f"{vocabulary.ids.get(each.piece)} in the other."
            )
    return model


def _extended(file: Path, vocabulary: SentencePiece) -> bytes:
    """Return a model of sentencepiece with what was added to a vocabulary.

    The scores of new pieces are lower than all there are, so neighbours that make an old piece are merged first. Ids
    that are not the model's, of tokens that were added to the tokenizer, become control tokens.
    """
    model = _matching(file, vocabulary)
    names = {id: piece for piece, id in vocabulary.ids.items()}
    merged = [each.score for each in model.pieces if each.type == NORMAL and len(each.piece) > 1]
    score = np.float32(min(merged, default=0))
    for id in range(len(model.pieces), vocabulary.old):
        model.pieces.add(piece=names.get(id, f"<unused{id}>"), score=0.0, type=CONTROL)
    for piece in vocabulary.added:
        score = np.nextafter(score - np.float32(1), -np.float32(np.inf))  # lower, be it only by a bit
        model.pieces.add(piece=piece, score=float(score), type=NORMAL)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString()


def _ranks(vocabulary: Tiktoken) -> bytes:
    """Return the new pieces as tiktoken and Qwen read them: base64, and the id."""
    lines = (b"%s %d\n" % (base64.b64encode(each), vocabulary.ids[each]) for each in vocabulary.added)
    return b"".join(lines)
