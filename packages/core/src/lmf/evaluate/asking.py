"""From a problem to token ids: as a text that goes on, or as a conversation in a template."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator, Sequence

from ..conversation import Message
from ..errors import ConfigError, DataError
from ..generate.caches import shared
from ..generate.opening import Chatter
from ..settings import Evaluation
from .likelihood import Text
from .sources import Item, Items
from .task import EvalTask, Problem

INPUT = "{input}"  # in --prompt-structure
NONE = "none"  # as --template


def in_template(task: EvalTask, evaluation: Evaluation, chatter: Chatter) -> bool:
    """Return whether a task is asked in the template of a model.

    Raises:
        ConfigError: A template was asked for and there is none.
    """
    if evaluation.prompt_structure is not None or evaluation.template == NONE:
        return False
    if evaluation.template is None:
        return not task.continues and chatter.template is not None
    if chatter.template is None:
        raise ConfigError("This model has no template of its own; name one with --template, or --template none.")
    return True


class Asker:
    """Asks the problems of a task.

    Args:
        items: The task and its problems.
        evaluation: How they are asked.
        chatter: Whom.

    Attributes:
        cut: How many prompts lost their beginning because they were too long.
        shots: How many examples stand before each problem.
    """

    def __init__(self, items: Items, evaluation: Evaluation, chatter: Chatter):
        self.task, self.evaluation, self.chatter = items.task, evaluation, chatter
        self.templated = in_template(items.task, evaluation, chatter)
        self.shots = items.task.shots if evaluation.shots is None else evaluation.shots
        if evaluation.context and evaluation.context > chatter.context:
            most = f"the {chatter.context:,} tokens that the model can read"
            raise ConfigError(f"--context {evaluation.context} is more than {most}.")
        self.context = evaluation.context or chatter.context
        self.cut = 0
        examples = list(items.examples)
        if evaluation.seed is not None:
            random.Random(evaluation.seed).shuffle(examples)
        self._examples: dict[str, list[Item]] = {}
        for example in examples if self.shots else ():
            self._examples.setdefault(example.problem.part, []).append(example)
        self._check(items)

    def choices(self, item: Item) -> list[Text]:
        """Return the choices of a problem, each after its prompt."""
        with _named(item):
            problem, shots = item.problem, self._shots(item)
            if problem.prompts:
                pairs = zip(problem.prompts, problem.choices, strict=True)
                texts = [text for prompt, choice in pairs for text in self._replies(prompt, [choice], problem, shots)]
            else:
                texts = self._replies(problem.prompt, problem.choices, problem, shots)
            return [self._fit(text) for text in texts]

    def prompt(self, item: Item, room: int) -> list[int]:
        """Return the ids of the prompt of a problem, where ``room`` tokens may follow."""
        with _named(item):
            problem, shots = item.problem, self._shots(item)
            ids = self._asked(problem, shots)
            most = max(1, self.context - room)
            if len(ids) > most:
                self._too_long(len(ids) + room)
            return ids[-most:]

    def tokens(self, problem: Problem) -> int:
        """Return how many tokens a problem has as it is asked: its prompt, and of a likelihood the text too."""
        return len(self._asked(problem, []) if self.task.asks == "reply" else self._whole(problem, [])[0])

    def windows(self, item: Item) -> list[Text]:
        """Return the windows in which a text is read, as LMFlow has them.

        A window begins every ``stride`` tokens and scores what none before it scored. The first token of a text is
        scored if something stands before it. A problem of a task by length is one window.
        """
        with _named(item):
            return self._windows(*self._whole(item.problem, self._shots(item)))

    def _asked(self, problem: Problem, shots: Sequence[Problem]) -> list[int]:
        """Return the ids of a prompt, however many they are."""
        if self.templated:
            return self._chat(problem.prompt, problem, shots)
        return self.chatter.encoder.plain(self._text(problem.prompt, problem, shots)) or opening(self.chatter)

    def _whole(self, problem: Problem, shots: Sequence[Problem]) -> tuple[list[int], int]:
        """Return the ids of a text after its prompt, and the first that is scored; 1, where nothing stands before."""
        chatter = self.chatter
        if not problem.prompt:
            whole = self.task.joined is not None
            return (chatter.encoder.plain(problem.answer) if whole else bare(chatter, problem.answer)), 1
        if self.templated:
            (text,) = self._replies(problem.prompt, [problem.answer], problem, shots)
            return list(text.ids), text.start
        # each by itself and without what opens a text, as LMFlow has it
        prompt = bare(chatter, self._text(problem.prompt, problem, shots) + self.task.between)
        return prompt + bare(chatter, problem.answer), len(prompt)

    def _windows(self, ids: Sequence[int], start: int) -> list[Text]:
        window, stride = min(self.evaluation.window, self.context), self.evaluation.stride
        window = len(ids) if self.task.of_length else window
        texts, scored = [], max(1, start)
        for begin in range(0, len(ids), stride):
            end = min(begin + window, len(ids))
            first = max(scored, begin + 1)
            if first < end:
                texts.append(Text(tuple(ids[begin:end]), first - begin))
            scored = max(scored, end)
            if end == len(ids):
                break
        if not texts:
            raise DataError(f"the text is {len(ids)} token long, so there is nothing to score.")
        return texts

    def _check(self, items: Items) -> None:
        structure = self.evaluation.prompt_structure
        if structure is not None and INPUT not in structure:
            raise ConfigError(f"--prompt-structure {structure!r} has no {INPUT}, where the prompt would stand.")
        if not self.shots:
            return
        own = items.examples is items.items or items.examples == items.items
        there = len(items.examples) - own
        if there < self.shots:
            raise ConfigError(f"--shots {self.shots}: {self.task.name} has {there} problems to show as examples.")

    def _shots(self, item: Item) -> list[Problem]:
        """Return the examples that stand before a problem: the first of its part, but never itself."""
        if not self.shots:
            return []
        part = item.problem.part
        others = (each.problem for each in self._examples.get(part, ()) if each.key != item.key)
        found = list(itertools.islice(others, self.shots))
        if len(found) < self.shots:
            of = f" of the part {part!r}" if part else ""
            raise DataError(f"there are {len(found)} examples{of}; --shots asks for {self.shots}.")
        return found

    def _replies(
        self, prompt: str | tuple[Message, ...], replies: Sequence[str], problem: Problem, shots: Sequence[Problem]
    ) -> list[Text]:
        """Return replies after their prompt; the replies are scored."""
        if self.templated:
            begun = self._chat(prompt, problem, shots)
            whole = [self._chat(prompt, problem, shots, reply) for reply in replies]
            return [Text(tuple(ids), max(1, shared(begun, ids[:-1]))) for ids in whole]
        text = self._text(prompt, problem, shots)
        return [following(self.chatter, text, self.task.between + reply) for reply in replies]

    def _text(self, prompt: str | tuple[Message, ...], problem: Problem, shots: Sequence[Problem]) -> str:
        task = self.task
        shown = [f"{self._put(_example(shot))}{task.between}{shot.shown}{task.apart}" for shot in shots]
        return "".join((problem.instructions, *shown, self._put(prompt)))

    def _put(self, prompt: str | tuple[Message, ...]) -> str:
        """Return a prompt as text, in its structure."""
        if not isinstance(prompt, str):
            if [message.role for message in prompt] != ["user"]:
                roles = ", ".join(message.role for message in prompt)
                raise DataError(f"a conversation ({roles}) is no text; ask it in a template: --template auto or NAME")
            prompt = prompt[0].content
        structure = self.evaluation.prompt_structure
        return prompt if structure is None else structure.replace(INPUT, prompt)

    def _chat(
        self, prompt: str | tuple[Message, ...], problem: Problem, shots: Sequence[Problem], reply: str = ""
    ) -> list[int]:
        """Return the ids of a prompt in the template, with the beginning of a reply."""
        messages = [Message("system", problem.instructions.strip())] if problem.instructions.strip() else []
        for shot in shots:
            messages += [*_turns(_example(shot)), Message("assistant", shot.shown)]
        return self.chatter.ids([*messages, *_turns(prompt)], reply, problem.tools)

    def _fit(self, text: Text) -> Text:
        over = len(text.read) - self.context
        if over <= 0:
            return text
        self._too_long(len(text.read))
        if text.start <= over:
            raise DataError(f"a choice alone is longer than the {self.context:,} tokens of the context.")
        return Text(text.ids[over:], text.start - over)

    def _too_long(self, tokens: int) -> None:
        if self.evaluation.on_overflow == "error":
            less = "ask with fewer --shots, or " if self.shots else ""
            raise DataError(
                f"the problem has {tokens:,} tokens with its reply, and the context {self.context:,}; "
                f"{less}--on-overflow cut removes the beginning of such prompts."
            )
        self.cut += 1


def following(chatter: Chatter, context: str, continuation: str) -> Text:
    """Return a continuation after its context, split as the lm-evaluation-harness splits them."""
    kept = context.rstrip()  # white space belongs to what follows
    before = chatter.encoder.plain(kept) if kept else opening(chatter)
    whole = chatter.encoder.plain(context + continuation) if kept else before
    # where a token reaches from one into the other and nothing remains of the reply, the harness gives up
    rest = whole[len(before) :] or bare(chatter, context[len(kept) :] + continuation)
    return Text((*before, *rest), len(before))


def bare(chatter: Chatter, text: str) -> list[int]:
    """Return the ids of a text without what opens one."""
    ids = chatter.encoder.plain(text)
    return ids[1:] if chatter.encoder.start else ids


def opening(chatter: Chatter) -> list[int]:
    """Return the token that stands before a text which has none: what opens texts, or else what ends them.

    Raises:
        ConfigError: The tokenizer has neither.
    """
    encoder = chatter.encoder
    ids = (encoder.bos_id, chatter.tokenizer.convert_tokens_to_ids(encoder.eos) if encoder.eos else None)
    first = next((id for id in ids if isinstance(id, int)), None)
    if first is None:
        raise ConfigError("This tokenizer has no token to begin a text with, and a prompt is empty.")
    return [first]


@contextlib.contextmanager
def _named(item: Item) -> Iterator[None]:
    """Have the message of what goes wrong with an item name it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{item.where}: {error}") from None


def _example(shot: Problem) -> str | tuple[Message, ...]:
    return shot.prompts[shot.right[0]] if shot.prompts else shot.prompt


def _turns(prompt: str | tuple[Message, ...]) -> list[Message]:
    return [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
