"""What was found in an export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lmf import Conversation, LmfError
from lmf.templates.traits import SAMPLES

PROBE = "The quick brown fox jumps over the lazy dog. 12345"
"""A text whose logits are compared."""
Finding = tuple[bool | None, str]
"""Whether something is right, and what; None for what has to be known."""


def tell(findings: list[Finding]) -> None:
    """Print what was found.

    Raises:
        LmfError: Something is wrong.
    """
    for right, text in findings:
        print(f"{'--' if right is None else 'ok' if right else 'BAD':3}  {text}")
    wrong = sum(right is False for right, _ in findings)
    if wrong:
        raise LmfError(f"{wrong} of {len(findings)} checks failed.")


def asked() -> Iterator[tuple[str, Conversation]]:
    """Yield conversations that the model is to speak on in, and what each shows.

    Earlier replies begin without white space: lmf reads a reply as it was written, from where it began, while other
    programs read the text as a whole, where that space may be one token with what stands before.
    """
    for name, talk in SAMPLES.items():
        for end, message in enumerate(talk.messages):
            if message.role == "assistant":
                said = (
                    replace(each, content=each.content.lstrip()) if each.role == "assistant" else each
                    for each in talk.messages[:end]
                )
                yield name, Conversation(tuple(said), talk.tools)
