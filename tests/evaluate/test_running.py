"""What comes of an item depends on the item alone: not on batches, on the order, or on what was there already."""

import random
from collections.abc import Container
from dataclasses import replace
from typing import Any

import pytest
import torch
from lmf import ConfigError, Evaluation, LmfError
from lmf.encoding.encoder import Encoder
from lmf.evaluate.running import Evaluator, score, totals
from lmf.evaluate.sources import Item, Items
from lmf.evaluate.task import EvalTask, Likelihood, Metric, Outcome, Problem
from lmf.generate.caches import Anew, OneByOne, Runner, runner_for
from lmf.generate.opening import Chatter
from lmf.testing import tiny_model, tiny_tokenizer

TOKENIZER: Any = tiny_tokenizer()
WORDS = ("the user", " hello", " is", " what", " 1", " and", "\n", "x", " answer three")
ROOT = "Answer the question of the user in a word and say hello.\n"
ASKS = {
    "choices": Evaluation(),
    "choices after examples": Evaluation(shots=2),
    "likelihood": Evaluation(window=12, stride=5),
    "replies": Evaluation(max_tokens=9),
    "replies that are drawn": Evaluation(max_tokens=9, temperature=1.0, seed=4, samples=3),
}


def talkative() -> Any:
    """Return a model whose tokens depend on all before them."""
    model = tiny_model(vocab_size=len(TOKENIZER)).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    return model


def text(chance: random.Random, least: int, most: int) -> str:
    return "".join(chance.choices(WORDS, k=chance.randint(least, most)))


def items_of(what: str, count: int = 40) -> Items:
    """Return problems of two parts, of which one has prompts that begin alike."""
    chance, items = random.Random(1), []
    for number in range(count):
        part = "ab"[number % 2]
        prompt = (ROOT if part == "b" else "") + f"{number}" + text(chance, 1, 6)
        choices = tuple(text(chance, 1, 4) + str(i) for i in range(chance.randint(2, 5)))
        problem = Problem(prompt=prompt, choices=choices, right=(0,), answer=text(chance, 2, 9), part=part)
        items.append(Item(f"data.jsonl:{number + 1}", problem, f"{number:016x}"))
    asks: Any = {"choices after examples": "choices", "replies": "reply", "replies that are drawn": "reply"}.get(
        what, what
    )
    task = EvalTask(name="t", source="s", version=1, data="d", asks=asks)
    shown = Problem(prompt="one", choices=("two", "three"), right=(1,))
    examples = [Item(f"e:{i}", replace(shown, part=part), f"e{i}{part}") for part in "ab" for i in range(2)]
    return Items(task, tuple(items), tuple(examples), ())


class Measuring:
    """Measures items with one model."""

    def __init__(self, model: Any = None, runner: Runner | None = None):
        self.model = model or talkative()
        self.runner = runner or runner_for(self.model)
        self.chatter = Chatter(self.model, TOKENIZER, Encoder(TOKENIZER, None))

    def __call__(self, items: Items, how: Evaluation, done: Container[int] = ()) -> dict[str, Outcome]:
        """Return what came of each item, by its key."""
        evaluator = Evaluator(items, how, self.chatter, self.runner)
        return {items.items[number].key: outcome for ready in evaluator.run(done) for number, outcome in ready}


def figures(items: Items, found: dict[str, Outcome]) -> dict[str, float]:
    return totals(items.task, [score(items.task, item, found[item.key]) for item in items.items])


def shuffled(items: Items, seed: int) -> Items:
    order = random.Random(seed).sample(items.items, len(items.items))
    return Items(items.task, tuple(order), items.examples, ())


@pytest.fixture(scope="module")
def measured() -> Measuring:
    return Measuring()


@pytest.mark.parametrize("what", ASKS)
def test_figures_have_the_same_bits_whatever_is_read_together(what, measured):
    items, how = items_of(what), ASKS[what]
    expected = measured(items, how)
    assert len(expected) == len(items.items)
    for tokens in (1, 2, 8, 512, 100_000):
        found = measured(items, replace(how, batch_tokens=tokens))
        assert found == expected
        assert figures(items, found) == figures(items, expected)


@pytest.mark.parametrize("what", ASKS)
def test_figures_have_the_same_bits_in_any_order_of_the_data(what, measured):
    items, how = items_of(what), ASKS[what]
    expected = measured(items, how)
    for seed in range(10):
        found = measured(shuffled(items, seed), how)
        assert found == expected
        assert figures(items, found) == figures(items, expected)


@pytest.mark.parametrize("what", ASKS)
def test_what_goes_on_after_it_stopped_comes_to_the_same_bits(what, measured):
    items = items_of(what)
    how = replace(ASKS[what], batch_tokens=100)
    expected = measured(items, how)
    keys = [item.key for item in items.items]
    for seed in range(5):
        done = set(random.Random(seed).sample(range(len(keys)), 8 * seed))
        found = measured(items, how, done)
        assert found == {keys[number]: expected[keys[number]] for number in range(len(keys)) if number not in done}
    assert measured(items, how, range(len(keys))) == {}


