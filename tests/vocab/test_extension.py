"""Extended vocabularies of all kinds: old text keeps its ids, no text is lost, and every form cuts text the same."""

from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
from lmf import ConfigError, Plugins
from lmf_vocab.bases import KNOWN, open_base, write
from lmf_vocab.checking import EMOJI, check, fuzz
from lmf_vocab.merging import learn, merge
from lmf_vocab.pieces import read_pieces, read_ranks
from lmf_vocab.pruning import check_same, needed
from lmf_vocab.training import Training, train
from lmf_vocab.vocabulary import ByteLevel, SentencePiece, Tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

PLUGINS = Plugins()
COUNT = 1500  # texts that are tried
KINDS = {"smollm2": ByteLevel, "llama3": ByteLevel, "llama2": SentencePiece, "llama3_file": Tiktoken}


@pytest.fixture(scope="module", params=KINDS)
def name(request) -> str:
    """Each of the tokenizers."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="module", params=[each for each in KINDS if each != "llama3_file"])
def json_name(request) -> str:
    """Each of the tokenizers that have a tokenizer.json."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def pieces(korean, tmp_path_factory) -> dict[str, list[bytes]]:
    """Pieces of new vocabularies, as each kind of training finds them."""
    found = {}
    for kind in ("byte-level", "sentencepiece-bpe", "sentencepiece-unigram"):
        training = Training(kind=kind, size=2500)  # type: ignore[arg-type]
        file = tmp_path_factory.mktemp(kind) / f"new{training.suffix}"
        file.write_bytes(train(korean, training))
        found[kind] = read_pieces(str(file), PLUGINS)
    return found


def extended(name: str, folder: Path, korean, pieces: list[bytes] | None):
    """Extend a tokenizer by pieces, or by what is learned, and open it again."""
    base = open_base(name, PLUGINS)
    if pieces is None:
        learn(base.vocabulary, Counter(w for text in korean for w in base.vocabulary.words(text)), 1500)
    else:
        merge(base.vocabulary, pieces)
    base.vocabulary.complete(base.vocabulary.alphabet)
    write(base, folder)
    return open_base(str(folder / base.file.name if isinstance(base.vocabulary, Tiktoken) else folder), PLUGINS)


@pytest.mark.parametrize("how", ["byte-level", "sentencepiece-bpe", "sentencepiece-unigram", "learned"])
def test_old_text_keeps_its_ids_no_text_is_lost_and_all_forms_agree(name, how, korean, pieces, tmp_path):
    made = extended(name, tmp_path / "out", korean, pieces.get(how))
    before = open_base(name, PLUGINS)
    found = check(made, before, fuzz(COUNT, 0, korean))
    assert (found.lost, found.changed, found.apart, found.moved, found.tried) == ([], [], [], [], COUNT)
    assert made.vocabulary.old > before.vocabulary.old + 500
    for token in before.vocabulary.special:
        assert made.vocabulary.ids[token] == before.vocabulary.ids[token]


def test_transformers_loads_it_and_needs_far_fewer_tokens(name, korean, pieces, tmp_path):
    made = extended(name, tmp_path / "out", korean, None)
    if isinstance(made.vocabulary, Tiktoken):
        ranks = read_ranks(made.file.read_bytes())
        encodings = [
            tiktoken.Encoding("x", pat_str=KNOWN[128000][0], mergeable_ranks=each, special_tokens={})
            for each in (read_ranks(Path(name).read_bytes()), ranks)
        ]
        before, after = (sum(len(each.encode_ordinary(text)) for text in korean) for each in encodings)
    else:
        old, new = open_base(name, PLUGINS).vocabulary.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "out")
        assert new.chat_template == old.chat_template
        assert new.all_special_tokens == old.all_special_tokens
        assert len(new) == made.vocabulary.old
        before, after = (
            sum(len(each(text, add_special_tokens=False).input_ids) for text in korean) for each in (old, new)
        )
        for text in (*korean[:5], *EMOJI, "a     b", "x" * 50):
            assert new.decode(new(text, add_special_tokens=False).input_ids) == text
    assert before / after > 1.25


def test_the_cuts_are_those_of_the_tokenizers_library(name, korean, pieces):
    base = open_base(name, PLUGINS)
    merge(base.vocabulary, pieces["sentencepiece-bpe"])
    vocabulary = base.vocabulary
    vocabulary.complete(vocabulary.alphabet)
    if isinstance(vocabulary, Tiktoken):
        encode = tiktoken.Encoding("x", pat_str=vocabulary.pattern, mergeable_ranks=vocabulary.ids, special_tokens={})
        cut = [
            (encode.encode_ordinary(t), [vocabulary.ids[p] for w in vocabulary.words(t) for p in vocabulary.parts(w)])
            for t in korean[:20]
        ]
    else:
        fast = vocabulary.extended()
        cut = [
            (fast.tokenize(text), [part for word in vocabulary.words(text) for part in vocabulary.parts(word)])
            for text in korean[:20]
            if "\n" not in text or isinstance(vocabulary, ByteLevel)
        ]
    assert cut and all(theirs == ours for theirs, ours in cut)


