"""How tokens are drawn: the distributions of transformers, and draws that have them."""

import math
import random
from collections import Counter

import pytest
import torch
from lmf import ConfigError, Sampling
from lmf.config import make
from lmf.generate.sampling import distribution, draw
from replies import chance_of
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

PROMPT, WRITTEN = [3, 5, 5, 90], [7, 3, 7]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 17},
        {"top_k": 1000},
        {"top_p": 0.01},
        {"top_p": 0.5},
        {"top_p": 0.999},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_the_distribution_is_that_of_transformers(options, seed):
    sampling = make(Sampling, {"temperature": 1.0, **options})
    logits = 3 * torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    steps = [
        RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        TemperatureLogitsWarper(sampling.temperature),
    ]
    steps += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    steps += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    steps += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    scores = LogitsProcessorList(steps)(torch.tensor([[*PROMPT, *WRITTEN]]), logits[None].clone())
    torch.testing.assert_close(distribution(logits, sampling, PROMPT, WRITTEN), scores[0].softmax(0))


def test_penalties_of_presence_and_frequency_are_taken_from_the_logits_of_what_was_written():
    sampling = Sampling(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.25)
    logits = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = logits.clone()
    expected[7] -= 0.5 + 2 * 0.25
    expected[3] -= 0.5 + 0.25
    torch.testing.assert_close(distribution(logits, sampling, PROMPT, WRITTEN), expected.softmax(0))
    assert distribution(logits, sampling, PROMPT).equal(logits.softmax(0))


def test_at_temperature_0_the_first_of_the_likeliest_has_all_of_it():
    logits = torch.tensor([0.0, 2.0, 1.0, 2.0])
    assert distribution(logits, Sampling()).tolist() == [0, 1, 0, 0]
    assert distribution(logits, Sampling(repetition_penalty=3.0), [1]).tolist() == [0, 0, 0, 1]


def test_draws_have_the_distribution():
    chances = torch.tensor([0.0, 0.1, 0.25, 0.0, 0.5, 0.15, 0.0], dtype=torch.float64)
    chance = random.Random(0)
    counts = Counter(draw(chances * 3, chance) for _ in range(20_000))  # they need not sum to 1
    assert set(counts) == {1, 2, 4, 5}
    assert chance_of([counts[i] for i in (1, 2, 4, 5)], [20_000 * float(chances[i]) for i in (1, 2, 4, 5)]) > 1e-3


@pytest.mark.parametrize("number", [0.0, math.nextafter(1.0, 0.0)])
def test_a_token_without_probability_is_never_drawn(number):
    class Chance(random.Random):
        def random(self) -> float:
            return number

    expected = 1 if number == 0 else 2
    assert draw(torch.tensor([0.0, 0.3, 0.7, 0.0], dtype=torch.float64), Chance()) == expected


def test_the_same_seed_gives_the_same_numbers_and_each_reply_its_own():
    seeded = Sampling(seed=5)
    assert seeded.draws().random() == Sampling(seed=5, temperature=1.0).draws().random()
    assert len({seeded.draws(index).random() for index in range(5)} | {Sampling(seed=6).draws().random()}) == 6
    assert Sampling().draws().random() != Sampling().draws().random()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "--temperature is -0.1; it must be at least 0."),
        ({"temperature": math.nan}, "--temperature is nan; it must be a finite number."),
        ({"top_p": 0.0}, "--top-p is 0.0; it must be greater than 0."),
        ({"top_p": 1.1}, "--top-p is 1.1; it must be at most 1."),
        ({"top_k": -1}, "--top-k is -1; it must be at least 0."),
        ({"top_k": 1.5}, "--top-k is 1.5; it must be a whole number."),
        ({"min_p": 2.0}, "--min-p is 2.0; it must be at most 1."),
        ({"repetition_penalty": 0.0}, "--repetition-penalty is 0.0; it must be greater than 0."),
        ({"presence_penalty": 3.0}, "--presence-penalty is 3.0; it must be at most 2."),
        ({"max_tokens": 0}, "--max-tokens is 0; it must be at least 1."),
        ({"seed": -1}, "--seed is -1; it must be at least 0."),
        ({"stop": ("",)}, "--stop is empty."),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused_by_name(values, message):
    with pytest.raises(ConfigError) as told:
        make(Sampling, values)
    assert str(told.value) == message
