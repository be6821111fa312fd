"""Calls of tools in replies: kept out of the text of a stream, and read at its end."""

from __future__ import annotations

from collections.abc import Collection

from lmf import ToolCall
from lmf.generate.engine import Reply
from lmf.generate.text import overlap
from lmf.templates.calls import Notation
from transformers import PreTrainedTokenizerBase


class Calls:
    """Reads the calls of one reply.

    Args:
        notation: How calls are written.
        names: The tools there are.
        tokenizer: Gives the text of tokens.
        ends: Ids that end a reply.
    """

    def __init__(
        self, notation: Notation, names: Collection[str], tokenizer: PreTrainedTokenizerBase, ends: Collection[int]
    ):
        self.notation, self.names, self.tokenizer, self.ends = notation, names, tokenizer, ends
        self.special = frozenset(tokenizer.all_special_ids)
        self.sign = self._plain(notation.marker).strip()
        self.text = ""
        self.shown = 0

    def add(self, text: str, reply: Reply) -> str:
        """Return what of a text that is being written is certainly said, and no call."""
        self.text += text
        if any(id in self.special and id not in self.ends for id in reply.ids):
            end = self.shown  # a special token: a call has begun, or whatever comes is read at the end
        elif self.sign:
            at = self.text.find(self.sign)
            end = at if at >= 0 else len(self.text) - overlap(self.text, self.sign)
            end = len(self.text[:end].rstrip())
        else:
            end = len(self.text) if self._said() else 0
        new = self.text[self.shown : end]
        self.shown = max(self.shown, end)
        return new

    def whole(self, reply: Reply) -> tuple[str, list[ToolCall]]:
        """Return the text of a reply that is done, and its calls."""
        self.text, self.shown = reply.text, 0
        return self.end(reply)

    def end(self, reply: Reply) -> tuple[str, list[ToolCall]]:
        """Return the text that was not shown yet, and the calls."""
        ids = reply.ids[:-1] if reply.ids and reply.ids[-1] in self.ends else reply.ids
        said, calls = self.notation.read(str(self.tokenizer.decode(ids, skip_special_tokens=False)), self.names)
        if not calls:
            return self.text[self.shown :], []
        return self._plain(said).strip()[len(self.text[: self.shown].strip()) :], calls

    def _said(self) -> bool:
        """Whether a reply in a notation without a marker is no call: it begins with neither JSON nor a name."""
        begun = self.text.lstrip()
        if self.notation.between is None:
            return bool(begun) and begun[0] not in "{["
        return bool(begun) and not any(name.startswith(begun[: len(name)]) for name in self.names)

    def _plain(self, text: str) -> str:
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(str(token), "")
        return text
