"""Likelihoods as LMFlow has them: against a plain reference, and against what can be computed by hand."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import Evaluation, Plugins
from lmf.encoding.encoder import Encoder
from lmf.evaluate.metrics import ACC, ACC_BYTES, ACC_NORM, ACC_TOKENS, LMFLOW_PERPLEXITY, PERPLEXITY, RIGHT_SHARE
from lmf.evaluate.running import Evaluator, score, totals
from lmf.evaluate.sources import Item, Items, read_items
from lmf.evaluate.task import Chosen, EvalTask, Likelihood, Problem, Written
from lmf.generate.caches import Runner, runner_for
from lmf.generate.opening import Chatter
from lmf.testing import tiny_model, tiny_tokenizer
from lmf_eval.benchmarks.lmflow import TASKS
from replies import Rule, script

NLL, PERPLEXITIES = (next(task for task in TASKS if task.name == name) for name in ("nll", "perplexity"))
TOKENIZER: Any = tiny_tokenizer()
SIZE = len(TOKENIZER)
STRUCTURE = "###Human: {input}###Assistant:"
SAMPLES = [
    ("what is one and two, ", "answer three"),
    ("Hi", "Hello!"),
    ("the user and the assistant say hello " * 5, "what is 温 and é?\n" * 4),
    ("Say a word.", "no"),
    ("one", "the user  and\tthe assistant " * 9),
]
WINDOWS = [(16, 8), (16, 16), (10, 3), (7, 1), (1000, 512)]


def talkative(seed: int = 0) -> Any:
    """Return a model whose tokens depend on all before them."""
    model = tiny_model(seed, vocab_size=SIZE).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    return model


def chatter(model: Any) -> Chatter:
    return Chatter(model, TOKENIZER, Encoder(TOKENIZER, None))


def measured(items: Items, evaluation: Evaluation, model: Any, runner: Runner | None = None) -> Any:
    """Return the figures of a task, and what came of each item."""
    evaluator = Evaluator(items, evaluation, chatter(model), runner or runner_for(model))
    found = dict(done for ready in evaluator.run() for done in ready)
    outcomes = [found[number] for number in range(len(items.items))]
    pairs = zip(items.items, outcomes, strict=True)
    return totals(items.task, [score(items.task, item, outcome) for item, outcome in pairs]), outcomes


# A plain reference


def bare(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def plain(model: Any, ids: Sequence[int], start: int, window: int, stride: int) -> list[list[float]]:
    """Return for each window the negative log-likelihoods of what it scores: one token at a time, without a cache."""
    found, scored = [], start
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        values = []
        for place in range(max(scored, begin + 1), end):
            with torch.no_grad():
                logits = model(torch.tensor([ids[begin:place]]), use_cache=False).logits[0, -1]
            values.append(-float(logits.double().log_softmax(-1)[ids[place]]))
        found.append(values)
        scored = max(scored, end)
        if end == len(ids):
            break
    return found


def reference(model: Any, samples: Sequence[tuple[str, str]], window: int, stride: int) -> dict[str, float]:
    """Return LMFlow's figure of prompts and answers, and the others."""
    texts = []
    for prompt, answer in samples:
        ids = bare(prompt) + bare(answer)
        texts.append([nll for part in plain(model, ids, len(bare(prompt)), window, stride) for nll in part])
    total, answers = sum(map(sum, texts)), [answer for _, answer in samples]
    sizes = {
        "nll": len(samples),
        "nll_per_token": sum(map(len, texts)),
        "nll_per_byte": sum(len(answer.encode("utf-8")) for answer in answers),
        "nll_per_word": sum(len(re.split(r"\s+", answer)) for answer in answers),
    }
    figures = {name: total / size for name, size in sizes.items()}
    return figures | {"perplexity": math.exp(figures["nll_per_token"])}


def furthest(found: dict[str, float], expected: dict[str, float]) -> float:
    assert found.keys() == expected.keys()
    return max(abs(found[name] - value) / max(1, abs(value)) for name, value in expected.items())


def items_of(folder: Path, samples: Sequence[tuple[str, str]] | Sequence[str], task: EvalTask) -> Items:
    file = folder / "data.jsonl"
    records = [{"text": each} if isinstance(each, str) else {"input": each[0], "output": each[1]} for each in samples]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return read_items(task, Plugins(only=()), str(file))


