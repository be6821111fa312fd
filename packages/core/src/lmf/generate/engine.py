"""Writes replies: one, or many at a time, each as if it were alone.

A step is one forward pass. It reads the next token of each reply that is being written, and as much of the prompts
of new ones as a step has room for. Replies come and go between steps (continuous batching).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import LmfError
from ..settings import Sampling
from .caches import Part, Runner, read_root, shared
from .drafts import NOTHING, Draft, Drafter, Drafting, accepted
from .sampling import distribution
from .text import Writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST = 32  # replies at a time
CHUNK = 512  # tokens of prompts in a step, so that the others need not wait long for a long one
SHARED = 16  # tokens from which on a beginning that was read before is used again

Finish = Literal["stop", "length", "cancelled"]
Show = Callable[["Reply", str], None]


class TooLong(LmfError):
    """A prompt that there is no room for.

    Attributes:
        tokens: Its length.
        limit: The most tokens of a prompt and its reply.
    """

    def __init__(self, tokens: int, limit: int):
        super().__init__(
            f"The prompt has {tokens:,} tokens; with its reply there is room for {limit:,}. Shorten the prompt."
        )
        self.tokens, self.limit = tokens, limit


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a reply.

    Attributes:
        id: Its id.
        logprob: Its log-probability in nats by the model itself, before penalties and temperature.
        likeliest: Ids and log-probabilities of the likeliest tokens at its place, the likeliest first.
    """

    id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(slots=True, eq=False, kw_only=True)
