"""Replies that are written together: each as it is alone, begun and ended at any time."""

import itertools
import random
from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from lmf import LmfError, Sampling
from lmf.generate.caches import Anew, OneByOne, Packed, Part, _gives, runner_for
from lmf.generate.drafts import Draft, Lookup, Smaller, accepted
from lmf.generate.engine import CHUNK, Engine, TooLong
from lmf.generate.sampling import distribution
from lmf.testing import tiny_model
from lmf.training import packing
from replies import TOKENIZER, Rule, chance_of, engine, script
from transformers import AutoModelForCausalLM

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 300, "pad_token_id": 0}
HEADS = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
WINDOW = {**HEADS, "sliding_window": 5}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
MODELS: dict[str, tuple[Any, type]] = {
    "llama": (lambda: transformers.LlamaConfig(**HEADS), Packed),
    "llama, dynamic angles": (
        lambda: transformers.LlamaConfig(
            **HEADS,
            max_position_embeddings=16,
            rope_parameters=DYNAMIC,
        ),
        Packed,
    ),
    "mistral, window": (lambda: transformers.MistralConfig(**WINDOW), Packed),
    "gemma2, window and bound": (lambda: transformers.Gemma2Config(**WINDOW, query_pre_attn_scalar=16), Packed),
    "gemma3": (lambda: transformers.Gemma3TextConfig(**WINDOW), Packed),
    "qwen3": (lambda: transformers.Qwen3Config(**HEADS), Packed),
    "gpt2": (lambda: transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300), Packed),
    "bloom, ALiBi": (lambda: transformers.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=300), OneByOne),
    "mamba": (lambda: transformers.MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=300), OneByOne),
}
PROMPTS = [[5, 6, 7], [9] * 20, [30, 31, 32, 33, 34], [250, 7] * 9]


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MODELS[name][0](), dtype=torch.float32).eval()


def plain(model: Any, prompt: list[int], count: int) -> list[int]:
    """Return the likeliest tokens one after the other, each from the whole text."""
    ids = list(prompt)
    attention = model.config._attn_implementation
    if attention == packing.ATTENTION:
        model.set_attn_implementation("sdpa")
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    model.set_attn_implementation(attention)
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", MODELS)
def test_replies_that_come_and_go_are_those_of_the_model_alone(name):
    model = model_of(name)
    expected = [plain(model, prompt, 8 + number) for number, prompt in enumerate(PROMPTS)]
    runner = runner_for(model)
    print(f"\n  {name}: {type(runner).__name__}")
    assert type(runner) is MODELS[name][1]
    writer = Engine(runner, TOKENIZER, (), 1000, most=3)
    replies = []
    for number, prompt in enumerate(PROMPTS):
        replies += writer.submit(prompt, Sampling(max_tokens=8 + number))
        writer.step()
        writer.step()
    writer.finish(replies)
    assert [reply.ids for reply in replies] == expected
    assert {reply.finish for reply in replies} == {"length"}


def test_a_model_of_an_unknown_kind_is_run_too():
    class Odd(transformers.LlamaForCausalLM):
        """Writes another thing than its parts give, whatever its cache."""

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:  # type: ignore[override]
            out = super().forward(input_ids, use_cache=False)
            out.logits = out.logits.cumsum(1)
            return out

    odd = Odd(tiny_model().config).eval()
    assert type(runner_for(odd)) is Anew
    writer = Engine(runner_for(odd), TOKENIZER, (), 1000)
    (reply,) = writer.submit(PROMPTS[0], Sampling(max_tokens=5))
    writer.finish([reply])
    assert reply.ids == plain(odd, PROMPTS[0], 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_may_differ_from_the_model_by_rounding_and_no_more(dtype):
    """Half a percent is what 16 bits may differ, by how many tokens are read at a time."""
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0))
    runner = Rule(lambda ids: (logits * 1.005).to(dtype))
    expected = logits.to(dtype).expand(7, -1)
    assert _gives(runner, range(1, 8), expected) == (dtype == torch.bfloat16)
    assert not _gives(runner, range(1, 8), expected * 1.1)