@pytest.mark.parametrize("structure", [None, STRUCTURE], ids=["prompts as they stand", "in a structure"])
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_the_nll_is_that_of_the_plain_reference(window, stride, structure, tmp_path):
    model = talkative()
    evaluation = Evaluation(window=window, stride=stride, prompt_structure=structure)
    found, _ = measured(items_of(tmp_path, SAMPLES, NLL), evaluation, talkative())
    put = [((structure or "{input}").replace("{input}", prompt), answer) for prompt, answer in SAMPLES]
    expected = reference(model, put, window, stride)
    off = furthest(found, expected)
    print(f"\n  window {window}, stride {stride}: nll {found['nll']:.4f}, off by {off:.1e}")
    assert off <= 1e-5


@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_both_perplexities_are_those_of_the_plain_reference(window, stride, tmp_path):
    texts = [answer for _, answer in SAMPLES]
    evaluation = Evaluation(window=window, stride=stride)
    found, _ = measured(items_of(tmp_path, texts, PERPLEXITIES), evaluation, talkative())
    windows = plain(talkative(), TOKENIZER("\n\n".join(texts))["input_ids"], 0, window, stride)
    total, count = sum(map(sum, windows)), sum(map(len, windows))
    means = [sum(part) / len(part) for part in windows if part]
    expected = {
        "nll_per_token": total / count,
        "perplexity": math.exp(total / count),
        "lmflow_perplexity": math.exp(sum(means) / len(means)),
    }
    off = furthest(found, expected)
    print(f"\n  window {window}, stride {stride}: {found['lmflow_perplexity']:.2f}, off by {off:.1e}")
    assert off <= 1e-5


def test_a_window_is_at_most_what_the_model_can_read(tmp_path):
    samples = [("the user ", "say hello and " * 9)]
    model = talkative()
    model.config.max_position_embeddings = 12
    found, (outcome,) = measured(items_of(tmp_path, samples, NLL), Evaluation(window=500, stride=6), model)
    assert furthest(found, reference(talkative(), samples, 12, 6)) <= 1e-5
    assert len(outcome.windows) > 2


# By hand: a model that likes pairs of letters

A, B, C = (TOKENIZER.convert_tokens_to_ids(letter) for letter in "abc")
LIKES = {A: {B: 1 / 2, C: 1 / 4}, B: {A: 1 / 4, C: 1 / 8}, C: {A: 1 / 2}}


def bigrams(ids: list[int]) -> torch.Tensor:
    """Return logits that give the likes of the last letter, and what remains to all others alike."""
    likes = LIKES.get(ids[-1], {})
    rest = (1 - sum(likes.values())) / (SIZE - len(likes))
    chances = torch.full((SIZE,), rest, dtype=torch.float64)
    for id, chance in likes.items():
        chances[id] = chance
    return chances.log() + 3  # logits are log-probabilities but for a constant


def uniform(ids: list[int]) -> torch.Tensor:
    return torch.zeros(SIZE, dtype=torch.float64)


def by_hand(rule: Callable[[list[int]], torch.Tensor] | Rule, problem: Problem, how: Evaluation, **task: Any) -> Any:
    """Return the figures of a single problem, and what came of it."""
    more = {"name": "t", "source": "s", "version": 1, "data": "d", "between": "", "metrics": task.get("metrics", ())}
    items = Items(EvalTask(**{**more, **task}), (Item("f:1", problem, "5"),), (), ())
    runner: Any = rule if isinstance(rule, Rule) else Rule(rule)
    figures, (outcome,) = measured(items, how, talkative(), runner)
    return figures, outcome


LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("rule", "problem", "how", "windows"),
    [
        # three letters of SIZE each
        (uniform, Problem(prompt="a", answer="xyz"), Evaluation(), [(3 * math.log(SIZE), 3)]),
        # b after a, a after b, b after a: 1/2, 1/4, 1/2; the first a is not scored
        (bigrams, Problem(answer="abab"), Evaluation(), [(4 * LOG2, 3)]),
        # aba, then (a)ba: a window does not score its first letter again; 1/2 and 1/4 each time
        (bigrams, Problem(answer="ababa"), Evaluation(window=3, stride=2), [(3 * LOG2, 2), (3 * LOG2, 2)]),
        # bc, then ab, then c: the last begins with what it could score, so 1/8 and 1/2 remain
        (bigrams, Problem(answer="bcabc"), Evaluation(window=2, stride=2), [(3 * LOG2, 1), (LOG2, 1)]),
    ],
    ids=["uniform", "pairs", "windows that overlap", "windows that do not"],
)
def test_likelihoods_are_what_one_computes_by_hand(rule, problem, how, windows):
    metrics = (PERPLEXITY, LMFLOW_PERPLEXITY)
    figures, outcome = by_hand(rule, problem, how, asks="likelihood", metrics=metrics)
    assert isinstance(outcome, Likelihood)
    assert [count for _, count in outcome.windows] == [count for _, count in windows]
    assert [nll for nll, _ in outcome.windows] == pytest.approx([nll for nll, _ in windows], abs=1e-5)
    total, count = sum(nll for nll, _ in windows), sum(count for _, count in windows)
    assert figures["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    means = [nll / count for nll, count in windows]
    assert figures["lmflow_perplexity"] == pytest.approx(math.exp(sum(means) / len(means)), rel=1e-5)


def test_sizes_of_an_answer_are_what_one_counts():
    """Two words of 4 letters and 6 bytes, of which each byte is a token."""
    figures, _ = by_hand(uniform, Problem(prompt="a", answer="é\tüx"), Evaluation(), asks="likelihood")
    nll = 6 * math.log(SIZE)
    expected = {"nll": nll, "nll_per_token": nll / 6, "nll_per_byte": nll / 6, "nll_per_word": nll / 2}
    assert figures == pytest.approx({**expected, "perplexity": SIZE}, rel=1e-5)


@pytest.mark.parametrize(
    ("problem", "logprobs", "tokens", "right"),
    [
        # after a: b 1/2, c 1/4, and then c 1/8 after b; the short one is likelier, and per letter bc is less so
        (("a", ("b", "c", "bc"), 1), (-LOG2, -2 * LOG2, -4 * LOG2), (1, 1, 2), {"acc": 0, "acc_norm": 0}),
        # after b: a 1/4, and then b 1/2: per letter 3/2 bits beat 2
        (("b", ("a", "ab"), 1), (-2 * LOG2, -3 * LOG2), (1, 2), {"acc": 0, "acc_norm": 1}),
        # of equals the first; c after a is 1/4, as a after b
        (("ca", ("c", "c"), 0), (-2 * LOG2, -2 * LOG2), (1, 1), {"acc": 1, "acc_norm": 1}),
    ],
    ids=["likelier is shorter", "per letter another wins", "equals"],
)
def test_choices_are_what_one_computes_by_hand(problem, logprobs, tokens, right):
    prompt, choices, gold = problem
    asked = Problem(prompt=prompt, choices=choices, right=(gold,))
    metrics = (ACC, ACC_NORM, ACC_BYTES, ACC_TOKENS, RIGHT_SHARE)
    figures, outcome = by_hand(bigrams, asked, Evaluation(), asks="choices", metrics=metrics)
    assert isinstance(outcome, Chosen)
    assert outcome.logprobs == pytest.approx(logprobs, abs=1e-5)
    assert outcome.tokens == tokens
    share = math.exp(logprobs[gold]) / sum(map(math.exp, logprobs))
    same = {"acc_bytes": right["acc_norm"], "acc_tokens": right["acc_norm"], "right_share": share}
    assert figures == pytest.approx({**right, **same}, rel=1e-5)


@pytest.mark.parametrize(
    ("writes", "answers", "exact"),
    [("hello", ("hello",), 1.0), (" hello", ("no", "hello "), 1.0), ("hello one", ("hello",), 0.0)],
    ids=["the answer", "another that is right, but for white space", "more than the answer"],
)
def test_replies_are_judged_as_one_would(writes, answers, exact):
    rule = script(f"{writes}<|im_end|>", len(bare("Say it:")))
    problem = Problem(prompt="Say it:", answer=answers[0], references=answers[1:])
    figures, outcome = by_hand(rule, problem, Evaluation(), asks="reply")
    assert isinstance(outcome, Written)
    assert (outcome.texts, outcome.finish) == ((writes,), ("stop",))
    assert figures == {"exact": exact}
