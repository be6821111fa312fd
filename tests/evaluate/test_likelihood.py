"""The likelihood of texts that begin alike is that of each by itself, and its bits do not depend on the company."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from lmf.evaluate.likelihood import CHUNK, SHORTEST, Group, Scored, Scorer, Text, batches, root_of, tokens_of
from lmf.generate.caches import Anew, OneByOne, Packed, Runner, runner_for
from transformers import AutoModelForCausalLM

VOCABULARY = 300
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": VOCABULARY}
HEADS: dict[str, Any] = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2}
OLD: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, **ENDS}
ANGLES = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
LONG: dict[str, Any] = {"rope_parameters": {**ANGLES, "factor": 32.0}, "original_max_position_embeddings": 16}
PAIRS: dict[str, Any] = {
    **HEADS,
    "sliding_window": 5,
    "query_pre_attn_scalar": 16,
    "final_logit_softcapping": 5.0,
    **ENDS,
}
BERT: dict[str, Any] = {**SIZES, "num_attention_heads": 4, "is_decoder": True}
MODELS: dict[str, tuple[Any, type]] = {
    "llama": (lambda: transformers.LlamaConfig(**HEADS, tie_word_embeddings=False), Packed),
    "gpt2, learned positions": (lambda: transformers.GPT2Config(**OLD), Packed),
    "gemma2, window and bounds": (lambda: transformers.Gemma2Config(**PAIRS, attn_logit_softcapping=3.0), Packed),
    "granite, factor": (lambda: transformers.GraniteConfig(**HEADS, logits_scaling=3.0), Packed),
    "bert, another head": (lambda: transformers.BertConfig(**BERT), Packed),
    "phi3, angles by the length": (
        lambda: transformers.Phi3Config(**HEADS, max_position_embeddings=512, **LONG, **ENDS),
        Packed,
    ),
    "bloom, ALiBi": (
        lambda: transformers.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=VOCABULARY),
        OneByOne,
    ),
    "mamba": (lambda: transformers.MambaConfig(**{**SIZES, "num_hidden_layers": 2}, **ENDS), OneByOne),
    "rwkv": (lambda: transformers.RwkvConfig(**{**SIZES, "num_hidden_layers": 2}), Anew),
}
TOGETHER = ("llama", "gpt2, learned positions", "gemma2, window and bounds", "granite, factor", "bert, another head")


def model_of(name: str) -> Any:
    """Return a tiny model whose parts are so large that a token depends on all before it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(MODELS[name][0](), dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1 and name != "mamba":  # whose numbers in 32 bits would then be off by more
                parameter.data *= 3
    return model


def plain(model: Any, text: Text) -> tuple[list[float], bool]:
    """Return the log-probabilities of a text and whether each token is the likeliest, of its logits alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([text.ids[:-1]]), use_cache=False).logits[0].double()
    values = logits.log_softmax(-1)
    places = range(text.start, len(text.ids))
    best = all(int(logits[at - 1].argmax()) == text.ids[at] for at in places)
    return [float(values[at - 1, text.ids[at]]) for at in places], best


def forest(seed: int, root: int = 0) -> list[list[Text]]:
    """Return groups of random texts which all begin with ``root`` tokens that are not scored."""
    chance = random.Random(seed)

    def some(least: int, most: int) -> tuple[int, ...]:
        return tuple(chance.randrange(3, VOCABULARY) for _ in range(chance.randint(least, most)))

    first, found = some(root, root), []
    for kind in ("any", "one token each", "alone", "a text goes on from another", "scored from the beginning", "any"):
        stem = first + some(1, 25)
        texts = [stem + some(1, 1 if kind == "one token each" else 8) for _ in range(chance.randint(2, 5))]
        if kind == "alone":
            texts = texts[:1]
        if kind == "a text goes on from another":
            texts += [texts[0] + some(1, 4), texts[0]]
        early = kind == "scored from the beginning"
        starts = [root + 1 if early else chance.randint(max(1, len(stem) - 3), len(stem)) for _ in texts]
        found.append([Text(ids, max(root + 1, start)) for ids, start in zip(texts, starts, strict=True)])
    return found


def scored(runner: Runner, groups: Sequence[Group], root: Sequence[int] = ()) -> list[list[Scored]]:
    scorer = Scorer(runner)
    scorer.keep(root)
    return scorer.score(groups)


def furthest(name: str, groups: Sequence[Group], found: Sequence[Sequence[Scored]]) -> float:
    """Return how far a token is at most from the model's own, after a check of everything else."""
    model, most = model_of(name), 0.0
    for group, values in zip(groups, found, strict=True):
        for text, (logprobs, likeliest) in zip(group, values, strict=True):
            expected, best = plain(model, text)
            assert len(logprobs) == len(expected)
            assert likeliest == best
            most = max(most, *(abs(a - b) for a, b in zip(logprobs, expected, strict=True)))
    return most


@pytest.mark.filterwarnings("ignore:.*falling back to its reference:UserWarning")
@pytest.mark.parametrize("root", [0, 1, 20], ids="root {}".format)
@pytest.mark.parametrize("name", MODELS)
def test_texts_of_a_tree_are_as_likely_as_each_by_itself(name, root):
    runner = runner_for(model_of(name))
    assert type(runner) is MODELS[name][1]
    most = 0.0
    for seed in range(3):
        groups = forest(seed, root)
        most = max(most, furthest(name, groups, scored(runner, groups, groups[0][0].ids[:root])))
    print(f"\n  {name}, root {root}: {most:.1e}")
    assert most <= 1e-5


@pytest.mark.parametrize("make", [OneByOne, Anew])
def test_every_way_to_run_a_model_gives_the_same(make):
    groups = forest(3, 18)
    root = groups[0][0].ids[:18]
    ours = furthest("llama", groups, scored(make(model_of("llama")), groups, root))
    print(f"\n  {make.__name__}: {ours:.1e}")
    assert ours <= 1e-5


def test_a_text_that_the_model_would_write_is_the_likeliest():
    model = model_of("llama")
    ids = [5, 6, 7]
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % VOCABULARY]
    early = [*ids[:3], (ids[3] + 1) % VOCABULARY, *ids[4:]]
    group = [Text(tuple(ids), 3), Text(tuple(other), 3), Text(tuple(early), 3)]
    assert [text.likeliest for text in scored(runner_for(model), [group])[0]] == [True, False, False]


