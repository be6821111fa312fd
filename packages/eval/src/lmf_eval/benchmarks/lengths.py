"""Tasks by length: how well a model reads texts of so many tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from lmf import DataError, EvalTask, Metric, Problem, Written
from lmf.evaluate.metrics import BITS_BYTE, NLL_TOKEN, PERPLEXITY

GROUP = "lengths"
HIDDEN = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about the important information there."
)
GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
QUESTION = "What is the pass key? The pass key is"
PIECE = 256  # tokens that are scored after each context, LongLoRA's stride
PIECES = 32  # the last of a text
"""So many are scored, at every length the same."""

Tokens = Callable[[Problem], int]


def passkey(record: Mapping[str, Any]) -> list[Problem]:
    """Return the problem of a record with a key and its depth: from 0, the beginning of the text, to 1, its end."""
    depth, key = record["depth"], record["key"]
    if isinstance(depth, bool) or not isinstance(depth, int | float) or not 0 <= depth <= 1:
        raise DataError(f"'depth' is {depth!r}; it must be a number from 0 to 1")
    if isinstance(key, bool) or not re.fullmatch(r"\d+", str(key)):
        raise DataError(f"'key' is {key!r}; it must be digits")
    return [Problem(prompt=QUESTION, answer=str(key), more={"depth": float(depth)})]


def hidden(problem: Problem, length: int, tokens: Tokens) -> Iterator[Problem]:
    """Yield the problem with its key hidden in as much garbage as makes it so long."""
    key, depth = problem.answer, problem.more["depth"]
    words = re.findall(r"\s*\w+|[^\w\s]", f" {GARBAGE}")

    def asked(count: int) -> Problem:
        before = round(depth * count)
        first, second = ("".join(islice(cycle(words), some)).strip() for some in (before, count - before))
        line = f"The pass key is {key}. Remember it. {key} is the pass key."
        text = "\n".join((HIDDEN, first, line, second, QUESTION))
        return Problem(prompt=text, answer=key, more=problem.more)

    if (least := tokens(asked(0))) > length:
        raise DataError(f"without any garbage it has {least:,} tokens, and there is room for {length:,}")
    yield asked(fitting(length, lambda count: tokens(asked(count)), length))


def contexts(problem: Problem, length: int, tokens: Tokens) -> Iterator[Problem]:
    """Yield the last pieces of a text, each after what stands before it, so that both together are so long."""
    if length <= PIECE:
        raise DataError(f"the last {PIECE} of so many tokens are scored, and nothing would stand before them")
    words = re.findall(r"\s*\S+", problem.answer)
    end = len(words)
    for _ in range(PIECES):
        at = end

        def scored(count: int, at: int = at) -> Problem:
            return Problem(answer="".join(words[at - count : at]))

        count = fitting(min(at, PIECE), lambda count, scored=scored: tokens(scored(count)) if count else 0, PIECE)
        piece, end = scored(count).answer, at - count

        def asked(count: int, end: int = end, piece: str = piece) -> Problem:
            return Problem(prompt="".join(words[end - count : end]), answer=piece)

        most = min(end, length)  # words, of which each has a token at least
        count = fitting(most, lambda count, asked=asked: tokens(asked(count)), length)
        if not piece or (count == end and tokens(asked(count)) < length):
            raise DataError(
                f"the text is too short: the last {PIECES} pieces of {PIECE} tokens need more, each with what stands "
                "before it; --data long_ppl=PATH takes a longer one, and --limit fewer pieces"
            )
        yield asked(count)


def fitting(units: int, tokens: Callable[[int], int], most: int) -> int:
    """Return the most units that together have no more than so many tokens.

    Args:
        units: How many there are.
        tokens: How many tokens the first of them have; of none of them, no more than ``most``.
        most: The tokens.
    """
    low, high, of_low, of_high = 0, units, tokens(0), tokens(units)
    if of_high <= most:
        return units
    while high - low > 1:  # low fits and high does not; nearly all units have the same tokens
        guess = low + (most - of_low) * (high - low) // max(1, of_high - of_low)
        guess = min(max(guess, low + 1), high - 1)
        if (found := tokens(guess)) <= most:
            low, of_low = guess, found
        else:
            high, of_high = guess, found
    return low


def found(problem: Problem, outcome: Written) -> float:
    """Return the share of replies whose first number is the key."""
    numbers = (re.search(r"\d+", text) for text in outcome.texts)
    return sum(bool(number) and number[0] == problem.answer for number in numbers) / len(outcome.texts)


def _file(name: str) -> str:
    return str(Path(__file__).parents[1] / "data" / name)


FOUND = Metric(name="found", measure=found)
TASKS = [
    EvalTask(
        name="passkey",
        summary="A number in a long text of garbage, by --lengths: five depths, two keys each.",
        source="arXiv:2305.16300, its text",
        version=1,
        data=_file("passkey.jsonl"),
        asks="reply",
        problems=passkey,
        of_length=hidden,
        metrics=(FOUND,),
        stop=(".", "\n"),
        max_tokens=8,
        groups=(GROUP,),
    ),
    EvalTask(
        name="long_ppl",
        summary="The perplexity of the same text after contexts of --lengths; --data long_ppl=PATH takes another.",
        source="the pages of this project; sliding windows every 256 tokens as in arXiv:2309.12307",
        version=1,
        data=_file("pages.txt"),
        asks="likelihood",
        of_length=contexts,
        metrics=(PERPLEXITY, BITS_BYTE, NLL_TOKEN),
        between="",
        joined="\n\n",
        groups=(GROUP,),
    ),
]
