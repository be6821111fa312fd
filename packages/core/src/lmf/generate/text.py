"""The text of a reply as its tokens come: whole characters, and nothing that may still turn out to be a stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what a tokenizer writes for a part of a character
CONTEXT = 8  # tokens before a reply that are decoded with its first one


class Writing:
    """Puts the text of a reply together.

    Args:
        tokenizer: Gives the text of tokens.
        stop: Texts that end the reply.
        before: Ids that the reply goes on from, where what a token says depends on them: a space is written between
            two words and not before the first.

    Attributes:
        text: What was written so far, without what is held back.
        stopped: Whether one of the stops was reached.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), before: Sequence[int] = ()):
        self.tokenizer = tokenizer
        self.stop = [each for each in stop if each]
        self.text = ""
        self.stopped = False
        self._held = ""  # may be the beginning of a stop
        self._ids = list(before)[-CONTEXT:]
        self._start, self._done = 0, len(self._ids)  # from where tokens are decoded, and up to where all is written
        self._shown = len(self._decode())  # characters of what is decoded that are written

    def add(self, id: int) -> str:
        """Add a token, and return the text that is certain now."""
        self._ids.append(id)
        text = self._decode()
        whole = text.rstrip(BROKEN)  # what is broken now may become a character, and with it what stands before
        new = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if whole == text:
            self._start, self._done = self._done, len(self._ids)
            self._shown = len(self._decode())
        return self._release(new)

    def end(self) -> str:
        """Return what was held back, at the end of the reply."""
        text = self._release(self._decode()[self._shown :])
        held, self._held = self._held, ""
        self.text += held
        return text + held

    def _decode(self) -> str:
        return str(self.tokenizer.decode(self._ids[self._start :], skip_special_tokens=True))

    def _release(self, text: str) -> str:
        """Return what of the text held back and of a new one is no part of a stop."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in map(text.find, self.stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            text = text[: min(found)]
        else:
            longest = max((overlap(text, stop) for stop in self.stop), default=0)
            cut = len(text) - longest
            text, self._held = text[:cut], text[cut:]
        self.text += text
        return text


def overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of a text are the first ones of a stop."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