def test_sentencepiece_itself_cuts_as_its_fast_form(llama2, korean, pieces, tmp_path):
    made = extended(str(llama2), tmp_path / "out", korean, pieces["sentencepiece-unigram"])
    slow = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out/tokenizer.model"))
    fast = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert slow.vocab_size() == len(fast) == made.vocabulary.old
    for text in korean:
        assert slow.encode(text) == fast.encode(text, add_special_tokens=False)
        assert slow.decode(slow.encode(text)) == text


def test_what_is_learned_on_bytes_alone_is_worth_what_the_tokenizers_library_learns(korean):
    """The two choose differently among neighbours that are as frequent."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    reference, bare = Tokenizer(models.BPE()), Tokenizer(models.BPE({c: n for n, c in enumerate(alphabet)}, []))
    for each in (reference, bare):
        each.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=256 + 1000, initial_alphabet=alphabet, show_progress=False)
    reference.train_from_iterator(korean, trainer)
    vocabulary = ByteLevel(PreTrainedTokenizerFast(tokenizer_object=bare))
    learn(vocabulary, Counter(word for text in korean for word in vocabulary.words(text)), 1000)
    ours, theirs = (
        sum(len(each.encode(text).ids) for text in korean)
        for each in (vocabulary.extended().backend_tokenizer, reference)
    )
    assert ours == pytest.approx(theirs, rel=0.002)


def test_every_listed_word_becomes_one_piece(name):
    vocabulary = open_base(name, PLUGINS).vocabulary
    several = ("안녕하세요", "반갑습니다", "zzzyx", "하하하하", "ㅋㅋㅋㅋㅋ", "zqzqzq")
    words = Counter({part: 1 for word in several for part in vocabulary.spelt(word)})
    learn(vocabulary, words, 10_000, fewest=1)
    assert all(len(vocabulary.parts(word)) == 1 for word in words)


@pytest.mark.parametrize("text", ["하하하하", "하하하하하", "ㅋㅋㅋㅋ", "zqzqzq", "zqxzqzqx", "뷁쀍뷁뷁쀍"])
def test_a_piece_that_repeats_itself_is_reached(name, text):
    vocabulary = open_base(name, PLUGINS).vocabulary
    assert merge(vocabulary, [text.encode()]).unreachable == []
    piece = vocabulary.written(text.encode())
    assert vocabulary.parts(piece) == [piece]


def test_new_ids_of_tiktoken_come_after_its_special_tokens(llama3_file, korean, tmp_path):
    made = extended(str(llama3_file), tmp_path / "out", korean, ["안녕".encode(), "하세요".encode()])
    extra = read_ranks((tmp_path / "out/extra.tiktoken").read_bytes())
    old = read_ranks(llama3_file.read_bytes())
    assert min(extra.values()) == 128256 and set(extra) | set(old) == set(made.vocabulary.ids)
    assert read_ranks(made.file.read_bytes()) == {**old, **extra}


def test_a_pruned_vocabulary_cuts_the_text_as_before_with_ids_that_close_up(json_name, korean):
    vocabulary = open_base(json_name, PLUGINS).vocabulary
    kept = needed(vocabulary, korean)
    made = vocabulary.having(kept)
    check_same(vocabulary, made, korean)
    assert sorted(made.get_vocab().values()) == list(range(len(made)))
    assert len(made) < len(vocabulary.ids) / 4
    for text in korean:
        ids = made(text).input_ids
        assert made.convert_ids_to_tokens(ids) == vocabulary.tokenizer.convert_ids_to_tokens(
            vocabulary.tokenizer(text).input_ids
        )
    assert made.decode(made("Ünknøwn ☃ text", add_special_tokens=False).input_ids) == "Ünknøwn ☃ text"


def test_a_piece_with_a_special_token_in_it_is_refused(json_name):
    vocabulary = open_base(json_name, PLUGINS).vocabulary
    token = min(vocabulary.special, key=len)
    with pytest.raises(ConfigError, match="contains the special token"):
        merge(vocabulary, [b"xy", f"a{token}b".encode()])
    assert vocabulary.added == []


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "no bytes"])
def test_a_tokenizer_of_another_kind_is_refused_with_those_that_can_be_extended(kind, tmp_path):
    model = {
        "WordPiece": models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        "Unigram": models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0),
        "no bytes": models.BPE({"a": 0, "b": 1}, []),
    }[kind]
    special = {"eos_token": "[E]"}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"A vocabulary can be extended if it is .*Llama 3.*Llama 2.*tiktoken file"):
        open_base(str(tmp_path), PLUGINS)
