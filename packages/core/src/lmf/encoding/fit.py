"""Examples that are too long, and the account of what the data hold and what was left out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import DataError
from .encoder import IGNORED, Example
from .examples import Examples

Overflow = Literal["error", "drop", "truncate-left", "truncate-right", "split"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the examples of a run are like.

    Attributes:
        name: "training" or "held-out".
        records: Number of records that were read.
        examples: Number of examples that are learned from.
        tokens: Their tokens.
        trained: Those of them that the loss counts.
        lengths: Tokens of an example, before any was cut: at these percentiles, ``("50%", "90%", "99%", "max")``.
        dropped: Number of examples left out, by reason.
        truncated: Number of examples that were cut, or cut up.
        ends: Number of examples that learn where a reply or a text ends.
        refused: The records that the template refused, each with the reason.
    """

    name: str
    records: int
    examples: int
    tokens: int
    trained: int
    lengths: dict[str, int]
    dropped: dict[str, int]
    truncated: int
    ends: int
    refused: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """Return the account as rows of a table: what is counted, and the count."""
        dropped = sum(self.dropped.values())
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        return [
            ("records", f"{self.records:,}"),
            ("examples", f"{self.examples:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("trained tokens", f"{self.trained:,} ({self.trained / max(1, self.tokens):.0%})"),
            ("tokens an example", ", ".join(f"{at} {count:,}" for at, count in self.lengths.items())),
            ("dropped", f"{dropped:,}" + (f" ({reasons})" if dropped else "")),
            ("truncated", f"{self.truncated:,}"),
            ("ends trained", f"{self.ends:,} of {self.examples:,} examples"),
        ]


@dataclass(slots=True)
class Account:
    """What became of examples; of a stream, of all that was read of it so far.

    Attributes:
        limit: Longest example in tokens.
        seen: Number of examples, and of records that the template refused.
        learned: Number of examples that are learned from.
        ends: Number of them that learn where a reply or a text ends.
        dropped: Number of examples left out, by reason.
        first: The first of them, by reason; of a record that was refused, with the template's own words.
    """

    limit: int
    seen: int = 0
    learned: int = 0
    ends: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def drop(self, reason: str, where: str) -> None:
        """Count an example that is left out."""
        self.dropped[reason] += 1
        self.first.setdefault(reason, where)

    def check(self, name: str, most_dropped: float) -> None:
        """Raise DataError if too much was dropped, or nothing is left."""
        dropped, lines = self.dropped.total(), []
        if not self.learned:
            lines.append(f"None of the {self.seen:,} {name} examples can be learned from:")
        elif dropped > most_dropped * self.seen:
            lines.append(
                f"{dropped:,} of {self.seen:,} {name} examples would be dropped, "
                f"more than --max-dropped {most_dropped:g} allows:"
            )
        if lines:
            for reason, count in self.dropped.items():
                lines.append(f"  {count:,} {reason.format(limit=self.limit)}, first {self.first[reason]}")
            lines += dict.fromkeys(_ADVICE[reason] for reason in self.dropped)
            raise DataError("\n".join(lines))


def fit(
    examples: Iterable[Example],
    limit: int,
    policy: Overflow,
    *,
    name: str,
    records: int,
    ends: Set[int] = frozenset(),
    bos: int | None = None,
    refused: Sequence[str] = (),
    most_dropped: float = 1.0,
    account: Account | None = None,
) -> tuple[Examples, Survey]:
    """Bring examples to a length, leave out those without anything to learn, and count both.

    Args:
        examples: The examples.
        limit: Longest example in tokens.
        policy: What to do with longer ones. ``truncate-right`` keeps as many whole replies as fit,
            ``truncate-left`` the last tokens, so no reply loses its end; ``split`` makes several of one.
        name: What to call the examples.
        records: Number of records that were read.
        ends: Ids of the tokens that end a reply or a text.
        bos: The token that begins a text, which ``truncate-left`` keeps.
        refused: The records that were refused before, known when the examples are all read; they count as dropped.
        most_dropped: Largest share of the examples that may be dropped.
        account: What went before, of a stream; these examples are added to it.

    Raises:
        DataError: Too much would be dropped, or nothing would be left, of the whole account.
    """
    learned, account = Examples(), account or Account(limit)
    before, ended = account.dropped.copy(), account.ends
    lengths: list[int] = []
    long = trained = truncated = 0
    longest = 0, ""
    for example in examples:
        length = len(example.ids)
        lengths.append(length)
        parts, reason = [example], _BARREN
        if length > limit:
            long += 1
            longest = max(longest, (length, example.where))
            if example.weight:
                parts = _shortened(example, limit, policy, ends, bos)
                reason = _LONG if policy in ("drop", "error") else _NOTHING
        kept = 0
        for part in parts:
            count = part.trained
            if not count or (part.weights and not part.weight):
                continue
            kept += 1
            learned.add(part)
            trained += count
            account.ends += _learns(part.labels, ends)
        if not kept:
            account.drop(reason, example.where)
        elif length > limit:
            truncated += 1
    if long and policy == "error":
        raise DataError(
            f"{long:,} of {len(lengths):,} {name} examples are longer than --max-tokens {limit}; "
            f"the longest has {longest[0]:,} tokens ({longest[1]}).\n{_ADVICE[_LONG]}"
        )
    for problem in refused:
        account.drop(_REFUSED, problem)
    account.seen += len(lengths) + len(refused)
    account.learned += len(learned)
    account.check(name, most_dropped)
    dropped = account.dropped - before
    return learned, Survey(
        name=name,
        records=records,
        examples=len(learned),
        tokens=sum(learned.lengths),
        trained=trained,
        lengths=percentiles(lengths),
        dropped={reason.format(limit=limit): count for reason, count in dropped.items()},
        truncated=truncated,
        ends=account.ends - ended,
        refused=list(refused),
    )


def _learns(labels: list[int], tokens: Set[int]) -> bool:
    """Tell whether one of the tokens is learned; most often it stands at the end."""
    last = labels[max(1, len(labels) - 3) :]
    return not (tokens.isdisjoint(last) and tokens.isdisjoint(labels[1:]))


def _shortened(example: Example, limit: int, policy: Overflow, ends: Set[int], bos: int | None) -> list[Example]:
    """Return what a policy leaves of an example that is too long."""
    count = len(example.ids)
    if policy == "split":
        parts, start = [], 0
        while start < count:
            end = start + limit
            if limit > 1 and end < count and _ends(example, end, ends):
                end -= 1  # the first token of a part is not predicted, and this one is to be learned
            parts.append(_part(example, start, end))
            start = end
        return parts
    if policy == "truncate-left":
        if example.ids[0] != bos:
            return [_part(example, count - limit, count)]
        head, tail = _part(example, 0, 1), _part(example, count - limit + 1, count)
        weights = None if head.weights is None or tail.weights is None else head.weights + tail.weights
        return [replace(tail, ids=head.ids + tail.ids, labels=head.labels + tail.labels, weights=weights)]
    if policy == "truncate-right":
        for end in range(limit, 1, -1):
            if _ends(example, end - 1, ends):
                return [_part(example, 0, end)]
    return []


def _ends(example: Example, at: int, ends: Set[int]) -> bool:
    """Tell whether a reply ends with a token: it ends where what is trained ends, and at its last token."""
    label = example.labels[at]
    return label in ends or (label != IGNORED and example.labels[at + 1 : at + 2] in ([], [IGNORED]))


def _part(example: Example, start: int, end: int) -> Example:
    part = slice(start, end)
    weights = example.weights[part] if example.weights else None
    return replace(example, ids=example.ids[part], labels=example.labels[part], weights=weights)


def percentiles(lengths: Sequence[int]) -> dict[str, int]:
    """Return the length that so many of a hundred do not exceed (the nearest rank); nothing of no lengths."""
    ordered = sorted(lengths)
    shares = {"50%": 50, "90%": 90, "99%": 99, "max": 100} if ordered else {}
    return {name: ordered[-(-len(ordered) * share // 100) - 1] for name, share in shares.items()}


_REFUSED = "that the template refuses"
_BARREN = "without a token to learn"
_LONG = "longer than --max-tokens {limit}"
_NOTHING = "with no whole reply within --max-tokens {limit}"
_SHORTER = (
    "Raise --max-tokens, choose --on-overflow truncate-right, truncate-left or split, or allow more with --max-dropped."
)
_ADVICE = {
    _REFUSED: "Choose another --template, correct these records, or allow more with --max-dropped.",
    _BARREN: "The loss counts the assistant's replies; see that there are some and that they come early enough.",
    _LONG: _SHORTER,
    _NOTHING: _SHORTER,
}
