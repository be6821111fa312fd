"""From a plan to what is learned from: the tokenizer, the template, and the encoded data."""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..conversation import Conversation, Record
from ..data.records import Records
from ..errors import SHOWN, DataError, LmfError, several
from ..models import load_config, load_tokenizer
from ..plan import Plan
from ..report import Reporter
from ..sources import family
from ..specs import Criterion
from ..templates.choose import complete, template_for, with_reasoning, without_reasoning
from ..templates.jinja import AUTO, AnyTemplate
from . import store
from .encoder import Encoder
from .examples import Examples
from .fit import Account, Survey, fit
from .stream import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is learned from: the encoded data.

    Attributes:
        tokenizer: The tokenizer, with the template's tokens and chat template.
        template: The template; None where plain text is learned.
        template_name: What finds it again: ``package:name``, or ``auto`` where the tokenizer holds it.
        encoder: Encodes with both.
        criterion: The objective at work.
        surveys: What the data hold and what was left out of them, one for each part.
        train: The training examples; a stream of them where the data are streamed.
        held_out: The examples to measure the loss on.
        added: Ids of tokens that the tokenizer lacked.
    """

    tokenizer: PreTrainedTokenizerBase
    template: AnyTemplate | None
    template_name: str | None
    encoder: Encoder
    criterion: Criterion
    surveys: tuple[Survey, ...]
    train: Examples | Stream
    held_out: Examples
    added: tuple[int, ...]


def encode_data(plan: Plan, report: Reporter) -> Material:
    """Load the tokenizer, settle the template and encode all data.

    The records of the plan are given away while they are encoded, so that memory does not hold
    them beside their tokens.

    Raises:
        DataError: Nothing can be learned from the data, or a conversation is too long.
    """
    settings = plan.settings
    if not (plan.data.records or plan.stream):
        raise LmfError("The records of this plan were given away by an earlier run; make the plan again.")
    tokenizer = load_tokenizer(plan.model, settings.trust_remote_code)
    template, name, added = None, None, ()
    if plan.objective.data != "text":
        template, name, added = _settle_template(plan, tokenizer, report)
    encoder = Encoder(tokenizer, template, settings.max_tokens, settings.on_bad_record)
    encoding = _Encoding(plan, encoder, plan.objective.build(plan.objective_options), report)
    for data in (plan.data, plan.held_out):
        for note in data.notes:
            report.note(note)
    if plan.stream:
        train = Stream(plan.stream.records, encoding.of_block, settings.shuffle_buffer, settings.seed)
        surveys = [train.survey]
        report.table(f"training data, the first {train.survey.records:,} records", train.survey.rows())
    else:
        train, survey = encoding.kept(plan.data.records, "training")
        surveys = [survey]
    held_out = Examples()
    if plan.held_out.records:
        held_out, survey = encoding.kept(plan.held_out.records, "held-out")
        surveys.append(survey)
    elif settings.eval_split:
        assert isinstance(train, Examples)
        train, held_out = split(train, settings.eval_split, settings.seed)
        report.note(f"{len(held_out):,} of the training examples are held out")
    return Material(
        tokenizer=tokenizer,
        template=template,
        template_name=name,
        encoder=encoder,
        criterion=encoding.criterion,
        surveys=tuple(surveys),
        train=train,
        held_out=held_out,
        added=added,
    )


def split(examples: Examples, part: float, seed: int) -> tuple[Examples, Examples]:
    """Hold out a share of the records, chosen by the seed; both parts keep their order.

    All examples of a record go the same way. Only the blocks of a single document are parted.
    """
    keys: list[Any] = examples.where
    if len(set(keys)) == 1:
        keys = list(range(len(examples)))
    distinct = list(dict.fromkeys(keys))
    count = max(1, round(len(distinct) * part))
    if count >= len(distinct):
        raise DataError(f"--eval-split {part} leaves nothing to train on: there are {len(distinct)} examples.")
    chosen = {distinct[i] for i in random.Random(f"{seed}:split").sample(range(len(distinct)), count)}
    numbers = range(len(examples))
    return examples.take(i for i in numbers if keys[i] not in chosen), examples.take(
        i for i in numbers if keys[i] in chosen
    )


class _Encoding:
    """Records to examples, as a plan has it."""

    def __init__(self, plan: Plan, encoder: Encoder, criterion: Criterion, report: Reporter):
        self.plan, self.encoder, self.criterion, self.report = plan, encoder, criterion, report
        self.streamed = Account(plan.settings.max_tokens)

    def kept(self, records: Records, name: str) -> tuple[Examples, Survey]:
        """Encode records, or take from the cache what the same records became before; tell what they are like."""
        key = self._key(records)
        found = store.load(key, self.report) if key else None
        if found:
            self.report.note(f"{name} data: taken from the cache ({key[:12]})")
            records.clear()
        else:
            found = self._encoded(records.given_away(), len(records), name, Account(self.plan.settings.max_tokens))
            if key:
                store.save(key, *found, self.report)
        self.told(found[1])
        self.report.table(f"{name} data", found[1].rows())
        return found

    def told(self, survey: Survey) -> None:
        """Tell which records the template refused, the first of them."""
        for problem in survey.refused[:SHOWN]:
            self.report.note(f"skipped: {problem}")

    def of_block(self, records: Sequence[Record]) -> tuple[Examples, Survey]:
        """Encode some of the records of a stream; limits hold for all that was read of it."""
        found = self._encoded(records, len(records), "training", self.streamed)
        self.told(found[1])
        return found

    def _encoded(self, records: Iterable[Record], count: int, name: str, account: Account) -> tuple[Examples, Survey]:
        """Encode so many records, which are added to an account.

        Raises:
            DataError: They cannot be learned from, or too many are to be dropped.
        """
        settings, encoder, report = self.plan.settings, self.encoder, self.report
        encoder.refused.clear()
        encoder.split = 0
        with _collecting_new():
            examples, survey = fit(
                self.criterion.encode(self._as_asked(records), encoder),
                settings.max_tokens,
                settings.on_overflow,
                name=name,
                records=count,
                ends=encoder.end_ids,
                bos=encoder.bos_id,
                refused=encoder.refused,
                most_dropped=settings.max_dropped,
                account=account,
            )
        if encoder.split:
            report.note(
                f"{encoder.split:,} {name} conversations became an example for each reply: "
                "the template rewrites earlier turns when a conversation goes on"
            )
        if encoder.end_ids and encoder.learns_ends and not account.ends:
            raise DataError(
                f"0 of {account.learned:,} {name} examples train the token that ends a reply; the model would never "
                "stop. Raise --max-tokens, or choose another --on-overflow."
            )
        return examples, survey

    def _as_asked(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield records, without what the assistant thinks if the settings say so.

        Raises:
            DataError: A reply is nothing but a thought; raised at the end, for all of them.
        """
        problems: list[str] = []
        for record in records:
            if self.plan.settings.reasoning == "disable" and isinstance(record.data, Conversation):
                try:
                    record = replace(record, data=without_reasoning(record.data))
                except DataError as error:
                    problems.append(f"{record.where}: {error}")
                    continue
            yield record
        if problems and self.plan.settings.on_bad_record == "error":
            raise DataError(several(problems))
        self.encoder.refused += problems

    def _key(self, records: Records) -> str:
        """Return the name in the cache of what these records become; "" where nothing is to be kept."""
        plan, encoder, settings = self.plan, self.encoder, self.plan.settings
        code = store.code_of(type(self.criterion)) if settings.cache else []
        if not code:
            return ""
        fitted = (settings.max_tokens, settings.on_overflow, settings.max_dropped, settings.on_bad_record)
        return store.key(
            {
                "records": store.fingerprint(records),
                "tokenizer": [encoder.backend.to_str(), encoder.bos, encoder.eos],
                "template": repr(encoder.template),
                "objective": [plan.plugins.objectives.qualified(plan.objective), repr(plan.objective_options)],
                "reasoning": settings.reasoning,
                "fit": fitted,
                "code": code,
            }
        )