def test_a_state_goes_on_in_two_ways_and_forgets():
    runner = runner_for(tiny_model().eval())
    with torch.no_grad():
        state = runner.begin()
        runner.forward([Part(state, [5, 6, 7], 1)])
        other = state.fork()
        (one,) = runner.forward([Part(state, [8, 9], 1)])
        (two,) = runner.forward([Part(other, [10, 11], 1)])
        state.crop(3)
        (again,) = runner.forward([Part(state, [10, 11], 1)])
    torch.testing.assert_close(again, two)
    assert not torch.allclose(one, two, atol=1e-3)


def test_a_long_prompt_is_read_in_parts_while_others_are_written():
    model = tiny_model().eval()
    long = [number % 290 for number in range(CHUNK * 2 + 10)]
    writer = Engine(runner_for(model), TOKENIZER, (), 2000)
    (short,) = writer.submit([5, 6], Sampling(max_tokens=6))
    writer.step()
    (other,) = writer.submit(long, Sampling(max_tokens=2))
    for step in range(3):
        assert (len(short.ids), other.ids) == (1 + step, [])
        writer.step()
    assert len(other.ids) == 1
    writer.finish([short, other])
    assert short.ids == plain(model, [5, 6], 6)
    assert other.ids == plain(model, long, 2)


# Ends


@pytest.mark.parametrize("stop", ["<|im_end|>", "\n\nUser:"], ids=["a token", "several tokens"])
def test_a_reply_ends_at_a_stop_and_without_it(stop):
    known = TOKENIZER.get_vocab()
    ends, texts = ([known[stop]], ()) if stop in known else ((), [stop])
    shown: list[str] = []
    writer = engine(script(f"hello{stop} never reached", 3), ends, stop=texts)
    (reply,) = writer.submit([5, 6, 7], Sampling(), show=lambda _, text: shown.append(text))
    writer.finish([reply])
    assert (reply.text, reply.finish) == ("hello", "stop")
    assert "".join(shown) == "hello"
    assert not writer.step()  # nothing is left to do


def test_a_stop_of_the_request_ends_that_reply_only():
    writer = engine(script("one two three", 2))
    (one,) = writer.submit([5, 6], Sampling(max_tokens=6, stop=(" two",)))
    (other,) = writer.submit([5, 6], Sampling(max_tokens=5))
    writer.finish([one, other])
    assert (one.text, one.finish, other.finish) == ("one", "stop", "length")
    assert len(other.ids) == 5


def test_what_is_shown_is_the_text_and_the_last_time_tells_of_the_end():
    seen: list[tuple[str, Any]] = []
    writer = engine(script("the user and all", 1))
    (reply,) = writer.submit([5], Sampling(max_tokens=4), show=lambda reply, text: seen.append((text, reply.finish)))
    writer.finish([reply])
    assert "".join(text for text, _ in seen) == reply.text
    assert [finish for _, finish in seen] == [None] * (len(seen) - 1) + ["length"]


def test_a_cancelled_reply_gets_no_further_token_and_others_go_on():
    rule = script("the user and all of them say hello", 1)
    writer = engine(rule)
    one, other = (writer.submit([5], Sampling(max_tokens=9))[0] for _ in range(2))
    writer.step()
    one.cancel()
    writer.finish([other])
    assert (len(one.ids), one.finish, len(other.ids)) == (1, "cancelled", 9)
    assert rule.sizes == [2] + [1] * 8
    (waiting,) = writer.submit([5], Sampling())
    waiting.cancel()
    assert not writer.step()
    assert (writer.active, len(writer.waiting)) == ([], 0)


def test_all_are_abandoned_at_once():
    writer = engine(script("the user", 1), most=2)
    replies = [reply for _ in range(3) for reply in writer.submit([5], Sampling(max_tokens=50), n=2)]
    writer.step()
    assert set(writer.abandon()) == set(replies)
    assert {reply.finish for reply in replies} == {"cancelled"}
    assert not writer.step()


