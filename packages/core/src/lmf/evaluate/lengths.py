"""Tasks by length: their problems are made of those of the data, in so many tokens of the model that is asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from ..errors import ConfigError, DataError, LmfError
from ..generate.opening import UNLIMITED, Chatter
from ..models import inner
from ..settings import Evaluation
from .asking import Asker
from .sources import Item, Items, item_of, limited

FIRST = 512  # tokens, where no lengths are given


def at_lengths(items: Items, evaluation: Evaluation, chatter: Chatter) -> tuple[Items, list[str]]:
    """Make the problems of a task by length.

    Args:
        items: The task, with what its data hold.
        evaluation: How they are asked.
        chatter: The model.

    Returns:
        The task with its problems at each length, and what is to be told of the lengths. Of a task that is not by
        length, what was given.

    Raises:
        LmfError: There is no problem of a length that was asked for.
    """
    task = items.task
    if not task.of_length:
        return items, []
    if evaluation.shots:
        raise ConfigError(f"--shots {evaluation.shots}: a problem of {task.name} is so long by itself; leave it out.")
    asker, notes = Asker(items, evaluation, chatter), []
    made: list[Item] = []
    for length in _lengths(evaluation, chatter):
        try:
            made += _made(items, length, evaluation, asker)
        except DataError as error:
            if evaluation.lengths:
                raise ConfigError(f"--lengths {length} is not possible for {task.name}: {error}") from None
            notes.append(f"not asked at {length:,} tokens: {error}")
    if not made:
        raise ConfigError(f"{task.name} cannot be asked: {notes[0]}")
    if beyond := sorted({int(item.problem.part) for item in made if int(item.problem.part) > chatter.context}):
        notes.append(f"the model reads {chatter.context:,} tokens; more than that are {', '.join(map(str, beyond))}")
    return replace(items, items=tuple(made), examples=()), notes


def reaching(items: Items, chatter: Chatter) -> Chatter:
    """Return a model that is given as much to read as the problems of a task by length have."""
    if not items.task.of_length:
        return chatter
    return replace(chatter, most=max(chatter.context, *(int(item.problem.part) for item in items.items)))


def _lengths(evaluation: Evaluation, chatter: Chatter) -> list[int]:
    if evaluation.lengths:
        longest, config = max(evaluation.lengths), inner(chatter.model).config.get_text_config()
        if longest > chatter.context and not getattr(config, "rope_parameters", None):
            raise ConfigError(
                f"--lengths {longest}: the model has {chatter.context:,} positions and none beyond, "
                "for they are not rotary."
            )
        return sorted({*evaluation.lengths})
    if chatter.context >= UNLIMITED:
        raise ConfigError("This model does not say how many tokens it reads at most; give --lengths 1024,2048,4096.")
    powers = itertools.takewhile(lambda length: length <= chatter.context, (FIRST * 2**n for n in itertools.count()))
    return list(powers) or [chatter.context]


def _made(items: Items, length: int, evaluation: Evaluation, asker: Asker) -> list[Item]:
    found = _at(items, length, evaluation, asker)
    if evaluation.seed is None:
        return list(itertools.islice(found, evaluation.limit))
    return list(limited(replace(items, items=tuple(found)), evaluation.limit, evaluation.seed).items)


def _at(items: Items, length: int, evaluation: Evaluation, asker: Asker) -> Iterator[Item]:
    task = items.task
    room = (evaluation.max_tokens or task.max_tokens) if task.asks == "reply" else 0
    assert task.of_length
    for item in items.items:
        for problem in task.of_length(item.problem, length - room, asker.tokens):
            tokens = asker.tokens(problem) + room
            if tokens > length:
                raise LmfError(
                    f"The task {task.name} made a problem of {tokens:,} tokens where {length:,} were asked for."
                )
            yield item_of(f"{item.where} at {length}", replace(problem, part=str(length)))