@contextlib.contextmanager
def _collecting_new() -> Iterator[None]:
    """Let the garbage collector look only through what is made meanwhile; the libraries have a million objects."""
    if gc.get_freeze_count() > _FROZEN:  # somebody else's
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


_FROZEN = gc.get_freeze_count()  # Python 3.12 begins with some


def _settle_template(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, report: Reporter
) -> tuple[AnyTemplate, str, tuple[int, ...]]:
    """Choose the template, and give the tokenizer the tokens and the chat template it lacks.

    Returns:
        The template, what finds it again, and the ids of the tokens that were lacking.
    """
    template = template_for(tokenizer, plan.template)
    if template is None:
        config = load_config(plan.model, plan.settings.trust_remote_code)
        spec = family(config.model_type, plan.plugins)
        template = plan.plugins.templates[spec.template]
        report.note(f"template {template.name}: the model brings none; the default of {spec.name}")
    elif template.name == AUTO:
        report.note(f"template auto: the model's own; a reply ends with {' or '.join(template.stop)}")
    missing = complete(tokenizer, template)
    if missing:
        report.note(f"the tokenizer gets the template's tokens {', '.join(missing)}")
    if template.name != AUTO:
        tokenizer.chat_template = template.jinja()
    registered = plan.plugins.templates
    name = registered.qualified(template) if template in [each for _, each in registered.all()] else AUTO
    added = tuple(tokenizer.get_vocab()[token] for token in missing)
    return with_reasoning(template, plan.settings.reasoning), name, added