# Room


def test_replies_wait_until_there_is_room_in_the_order_in_which_they_came():
    rule = script("the user and all of them say hello", 1)
    writer = engine(rule, most=2, context=100, room=24)
    replies = [writer.submit([5], Sampling(max_tokens=count))[0] for count in (3, 9, 12, 2)]
    done = []
    while writer.step():
        done += [number for number, reply in enumerate(replies) if reply.finish and number not in done]
    assert done == [0, 1, 3, 2]
    assert max(rule.sizes) == 2
    assert [len(reply.ids) for reply in replies] == [3, 9, 12, 2]


@pytest.mark.parametrize(
    ("prompt", "options", "n", "message"),
    [
        ([], {}, 1, "The prompt is empty; the model needs a token to go on from."),
        ([5] * 10, {}, 1, "The prompt has 10 tokens; with its reply there is room for 10. Shorten the prompt."),
        (
            [5] * 4,
            {},
            5,
            "5 replies of up to 6 tokens are more than there is room for at a time: 4",
        ),
    ],
    ids=["nothing", "too long", "too many"],
)
def test_what_there_is_no_room_for_is_refused(prompt, options, n, message):
    writer = engine(script("the", 1), context=10, most=4)
    with pytest.raises(LmfError) as told:
        writer.submit(prompt, Sampling(**options), n=n)
    assert str(told.value).startswith(message)
    if len(prompt) == 10:
        assert isinstance(told.value, TooLong) and (told.value.tokens, told.value.limit) == (10, 10)
    assert not writer.step()


def test_a_reply_ends_where_the_model_can_read_no_further():
    writer = engine(script("the user and all of them", 4), context=10)
    (reply,) = writer.submit([5] * 4, Sampling(max_tokens=100))
    writer.finish([reply])
    assert (len(reply.ids), reply.finish) == (6, "length")


# Several replies, and beginnings that were read before


def test_several_replies_to_a_prompt_read_it_once_and_are_drawn_apart():
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0))
    rule = Rule(lambda ids: logits)
    writer = engine(rule)
    replies = writer.submit([5] * 30, Sampling(max_tokens=5, temperature=1.0, seed=3), n=4)
    writer.finish(replies)
    assert rule.sizes == [1, 4, 4, 4, 4]
    assert len({tuple(reply.ids) for reply in replies}) == 4
    again = writer.submit([5] * 30, Sampling(max_tokens=5, temperature=1.0, seed=3), n=2)
    writer.finish(again)
    assert [reply.ids for reply in again] == [reply.ids for reply in replies[:2]]


@pytest.mark.parametrize("name", ["llama", "mistral, window", "bloom, ALiBi"])
def test_several_replies_of_real_models_are_those_of_one(name):
    model = model_of(name)
    writer = Engine(runner_for(model), TOKENIZER, (), 1000)
    replies = writer.submit(PROMPTS[1], Sampling(max_tokens=6), n=3)
    writer.finish(replies)
    assert [reply.ids for reply in replies] == [plain(model, PROMPTS[1], 6)] * 3


def test_the_first_of_several_replies_is_cancelled_before_the_prompt_was_read():
    writer = engine(script("the user", 3))
    first, second = writer.submit([5, 6, 7], Sampling(max_tokens=2), n=2)
    writer._admit()
    first.cancel()
    writer.finish([second])
    assert (first.ids, len(second.ids)) == ([], 2)