@pytest.mark.parametrize("what", ASKS)
def test_a_run_that_is_stopped_anywhere_and_goes_on_has_every_item_once(what, measured):
    items, how = items_of(what), replace(ASKS[what], batch_tokens=60)
    expected = measured(items, how)
    found: dict[int, Outcome] = {}
    for _ in range(len(items.items) + 1):
        evaluator = Evaluator(items, how, measured.chatter, measured.runner)
        ready = next((ready for ready in evaluator.run(set(found)) if ready), [])
        assert not {number for number, _ in ready} & set(found)
        found |= dict(ready)
    assert {items.items[number].key: outcome for number, outcome in found.items()} == expected


@pytest.mark.parametrize("make", [OneByOne, Anew])
@pytest.mark.parametrize("what", ["choices", "likelihood"])
def test_packed_and_unpadded_likelihoods_are_the_same(what, make, measured):
    items, how, model = items_of(what), ASKS[what], talkative()
    most = 0.0
    packed, alone = measured(items, how), Measuring(model, make(model))(items, how)
    for key, outcome in packed.items():
        ours, theirs = _sums(outcome), _sums(alone[key])
        assert [tokens for _, tokens in ours] == [tokens for _, tokens in theirs]
        most = max(most, *(abs(a - b) / tokens for (a, tokens), (b, _) in zip(ours, theirs, strict=True)))
    print(f"\n  {what}, {make.__name__}: {most:.1e} nats per token")
    assert most <= 1e-6


def _sums(outcome: Any) -> list[tuple[float, int]]:
    """Return the log-likelihood and the tokens of each text."""
    if isinstance(outcome, Likelihood):
        return list(outcome.windows)
    return list(zip(outcome.logprobs, outcome.tokens, strict=True))


def test_a_seed_decides_what_is_drawn_and_each_sample_is_another(measured):
    items, how = items_of("replies that are drawn", 8), ASKS["replies that are drawn"]
    found: Any = measured(items, how)
    assert all(len({*outcome.texts}) == 3 for outcome in found.values())
    assert measured(items, how) == found
    assert measured(items, replace(how, seed=5)) != found


def test_more_samples_begin_with_the_same_ones(measured):
    items, how = items_of("replies that are drawn", 2), replace(ASKS["replies that are drawn"], samples=40)
    many: Any = measured(items, how)
    few: Any = measured(items, replace(how, samples=5))
    assert [outcome.texts[:5] for outcome in many.values()] == [outcome.texts for outcome in few.values()]
    assert all(len({*outcome.texts}) == 40 for outcome in many.values())


def test_several_samples_that_would_all_be_the_same_are_refused(measured):
    with pytest.raises(ConfigError, match="--samples asks for several replies, which are all the same at"):
        measured(items_of("replies"), Evaluation(samples=2))


# What is no number


def broken(word: str) -> Any:
    """Return a model that knows one token only as what is no number."""
    model = talkative()
    with torch.no_grad():
        model.get_input_embeddings().weight[TOKENIZER.convert_tokens_to_ids(word)] = float("nan")
    return model


@pytest.mark.parametrize("what", ASKS)
def test_values_that_are_no_numbers_name_the_item_and_what_was_found_before_stays(what):
    items = items_of(what)
    rest = "?" * 300 if items.task.asks == "reply" else ""  # long prompts are read last, and long choices first
    harmed = Problem(prompt=f"{ROOT}{rest}Z", choices=("Z1Z", "Z2"), right=(0,), answer="Z1Z", part="b")
    items = Items(items.task, (*items.items, Item("data.jsonl:77", harmed, "77")), items.examples, ())
    measure, how = Measuring(broken("Z")), ASKS[what]
    if how.temperature:
        how = replace(how, temperature=0.01)  # or else others would draw the token
    evaluator = Evaluator(items, replace(how, batch_tokens=30), measure.chatter, measure.runner)
    found: dict[int, Outcome] = {}
    with pytest.raises(LmfError, match=r"^data.jsonl:77: the model gives values that are no numbers \(NaN or infinite"):
        for ready in evaluator.run():
            found |= dict(ready)
    assert found
    whole = measure(Items(items.task, items.items[:-1], items.examples, ()), how)
    assert all(whole[items.items[number].key] == outcome for number, outcome in found.items())


@pytest.mark.parametrize("what", ASKS)
def test_weights_that_are_no_numbers_are_told_with_the_first_item(what):
    model = talkative()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(LmfError, match=r"data.jsonl:\d+: the model gives values that are no numbers"):
        Measuring(model)(items_of(what), ASKS[what])


# Figures


def test_a_figure_of_a_plugin_that_fails_is_named_with_the_item():
    def measure(problem: Problem, outcome: Outcome) -> float:
        return 1 / 0

    metric = Metric(name="mine", measure=measure)
    task = EvalTask(name="t", source="s", version=1, data="d", asks="likelihood", metrics=(metric,))
    with pytest.raises(LmfError, match="f:3: the figure mine of the task t failed: ZeroDivisionError: division by"):
        score(task, Item("f:3", Problem(answer="a"), "0"), Likelihood(((1.0, 1),)))
