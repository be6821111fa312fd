"""A task and a model: what the model makes of every problem.

What is computed together depends on the problems alone, not on their order or on what was there already. So a run that
goes on after it was interrupted gives the same bits as one that was not.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..conversation import ToolCall
from ..errors import ConfigError, LmfError
from ..generate.caches import Runner
from ..generate.engine import MOST, Engine, Reply
from ..generate.opening import Chatter
from ..settings import Evaluation, Sampling
from ..templates.calls import Notation, notation
from .asking import Asker
from .lengths import reaching
from .likelihood import Group, Scored, Scorer, Text, batches, root_of, tokens_of
from .metrics import metrics_of
from .sources import Item, Items
from .task import Chosen, EvalTask, Likelihood, Outcome, Written

T = TypeVar("T")
Done = tuple[int, Outcome]  # the number of an item and what came of it


@dataclass(frozen=True, slots=True)
class _Unit:
    """What is read together of an item: all its choices, or a window of its text."""

    item: int
    number: int
    group: Group


class Evaluator:
    """Runs a task on a model.

    Args:
        items: The task and its problems.
        evaluation: How they are asked.
        chatter: The model.
        runner: Runs it.

    Attributes:
        asker: Makes the prompts.
        limit: The longest reply in tokens.

    Raises:
        LmfError: A problem cannot be asked; nothing was computed then.
    """

    def __init__(self, items: Items, evaluation: Evaluation, chatter: Chatter, runner: Runner):
        chatter = reaching(items, chatter)
        self.items, self.evaluation, self.chatter, self.runner = items.items, evaluation, chatter, runner
        self.task = items.task
        self.asker = Asker(items, evaluation, chatter)
        self.limit = evaluation.max_tokens or items.task.max_tokens
        self._notation = self._reads_calls()
        self._ends = chatter.stops()[0]
        if self.task.asks == "reply":
            self._prompts = [self.asker.prompt(item, self.limit) for item in self.items]
        else:
            ask = self._choices if self.task.asks == "choices" else self._windows
            units = [ask(number, item) for number, item in enumerate(self.items)]
            self._units = [unit for several in units for unit in several]
            self._first = [several[0].group[0] for several in units]

    def _reads_calls(self) -> Notation | None:
        """Return how the template writes calls, if tools are declared.

        Raises:
            ConfigError: They are, and there is no template that has a place for them.
        """
        if not any(item.problem.tools for item in self.items):
            return None
        template, encoder = self.chatter.template, self.chatter.encoder
        found = notation(template, encoder.bos, encoder.eos) if template and self.asker.templated else None
        if not found:
            told = f"The task {self.task.name} declares tools, and"
            named = f"the template {template.name!r}" if template and self.asker.templated else "a text"
            raise ConfigError(f"{told} {named} has no place for calls of them; choose another --template.")
        return found

    def run(self, done: Container[int] = ()) -> Iterator[list[Done]]:
        """Yield what came of the items, some at a time.

        Args:
            done: The numbers of those that are there already.

        Raises:
            LmfError: The model gave something that is no number.
        """
        yield from self._replies(done) if self.task.asks == "reply" else self._scored(done)

    def shown(self, number: int) -> str:
        """Return what stands before the reply of an item, as text."""
        if self.task.asks == "reply":
            ids = self._prompts[number]
        else:
            text = self._first[number]
            ids = list(text.ids[: text.start])
        return str(self.chatter.tokenizer.decode(ids))

    def _choices(self, number: int, item: Item) -> list[_Unit]:
        return [_Unit(number, 0, self.asker.choices(item))]

    def _windows(self, number: int, item: Item) -> list[_Unit]:
        return [_Unit(number, index, [text]) for index, text in enumerate(self.asker.windows(item))]

    def _scored(self, done: Container[int]) -> Iterator[list[Done]]:
        scorer = Scorer(self.runner)
        missing: dict[int, int] = defaultdict(int)
        for unit in self._units:
            missing[unit.item] += 1
        found: dict[int, dict[int, list[Scored]]] = defaultdict(dict)
        for units in self._sections(self._units, lambda unit: unit.item):
            if all(unit.item in done for unit in units):
                continue
            scorer.keep(root_of([unit.group for unit in units]))
            units.sort(key=lambda unit: (-sum(len(text.ids) for text in unit.group), [t.ids for t in unit.group]))
            most = self.evaluation.batch_tokens or default_tokens(next(self.chatter.model.parameters()).device)
            sizes = [tokens_of(unit.group, len(scorer.root)) for unit in units]
            for batch in batches(units, sizes, most):
                if all(unit.item in done for unit in batch):
                    continue
                ready: list[Done] = []
                for unit, values in zip(batch, scorer.score([unit.group for unit in batch]), strict=True):
                    found[unit.item][unit.number] = values
                    missing[unit.item] -= 1
                    if not missing[unit.item] and unit.item not in done:
                        ready.append((unit.item, self._outcome(unit.item, found.pop(unit.item))))
                yield ready

    def _outcome(self, number: int, parts: Mapping[int, list[Scored]]) -> Outcome:
        texts = [text.logprobs for index in sorted(parts) for text in parts[index]]
        sums = [(math.fsum(values), len(values)) for values in texts]
        if not all(math.isfinite(value) for value, _ in sums):
            raise _not_finite(self.items[number])
        if self.task.asks == "choices":
            return Chosen(tuple(value for value, _ in sums), tuple(count for _, count in sums))
        return Likelihood(tuple((-value, count) for value, count in sums))

    def _replies(self, done: Container[int]) -> Iterator[list[Done]]:
        evaluation = self.evaluation
        if evaluation.samples > 1 and not evaluation.temperature:
            raise ConfigError("--samples asks for several replies, which are all the same at --temperature 0.")
        engine = self.chatter.engine(self.runner, context=evaluation.context, kept=0)
        for numbers in self._sections(range(len(self.items)), lambda number: number):
            numbers.sort(key=lambda number: (len(self._prompts[number]), self._prompts[number]))
            if all(number in done for number in numbers):
                continue
            prompts = [self._prompts[number] for number in numbers]
            engine.remember(root_of([[Text((*ids, 0), len(ids))] for ids in prompts]))
            for at in range(0, len(numbers), MOST):
                block = numbers[at : at + MOST]
                if all(number in done for number in block):
                    continue
                replies = {number: self._submit(engine, number) for number in block}
                engine.finish([reply for several in replies.values() for reply in several])
                yield [(number, self._written(number, replies[number])) for number in block if number not in done]

    def _submit(self, engine: Engine, number: int) -> list[Reply]:
        evaluation = self.evaluation
        stop = () if self.asker.templated else self.task.stop
        replies: list[Reply] = []
        while len(replies) < evaluation.samples:
            seed = int(self.items[number].key, 16) + (evaluation.seed or 0) + len(replies)
            sampling = Sampling(max_tokens=self.limit, temperature=evaluation.temperature, seed=seed, stop=stop)
            several = min(evaluation.samples - len(replies), MOST)
            replies += engine.submit(
                self._prompts[number], sampling, n=several, likeliest=0, continues=not self.asker.templated
            )
        return replies

    def _written(self, number: int, replies: Sequence[Reply]) -> Written:
        if not all(math.isfinite(token.logprob) for reply in replies for token in reply.tokens):
            raise _not_finite(self.items[number])
        calls = tuple(self._calls(number, reply) for reply in replies) if self._notation else ()
        return Written(tuple(reply.text for reply in replies), tuple(str(reply.finish) for reply in replies), calls)

    def _calls(self, number: int, reply: Reply) -> tuple[ToolCall, ...]:
        """Return the calls in a reply, read in the notation of the template."""
        names = [tool["function"]["name"] for tool in self.items[number].problem.tools]
        assert self._notation
        ids = [id for id in reply.ids if id not in self._ends]
        return tuple(self._notation.read(str(self.chatter.tokenizer.decode(ids)), names)[1])

    def _sections(self, all: Sequence[T], item: Callable[[T], int]) -> Iterator[list[T]]:
        """Yield what belongs to the same part of the benchmark, whose prompts may begin alike."""

        def part(each: T) -> str:
            return self.items[item(each)].problem.part

        for _, section in itertools.groupby(sorted(all, key=part), part):
            yield list(section)


def score(task: EvalTask, item: Item, outcome: Outcome) -> dict[str, tuple[float, ...]]:
    """Return what an item adds to the sums of each figure.

    Raises:
        LmfError: A figure of a plugin failed.
    """
    found = {}
    for metric in metrics_of(task):
        try:
            found[metric.name] = metric.sums(item.problem, outcome)
        except LmfError:
            raise
        except Exception as error:  # whatever somebody else's code does
            what = f"{item.where}: the figure {metric.name} of the task {task.name} failed"
            raise LmfError(f"{what}: {type(error).__name__}: {error}") from error
    return found


def totals(task: EvalTask, sums: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return each figure of a task, of what its items add."""
    columns = {metric.name: zip(*(each[metric.name] for each in sums), strict=True) for metric in metrics_of(task)}
    return {metric.name: metric.total(list(map(math.fsum, columns[metric.name]))) for metric in metrics_of(task)}


def default_tokens(device: torch.device) -> int:
    """Return how many tokens a forward pass reads best: enough to be busy, few enough to take little memory."""
    return 512 if device.type == "cpu" else 8192


def _not_finite(item: Item) -> LmfError:
    return LmfError(
        f"{item.where}: the model gives values that are no numbers (NaN or infinite) for this problem; its weights are "
        "damaged, or its precision is too small for it."
    )
