"""What an extended vocabulary is worth on texts, beside its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmf import Plugins
from lmf.generate.opening import Chatter, open_model
from lmf.models import quiet
from lmf.runs import RUN_FILE

from .bases import open_tokenizer
from .measuring import Count, chatter_of, count, loss_per_byte, sped_up
from .vocabulary import vocabulary_of


@dataclass(frozen=True, slots=True)
class Report:
    """Two tokenizers on the same texts, and the models where they have some.

    Attributes:
        base: How the base cuts the texts.
        extended: How the extended tokenizer does.
        losses: Loss per byte of the two models in nats.
        speed: How many times faster the extended model writes.
    """

    base: Count
    extended: Count
    losses: tuple[float, float] | None = None
    speed: float | None = None

    @property
    def fewer(self) -> float:
        """How many times fewer tokens the extended one needs."""
        return self.base.tokens / self.extended.tokens


def report(base: str, extended: str, texts: Sequence[str], plugins: Plugins) -> Report:
    """Compare two tokenizers, or two models with theirs.

    Raises:
        LmfError: One of them cannot be opened.
    """
    quiet()
    names = (base, extended)
    chatters = [_chatter(name, plugins) for name in names] if all(map(_has_model, names)) else []
    tokenizers = [each.tokenizer for each in chatters] or [open_tokenizer(name, plugins) for name in names]
    old = vocabulary_of(tokenizers[0], base)
    found = count(tokenizers[0], texts), count(tokenizers[1], texts, old.old)
    if not chatters:
        return Report(*found)
    losses = loss_per_byte(chatters[0], texts), loss_per_byte(chatters[1], texts)
    return Report(*found, losses, sped_up(chatters[0], chatters[1], texts))


def table(found: Report) -> str:
    """Return a report as a table in Markdown."""
    both = (found.base, found.extended)
    rows: list[tuple[str, ...]] = [
        ("tokens", *(f"{each.tokens:,}" for each in both), f"{found.fewer:.2f} times fewer"),
        ("tokens per word", *(f"{each.tokens / each.words:.2f}" for each in both), ""),
        ("tokens per byte", *(f"{each.tokens / each.bytes:.3f}" for each in both), ""),
        ("bytes in new pieces", "", f"{found.extended.covered / found.extended.bytes:.1%}", ""),
    ]
    if found.losses:
        change = f"{found.losses[1] - found.losses[0]:+.4f}"
        rows.append(("loss per byte (nats)", *(f"{loss:.4f}" for loss in found.losses), change))
    if found.speed:
        rows.append(("speed of writing", "1", f"{found.speed:.2f}", f"{found.speed:.2f} times faster"))
    head = f"{found.base.bytes:,} bytes, {found.base.words:,} words"
    return "\n".join(
        [f"| {head} | base | extended | |", "|---|--:|--:|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    )


def _has_model(name: str) -> bool:
    folder = Path(name)
    return not folder.is_dir() or (folder / "config.json").exists() or (folder / RUN_FILE).exists()


def _chatter(name: str, plugins: Plugins) -> Chatter:
    opened = open_model(name, plugins, merged=True)
    tokenizer: Any = opened.tokenizer
    return chatter_of(opened.model, tokenizer)
