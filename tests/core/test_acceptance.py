"""The acceptance rows of training data: what is learned, and that nothing a user writes becomes a control token.

The reference is transformers, what the models' own templates wrote (``official_a.json``,
``official_b.json``, ``reference.json``), and plain torch. Each check yields a text for each case,
"" where all is well; ``benchmarks/reliability.py`` runs the same checks with more cases.

Row B3 (the end is learned also where it pads) is in ``test_prepare.py`` and ``test_encode.py``,
row B7 (packed and alone agree) in ``test_packing.py``.
"""

import dataclasses
import functools
import itertools
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lmf_smollm2
import pytest
import torch
from lmf import Conversation, DataError, JinjaTemplate, Message, Plugins, Record
from lmf.encoding.encoder import IGNORED, Encoder, Example
from lmf.encoding.fit import Overflow, fit
from lmf.templates.traits import SAMPLES, takes
from lmf.testing import fixed_date, openai_message, tiny_tokenizer
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parents[1] / "templates"
sys.path.append(str(HERE))

import test_jinja_a  # noqa: E402
import test_jinja_b  # noqa: E402
from talks import TALKS, THOUGHTS, WITH_TOOLS  # noqa: E402

PLUGINS = Plugins(only=["lmf-templates", "lmf-smollm2"])
MARKED = json.loads((HERE / "reference.json").read_text(encoding="utf-8"))
POLICIES: tuple[Overflow, ...] = ("drop", "truncate-left", "truncate-right", "split", "error")
CUT = ("llama3", "chatml", "qwen3", "mistral_v3", "gemma")  # row B1 names them
FORGED = ("chatml", "llama2", "llama3", "gemma", "phi3", "qwen3", "llama3_1", "deepseek_r1", "mistral_v3", "gpt_oss")
LEARNED = (*FORGED, "granite", "smollm3", "phi4_mini")
OFFICIAL = (*test_jinja_a.TEMPLATES, *test_jinja_b.TEMPLATES)
SPOKEN = {name: Conversation(tuple(messages)) for name, messages in TALKS.items()} | WITH_TOOLS | THOUGHTS


class Golden(NamedTuple):
    """What an official template writes: a conversation, and the prompt for its last reply."""

    talk: Conversation
    prompt: str | None
    text: str


# Tokenizers


def borders(name: str) -> tuple[str, str]:
    """Return the tokens with which the models of a template begin and end a text; "" where there is none."""
    if name in test_jinja_a.TEMPLATES:
        return test_jinja_a.REFERENCE["templates"][name]["bos"], ""
    known = test_jinja_b.OFFICIAL["templates"] | MARKED["templates"]
    return (known[name]["bos"], known[name]["eos"]) if name in known else ("<s>", "</s>")


def control_tokens(name: str) -> list[str]:
    bos, eos = borders(name)
    template = PLUGINS.templates[name]
    return [token for token in dict.fromkeys((bos, *template.tokens, *template.stops(eos), eos)) if token]


@functools.cache
def tokenizer_for(name: str) -> PreTrainedTokenizerFast:
    """Return a small tokenizer that has a template's control tokens."""
    backend = tiny_tokenizer(400, control_tokens(name)).backend_tokenizer
    return with_template(PreTrainedTokenizerFast(tokenizer_object=backend), name)


def with_template(tokenizer: Any, name: str) -> Any:
    """Give a tokenizer what the models of a template have: its tokens and its Jinja text."""
    bos, eos = borders(name)
    tokenizer.add_special_tokens({"extra_special_tokens": control_tokens(name)})
    tokenizer.bos_token, tokenizer.eos_token = bos or None, eos or None
    tokenizer.chat_template = PLUGINS.templates[name].jinja()
    return tokenizer


def honest(name: str, talk: Conversation) -> bool:
    """Tell whether no text of a conversation spells a control token."""
    return not any(token in repr(talk) for token in control_tokens(name))


def conversations(name: str) -> Iterator[tuple[str, Conversation]]:
    """Yield the conversations that a template has a place for, each with what it is called."""
    for what, talk in SPOKEN.items():
        if honest(name, talk) and takes(PLUGINS.templates[name], talk):
            yield what, talk


@functools.cache
def cards() -> list[Conversation]:
    """Return ordinary conversations."""
    lines = (lmf_smollm2.DATA / "cards.jsonl").read_text(encoding="utf-8").splitlines()
    return [Conversation(tuple(Message(**said) for said in json.loads(line)["messages"])) for line in lines]


