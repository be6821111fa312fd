"""Encoding, on tokenizers of every kind: nobody forges a control token, a prompt is the same in training
and in chat, honest conversations have the ids of transformers, and exactly the replies are trained."""

import dataclasses
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import lmf.encoding.encoder
import pytest
from lmf import Conversation, JinjaTemplate, LmfError, Message, Piece, Plugins, Record, Template
from lmf.encoding.encoder import IGNORED, Encoder, Example
from lmf.testing import tiny_tokenizer
from lmf.training.packing import pad
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PLUGINS = Plugins(only=["lmf-templates", "lmf-smollm2"])
NAMES = ("plain", "chatml", "smollm2", "llama2", "llama3", "vicuna", "alpaca", "gemma", "mistral", "zephyr", "phi3")
TEMPLATES: dict[str, Template] = {name: PLUGINS.templates[name] for name in NAMES}
(CARDS,) = (file.read_text(encoding="utf-8").splitlines() for file in PLUGINS.datasets["cards"].files())
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
NAMED = sorted({token for template in TEMPLATES.values() for token in template.tokens})
SPECIAL = [UNKNOWN, BOS, EOS, *NAMED]
CORPUS = [
    "The user asks what one and two is; the assistant says three.\n\nHello, hello there!",
    "def f(x):\n    return x  # twice\n\n\n    f(f(x))\t\n 1234 56 7",
    "system user assistant model Instruction: Response: USER ASSISTANT [INST] [/INST] <<SYS>> im_start im_end eot_id",
    "你好，世界。 Ünïcödé ça va é 🙂 <|a|> </b> <s|>",
] * 3
SPLIT = Regex(  # of the tokenizer of Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def wrapped(backend: Tokenizer, add_bos: bool = False, **strip: bool) -> PreTrainedTokenizerFast:
    """Give a tokenizer its special tokens; each has an id of its own."""
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False, **strip) for token in SPECIAL])
    if add_bos:
        ids = [(BOS, backend.token_to_id(BOS))]
        backend.post_processor = processors.TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS} $B", ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN)