class Reply:
    """A reply that is being written, or was.

    Attributes:
        prompt: Ids of the prompt.
        sampling: How it is drawn.
        limit: The most tokens it may have.
        index: Which of the replies to its prompt it is, from 0 on.
        writing: Its text.
        chance: Its random numbers.
        likeliest: How many likeliest tokens are told with each of its own; None if no log-probabilities are wanted.
        show: Is told this reply and each new part of its text, and at the end once more, be it with nothing.
        drafter: Drafts its tokens.
        ids: What was written, with the token that ended it.
        tokens: The same with log-probabilities, where they are wanted.
        finish: Why it ended; None until it has.
    """

    prompt: list[int]
    sampling: Sampling
    limit: int
    index: int
    writing: Writing
    chance: random.Random
    likeliest: int | None = None
    show: Show | None = None
    drafter: Drafter | None = None
    ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None
    _state: Any = None
    _siblings: list[Reply] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What was written so far."""
        return self.writing.text

    def cancel(self) -> None:
        """Write no more; from any thread."""
        self.finish = self.finish or "cancelled"

    @property
    def unread(self) -> list[int]:
        """What the model has not read yet."""
        read = self._state.length - len(self.prompt)
        return self.ids[read:] if read >= 0 else [*self.prompt[read:], *self.ids]


class Engine:
    """Writes replies of one model.

    Args:
        runner: Runs the model.
        tokenizer: Its tokenizer.
        ends: Ids that end a reply.
        context: The most tokens of a prompt and its reply.
        stop: Texts that end every reply.
        most: Replies at a time.
        room: Tokens of all replies at a time, with their prompts; no limit by default.
        kept: So many prompts with their replies stay, for those that begin alike.
        draft: Makes what drafts the tokens of a reply; nothing does by default.
        guesses: Tokens of a draft.

    Attributes:
        waiting: Replies that were not begun.
        active: Replies that are being written.
        whole: Whether a prompt is read in one step, since its angles depend on its length.
        drafted: How many tokens were guessed so far.
        right: How many of them were kept.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: PreTrainedTokenizerBase,
        ends: Iterable[int],
        context: int,
        *,
        stop: Sequence[str] = (),
        most: int = MOST,
        room: int | None = None,
        kept: int = 1,
        draft: Drafting | None = None,
        guesses: int = 5,
    ):
        if draft and not runner.crops:
            raise LmfError("This model cannot take back what it has read, as speculative decoding must.")
        self.runner, self.tokenizer, self.ends, self.context = runner, tokenizer, frozenset(ends), context
        self.stop = tuple(stop)
        self.most, self.room, self.draft, self.guesses = most, room or most * context, draft, guesses
        self.waiting: deque[Reply] = deque()
        self.active: list[Reply] = []
        self.drafted = self.right = 0
        self.whole = getattr(runner, "alone", False)
        self._kept: deque[tuple[list[int], Any]] = deque(maxlen=kept if runner.crops and not self.whole else 0)
        self._root: tuple[Sequence[int], Any] = ((), None)

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        n: int = 1,
        likeliest: int | None = None,
        show: Show | None = None,
        continues: bool = False,
    ) -> list[Reply]:
        """Have replies to a prompt written; from any thread.

        Args:
            prompt: Its ids.
            sampling: How they are drawn.
            n: How many.
            likeliest: How many likeliest tokens to tell with each, with log-probabilities; none at all by default.
            show: Is told a reply and each new part of its text, and at its end once more, be it with nothing.
            continues: Whether the text goes on from that of the prompt, so that it may begin with a space.

        Raises:
            LmfError: There is no room for them.
        """
        if not prompt:
            raise LmfError("The prompt is empty; the model needs a token to go on from.")
        if len(prompt) >= self.context:
            raise TooLong(len(prompt), self.context)
        limit = min(sampling.max_tokens, self.context - len(prompt))
        if n > self.most or n * (len(prompt) + limit) > self.room:
            raise LmfError(
                f"{n} replies of up to {limit:,} tokens are more than there is room for at a time: "
                f"{self.most} replies, {self.room:,} tokens. Ask for fewer or shorter ones."
            )
        stops = tuple(dict.fromkeys((*sampling.stop, *self.stop)))
        replies = []
        for index in range(n):
            chance = sampling.draws(index)
            reply = Reply(
                prompt=list(prompt),
                sampling=sampling,
                limit=limit,
                index=index,
                writing=Writing(self.tokenizer, stops, prompt if continues else ()),
                chance=chance,
                likeliest=likeliest,
                show=show,
                drafter=self.draft(sampling, chance) if self.draft else None,
            )
            replies.append(reply)
        replies[0]._siblings = replies[1:]
        self.waiting.append(replies[0])
        return replies

    @torch.no_grad()
    def remember(self, root: Sequence[int]) -> None:
        """Read what many prompts to come begin with, to read it only once; it takes the place of an earlier one."""
        root = () if self.whole else root
        self._root = (root, read_root(self.runner, root, CHUNK))

    def finish(self, replies: Sequence[Reply]) -> None:
        """Write until these replies are done."""
        while any(reply.finish is None for reply in replies):
            self.step()

    @torch.no_grad()
    def step(self) -> bool:
        """Do one forward pass. Returns whether there was anything to do."""
        for reply in [reply for reply in self.active if reply.finish]:  # cancelled
            self._leave(reply)
        self._admit()
        parts: list[Part] = []
        work: list[tuple[Reply, Draft]] = []
        room = CHUNK
        for reply in self.active:
            if reply._state is None:  # another reads the prompt for it
                continue
            unread, draft = reply.unread, NOTHING
            if len(unread) > 1 and not self.whole:  # a prompt
                unread = unread[:room]
                room -= len(unread)
            elif reply.drafter and reply.ids:
                most = min(self.guesses, reply.limit - len(reply.ids) - 1)
                draft = reply.drafter.draft(reply.prompt, reply.ids, most)
            if unread:
                whole = reply._state.length + len(unread) == len(reply.prompt) + len(reply.ids)
                parts.append(Part(reply._state, [*unread, *draft.ids], 1 + len(draft.ids) if whole else 0))
                work.append((reply, draft))
        if not parts:
            return False
        for (reply, draft), logits in zip(work, self.runner.forward(parts), strict=True):
            if len(logits):
                self._branch(reply, logits)
                self._write(reply, draft, logits)
        return True

    def abandon(self) -> list[Reply]:
        """Cancel all replies and forget what was kept. Returns them."""
        replies = [*self.active, *(each for first in self.waiting for each in (first, *first._siblings))]
        for reply in replies:
            reply.cancel()
        self.active, self.waiting = [], deque()
        self._kept.clear()
        return replies

    def _admit(self) -> None:
        """Begin replies in the order in which they came, while there is room."""
        while self.waiting:
            group = [reply for reply in (self.waiting[0], *self.waiting[0]._siblings) if not reply.finish]
            replies = [*self.active, *group]
            if len(replies) > self.most or sum(len(r.prompt) + r.limit for r in replies) > self.room:
                return
            self.waiting.popleft()
            if group:
                group[0]._state, group[0]._siblings = self._begin(group[0].prompt), group[1:]
            self.active = replies

    def _begin(self, prompt: Sequence[int]) -> Any:
        """Return a state that has read as much of a prompt as any that was kept."""
        root, read = self._root
        if root and len(root) < len(prompt) and tuple(prompt[: len(root)]) == tuple(root):
            return read.fork()
        lengths = [shared(ids, prompt) for ids, _ in self._kept]
        if max(lengths, default=0) < SHARED:
            return self.runner.begin()
        at = lengths.index(max(lengths))
        _, state = self._kept[at]
        del self._kept[at]
        state.crop(min(lengths[at], len(prompt) - 1))  # the last token is read again, for its logits
        return state

    def _branch(self, reply: Reply, logits: torch.Tensor) -> None:
        """Let the other replies to a prompt that was just read go on from it."""
        siblings, reply._siblings = reply._siblings, []
        for sibling in siblings:
            sibling._state = reply._state.fork()
            self._write(sibling, NOTHING, logits)

    def _write(self, reply: Reply, draft: Draft, logits: torch.Tensor) -> None:
        """Add the next tokens to a reply."""
        if not draft.ids and reply.sampling.likeliest:
            tokens = logits.argmax(-1).tolist()
        else:
            tokens = accepted(draft, lambda kept: self._chances(reply, kept, logits[len(kept)]), reply.chance)
            self.drafted += len(draft.ids)
            self.right += len(tokens) - 1
        text, finish = "", reply.finish
        for place, token in enumerate(tokens):
            reply.ids.append(token)
            if reply.likeliest is not None:
                reply.tokens.append(_token(token, logits[place], reply.likeliest))
            if token not in self.ends:
                text += reply.writing.add(token)
            if token in self.ends or reply.writing.stopped:
                finish = finish or "stop"
            elif len(reply.ids) == reply.limit:
                finish = finish or "length"
            if finish:
                text += reply.writing.end()
                break
        if draft.ids:  # forget the guesses that were not kept
            reply._state.crop(len(reply.prompt) + len(reply.ids) - 1)
        reply.finish = reply.finish or finish
        if reply.finish:
            self._leave(reply)
        if reply.show and (text or reply.finish):
            reply.show(reply, text)

    def _chances(self, reply: Reply, kept: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        return distribution(logits, reply.sampling, reply.prompt, [*reply.ids, *kept])

    def _leave(self, reply: Reply) -> None:
        """End a reply that is done or cancelled."""
        self.active.remove(reply)
        state, reply._state = reply._state, None
        if reply._siblings:  # which still wait for the prompt to be read
            heir, *rest = reply._siblings
            heir._state, heir._siblings, reply._siblings = state, rest, []
        elif state is not None and self._kept.maxlen:
            self._kept.append(([*reply.prompt, *reply.ids][: state.length], state))


def _token(id: int, logits: torch.Tensor, likeliest: int) -> Token:
    logprobs = logits.float().log_softmax(-1)
    values, ids = logprobs.topk(min(likeliest, len(logprobs)))
    return Token(id, float(logprobs[id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