def many(name: str, count: int = 60) -> list[tuple[str, Conversation]]:
    """Return so many conversations, odd ones first."""
    ordinary = ((f"card {i}", talk) for i, talk in enumerate(cards()) if honest(name, talk))
    return list(itertools.islice(itertools.chain(conversations(name), ordinary), count))


def encoded(encoder: Encoder, talk: Conversation) -> list[Example]:
    return list(encoder.examples([Record("here", talk)]))


def failures(verdicts: Iterable[str]) -> tuple[int, list[str]]:
    """Return the number of cases, and what is wrong with the bad ones."""
    found = list(verdicts)
    return len(found), [*filter(None, found)]


# B1: whatever the length, an example has something to learn, and no learned reply lacks its end


def truncations(name: str, count: int, seed: int = 0) -> Iterator[str]:
    """Cut conversations to random lengths, and learn what is left with plain torch."""
    rng, encoder = random.Random(f"{name}:{seed}"), Encoder(tokenizer_for(name), PLUGINS.templates[name])
    talks = [talk for _, talk in conversations(name)]
    for _ in range(count):
        records = [Record("", talk) for talk in rng.sample(talks, rng.randint(1, 6))]
        # weights that tell later where a token stood
        examples = [
            dataclasses.replace(e, where=str(i), weights=[float(at + 1) for at in range(len(e.ids))])
            for i, e in enumerate(encoder.examples(records))
        ]
        limit = rng.randint(1, len(rng.choice(examples).ids) + 2)
        for policy in POLICIES:
            fault = fault_of(examples, limit, policy, encoder)
            yield fault and f"{name}, {policy}, {limit} tokens: {fault}"


def fault_of(examples: Sequence[Example], limit: int, policy: Overflow, encoder: Encoder) -> str:
    """Return what is wrong with what a policy leaves of examples, or ""."""
    given: dict[str, Any] = {"name": "training", "records": len(examples)}
    try:
        kept, survey = fit(examples, limit, policy, **given, ends=encoder.end_ids, bos=encoder.bos_id)
    except DataError as error:
        longer = any(len(example.ids) > limit for example in examples)
        left = any(leaves_some(example, limit, policy) for example in examples)
        return "" if not left or (longer and policy == "error") else f"refused, though something is left: {error}"
    if len({example.where for example in kept}) + sum(survey.dropped.values()) != len(examples):
        return f"of {len(examples)} examples {survey.dropped} are dropped and {len(kept)} kept"
    learned: set[tuple[str, int]] = set()  # where a token that is predicted stood
    for example in kept:
        if len(example.ids) > limit:
            return f"{len(example.ids)} tokens are kept"
        if not 0 < loss_of(example) < 100:
            return f"the loss is {loss_of(example)}"
        assert example.weights
        predicted = zip(example.labels[1:], example.weights[1:], strict=True)
        learned |= {(example.where, int(place) - 1) for label, place in predicted if label != IGNORED}
    for example in examples:
        for reply in replies_in(example.labels):
            places = [(example.where, at) for at in reply]
            if places[-1] not in learned and not learned.isdisjoint(places):
                return "a reply is learned without its end"
    return ""


def leaves_some(example: Example, limit: int, policy: Overflow) -> bool:
    """Tell whether a policy must leave something of an example that can be learned."""
    replies = replies_in(example.labels)
    if len(example.ids) <= limit:
        return bool(replies)
    if policy == "truncate-right":
        return any(reply[-1] < limit for reply in replies)
    if policy == "truncate-left":
        return limit > 1 and any(reply[-1] > len(example.ids) - limit for reply in replies)
    return policy == "split" and any(at % limit for reply in replies for at in reply)


def replies_in(labels: Sequence[int]) -> list[range]:
    """Return where each stretch of trained tokens stands."""
    marked = [label != IGNORED for label in labels]
    starts = [i for i, mark in enumerate(marked) if mark and not (i and marked[i - 1])]
    ends = [i for i, mark in enumerate(marked, 1) if mark and not (i < len(marked) and marked[i])]
    return [range(*span) for span in zip(starts, ends, strict=True)]


def loss_of(example: Example) -> float:
    """Return the mean loss of an example under random logits, as torch computes it."""
    logits = torch.randn(len(example.ids), max(example.ids) + 1, generator=torch.Generator().manual_seed(0))
    return cross_entropy(logits[:-1], torch.tensor(example.labels)[1:], ignore_index=IGNORED).item()


@pytest.mark.parametrize("name", CUT)
def test_at_any_length_what_is_kept_has_something_to_learn_and_no_reply_loses_its_end(name: str) -> None:
    """B1."""
    count, wrong = failures(truncations(name, 100))
    assert (count, wrong) == (500, [])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CUT)
