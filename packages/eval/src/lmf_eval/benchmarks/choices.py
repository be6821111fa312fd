"""What the benchmarks of multiple choice share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lmf import Problem

HARNESS = "asked as by the lm-evaluation-harness 0.4.13"
LETTERS = tuple("ABCDE")


def lettered(options: Iterable[Any]) -> str:
    """Return a line for each option, with its letter before it."""
    return "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))


def one_of(choices: Sequence[str], right: int, prompt: str = "", **more: Any) -> list[Problem]:
    """Return the problem to choose one of several replies.

    Args:
        choices: The replies.
        right: The number of the right one, from 0.
        prompt: What stands before each.
        more: What else a problem holds.

    Raises:
        ValueError: There is no choice of this number: public test sets give -1 where they keep the answer secret.
    """
    if not 0 <= right < len(choices):
        raise ValueError(f"the right choice is number {right}; there are 0 to {len(choices) - 1}.")
    return [Problem(prompt=prompt, choices=tuple(choices), right=(right,), **more)]