def test_a_conversation_that_goes_on_is_read_from_where_it_was_left():
    model = tiny_model().eval()
    runner = Counting(model)
    writer = Engine(runner, TOKENIZER, (), 1000)
    (one,) = writer.submit(PROMPTS[1], Sampling(max_tokens=10))
    writer.finish([one])
    longer = [*PROMPTS[1], *one.ids, 40, 41, 42]
    runner.read = 0
    (two,) = writer.submit(longer, Sampling(max_tokens=6))
    writer.finish([two])
    assert two.ids == plain(model, longer, 6)
    assert runner.read == 1 + 3 + 5  # the last token of the first reply, the new ones, and those of the second
    (other,) = writer.submit([*PROMPTS[1][:18], 77], Sampling(max_tokens=6))
    writer.finish([other])
    assert other.ids == plain(model, [*PROMPTS[1][:18], 77], 6)
    (same,) = writer.submit([*PROMPTS[1][:18], 77], Sampling(max_tokens=6))
    writer.finish([same])
    assert same.ids == other.ids


class Counting(Packed):
    """Counts the tokens that are read."""

    def __init__(self, model: Any):
        super().__init__(model)
        model.set_attn_implementation(packing.ATTENTION)
        self.read = 0

    def forward(self, parts: Any) -> list[torch.Tensor]:
        self.read += sum(len(part.ids) for part in parts)
        return super().forward(parts)


# Log-probabilities


def test_log_probabilities_are_the_model_s_own_before_temperature():
    model = tiny_model().eval()
    writer = Engine(runner_for(model), TOKENIZER, (), 1000)
    (reply,) = writer.submit(PROMPTS[0], Sampling(max_tokens=5, temperature=3.0, top_k=50, seed=1), likeliest=4)
    writer.finish([reply])
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = model(torch.tensor([[*PROMPTS[0], *reply.ids]])).logits[0].log_softmax(-1)
    assert [token.id for token in reply.tokens] == reply.ids
    for place, token in enumerate(reply.tokens, len(PROMPTS[0]) - 1):
        assert token.logprob == pytest.approx(float(expected[place, token.id]), abs=1e-5)
        values, ids = expected[place].topk(4)
        assert [id for id, _ in token.likeliest] == ids.tolist()
        torch.testing.assert_close(torch.tensor([value for _, value in token.likeliest]), values)


# Speculative decoding