def test_a_set_in_which_nothing_is_left_is_refused(name: str, policy: Overflow) -> None:
    """B1."""
    encoder = Encoder(tokenizer_for(name), PLUGINS.templates[name])
    examples = [example for talk in cards()[:20] for example in encoded(encoder, talk)]
    with pytest.raises(
        DataError, match=r"^(None of the \d\d training examples|(\d\d) of \2 training examples are longer)"
    ):
        fit(examples, 1, policy, name="training", records=20, ends=encoder.end_ids, bos=encoder.bos_id)


# B2: the labels are those of transformers


def labels(name: str, tokenizer: Any, talks: Iterable[tuple[str, Conversation]]) -> Iterator[str]:
    """Compare ids and labels with those that follow from the texts which transformers renders: a reply is what a
    conversation has behind the prompt for it, up to a token that ends it."""
    encoder = Encoder(tokenizer, PLUGINS.templates[name])
    for what, talk in talks:
        ours = [(example.ids, example.labels) for example in encoded(encoder, talk)]
        theirs = by_prefixes(name, tokenizer, talk)
        found = next((pair for pair in itertools.zip_longest(ours, theirs) if pair[0] != pair[1]), None)
        stretches = [(given, reply[-1]) for _, given in ours for reply in replies_in(given)]
        if found:
            yield f"{name}, {what}: {found}"
        elif any(given[last] not in encoder.end_ids for given, last in stretches):
            yield f"{name}, {what}: a reply is learned without the token that ends it"
        else:
            yield ""


def by_prefixes(name: str, tokenizer: Any, talk: Conversation) -> list[tuple[list[int], list[int]]]:
    """Return ids and labels of the examples that a conversation should become, as transformers renders and encodes."""
    stops = PLUGINS.templates[name].stops(tokenizer.eos_token or "")
    whole, spans = said(name, tokenizer, talk), []
    for i, message in enumerate(talk.messages):
        if message.role == "assistant":
            prompt = said(name, tokenizer, talk, i, reply=True)
            text = said(name, tokenizer, talk, i + 1)
            assert text.startswith(prompt)
            end = max(text.rfind(stop) + len(stop) for stop in stops if stop in text[len(prompt) :])
            spans.append((text[:end], len(prompt)))
    if all(whole.startswith(text) for text, _ in spans):
        return [by_offsets(tokenizer, whole, [(start, len(text)) for text, start in spans])]
    return [by_offsets(tokenizer, text, [(start, len(text))]) for text, start in spans]


