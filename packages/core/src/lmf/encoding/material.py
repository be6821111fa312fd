"""From a plan to what is learned from: the tokenizer, the template, and the encoded data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..conversation import Conversation
from ..data.reading import Data
from ..errors import DataError
from ..models import load_config, load_tokenizer
from ..plan import Plan
from ..report import Reporter
from ..sources import family
from ..specs import Criterion
from ..templates.choose import AUTO, own_template, settled, with_reasoning, without_reasoning
from ..templates.jinja import AnyTemplate, JinjaTemplate
from . import store
from .encoder import CHUNK, SHOWN, Encoder, Example
from .examples import Examples
from .fit import Survey, fit

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
        train: The training examples.
        held_out: The examples to measure the loss on.
        added: Ids of tokens that the tokenizer lacked.
    """

    tokenizer: PreTrainedTokenizerBase
    template: AnyTemplate | None
    template_name: str | None
    encoder: Encoder
    criterion: Criterion
    surveys: tuple[Survey, ...]
    train: Examples
    held_out: Examples
    added: tuple[int, ...]


def encode_data(plan: Plan, report: Reporter) -> Material:
    """Load the tokenizer, settle the template and encode all data.

    Raises:
        DataError: Nothing can be learned from the data, or a conversation is too long.
    """
    settings = plan.settings
    tokenizer = load_tokenizer(plan.model, settings.trust_remote_code)
    template, name, added = None, None, ()
    if plan.objective.data != "text":
        template, name, added = _settle_template(plan, tokenizer, report)
    encoder = Encoder(tokenizer, template, settings.max_tokens, "skip")
    criterion = plan.objective.build(plan.objective_options)
    surveys: list[Survey] = []

    def examples_of(data: Data, name: str) -> Examples:
        for note in data.notes:
            report.note(note)
        examples, survey = _encoded(plan, encoder, criterion, data, name, report)
        surveys.append(survey)
        report.table(f"{name} data", survey.rows())
        return examples

    examples, held_out = examples_of(plan.data, "training"), Examples()
    if plan.held_out.records:
        held_out = examples_of(plan.held_out, "held-out")
    elif settings.eval_split:
        examples, held_out = split(examples, settings.eval_split, settings.seed)
        report.note(f"{len(held_out):,} of the training examples are held out")
    return Material(
        tokenizer=tokenizer,
        template=template,
        template_name=name,
        encoder=encoder,
        criterion=criterion,
        surveys=tuple(surveys),
        train=examples,
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


def _encoded(
    plan: Plan, encoder: Encoder, criterion: Criterion, data: Data, name: str, report: Reporter
) -> tuple[Examples, Survey]:
    """Encode records, or take from the cache what the same records became before."""
    settings, records = plan.settings, data.records
    if settings.reasoning == "disable":
        records = [
            replace(r, data=without_reasoning(r.data)) if isinstance(r.data, Conversation) else r for r in records
        ]
    facts = {
        "records": store.fingerprint(records),
        "tokenizer": [encoder.backend.to_str(), encoder.bos, encoder.eos],
        "template": repr(encoder.template),
        "objective": [plan.plugins.objectives.qualified(plan.objective), repr(plan.objective_options)],
        "fit": [settings.max_tokens, settings.on_overflow, settings.max_dropped, settings.on_bad_record],
        "code": store.code_of(type(criterion)),
    }
    key = store.key(facts)
    if settings.cache and (cached := store.load(key, report)):
        report.note(f"{name} data: taken from the cache ({key[:12]})")
        return cached
    encoder.refused.clear()
    encoder.split = 0

    def stream() -> Iterator[Example]:
        for start in range(0, len(records), CHUNK):
            yield from criterion.encode(records[start : start + CHUNK], encoder)
        if encoder.refused and settings.on_bad_record == "error":
            more = f"\n... and {len(encoder.refused) - SHOWN:,} more" if len(encoder.refused) > SHOWN else ""
            raise DataError("\n".join(encoder.refused[:SHOWN]) + more)

    examples, survey = fit(
        stream(),
        settings.max_tokens,
        settings.on_overflow,
        name=name,
        records=len(records),
        ends=encoder.end_ids,
        bos=encoder.bos_id,
        refused=encoder.refused,
        most_dropped=settings.max_dropped,
    )
    for note in encoder.refused[:SHOWN]:
        report.note(f"skipped: {note}")
    if encoder.split:
        report.note(
            f"{encoder.split:,} {name} conversations became an example for each reply: "
            "the template rewrites earlier turns when a conversation goes on"
        )
    if encoder.end_ids and encoder.learns_ends and not survey.ends:
        raise DataError(
            f"0 of {survey.examples:,} {name} examples train the token that ends a reply; the model would never "
            "stop. Raise --max-tokens, or choose another --on-overflow."
        )
    if settings.cache:
        store.save(key, examples, survey, report)
    return examples, survey


def _settle_template(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, report: Reporter
) -> tuple[AnyTemplate, str, tuple[int, ...]]:
    """Choose the template, and give the tokenizer the tokens and the chat template it lacks.

    Returns:
        The template, what finds it again, and the ids of the tokens that were lacking.
    """
    template = plan.template or own_template(tokenizer)
    if template is None:
        config = load_config(plan.model, plan.settings.trust_remote_code)
        spec = family(config.model_type, plan.plugins)
        template = plan.plugins.templates[spec.template]
        report.note(f"template {template.name}: the model brings none; the default of {spec.name}")
    elif template.name == AUTO:
        report.note(f"template auto: the model's own; a reply ends with {' or '.join(template.stop)}")
    if isinstance(template, JinjaTemplate) and not template.stop:
        template = settled(template, tokenizer)
    missing = [token for token in template.tokens if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
        report.note(f"the tokenizer gets the template's tokens {', '.join(missing)}")
    if template.name != AUTO:
        tokenizer.chat_template = template.jinja()
    registered = plan.plugins.templates
    name = registered.qualified(template) if template in [each for _, each in registered.all()] else AUTO
    added = tuple(tokenizer.get_vocab()[token] for token in missing)
    return with_reasoning(template, plan.settings.reasoning), name, added