@pytest.mark.parametrize("drafted", [True, False], ids=["a draft that was drawn", "a draft that was not"])
def test_what_is_accepted_has_the_distribution_of_the_model(drafted):
    generator = torch.Generator().manual_seed(0)
    own, guess = (torch.rand(3, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    own[:, 5] = guess[:, 4] = 0  # one never writes what the other may
    own, guess = own / own.sum(1, keepdim=True), guess / guess.sum(1, keepdim=True)
    chance, counts, first = random.Random(0), Counter(), Counter()
    total = 20_000
    for _ in range(total):
        if drafted:
            ids = [random.Random(chance.random()).choices(range(6), guess[k].tolist())[0] for k in range(2)]
            draft = Draft(ids, [guess[0], guess[1]])
        else:
            draft = Draft([2, 1], [None, None])
        tokens = accepted(draft, lambda kept: own[len(kept)], chance)
        first[tokens[0]] += 1
        if len(tokens) > 1:
            counts[tokens[1]] += 1
    assert chance_of([first[i] for i in range(5)], [total * float(p) for p in own[0, :5]]) > 1e-3
    rest = sum(counts.values())
    assert rest > total / 10
    assert chance_of([counts[i] for i in range(5)], [rest * float(p) for p in own[1, :5]]) > 1e-3
    assert not first[5] and not counts[5]


def drafting(name: str, sampling: Sampling, target: Any) -> Any:
    if name == "lookup":
        return lambda sampling, chance: Lookup()
    smaller = runner_for((target if name == "itself" else tiny_model(seed=7)).eval())
    return lambda sampling, chance: Smaller(smaller, sampling, chance, 300)


@pytest.mark.parametrize("guesses", [1, 2, 5, 9])
@pytest.mark.parametrize("name", ["lookup", "itself", "another model"])
def test_greedy_replies_are_the_same_with_drafts(name, guesses):
    model = tiny_model().eval()
    expected = [plain(model, prompt, 24) for prompt in PROMPTS]
    runner = runner_for(model)
    end = expected[0][10]
    writer = Engine(runner, TOKENIZER, [end], 1000, draft=drafting(name, Sampling(), model), guesses=guesses)
    replies = [reply for prompt in PROMPTS for reply in writer.submit(prompt, Sampling(max_tokens=24))]
    writer.finish(replies)
    for reply, ids in zip(replies, expected, strict=True):
        cut = ids.index(end) + 1 if end in ids else len(ids)
        assert (reply.ids, reply.finish) == (ids[:cut], "stop" if end in ids else "length")
    assert writer.drafted
    if name == "itself":
        assert writer.right == writer.drafted or end in {id for ids in expected for id in ids}


@pytest.mark.parametrize("options", [{}, {"top_p": 0.7}, {"temperature": 0.6, "top_k": 3}], ids=str)
@pytest.mark.parametrize("name", ["lookup", "another model"])
def test_replies_drawn_with_drafts_have_the_distribution_of_those_without(name, options):
    """Three tokens of a model that knows five, of which each depends on the two before."""
    words, total = 5, 4000
    tables = [2 * torch.randn(words, words, words, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    target, other = (Rule(lambda ids, table=table: table[ids[-2], ids[-1]], words) for table in tables)
    sampling = Sampling(**{"temperature": 1.0, "max_tokens": 4, **options})
    smaller = {"lookup": lambda s, c: Lookup(shortest=1), "another model": lambda s, c: Smaller(other, s, c, words)}[
        name
    ]
    prompt = [0, 0, 1, 0, 2, 0, 3, 0, 4, 1, 1, 2, 1, 3, 1, 4, 2, 2, 3, 2, 4, 3, 3, 4, 4, 0]  # every pair
    writer = engine(target, draft=smaller, guesses=2, most=100)
    replies = [reply for _ in range(total) for reply in writer.submit(prompt, sampling)]
    writer.finish(replies)
    counts = Counter(tuple(reply.ids[1:]) for reply in replies)
    chances: Counter[tuple[int, ...]] = Counter()
    for ids in itertools.product(range(words), repeat=4):
        read, chance = prompt, 1.0
        for id in ids:
            chance *= float(distribution(tables[0][read[-2], read[-1]], sampling)[id])
            read = [*read, id]
        chances[ids[1:]] += chance
    often = [ids for ids, chance in chances.items() if chance * total >= 5]
    rest = total - sum(counts[ids] for ids in often)
    expected = [chances[ids] * total for ids in often]
    found = chance_of([*(counts[ids] for ids in often), rest], [*expected, max(total - sum(expected), 1e-9)])
    print(f"\n  {name}, {options}: {len(often)} texts, p {found:.3f}, {writer.right} of {writer.drafted} guesses right")
    assert len(often) > 5
    assert total / 20 < writer.right < writer.drafted
    assert found > 1e-3


def test_a_lookup_finds_what_followed_the_longest_end():
    assert Lookup().draft([1, 2, 3, 9, 8, 2, 3, 7, 7, 1, 2], [3], 3).ids == [9, 8, 2]
    assert Lookup().draft([1, 2, 3, 4], [9], 3).ids == []
    assert Lookup().draft([4, 4], [4], 5).ids == [4]


def test_a_model_that_cannot_forget_takes_no_drafts():
    with pytest.raises(LmfError, match="cannot take back what it has read"):
        Engine(OneByOne(model_of("bloom, ALiBi")), TOKENIZER, (), 100, draft=lambda s, c: Lookup())


def test_a_long_prompt_alone_is_read_in_parts_of_which_all_but_the_last_keep_nothing():
    prompt = [3 + number * 7 % 290 for number in range(CHUNK * 2 + 10)]
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        expected = model_of("llama").generate(torch.tensor([prompt]), **how)
    writer = Engine(runner_for(model_of("llama")), TOKENIZER, (), 2000)
    (reply,) = writer.submit(prompt, Sampling(max_tokens=6))
    for _ in range(2):
        assert writer.step() and not reply.ids
    writer.finish([reply])
    assert [*prompt, *reply.ids] == expected[0].tolist()