def by_offsets(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Encode a text, cut where a span starts, and return the labels of the tokens that start in a span."""
    ids: list[int] = []
    found: list[int] = []
    for begin, end in itertools.pairwise((0, *(start for start, _ in spans), len(text))):
        part = tokenizer(text[begin:end], add_special_tokens=False, return_offsets_mapping=True)
        for id, (start, _) in zip(part["input_ids"], part["offset_mapping"], strict=True):
            trained = any(first <= begin + start < last for first, last in spans)
            ids.append(id)
            found.append(id if trained else IGNORED)
    return ids, found


def said(
    name: str, tokenizer: Any, talk: Conversation, count: int | None = None, reply: bool = False, **how: Any
) -> Any:
    """Return what transformers renders of the first messages."""
    template = PLUGINS.templates[name]
    variables = template.variables if isinstance(template, JinjaTemplate) else {}
    with fixed_date():
        return tokenizer.apply_chat_template(
            [openai_message(message) for message in talk.messages[:count]],
            tools=list(talk.tools) or None,
            add_generation_prompt=reply,
            **{"tokenize": False, **variables, **how},
        )


@pytest.mark.parametrize("name", LEARNED)
def test_the_labels_are_token_for_token_those_of_transformers(name: str) -> None:
    """B2, without the real conversations."""
    count, wrong = failures(labels(name, tokenizer_for(name), many(name)))
    assert (count, wrong) == (60, [])


@pytest.mark.parametrize("name", LEARNED)
def test_where_a_template_marks_replies_the_labels_are_the_assistant_masks_of_transformers(name: str) -> None:
    """B2."""
    tokenizer, compared = tokenizer_for(name), 0
    encoder = Encoder(tokenizer, PLUGINS.templates[name])
    for what, talk in many(name, 75):
        examples = encoded(encoder, talk)
        how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        theirs = said(name, tokenizer, talk, **how)
        if examples[0].ids == theirs["input_ids"]:  # not where each reply became an example of its own
            marks = [int(label != IGNORED) for label in examples[0].labels]
            assert marks == theirs["assistant_masks"], what
            compared += 1
    assert compared >= 48


@pytest.mark.parametrize("name", MARKED["templates"])
def test_the_labels_are_what_the_official_text_marks(name: str) -> None:
    """B2."""
    tokenizer = tokenizer_for(name)
    encoder = Encoder(tokenizer, PLUGINS.templates[name])
    for what, turns in MARKED["conversations"].items():
        (example,) = encoded(encoder, Conversation(tuple(Message(*turn) for turn in turns)))
        marked = MARKED["templates"][name][what]
        texts, spans, at = re.split("[«»]", marked), [], 0
        for i, text in enumerate(texts):
            spans += [(at, at + len(text))] if i % 2 else []
            at += len(text)
        assert (example.ids, example.labels) == by_offsets(tokenizer, "".join(texts), spans), what


# B4: one and the same ids in training, in chat and in transformers


def official_ids(name: str, tokenizer: Any) -> Iterator[str]:
    """Compare the ids of training and of a prompt with those of the official text."""
    encoder, (bos, _) = Encoder(tokenizer, PLUGINS.templates[name]), borders(name)
    for what, golden in goldens(name):
        if not honest(name, golden.talk):
            continue
        replied = golden.talk.messages[-1].role == "assistant"
        asked = golden.talk.messages[:-1] if replied else golden.talk.messages
        prompt = encoder.prompt(asked, golden.talk.tools)
        faults = []
        if golden.prompt is not None and prompt != plain_ids(tokenizer, golden.prompt):
            faults.append(f"the prompt is {tokenizer.decode(prompt)!r}, officially {golden.prompt!r}")
        if replied:
            ids = encoded(encoder, golden.talk)[-1].ids
            text, theirs = tokenizer.decode(ids), plain_ids(tokenizer, golden.text)
            # what stands behind the end of the last reply is not always an example's
            if theirs[: len(ids)] != ids or golden.text.removeprefix(text).strip():
                faults.append(f"{text!r} is learned, officially {golden.text!r}")
            if ids[: len(prompt)] != prompt:
                faults.append("chat begins otherwise than training")
            if bos and ids.count(tokenizer.bos_token_id) != golden.text[: len(text)].count(bos):
                faults.append(f"{ids.count(tokenizer.bos_token_id)} tokens begin the text")
        yield "; ".join([f"{name}, {what}", *faults]) if faults else ""


def chat_ids(
    name: str, tokenizer: Any, talks: Iterable[tuple[str, Conversation]], compare: bool = True
) -> Iterator[str]:
    """Compare each prompt with how an example begins whose reply is learned there, and with that of transformers.

    The latter fits a tokenizer in which no token reaches over the start of an earlier reply.
    """
    encoder = Encoder(tokenizer, PLUGINS.templates[name])
    for what, talk in talks:
        examples, faults = encoded(encoder, talk), []
        for i, message in enumerate(talk.messages):
            if message.role == "assistant":
                prompt = encoder.prompt(talk.messages[:i], talk.tools)
                how: dict[str, Any] = {"reply": True, "tokenize": True, "return_dict": False}
                if compare and prompt != said(name, tokenizer, talk, i, **how):
                    faults.append(f"the prompt for messages[{i}] is not that of transformers")
                if not any(e.ids[: len(prompt)] == prompt and e.labels[len(prompt)] != IGNORED for e in examples):
                    faults.append(f"messages[{i}] is not learned behind its prompt")
        yield "; ".join([f"{name}, {what}", *faults]) if faults else ""


@pytest.mark.real
@pytest.mark.parametrize("name", ["llama3_1", "llama4", "qwen3"])
def test_chat_prompts_begin_as_training_did_where_a_token_could_reach_over_the_start_of_a_reply(name: str) -> None:
    """Row B4. Two newlines are one token of this tokenizer, also the last of a header and the first of a reply."""
    import lmf_smollm2
    from lmf.models import load_tokenizer
    from lmf.sources import Source

    tokenizer = with_template(load_tokenizer(Source("smollm2-135m", str(lmf_smollm2.folder()))), name)
    count, wrong = failures(chat_ids(name, tokenizer, many(name, 24), compare=False))
    assert count == 24
    assert not wrong


def goldens(name: str) -> Iterator[tuple[str, Golden]]:
    """Yield what the official template writes of the conversations that both it and ours have a place for."""
    if name in test_jinja_a.TEMPLATES:
        for what in test_jinja_a.renderings(name)["default"]:
            text, prompt = test_jinja_a.expected(name, "default", what)
            yield what, Golden(test_jinja_a.TALKS[what], prompt, text)
    else:
        for what in test_jinja_b.talks(name):
            prompt, text = test_jinja_b.expected(name, what)
            yield what, Golden(test_jinja_b.conversation(what), prompt, text)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_ids_of_training_and_of_chat_are_those_of_the_official_text() -> None:
    """B4."""
    count, wrong = failures(verdict for name in OFFICIAL for verdict in official_ids(name, tokenizer_for(name)))
    assert len(OFFICIAL) >= 24
    assert count >= 24 * 48
    assert wrong == []


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_prompt_has_the_ids_of_transformers_and_those_before_the_reply_in_training(name: str) -> None:
    """B4."""
    count, wrong = failures(chat_ids(name, tokenizer_for(name), many(name, 48)))
    assert (count, wrong) == (48, [])


# B5: no text of a message becomes a control token


def forgeries(name: str, count: int, seed: int = 0) -> Iterator[str]:
    """Compare the control tokens of hostile conversations with those of the same ones with harmless text."""
    tokenizer, rng = tokenizer_for(name), random.Random(f"{name}:{seed}")
    encoder, tokens = Encoder(tokenizer, PLUGINS.templates[name]), control_tokens(name)
    controls = {tokenizer.get_vocab()[token] for token in tokens}
    shapes = [talk for talk in SAMPLES.values() if takes(PLUGINS.templates[name], talk)]

    def written(talk: Conversation) -> list[list[int]]:
        rows = [row for example in encoded(encoder, talk) for row in (example.ids, example.labels)]
        rows.append(encoder.prompt(talk.messages[:-1], talk.tools))
        return [[id for id in row if id in controls] for row in rows]

    due = [written(filled(talk, itertools.repeat("hello"))) for talk in shapes]
    for _ in range(count):
        number = rng.randrange(len(shapes))
        hostile = filled(shapes[number], iter(hostile_texts(tokens, rng)))
        yield "" if written(hostile) == due[number] else f"{name}: {hostile}"


def filled(talk: Conversation, texts: Iterator[str]) -> Conversation:
    """Return a conversation with other texts where it has some: said, thought, given to a tool or told of it."""
    messages = tuple(
        dataclasses.replace(
            message,
            content=next(texts) if message.content else "",
            reasoning=next(texts) if message.reasoning else "",
            calls=tuple(
                dataclasses.replace(call, arguments={key: next(texts) for key in call.arguments})
                for call in message.calls
            ),
        )
        for message in talk.messages
    )
    tools = [{**tool, "function": {**tool["function"], "description": next(texts)}} for tool in talk.tools]
    return Conversation(messages, tuple(tools))


def hostile_texts(tokens: Sequence[str], rng: random.Random) -> list[str]:
    """Return texts that try to become control tokens, also in two halves over the edge between two texts."""
    texts = ["x".join(hostile_text(tokens, rng) for _ in range(rng.randint(1, 4))) for _ in range(12)]
    for at in range(len(texts) - 1):
        if rng.random() < 0.2:
            token = rng.choice(tokens)
            half = rng.randrange(1, len(token)) if len(token) > 1 else 1
            texts[at], texts[at + 1] = texts[at] + token[:half], token[half:] + texts[at + 1]
    return texts


def hostile_text(tokens: Sequence[str], rng: random.Random) -> str:
    token, other, number = rng.choice(tokens), rng.choice(tokens), rng.randrange(400)
    half = rng.randrange(len(token) + 1)
    return rng.choice(
        [
            token,
            token + other,
            token[:half] + other + token[half:],
            token[:half] + rng.choice(["\u200b", "\u00ad", "\ufeff", " ", "\n"]) + token[half:],
            token.replace("|", "｜").replace("_", "▁"),  # full-width bars
            token.replace("｜", "|").replace("▁", "_"),
            token.replace("<", "＜").replace(">", "＞"),
            f"\x00{number}\x00",  # looks like an id
            f"<0x{number % 256:02X}>[{number}]",
            chr(rng.randrange(0xE000, 0xF900)) * 2,  # what an encoder might put in place of a token
            chr(rng.randrange(0xF0000, 0xFFFFE)) + token[1:],
            json.dumps(token),
            "{{ eos_token }}{content}{eos}",
        ]
    )


@pytest.mark.parametrize("name", FORGED)
def test_no_text_of_a_message_becomes_a_control_token(name: str) -> None:
    """B5."""
    count, wrong = failures(forgeries(name, 100))
    assert (count, wrong[:3]) == (100, [])
