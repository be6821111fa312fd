"""``lmf generate --in --out``: a file of replies that goes on where it stopped.

While replies are written they stand in ``OUT.partial``, whose first line says what was asked for. When all are there,
the rest of it becomes ``OUT``.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmf import ConfigError, DataError, LmfError, Message, Opening, Plugins, Sampling
from lmf.config import option
from lmf.journal import Journal, journal
from lmf.runs import replacing

from .saving import check_outputs

if TYPE_CHECKING:
    from lmf.data.originals import Original
    from lmf.generate.engine import Reply
    from lmf.generate.opening import Chatter

REPLIES = "replies"  # the key that is added to a record
EVERY = 5.0  # seconds between two reports


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """What a model is asked."""

    system: str | None = option(None, "A system message, where there is none.")
    prefill: str | None = option(None, "How the reply begins; the model goes on from there.")
    n: int = option(1, "Replies to write.", min=1, max=32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filing:
    """How the file of replies is written."""

    logprobs: int | None = option(
        None, "Tell the log-probability of each token, and so many of the likeliest at its place.", min=0, max=20
    )
    force: bool = option(False, "Begin the file anew, if there is one.")


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: a model, and how it is asked."""

    model: str
    asking: Asking
    sampling: Sampling
    opening: Opening
    filing: Filing

    def settings(self) -> dict[str, Any]:
        """Return all that decides on the replies, by name."""
        parts = (self.asking, self.sampling, self.opening, self.filing)
        values = {f.name: getattr(part, f.name) for part in parts for f in dataclasses.fields(part)}
        del values["force"]
        return {"model": self.model, **values}


def answer_file(plugins: Plugins, source: str, out: str, order: Order) -> None:
    """Write the replies to each record of data into a file, from where an earlier call stopped.

    Raises:
        LmfError: Something that was asked for is not there, or the file was begun with other settings.
    """
    from lmf.data.originals import read_originals
    from lmf.plan import check_opening

    if Path(out).suffix not in (".jsonl", ".ndjson"):
        raise ConfigError(f"--out {out}: replies are written as lines of JSON; name a .jsonl file.")
    check_outputs([out], order.filing.force)
    check_opening(order.model, order.opening, plugins)
    records = read_originals([source], plugins).records
    for record in records:
        if REPLIES in record.object:
            raise DataError(f"{record.where}: the record has a key {REPLIES!r} already, where the replies would stand.")
    partial = Path(f"{out}.partial")
    with journal(partial, order.settings()) as found:
        if order.filing.force:
            found.begin_anew()
        done = _resumed(found, records)
        if done:
            print(f"{partial}: {done:,} of {len(records):,} are there; going on", file=sys.stderr)
        if done < len(records):
            _write(found, plugins, records, done, order)
        found.stream.seek(len(found.header.encode()))
        with replacing(Path(out)) as whole:
            shutil.copyfileobj(found.stream, whole)
        found.begin_anew()
    print(f"{out}: {len(records):,} record{'s' * (len(records) != 1)}")


def _write(found: Journal, plugins: Plugins, records: Sequence[Original], done: int, order: Order) -> None:
    """Add the replies to all records from one on."""
    from lmf.generate.batch import in_order
    from lmf.generate.engine import TooLong
    from lmf.generate.opening import start  # torch is imported here

    asking, prefill = order.asking, order.asking.prefill or ""
    chatter, engine = start(order.model, plugins, order.opening)
    for record in records[done:]:  # all, before the first reply
        if (tokens := len(_ids(chatter, record, asking))) >= engine.context:
            raise DataError(f"{record.where}: {TooLong(tokens, engine.context)}")
    prompts = (
        (_ids(chatter, record, asking), _numbered(order.sampling, number))
        for number, record in enumerate(records[done:], done)
    )
    written = in_order(engine, prompts, n=asking.n, likeliest=order.filing.logprobs, continues=chatter.goes_on(prefill))
    began = said = time.monotonic()
    tokens = 0
    for number, (record, replies) in enumerate(zip(records[done:], written, strict=True), done + 1):
        told = [_told(chatter, prefill, reply) for reply in replies]
        found.add(record.object | {REPLIES: told})
        tokens += sum(len(reply.ids) for reply in replies)
        now = time.monotonic()
        if now - said > EVERY or number == len(records):
            said = now
            rate = tokens / max(now - began, 1e-9)
            print(f"{number:,} of {len(records):,}  {rate:,.1f} tokens/s", file=sys.stderr)


def _ids(chatter: Chatter, record: Original, asking: Asking) -> list[int]:
    """Return the ids of the prompt of a record."""
    from lmf.generate.batch import asked

    if record.format.data == "text" and chatter.template:
        raise DataError(f"{record.where}: a text asks nothing of a model that talks; give a prompt.")
    talk = asked(record.data)
    messages = talk.messages
    if asking.system is not None and messages[0].role != "system":
        messages = (Message("system", asking.system), *messages)
    try:
        return chatter.ids(messages, asking.prefill or "", talk.tools)
    except LmfError as error:
        raise DataError(f"{record.where}: {error}") from None


def _numbered(sampling: Sampling, number: int) -> Sampling:
    """Return how the replies to a record are drawn: each with random numbers of its own."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + number)


def _told(chatter: Chatter, prefill: str, reply: Reply) -> dict[str, Any]:
    """Return a reply as JSON values."""
    told: dict[str, Any] = {"text": prefill + reply.text, "finish": reply.finish, "tokens": len(reply.ids)}
    if reply.likeliest is not None:

        def token(id: int, logprob: float) -> dict[str, Any]:
            return {"id": id, "token": chatter.tokenizer.decode([id]), "logprob": logprob}

        told["logprobs"] = [
            token(each.id, each.logprob) | {"likeliest": [token(*other) for other in each.likeliest]}
            for each in reply.tokens
        ]
    return told


def _resumed(found: Journal, records: Sequence[Original]) -> int:
    """Return how many records have their replies already.

    Raises:
        LmfError: The journal was begun with other settings or other records, or is damaged.
    """
    whole = 0
    for number, value in found.lines():
        try:
            del value[REPLIES]
        except (KeyError, TypeError):
            raise found.foreign(number) from None
        if whole == len(records) or value != records[whole].object:
            raise LmfError(f"{found.file} was begun with other records, from line {number} on. --force begins anew.")
        whole += 1
    return whole
