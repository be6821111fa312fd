"""New vocabularies from text: by sentencepiece, or a byte pair encoding of bytes by tokenizers."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lmf import ConfigError, option

THREADS = 8  # always as many, for they share out the sums, and so the last bits of scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How a vocabulary is learned."""

    kind: Literal["byte-level", "sentencepiece-bpe", "sentencepiece-unigram"] = option(
        "byte-level", "Byte pairs of bytes (tokenizer.json), or byte pairs or unigrams of sentencepiece (a .model)."
    )
    size: int = option(8000, "Number of pieces.", min=2, max=2**20)
    coverage: float = option(
        0.9995, "Of sentencepiece: share of characters that get a piece of their own.", above=0, max=1
    )
    user_symbols: tuple[str, ...] = option((), "Pieces that are always whole.", commas=True)
    max_piece_length: int = option(16, "Most characters of a piece, or bytes.", min=1, max=512)
    seed: int = option(0, "Of sentencepiece: seed of what is random in unigrams.", min=0, max=2**31 - 1)

    @property
    def suffix(self) -> str:
        """The suffix of the file: of ``tokenizer.json``, or of sentencepiece."""
        return ".json" if self.kind == "byte-level" else ".model"


def train(texts: Sequence[str], training: Training) -> bytes:
    """Return the file of a vocabulary that is learned from texts.

    Raises:
        ConfigError: There cannot be so many pieces.
    """
    return (_byte_level if training.kind == "byte-level" else _sentencepiece)(texts, training)


def _sentencepiece(texts: Sequence[str], training: Training) -> bytes:
    import sentencepiece

    sentencepiece.set_random_generator_seed(training.seed)
    stream = io.BytesIO()
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    try:
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=iter(lines),
            max_sentence_length=max(len(line.encode()) for line in lines),  # it leaves out what is longer
            model_writer=stream,
            model_type=training.kind.removeprefix("sentencepiece-"),
            vocab_size=training.size,
            character_coverage=training.coverage,
            user_defined_symbols=list(training.user_symbols),
            max_sentencepiece_length=training.max_piece_length,
            normalization_rule_name="identity",  # transformers' form of it has no other
            remove_extra_whitespaces=False,
            byte_fallback=True,
            split_digits=True,
            num_threads=THREADS,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise ConfigError(_explained(str(error), training)) from None
    return stream.getvalue()


def _explained(error: str, training: Training) -> str:
    if most := re.search(r"value <= (\d+)", error):
        return f"--size {training.size}: the corpus has room for at most {most[1]} pieces."
    if least := re.search(r"smaller than required_chars\. (\d+) vs (\d+)", error):
        return (
            f"--size {training.size}: single characters and bytes need {least[2]} pieces; give a larger --size or a "
            "smaller --coverage."
        )
    return f"sentencepiece cannot learn from this corpus: {error}"


def _byte_level(texts: Sequence[str], training: Training) -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    needed = len(alphabet) + len(training.user_symbols)
    if training.size < needed:
        raise ConfigError(f"--size {training.size}: single bytes and --user-symbols need {needed} pieces.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=training.size,
        initial_alphabet=alphabet,
        special_tokens=list(training.user_symbols),
        max_token_length=training.max_piece_length,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) < training.size:
        raise ConfigError(f"--size {training.size}: the corpus has room for at most {found} pieces.")
    made = json.loads(tokenizer.to_str())
    for each in made["added_tokens"]:  # which the trainer takes for special ones
        each["special"] = False
    return json.dumps(made, ensure_ascii=False, indent=2).encode()
