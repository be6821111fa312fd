"""What a benchmark is: its problems, what a model makes of one, and the figures that come of all.

A task asks in one of three ways. ``choices``: which of several replies the model finds likeliest. ``reply``: the
model writes, and what it wrote is judged. ``likelihood``: how likely the model finds a text that is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..conversation import Message, ToolCall
from ..errors import PluginError

Asks = Literal["choices", "reply", "likelihood"]
FILE = "@file"
"""The key under which ``EvalTask.problems`` finds the name of the file that a record stands in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One item of a benchmark.

    Attributes:
        prompt: What stands before the reply: a text, or the messages of a conversation. "" for a text that is
            read from its beginning.
        answer: The reply that is right: what examples show, what a reply is compared with, or the text whose
            likelihood is asked. With choices, by default the first right one.
        choices: The replies to choose from; empty where the task asks otherwise.
        right: The numbers of the right choices, from 0.
        prompts: A prompt for each choice, where they differ; ``prompt`` is then "".
        references: Other replies that are right, too.
        tools: Declarations of the tools that may be called, as ``lmf.Conversation`` has them.
        instructions: What stands before all examples, or the system message where there is a template.
        part: The part of the benchmark that it belongs to, for example a subject; "" where there are none.
        more: What else the score depends on.
    """

    prompt: str | tuple[Message, ...] = ""
    answer: str = ""
    choices: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    instructions: str = ""
    part: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The reply that an example shows."""
        return self.answer or (self.choices[self.right[0]] if self.right else "")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a model makes of choices.

    Attributes:
        logprobs: The log-likelihood of each, in nats.
        tokens: How many tokens each has.
    """

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote.

    Attributes:
        texts: Its replies, mostly one.
        finish: Why each ended: "stop" or "length".
        calls: The tools that each calls; empty where none were declared.
    """

    texts: tuple[str, ...]
    finish: tuple[str, ...] = ()
    calls: tuple[tuple[ToolCall, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds a text.

    Attributes:
        windows: For each window in which the text was read, the sum of the negative log-likelihoods in nats of the
            tokens that it scores, and their number.
    """

    windows: tuple[tuple[float, int], ...]

    @property
    def nll(self) -> float:
        """The sum over all tokens, in nats."""
        return sum(nll for nll, _ in self.windows)

    @property
    def tokens(self) -> int:
        """How many tokens were scored."""
        return sum(tokens for _, tokens in self.windows)


Outcome = Chosen | Written | Likelihood


def quotient(sums: Sequence[float]) -> float:
    """Return the first number by the last: a mean, where the last counts."""
    return sums[0] / sums[-1] if sums[-1] else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure.

    Every figure is a function of sums over the items: a mean is a sum by a count, a perplexity the exponential of
    one, BLEU a function of counted n-grams. So its error and the difference of two models can be estimated by
    drawing items again, whatever the figure is.

    Attributes:
        name: Its name in reports.
        measure: What an item adds to the sums; a single number x means (x, 1).
        total: The figure, of the sums.
        higher: Whether more is better.
    """

    name: str
    measure: Callable[[Problem, Any], float | Sequence[float]]
    total: Callable[[Sequence[float]], float] = quotient
    higher: bool = True

    def sums(self, problem: Problem, outcome: Outcome) -> tuple[float, ...]:
        """Return what an item adds to the sums."""
        found = self.measure(problem, outcome)
        return (float(found), 1.0) if isinstance(found, int | float) else tuple(map(float, found))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalTask:
    """A benchmark.

    Attributes:
        name: The name in ``lmf eval --task NAME``.
        summary: One line for ``lmf eval tasks``.
        source: The paper or data set it comes from.
        version: Raised whenever the same model could get another figure.
        data: Its items: anything that ``--data`` takes.
        asks: How the model is asked.
        problems: Makes the problems of a record of the data, mostly one; ``FILE`` is among its keys. Raises
            KeyError, TypeError, ValueError, IndexError or DataError where it cannot. None for data in any format of
            ``--data``: a reply is the answer, or the text is read.
        of_length: Makes of a problem of the data those that have so many tokens, or a few less, given what counts the
            tokens of a problem as it is asked. They are asked at each of ``--lengths``, which is their part; of one
            that asks for a reply, the room for that is taken off before. Raises DataError where there is none of this
            length. None for problems that are as long as they are.
        replies: With data in any format, which replies of a conversation are asked: the last, or all.
        metrics: The figures; by default the usual ones for what it asks.
        shots: How many examples stand before each problem.
        examples: Where they come from: anything that ``--data`` takes; by default the other problems.
        continues: Whether the prompt is a text to be continued, and no template is used unless one is asked for.
        between: What stands between a prompt and its reply, without a template.
        apart: What stands between two examples, without a template.
        stop: Texts that end a reply, without a template.
        max_tokens: Longest reply in tokens.
        joined: Read all texts as one, with this between them; None to read each by itself.
        runs_code: Whether its score runs what the model wrote, which ``--allow-code-execution`` must allow.
        groups: Names under which it can be asked for together with others.
    """

    name: str
    summary: str = ""
    source: str
    version: int
    data: str
    asks: Asks
    problems: Callable[[Mapping[str, Any]], Iterable[Problem]] | None = None
    of_length: Callable[[Problem, int, Callable[[Problem], int]], Iterable[Problem]] | None = None
    replies: Literal["last", "all"] = "last"
    metrics: tuple[Metric, ...] = ()
    shots: int = 0
    examples: str = ""
    continues: bool = True
    between: str = " "
    apart: str = "\n\n"
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    joined: str | None = None
    runs_code: bool = False
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"the eval task {self.name!r}"
        if self.asks not in get_args(Asks):
            raise PluginError(f"{where} asks {self.asks!r}; it must be one of {', '.join(get_args(Asks))}")
        if self.of_length and self.asks == "choices":
            raise PluginError(f"{where} has choices, so it cannot be asked by length")
        names = [metric.name for metric in self.metrics]
        if len({*names}) < len(names):
            raise PluginError(f"{where} has two metrics of one name: {', '.join(names)}")
        if bad := [name for name in self.groups if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name)]:
            raise PluginError(f"{where} has the group {bad[0]!r}: lower-case letters, digits, '.', '_' and '-' only")