def test_a_root_longer_than_a_part_is_read_whole():
    root = tuple(number % 290 for number in range(CHUNK + 7))
    groups = [[Text((*root, 9, 10 + number), len(root) + 1) for number in range(3)], [Text((*root, 50), len(root))]]
    found = scored(runner_for(model_of("llama")), groups, root[:-1])
    assert furthest("llama", groups, found) <= 1e-5


def test_another_root_takes_the_place_of_the_first_and_none_is_none():
    scorer = Scorer(runner_for(model_of("llama")))
    for seed, root in ((0, 20), (1, 17), (2, 0)):
        groups = forest(seed, root)
        scorer.keep(groups[0][0].ids[:root])
        assert len(scorer.root) == root
        for _ in range(2):  # what is kept is not written to
            assert furthest("llama", groups, scorer.score(groups)) <= 1e-5


# Bits


def values(found: Sequence[Sequence[Scored]]) -> torch.Tensor:
    return torch.tensor([value for group in found for text in group for value in text.logprobs], dtype=torch.float64)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("root", [0, 20], ids="root {}".format)
@pytest.mark.parametrize("name", TOGETHER)
def test_bits_do_not_depend_on_what_is_read_together(name, root, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        groups = [group for seed in range(6) for group in forest(0, root)[:1] + forest(seed, root)[1:]]
        groups = [group for group in groups if group[0].ids[:root] == groups[0][0].ids[:root]]
        scorer = Scorer(runner_for(model_of(name)))
        scorer.keep(groups[0][0].ids[:root])
        together = scorer.score(groups)
        alone = [scorer.score([group])[0] for group in groups]
        assert torch.equal(values(together), values(alone))
        for seed in range(3):
            order = random.Random(seed).sample(range(len(groups)), len(groups))
            cut = random.Random(seed).randint(1, len(groups) - 1)
            mixed = [scorer.score([groups[i] for i in part]) for part in (order[:cut], order[cut:])]
            found = dict(zip(order, mixed[0] + mixed[1], strict=True))
            assert torch.equal(values([found[i] for i in range(len(groups))]), values(alone))
    finally:
        torch.set_num_threads(before)


# What is read, and with what


def test_tokens_that_several_texts_begin_with_count_once():
    group = [Text((1, 2, 3, 4, 5), 3), Text((1, 2, 3, 9), 3), Text((1, 2, 3, 4), 3)]
    assert tokens_of(group) == 4  # 1 2 3, which all read; 4, which only the first does
    assert tokens_of(group, 2) == 2
    assert tokens_of([Text((1, 2), 1)]) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_root_is_what_all_begin_with_and_is_scored_nowhere(seed):
    groups = forest(seed, SHORTEST + seed % 7)
    root = root_of(groups)
    texts = [text for group in groups for text in group]
    assert len(root) >= SHORTEST
    assert all(text.ids[: len(root)] == root and len(root) < text.start for text in texts)
    longer = len(root) + 1
    same = len({text.read[:longer] for text in texts}) == 1 and all(len(text.read) >= longer for text in texts)
    assert not same or any(text.start <= longer for text in texts)


def test_a_root_must_be_worth_it():
    long = tuple(range(50))
    assert root_of([[Text(long, 49)]]) == ()  # nothing else begins with it
    assert root_of([[Text(long, 49)], [Text(long, SHORTEST)]]) == ()
    assert root_of([[Text(long, 49)], [Text(long, SHORTEST + 1)]]) == long[:SHORTEST]
    assert root_of([]) == ()


@pytest.mark.parametrize("seed", range(20))
def test_batches_are_all_items_in_order_and_nearly_even(seed):
    chance = random.Random(seed)
    sizes = sorted((chance.randint(1, 60) for _ in range(chance.randint(1, 80))), reverse=True)
    most = chance.choice([1, 40, 100, 10_000])
    found = list(batches(range(len(sizes)), sizes, most))
    assert [item for batch in found for item in batch] == list(range(len(sizes)))
    assert all(found)
    loads = [sum(sizes[item] for item in batch) for batch in found]
    share = sum(sizes) / -(-sum(sizes) // most)
    for load, batch in zip(loads, found, strict=True):
        assert len(batch) == 1 or load <= share + sizes[batch[-1]] / 2


def test_no_items_make_no_batch():
    assert list(batches([], [], 10)) == []
