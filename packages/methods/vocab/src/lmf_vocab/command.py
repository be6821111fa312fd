"""The commands of ``lmf vocab``; torch and tokenizers are imported when they run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from lmf import ConfigError, LmfError, Plugins, option

from .corpus import Texts
from .training import Training

if TYPE_CHECKING:
    from .bases import Base

BaseName = Annotated[str, typer.Argument(metavar="BASE", help="A tokenizer: a folder, a model, or a file of tiktoken.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist yet.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Applying:
    """How a model gets rows for another vocabulary."""

    tokenizer: str = option(help="Folder of the tokenizer that was made of the model's: of lmf vocab merge, prune, ...")
    init: str = option(
        "mean-of-pieces",
        "New rows: mean-of-pieces, the mean of what they replace; weighted, by its bytes; random; or copy:TOKEN.",
    )
    seed: int = option(0, "Seed of random rows.", min=0, max=2**32 - 1)
    data: tuple[str, ...] = option((), "New text to measure the loss on before any training; again for more.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", "Precision; as the model is stored.")
    shard_size: str = option("5GB", "Largest file of weights.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """What a file of tiktoken does not tell."""

    pattern: str | None = option(None, "Regular expression that cuts text into words; known for the usual files.")
    first_id: int | None = option(None, "First id after the special tokens; known for the usual files.", min=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """Which pieces are learned."""

    pieces: int = option(4000, "Most pieces to add.", min=1, max=2**20)
    min_count: int = option(2, "How often neighbours must occur to become a piece.", min=1)
    max_piece_length: int = option(0, "Most characters of a piece, or bytes; 0 for any.", min=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """How words are taken."""

    after: Literal["both", "space", "nothing"] = option(
        "both", "Learn words as they stand after a space, after nothing, or both."
    )
    pieces: int = option(2**20, "Most pieces to add.", min=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruning:
    """Which pieces stay."""

    base: str | None = option(None, "A tokenizer of which every piece stays, with its id.")
    min_count: int = option(1, "How often a piece must occur to stay.", min=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checking:
    """What a tokenizer is tried on."""

    base: str | None = option(None, "The tokenizer that it extends, to compare.")
    count: int = option(20_000, "How many texts of random characters to try.", min=1)
    seed: int = option(0, "Draws them.", min=0)
    data: tuple[str, ...] = option((), "Texts of which parts are tried, too.")


def corpus(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .jsonl or .txt.")], texts: Texts
) -> None:
    """Write the text of data of any kind, each once, in composed form and without control characters."""
    from lmf.saving import check_new, write_new

    from .corpus import clean_texts, write_texts

    if out.suffix not in (".jsonl", ".txt"):
        raise ConfigError(f"{out} must end in .jsonl or .txt.")
    check_new(out)
    found, account = clean_texts(texts, Plugins())
    write_new(out, lambda file: write_texts(found, file, plain=out.suffix == ".txt"))
    left = f"{account.repeated:,} repeated and {account.empty:,} empty ones are left out"
    print(f"{account.texts:,} texts of {account.records:,} records, {account.characters:,} characters; {left}")
    print(f"saved {out}")


def train(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .json (byte-level) or .model.")],
    texts: Texts,
    training: Training,
) -> None:
    """Learn a vocabulary of its own from text, to merge it into another."""
    from lmf.saving import check_new, write_new

    from .corpus import read_texts
    from .training import train as learn

    if out.suffix != training.suffix:
        raise ConfigError(f"{out} must end in {training.suffix}, as --kind {training.kind} writes it.")
    check_new(out)
    made = learn(read_texts(texts, Plugins()), training)
    write_new(out, lambda file: _put(file, made))
    print(f"saved {out}\nnext: lmf vocab merge BASE {out} OUT")


def merge(
    base: BaseName,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The tokenizer whose pieces are added.")],
    out: Out,
    tiktoken: Ranks,
) -> None:
    """Add the pieces of the tokenizer NEW to BASE; text that has none of them keeps its ids."""
    from .merging import merge as add
    from .pieces import read_pieces

    opened = _open(base, out, tiktoken)
    account = add(opened.vocabulary, read_pieces(new, Plugins()))
    print(
        f"{account.wanted:,} pieces: {account.old:,} were there, {len(account.never):,} are never asked for, "
        f"{len(account.unreachable):,} would change old text; {account.between:,} more lie between others"
    )
    _write(opened, out)


def extend(base: BaseName, out: Out, texts: Texts, learning: Learning, tiktoken: Ranks) -> None:
    """Learn the pieces from text that make it shortest on top of BASE: train and merge in one."""
    from .corpus import read_texts
    from .merging import learn

    opened = _open(base, out, tiktoken)
    words = Counter(word for text in read_texts(texts, Plugins()) for word in opened.vocabulary.words(text))
    found = learn(opened.vocabulary, words, learning.pieces, learning.min_count, learning.max_piece_length)
    if found < learning.pieces:
        print(f"the text has room for {found:,} pieces that occur {learning.min_count} times, not {learning.pieces:,}")
    _write(opened, out)


def add_merges(
    base: BaseName,
    words: Annotated[Path, typer.Argument(metavar="WORDS", help="A word on each line, perhaps a tab and how often.")],
    out: Out,
    taking: Words,
    tiktoken: Ranks,
) -> None:
    """Learn merges on top of BASE that make each of the WORDS one piece."""
    from .merging import check_special, learn
    from .words import read_words

    opened = _open(base, out, tiktoken)
    listed = read_words(words)
    check_special([word.encode() for word in listed], opened.vocabulary.special)
    counts: Counter[Any] = Counter()
    for word, often in listed.items():
        for text in {"both": (word, f" {word}"), "space": (f" {word}",), "nothing": (word,)}[taking.after]:
            for part in opened.vocabulary.spelt(text):
                counts[part] += often
    learn(opened.vocabulary, counts, taking.pieces, fewest=1)
    whole = sum(len(opened.vocabulary.parts(part)) == 1 for part in counts)
    print(f"{whole:,} of {len(counts):,} words are one piece")
    _write(opened, out)


def prune(tokenizer: BaseName, out: Out, texts: Texts, pruning: Pruning) -> None:
    """Leave the pieces out that text does not need; ids close up."""
    from lmf.saving import check_new, write_new

    from .bases import open_base, write_pruned
    from .corpus import read_texts
    from .pruning import check_same, needed
    from .vocabulary import Json

    check_new(out)
    plugins = Plugins()
    opened = open_base(tokenizer, plugins)
    if not isinstance(opened.vocabulary, Json):
        raise ConfigError(f"{tokenizer} is a file of tiktoken, whose ids cannot close up; name a tokenizer.json.")
    always = open_base(pruning.base, plugins).vocabulary.ids if pruning.base else {}
    for piece, id in always.items():
        if opened.vocabulary.ids.get(piece) != id:
            raise ConfigError(f"--base {pruning.base} is no base of {tokenizer}, which has {piece!r} not as {id}.")
    found = read_texts(texts, plugins)
    kept = needed(opened.vocabulary, found, pruning.min_count, always)
    if pruning.min_count == 1:
        check_same(opened.vocabulary, opened.vocabulary.having(kept), found)
    write_new(out, lambda folder: write_pruned(opened, kept, folder))
    gone = sum(piece not in kept and piece not in opened.vocabulary.special for piece in opened.vocabulary.ids)
    print(f"{gone:,} of {len(opened.vocabulary.ids):,} pieces are left out\nsaved {out}")
    print(f"next: lmf vocab apply MODEL OUT --tokenizer {out}")


def check(tokenizer: BaseName, checking: Checking, tiktoken: Ranks) -> None:
    """Try TOKENIZER on random characters of all planes of Unicode, and compare it with the one that it extends."""
    from .bases import open_base
    from .checking import check as tried
    from .checking import fuzz
    from .corpus import read_texts

    plugins = Plugins()
    opened = open_base(tokenizer, plugins, tiktoken.pattern, tiktoken.first_id)
    before = open_base(checking.base, plugins, tiktoken.pattern, tiktoken.first_id) if checking.base else None
    texts = read_texts(Texts(data=checking.data), plugins) if checking.data else []
    found = tried(opened, before, fuzz(checking.count, checking.seed, texts))
    for what, faults in (
        ("decoding gives another text", found.lost),
        ("old text has other ids", found.changed),
        ("its forms cut text otherwise", found.apart),
        ("has another id than before", found.moved),
    ):
        print(f"{what}: {len(faults):,}" + (f", for example {faults[0]!r}" if faults else ""))
    for note in found.notes:
        print(note)
    print(f"{found.tried:,} texts tried")
    if found.faults:
        raise LmfError(f"{tokenizer} has {found.faults:,} faults.")


def apply(model: str, out: Out, applying: Applying) -> None:
    """Write MODEL with the vocabulary of another tokenizer: embeddings and output head have rows for new pieces."""
    from lmf.saving import check_new, check_shard_size

    from .applying import apply as change

    check_new(out)
    check_shard_size(applying.shard_size)
    change(model, out, applying, Plugins())


def report(
    base: BaseName,
    extended: Annotated[str, typer.Argument(metavar="EXTENDED", help="The tokenizer, or model, that extends it.")],
    texts: Texts,
) -> None:
    """Tell what an extended vocabulary is worth on text: tokens, and of models the loss per byte and the speed."""
    from .corpus import read_texts
    from .reporting import report as compare
    from .reporting import table

    plugins = Plugins()
    print(table(compare(base, extended, read_texts(texts, plugins), plugins)))


def _open(base: str, out: Path, tiktoken: Ranks) -> Base:
    from lmf.saving import check_new

    from .bases import open_base

    check_new(out)
    return open_base(base, Plugins(), tiktoken.pattern, tiktoken.first_id)


def _write(opened: Base, out: Path) -> None:
    """Write a vocabulary with what was added, and first what any text may need."""
    from lmf.saving import write_new

    from .bases import write
    from .vocabulary import Json

    vocabulary = opened.vocabulary
    if not vocabulary.added:
        raise LmfError(f"There is nothing to add: {opened.name} has all these pieces.")
    completed = vocabulary.complete(vocabulary.alphabet)
    if completed:
        print(f"{completed} bytes of UTF-8 that {opened.name} lacks are added, so that no text is lost")
    write_new(out, lambda folder: write(opened, folder))
    last = vocabulary.old + len(vocabulary.added) - 1
    print(f"{len(vocabulary.added):,} new pieces, ids {vocabulary.old:,} to {last:,}\nsaved {out}")
    if isinstance(vocabulary, Json):
        print(f"next: lmf vocab apply MODEL OUT --tokenizer {out}")


def _put(file: Path, content: bytes) -> None:
    file.write_bytes(content)
