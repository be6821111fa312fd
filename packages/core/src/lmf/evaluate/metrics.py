"""The usual figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from .task import Asks, Chosen, EvalTask, Likelihood, Metric, Problem, Written, quotient


def metrics_of(task: EvalTask) -> tuple[Metric, ...]:
    """Return the figures of a task."""
    return task.metrics or USUAL[task.asks]


def chosen_by(size: Callable[[str, int], float]) -> Callable[[Problem, Chosen], float]:
    """Return whether the choice that is likeliest for its size is right.

    Args:
        size: The size of a choice, of its text and its number of tokens.
    """

    def measure(problem: Problem, outcome: Chosen) -> float:
        sizes = map(size, problem.choices, outcome.tokens)
        values = [logprob / max(size, 1) for logprob, size in zip(outcome.logprobs, sizes, strict=True)]
        return float(values.index(max(values)) in problem.right)

    return measure


def right_share(problem: Problem, outcome: Chosen) -> float:
    """Return the probability of all right choices together, where one of all must be chosen (TruthfulQA's mc2)."""
    most = max(outcome.logprobs)
    weights = [math.exp(logprob - most) for logprob in outcome.logprobs]
    return sum(weights[number] for number in problem.right) / sum(weights)


def words(text: str) -> int:
    """Return how many words a text has, as the lm-evaluation-harness counts them: parts between white space."""
    return len(re.split(r"\s+", text))


def _per(size: Callable[[str], int]) -> Callable[[Problem, Likelihood], tuple[float, float]]:
    return lambda problem, outcome: (outcome.nll, size(problem.answer))


def _per_token(problem: Problem, outcome: Likelihood) -> tuple[float, float]:
    return outcome.nll, outcome.tokens


def _exponential(sums: Sequence[float]) -> float:
    try:
        return math.exp(quotient(sums))
    except OverflowError:
        return math.inf


def _window_means(problem: Problem, outcome: Likelihood) -> tuple[float, float]:
    means = [nll / tokens for nll, tokens in outcome.windows if tokens]
    return sum(means), len(means)


ACC = Metric(name="acc", measure=chosen_by(lambda text, tokens: 1))
ACC_NORM = Metric(name="acc_norm", measure=chosen_by(lambda text, tokens: len(text)))
ACC_BYTES = Metric(name="acc_bytes", measure=chosen_by(lambda text, tokens: len(text.encode())))
ACC_TOKENS = Metric(name="acc_tokens", measure=chosen_by(lambda text, tokens: tokens))
RIGHT_SHARE = Metric(name="right_share", measure=right_share)
NLL = Metric(name="nll", measure=lambda problem, outcome: outcome.nll, higher=False)
NLL_TOKEN = Metric(name="nll_per_token", measure=_per_token, higher=False)
NLL_BYTE = Metric(name="nll_per_byte", measure=_per(lambda text: len(text.encode())), higher=False)
NLL_WORD = Metric(name="nll_per_word", measure=_per(words), higher=False)
BITS_BYTE = Metric(
    name="bits_per_byte",
    measure=_per(lambda text: len(text.encode())),
    total=lambda sums: quotient(sums) / math.log(2),
    higher=False,
)
PERPLEXITY = Metric(name="perplexity", measure=_per_token, total=_exponential, higher=False)
LMFLOW_PERPLEXITY = Metric(name="lmflow_perplexity", measure=_window_means, total=_exponential, higher=False)
"""LMFlow's: every window counts the same, be it ever so short."""


def exact(problem: Problem, outcome: Written) -> float:
    """Return the share of replies that are an answer, but for the white space around them."""
    answers = {answer.strip() for answer in (problem.answer, *problem.references)}
    return sum(text.strip() in answers for text in outcome.texts) / len(outcome.texts)


EXACT = Metric(name="exact", measure=exact)
USUAL: Mapping[Asks, tuple[Metric, ...]] = {
    "choices": (ACC, ACC_NORM, ACC_BYTES, ACC_TOKENS),
    "reply": (EXACT,),
    "likelihood": (NLL, NLL_TOKEN, NLL_BYTE, NLL_WORD, PERPLEXITY),
}