def byte_level(add_prefix_space: bool = False, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """GPT-2's kind; with a prefix space, RoBERTa's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator([*CORPUS, "a\n\nb\n\n\nc  d   e"] * 3, trainer)
    return wrapped(backend)


def ignore_merges(split: bool) -> PreTrainedTokenizerFast:
    """Llama 3's kind; its vocabulary holds the control tokens. Without a split, a text is one word that can be one."""
    trained = json.loads(byte_level().backend_tokenizer.to_str())["model"]
    vocab = trained["vocab"]
    for token in SPECIAL:
        vocab.setdefault(token, len(vocab))
    merges = [tuple(pair) for pair in trained["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    pieces = [pre_tokenizers.Split(SPLIT, "isolated")] if split else []
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return wrapped(backend, add_bos=True)


def sentencepiece(prefix: str, bytes_too: bool = True, **strip: bool) -> PreTrainedTokenizerFast:
    """Llama 2's kind: BPE over text with ▁ for spaces, and a ▁ in front: Prepend, first, always or never."""
    backend = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL, *byte_tokens], show_progress=False)
    backend.train_from_iterator([*CORPUS, " ".join(SPECIAL)] * 2, trainer)
    trained = json.loads(backend.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    backend = Tokenizer(models.BPE(trained["vocab"], merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=bytes_too))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)  # type: ignore[assignment]
    if prefix == "Prepend":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    return wrapped(backend, add_bos=True, **strip)


def unigram(normalizer: Any = None) -> PreTrainedTokenizerFast:
    """T5's kind. The vocabulary itself holds the control tokens, as cheap pieces."""
    characters = sorted({character for text in CORPUS for character in text if character != " "})
    words = sorted({word for text in CORPUS for word in re.findall(r"\w{2,}", text)})
    vocab = [(UNKNOWN, 0.0), *((token, -1.0) for token in [*SPECIAL[1:], "▁</s>"]), ("▁", -3.0)]
    vocab += [(c, -6.0) for c in characters] + [(w, -8.0) for w in words] + [("▁" + w, -7.0) for w in words]
    vocab = list({piece: (piece, score) for piece, score in reversed(vocab)}.values())[::-1]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    if normalizer:
        backend.normalizer = normalizer
    return wrapped(backend)


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's kind; the words are split at white space, so that a control token can be a word."""
    characters = sorted({character for text in CORPUS for character in text if not character.isspace()})
    vocab = [*SPECIAL, *characters, *(f"##{c}" for c in characters), "the", "##ing", "hello", "##lo", "he"]
    backend = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(vocab)}, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(backend)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "tiny": lambda: tiny_tokenizer(special=(BOS, UNKNOWN, *NAMED, EOS)),
    "byte-level": byte_level,
    "byte-level, prefix space": lambda: byte_level(add_prefix_space=True, trim_offsets=True),
    "ignore_merges": lambda: ignore_merges(split=True),
    "ignore_merges, unsplit": lambda: ignore_merges(split=False),
    "sentencepiece, first": lambda: sentencepiece("first"),
    "sentencepiece, always": lambda: sentencepiece("always"),
    "sentencepiece, never": lambda: sentencepiece("never"),
    "sentencepiece, Prepend": lambda: sentencepiece("Prepend"),
    "sentencepiece, no bytes": lambda: sentencepiece("first", bytes_too=False),
    "Phi-3": lambda: sentencepiece("Prepend", rstrip=True),
    "lstrip": lambda: sentencepiece("first", lstrip=True),
    "unigram": unigram,
    "unigram, NFKC": lambda: unigram(normalizers.NFKC()),
    "WordPiece": word_piece,
}
BYTES = ["tiny", "byte-level", "ignore_merges", "ignore_merges, unsplit"]
REVERSIBLE = [*BYTES, "sentencepiece, never", "sentencepiece, first"]
MADE: dict[str, PreTrainedTokenizerFast] = {}

each_kind = pytest.mark.parametrize("kind", KINDS)
each_byte_kind = pytest.mark.parametrize("kind", BYTES)


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    return MADE.setdefault(kind, MADE.get(kind) or KINDS[kind]())


def talk(*contents: str, system: str | None = None) -> list[Message]:
    roles = itertools.cycle(["user", "assistant"])
    messages = [Message(next(roles), content) for content in contents]  # type: ignore[arg-type]
    return messages if system is None else [Message("system", system), *messages]


def card_talks() -> list[list[Message]]:
    return [[Message(m["role"], m["content"]) for m in json.loads(card)["messages"]] for card in CARDS]


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that nobody but the template may write. <unk> is what an unknown character becomes."""
    return set(tokenizer.convert_tokens_to_ids(SPECIAL[1:]))


def rendered(template: Template, messages: Sequence[Message], reply: bool = False) -> list[Piece]:
    return template.render(messages, reply=reply, bos=BOS, eos=EOS)


def by_transformers(tokenizer: PreTrainedTokenizerBase, template: Template, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation, or of a prompt if the last word is not the assistant's."""
    dicts = [dataclasses.asdict(message) for message in messages]
    return tokenizer.apply_chat_template(
        dicts, chat_template=template.jinja(), add_generation_prompt=messages[-1].role != "assistant"
    )["input_ids"]


def prompts(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Yield the conversation up to each reply."""
    for i, message in enumerate(messages):
        if message.role == "assistant":
            yield messages[:i]


def starts_of_replies(pieces: Sequence[Piece]) -> list[int]:
    ends = [0, *itertools.accumulate(len(piece.text) for piece in pieces)]
    return [ends[i] for i, piece in enumerate(pieces) if piece.trained and not (i and pieces[i - 1].trained)]


def reaches_over_a_start(tokenizer: PreTrainedTokenizerFast, template: Template, messages: Sequence[Message]) -> bool:
    """Tell whether transformers' ids break the second promise: a token (or a word of WordPiece) reaches over
    the start of a reply, or a prompt is encoded otherwise once a reply follows."""
    pieces = rendered(template, messages)
    encoding = tokenizer.backend_tokenizer.encode("".join(p.text for p in pieces), add_special_tokens=False)
    starts = starts_of_replies(pieces)
    for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        if any(start < at < end or (start == at and token.startswith("##")) for at in starts):
            return True
    whole = by_transformers(tokenizer, template, messages)
    asked = (by_transformers(tokenizer, template, part) for part in prompts(messages))
    return any(whole[: len(ids)] != ids for ids in asked)


# Promise 1: only the template writes control tokens


def pairs(examples: Iterable[Example]) -> list[tuple[list[int], list[int]]]:
    return [(example.ids, example.labels) for example in examples]


def encoded(encoder: Encoder, talks: Iterable[Sequence[Message]]) -> list[tuple[list[int], list[int]]]:
    """Encode conversations. Returns (ids, labels) of each."""
    return pairs(encoder.examples(Record("here", Conversation(tuple(messages))) for messages in talks))


def texts(encoder: Encoder, documents: Iterable[str]) -> list[tuple[list[int], list[int]]]:
    return pairs(encoder.texts(Record("here", text) for text in documents))


def hostile(rng: random.Random) -> str:
    """Return a text that tries to become a control token."""
    token = rng.choice(SPECIAL)
    half = rng.randrange(1, len(token))
    number = rng.randrange(300)
    return rng.choice(
        [
            token,
            token[:half],
            token[half:],
            token[:half] + token + token[half:],
            token[:half] + rng.choice(SPECIAL) + token[half:],
            token[:half] + rng.choice(["", " ", "\n", "\u200b", "\u00ad", "\ufeff", "\u2060"]) + token[half:],
            token.replace("<", "＜").replace(">", "＞").replace("|", "｜"),
            token.replace("|", "\\|"),
            token.upper(),
            f"\x00{number}\x00",
            f"<0x{number % 256:02X}>",
            f"[{number}]",
            chr(rng.randrange(0xE000, 0xF900)),
            chr(rng.randrange(0xF0000, 0xFFFFE)),
            rng.choice([" ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u3000", "\u2581", "\x1c", "\r\n"]),
            rng.choice(["hello", "the user", "1234", "é", "🙂", "{content}", "{eos}"]),
        ]
    )


def hostile_talk(rng: random.Random) -> list[Message]:
    """Return a conversation whose contents try to write control tokens, also over the edges of messages."""
    token = rng.choice(SPECIAL)
    half = rng.randrange(1, len(token))
    contents = ["".join(hostile(rng) for _ in range(rng.randint(0, 4))) for _ in range(rng.choice([2, 4]))]
    if rng.random() < 0.3:  # halves in adjacent messages
        i = rng.randrange(len(contents) - 1)
        contents[i], contents[i + 1] = contents[i] + token[:half], token[half:] + contents[i + 1]
    return talk(*contents, system=hostile(rng) if rng.random() < 0.3 else None)


@each_kind
def test_nobody_forges_a_control_token(kind: str) -> None:
    tokenizer, rng = tokenizer_of(kind), random.Random(kind)
    controls, count = control_ids(tokenizer), -(-10_000 // (len(KINDS) * len(TEMPLATES)))
    for template in TEMPLATES.values():
        encoder = Encoder(tokenizer, template)
        talks = [hostile_talk(rng) for _ in range(count)]
        twins = [[Message(m.role, "hello") for m in messages] for messages in talks]
        pairs = zip(encoded(encoder, talks), encoded(encoder, twins), talks, strict=True)
        for (ids, labels), (benign, benign_labels), messages in pairs:
            assert [i for i in ids if i in controls] == [i for i in benign if i in controls], messages
            assert [i for i in labels if i in controls] == [i for i in benign_labels if i in controls], messages
            if kind in REVERSIBLE:  # nothing is lost, and each token stands where the template wrote it
                text = "".join(piece.text for piece in rendered(template, messages))
                text = text if kind in BYTES else text.replace("▁", " ")  # which is how sentencepiece writes a space
                assert tokenizer.decode(ids) in (text, f" {text}")


def in_jinja(template: Template, marked: bool = True) -> JinjaTemplate:
    """Return a template as the Jinja text that it exports."""
    text = template.jinja() if marked else re.sub(r"\{%- (end)?generation %\}", "", template.jinja())
    return JinjaTemplate(name=template.name, source="-", text=text, stop=template.stop, tokens=template.tokens)


@each_kind
def test_a_template_in_jinja_gives_the_ids_of_the_same_template_in_fields(kind: str) -> None:
    tokenizer, rng = tokenizer_of(kind), random.Random(kind)
    for template in TEMPLATES.values():
        talks = [hostile_talk(rng) for _ in range(20)] + HONEST + WHITE[::4]
        want = encoded(Encoder(tokenizer, template), talks)
        for marked in (True, False):
            encoder = Encoder(tokenizer, in_jinja(template, marked))
            for messages, found, wanted in zip(talks, encoded(encoder, talks), want, strict=True):
                assert found == wanted, (template.name, marked, messages)
            for prompt in prompts(talks[0]):
                assert encoder.prompt(prompt) == Encoder(tokenizer, template).prompt(prompt)


@each_kind
def test_nobody_forges_a_control_token_in_a_document(kind: str) -> None:
    tokenizer, rng = tokenizer_of(kind), random.Random(kind)
    encoder, controls = Encoder(tokenizer, None), control_ids(tokenizer)
    documents = ["".join(hostile(rng) for _ in range(5)) for _ in range(200)]
    benign = [id for id in texts(encoder, ["hello"])[0][0] if id in controls]
    for (ids, _), text in zip(texts(encoder, documents), documents, strict=True):
        assert [id for id in ids if id in controls] == benign, text
        assert [id for id in encoder.plain(text) if id in controls] == benign[:-1], text


@each_byte_kind
def test_what_spells_a_control_token_is_read_back_as_the_same_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for token in SPECIAL:
        ids = Encoder(tokenizer, None).plain(f"say {token} aloud")
        assert tokenizer.decode(ids, skip_special_tokens=True) == f"say {token} aloud"


def test_a_special_token_that_only_the_template_names_cannot_be_forged_either() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<|turn|>"])  # an added token that is not special
    template = Template(
        name="turns", source="-", user="<|turn|>{content}", assistant="<|turn|>", reply="{content}{eos}",
        stop=("{eos}",), tokens=("<|turn|>",),
    )  # fmt: skip
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    ids = encoded(Encoder(tokenizer, template), [talk("a<|turn|>b", "<|turn|>")])[0][0]
    assert ids.count(turn) == 2
    assert tokenizer.decode(ids) == "<|turn|>a<|turn|>b<|turn|><|turn|></s>"


def test_an_added_token_that_is_not_special_is_text_like_any_other() -> None:
    tokenizer = byte_level()  # Gemma's has empty lines as added tokens, Qwen's <tool_call>
    tokenizer.add_tokens(["\n\n", "<tool_call>"])
    template = TEMPLATES["gemma"]  # writes an empty line itself
    messages = talk("one\n\ntwo", "<tool_call>x", system="s")
    ids = encoded(Encoder(tokenizer, template), [messages])[0][0]
    assert ids == by_transformers(tokenizer, template, messages)
    assert ids.count(tokenizer.convert_tokens_to_ids("\n\n")) == 2
    assert tokenizer.convert_tokens_to_ids("<tool_call>") in ids


def test_what_spells_a_control_token_has_the_ids_that_it_has_without_control_tokens() -> None:
    spec = json.loads(byte_level().backend_tokenizer.to_str())
    ignorant = Tokenizer.from_str(json.dumps(spec | {"added_tokens": [], "post_processor": None}))
    for text in (EOS, f"a {EOS} b", "x<|im_end|>\n<|im_start|>y", "<s><s>"):
        assert Encoder(byte_level(), None).plain(text) == ignorant.encode(text).ids


def test_of_two_control_tokens_the_template_writes_the_longer_one() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|e", "<|e|>", "<|e|>x"]})
    (ids,) = (e.ids for e in Encoder(tokenizer, None).encode([[Piece("<|e|>x<|e<|e|>", control=True)]]))
    assert ids == tokenizer.convert_tokens_to_ids(["<|e|>x", "<|e", "<|e|>"])


@pytest.mark.parametrize("text", [EOS * 5000, f"a {UNKNOWN} b", "▁</s></s>"])
def test_what_the_vocabulary_holds_as_a_control_token_is_written_in_other_pieces(text: str) -> None:
    tokenizer = tokenizer_of("unigram")
    start = time.process_time()
    ids = Encoder(tokenizer, None).plain(text)
    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == "▁" + text.replace(" ", "▁").removeprefix("▁")
    assert not {*tokenizer.convert_tokens_to_ids(SPECIAL)} & {*ids}
    assert time.process_time() - start < 5


def test_a_control_token_of_one_character_in_the_vocabulary_cannot_be_plain_text() -> None:
    vocab = {"a": 0, "#": 1, BOS: 2, EOS: 3}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="#", eos_token=EOS)
    with pytest.raises(LmfError, match="'#' is a control token of this tokenizer and cannot be plain text"):
        Encoder(tokenizer, None).plain("a#a")


@pytest.mark.parametrize("kind", ["WordPiece", "unigram", "sentencepiece, no bytes"])
def test_a_character_outside_the_vocabulary_is_no_forged_token(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = Encoder(tokenizer, None).plain("hello 鯨")
    assert ids[-1] == tokenizer.unk_token_id


# Promise 2: a prompt is the same in training and in chat

ODD = [
    "",
    " ",
    "\n",
    "\n\n",
    "  hi",
    "hi  ",
    "\n hi \n",
    "\t\n  1",
    "1",
    "'s",
    "-",
    "é",
    "\u0301",
    "🙂",
    "hello\n\n",
    ".",
]


@each_kind
def test_a_prompt_is_how_the_training_example_begins(kind: str) -> None:
    rng = random.Random(kind)
    for template in TEMPLATES.values():
        encoder = Encoder(tokenizer_of(kind), template)
        talks = [talk(*(rng.choice(ODD) for _ in range(4))) for _ in range(60)] + [hostile_talk(rng) for _ in range(20)]
        for messages, (ids, labels) in zip(talks, encoded(encoder, talks), strict=True):
            for part in prompts(messages):
                prompt = encoder.prompt(part)
                assert ids[: len(prompt)] == prompt, (template.name, messages)
                assert labels[len(prompt)] == ids[len(prompt)], (template.name, messages)


def test_a_reply_is_learned_as_the_model_will_write_it() -> None:
    tokenizer = tokenizer_of("ignore_merges")
    assert len(tokenizer.encode("\n\nhello")) == len(tokenizer.encode("\nhello"))  # an empty line is one token
    messages = talk("hi", "\nhello")
    ids, labels = encoded(Encoder(tokenizer, TEMPLATES["chatml"]), [messages])[0]
    learned = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(learned) == "\nhello<|im_end|>"
    assert ids != by_transformers(tokenizer, TEMPLATES["chatml"], messages)


# The ids are those of transformers

HONEST = [
    talk("Hi", "Hello!"),
    talk("What is one and two?", "three", "Why?", "Because.\n\nIt is.", system="Be brief."),
    talk("def f(x):\n    return x", "1234 and 56", "你好，世界。", "ça va é 🙂 鯨", "a  b   c", "x\t\ny"),
]
WHITE = [talk(a, b, c, d) for a, b, c, d in zip(ODD, ODD[3:] + ODD, ODD[5:] + ODD, ODD[8:] + ODD, strict=False)]
APART = {  # GPT-2's pattern cuts the empty line before a reply in two; "Response:" and the reply are one word
    ("byte-level", "llama3"),
    ("byte-level, prefix space", "llama3"),
    ("WordPiece", "alpaca"),
}


def templates_for(kind: str) -> list[Template]:
    return [template for name, template in TEMPLATES.items() if (kind, name) not in APART]


@each_kind
def test_an_honest_conversation_has_the_ids_that_transformers_gives(kind: str) -> None:
    tokenizer, talks = tokenizer_of(kind), HONEST + WHITE
    for template in TEMPLATES.values():
        for messages, (ids, _) in zip(talks, encoded(Encoder(tokenizer, template), talks), strict=True):
            if ids != by_transformers(tokenizer, template, messages):
                assert reaches_over_a_start(tokenizer, template, messages), (template.name, messages)


@each_kind
def test_ordinary_conversations_have_the_ids_of_transformers_without_exception(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for template in templates_for(kind):
        encoder = Encoder(tokenizer, template)
        for messages in HONEST:
            own = encoded(encoder, [messages])[0][0]
            assert own == by_transformers(tokenizer, template, messages), template.name
            for part in prompts(messages):
                assert encoder.prompt(part) == by_transformers(tokenizer, template, part), template.name


@each_kind
def test_a_document_has_the_ids_that_the_tokenizer_gives_and_its_end(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    encoder = Encoder(tokenizer, None)
    documents = [*CORPUS, *(text for text in ODD if text), " two  words"]
    for text, (ids, labels) in zip(documents, texts(encoder, documents), strict=True):
        own = tokenizer(text)["input_ids"]
        assert ids == [*own, tokenizer.eos_token_id]
        assert encoder.plain(text) == own
        assert labels == ([IGNORED, *ids[1:]] if encoder.start else ids)


@each_kind
def test_the_first_token_stands_once_wherever_the_template_writes_it(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for template in TEMPLATES.values():
        pieces = rendered(template, HONEST[1])
        written = sum(piece.text.count(BOS) for piece in pieces if piece.control)
        ids = encoded(Encoder(tokenizer, template), [HONEST[1]])[0][0]
        assert ids.count(tokenizer.bos_token_id) == written
        assert written == {"chatml": 0, "qwen2_5": 0, "smollm2": 0, "zephyr": 0, "phi3": 0, "llama2": 2}.get(
            template.name, 1
        )


# Exactly the replies are trained


def trained_by_offsets(tokenizer: PreTrainedTokenizerFast, pieces: Sequence[Piece]) -> list[bool]:
    """Return for each token of the whole text whether it starts in a trained piece."""
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.post_processor = None  # type: ignore[assignment]
    text = "".join(piece.text for piece in pieces)
    trained = [piece.trained for piece in pieces for _ in piece.text]
    return [trained[start] for start, _ in copy.encode(text, add_special_tokens=False).offsets]


@each_kind
def test_exactly_each_reply_and_its_end_are_trained(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for template in templates_for(kind):
        for messages in HONEST:
            ids, labels = encoded(Encoder(tokenizer, template), [messages])[0]
            want = trained_by_offsets(tokenizer, rendered(template, messages))
            assert [label != IGNORED for label in labels] == want, template.name
            assert all(label in (id, IGNORED) for id, label in zip(ids, labels, strict=True))


@each_byte_kind
def test_the_trained_tokens_are_those_that_transformers_marks(kind: str) -> None:
    tokenizer, talks = tokenizer_of(kind), HONEST + card_talks()[::20]
    for template in templates_for(kind):
        for messages, (ids, labels) in zip(talks, encoded(Encoder(tokenizer, template), talks), strict=True):
            out = tokenizer.apply_chat_template(
                [dataclasses.asdict(message) for message in messages],
                chat_template=template.jinja(), return_dict=True, return_assistant_tokens_mask=True,
            )  # fmt: skip
            assert ids == out["input_ids"], template.name
            assert [int(label != IGNORED) for label in labels] == out["assistant_masks"], template.name


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_trained_text_is_the_replies_with_what_ends_them(template: Template) -> None:
    tokenizer = tokenizer_of("ignore_merges")
    _, labels = encoded(Encoder(tokenizer, template), [talk("a b", "one</s> two", "c", "three")])[0]
    learned = [list(group) for kept, group in itertools.groupby(labels, lambda id: id != IGNORED) if kept]
    before, after = template.reply.replace("{eos}", EOS).split("{content}")
    want = [before + reply + after for reply in ("one</s> two", "three")]
    assert [tokenizer.decode(ids) for ids in learned] == want
    stop = tokenizer.convert_tokens_to_ids(template.stops(EOS)[0])
    assert [ids[-1] for ids in learned] == [stop, stop]


@pytest.mark.parametrize("end", ["\n", " ", "##"])
@pytest.mark.parametrize("kind", [*REVERSIBLE, "byte-level, prefix space", "sentencepiece, Prepend", "Phi-3"])
def test_an_end_in_plain_characters_is_trained_and_what_follows_is_not(kind: str, end: str) -> None:
    tokenizer = tokenizer_of(kind)
    template = Template(
        name="lines", source="-", user="Q: {content}\n", assistant="A:", reply=" {content}" + end,
        after_reply="---\n", stop=(end,),
    )  # fmt: skip
    _, labels = encoded(Encoder(tokenizer, template), [talk("one", "two", "three", "four")])[0]
    learned = [list(group) for kept, group in itertools.groupby(labels, lambda id: id != IGNORED) if kept]
    assert [tokenizer.decode(ids) for ids in learned] == [" two" + end, " four" + end]


@pytest.mark.parametrize("kind", ["Phi-3", "lstrip"])
def test_a_control_token_swallows_what_its_tokenizer_takes_for_white_space(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    spaces = [chr(code) for code in range(0x3001) if chr(code).isspace() or code in (0x180E, 0x200B)]
    assert len(spaces) == 31  # of them, Rust takes 25 for white space
    for space in spaces:
        pieces = [Piece("<|user|>", control=True), Piece(f"{space}a{space}"), Piece("<|end|>", control=True)]
        want = tokenizer.backend_tokenizer.encode(f"<|user|>{space}a{space}<|end|>", add_special_tokens=False).ids
        assert Encoder(tokenizer, None).encode([pieces])[0].ids == want, repr(space)


def test_white_space_that_a_control_token_swallows_moves_no_label() -> None:
    tokenizer = tokenizer_of("Phi-3")
    pieces = [Piece("<|end|>  ", control=True, trained=True), Piece("ab", trained=True), Piece(" cd ef")]
    ((ids, labels),) = pairs(Encoder(tokenizer, None).encode([pieces]))
    assert tokenizer.decode(ids) == "<|end|> ab cd ef"
    assert tokenizer.decode([id for id in labels if id != IGNORED]) == "<|end|> ab"


def test_the_end_is_trained_when_it_also_pads() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    encoder = Encoder(tokenizer, TEMPLATES["plain"])
    pairs = [
        *encoded(encoder, [talk("a", "b"), talk("what is one", "two and three")]),
        *texts(encoder, ["a", "bc"]),
    ]
    assert all(labels[-1] == ids[-1] == tokenizer.eos_token_id for ids, labels in pairs)
    for chosen in (pairs[:2], pairs[2:]):
        batch = pad([Example(ids, labels, "") for ids, labels in chosen])
        assert batch.targets.tolist().count(tokenizer.eos_token_id) == 2


def test_the_weight_of_an_example_counts_predictions() -> None:
    assert Example([5, 6, 7], [5, IGNORED, 7], "").weight == 1
    assert Example([5, 6, 7], [5, 6, 7], "").weight == 2
    assert Example([5], [5], "").weight == 0


# What it leaves alone, and what it refuses


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = byte_level()
    before = tokenizer.backend_tokenizer.to_str()
    encoded(Encoder(tokenizer, TEMPLATES["chatml"]), HONEST)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_a_tokenizer_that_cuts_or_pads_does_not_cut_or_pad_here() -> None:
    tokenizer = byte_level()
    encoder = Encoder(tokenizer, TEMPLATES["chatml"])
    before = encoded(encoder, HONEST[:1])
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    assert encoded(encoder, HONEST[:1]) == before
    spec = tokenizer.backend_tokenizer.to_str()
    cut = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(spec), bos_token=BOS, eos_token=EOS)
    assert encoded(Encoder(cut, TEMPLATES["chatml"]), HONEST[:1]) == before


def test_many_conversations_have_the_ids_that_each_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    encoder = Encoder(tokenizer_of("sentencepiece, Prepend"), TEMPLATES["vicuna"])
    talks = [hostile_talk(rng) for _ in range(50)]
    alone = [encoded(encoder, [messages])[0] for messages in talks]
    monkeypatch.setattr(lmf.encoding.encoder, "CHUNK", 7)
    assert encoded(encoder, iter(talks)) == alone


def test_pieces_of_any_kind_can_be_encoded() -> None:
    tokenizer = tokenizer_of("byte-level")
    pieces = [Piece("Label: "), Piece("good", trained=True), Piece(EOS, control=True, trained=True), Piece(" " + EOS)]
    ((ids, labels),) = pairs(Encoder(tokenizer, None).encode([pieces]))
    assert tokenizer.decode(ids) == "Label: good</s> </s>"
    assert tokenizer.decode([id for id in labels if id != IGNORED]) == "good</s>"
    assert ids.count(tokenizer.eos_token_id) == 1


class Slow(PreTrainedTokenizerBase):
    """A tokenizer written in Python."""


def test_a_tokenizer_without_a_fast_form_is_refused() -> None:
    with pytest.raises(LmfError, match=r"The tokenizer is a Slow, which has no fast form \(tokenizer.json\)"):
        Encoder(Slow(), None)


def test_a_template_that_needs_an_end_token_is_refused_without_one() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer)
    with pytest.raises(LmfError, match="'plain' ends replies with the tokenizer's end-of-text token"):
        Encoder(tokenizer, TEMPLATES["plain"])
    ids, labels = texts(Encoder(tokenizer, None), ["hello"])[0]  # a document just ends
    assert tokenizer.decode(ids) == "hello"
    assert labels == ids == Encoder(tokenizer, None).plain("hello")


def test_a_template_whose_tokens_the_tokenizer_lacks_is_refused() -> None:
    with pytest.raises(
        LmfError, match="'gemma' writes <start_of_turn>, <end_of_turn>, which this tokenizer has no token"
    ):
        Encoder(tiny_tokenizer(), TEMPLATES["gemma"])


@pytest.mark.real
def test_the_real_tokenizer_keeps_both_promises_and_the_ids_of_transformers() -> None:
    import lmf_smollm2
    from lmf.models import load_tokenizer
    from lmf.sources import Source

    tokenizer = load_tokenizer(Source("smollm2-135m", str(lmf_smollm2.folder())))
    template = TEMPLATES["smollm2"]
    encoder = Encoder(tokenizer, template)
    talks = HONEST + card_talks()
    for messages, (ids, _) in zip(talks, encoded(encoder, talks), strict=True):
        assert ids == by_transformers(tokenizer, template, messages)
    rng = random.Random(0)
    names = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for _ in range(1000):
        contents = ["".join(rng.choice([*names, hostile(rng)]) for _ in range(3)) for _ in range(2)]
        messages = talk(*contents)
        ids = encoded(encoder, [messages])[0][0]
        assert tokenizer.decode(ids) == "".join(piece.text for piece in template.render(messages))
        assert sum(id in encoder.control_ids for id in ids) == 6
        prompt = encoder.prompt(messages[:1])
        assert ids[: len(prompt)] == prompt
