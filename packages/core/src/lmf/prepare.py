"""From a plan to what a training loop needs: examples, a model, and what tunes it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import packing
from .choose import AUTO, own_template, settled, with_reasoning, without_reasoning
from .conversation import Conversation
from .data import Data
from .encode import SHOWN, Encoder, Example
from .errors import ConfigError, DataError
from .fit import Survey, fit
from .jinja import AnyTemplate, JinjaTemplate
from .models import load_config, load_model, load_tokenizer
from .plan import Plan
from .report import Reporter
from .sources import family
from .specs import Criterion, ModelSpec, Tuner

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
    train: list[Example]
    held_out: list[Example]
    added: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What learns.

    Attributes:
        model: The prepared model.
        tuner: The method at work.
        spec: The model's family.
        packed: Whether examples are laid end to end.
        padding: The share of what is computed that is padding.
        compute: Precision of the forward pass.
        new_tokens: Ids of the template's tokens that the base never learned.
    """

    model: nn.Module
    tuner: Tuner
    spec: ModelSpec
    packed: bool
    padding: float
    compute: torch.dtype
    new_tokens: tuple[int, ...]


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
    encoder = Encoder(tokenizer, template, settings.max_tokens, settings.on_bad)
    criterion = plan.objective.build(plan.objective_options)
    surveys: list[Survey] = []

    def examples_of(data: Data, name: str) -> list[Example]:
        records = data.records
        if settings.reasoning == "disable":
            records = [
                replace(r, data=without_reasoning(r.data)) if isinstance(r.data, Conversation) else r for r in records
            ]
        encoder.refused.clear()
        encoder.split = 0
        encoded = criterion.encode(records, encoder)
        for note in [*data.notes, *encoder.refused[:SHOWN]]:
            report.note(note)
        if encoder.split:
            report.note(
                f"{encoder.split:,} {name} conversations became an example for each reply: "
                "the template rewrites earlier turns when a conversation goes on"
            )
        examples, survey = fit(
            encoded,
            settings.max_tokens,
            settings.on_overflow,
            name=name,
            records=len(records),
            ends=encoder.end_ids,
            bos=encoder.bos_id,
            refused=len(encoder.refused),
            most_dropped=settings.max_dropped,
        )
        if encoder.end_ids and encoder.learns_ends and not survey.ends:
            raise DataError(
                f"0 of {survey.examples:,} {name} examples train the token that ends a reply; the model would never "
                "stop. Raise --max-tokens, or choose another --on-overflow."
            )
        surveys.append(survey)
        report.table(f"{name} data", survey.rows())
        return examples

    examples = examples_of(plan.data, "training")
    held_out: list[Example] = []
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


def split(examples: list[Example], part: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Hold out a share of the records, chosen by the seed; both parts keep their order.

    All examples of a record go the same way. Only the blocks of a single document are parted.
    """
    places = list(dict.fromkeys(e.where for e in examples))
    keys: list[Any] = [e.where for e in examples] if len(places) > 1 else list(range(len(examples)))
    distinct = list(dict.fromkeys(keys))
    count = max(1, round(len(distinct) * part))
    if count >= len(distinct):
        raise DataError(f"--eval-split {part} leaves nothing to train on: there are {len(distinct)} examples.")
    chosen = {distinct[i] for i in random.Random(f"{seed}:split").sample(range(len(distinct)), count)}
    pairs = list(zip(examples, keys, strict=True))
    return [e for e, key in pairs if key not in chosen], [e for e, key in pairs if key in chosen]


def padding_share(examples: list[Example], batch_size: int, micro_batch_tokens: int, seed: int) -> float:
    """Return the share of padding in what the first epoch computes where examples are padded."""
    steps = packing.steps_per_epoch(len(examples), batch_size)
    batches = [
        batch
        for chunk in packing.batches(examples, batch_size, seed, 0, steps)
        for batch in packing.micro_batches(chunk, micro_batch_tokens, packed=False)
    ]
    computed = sum(len(batch) * max(len(e.ids) for e in batch) for batch in batches)
    return 1 - sum(len(e.ids) for e in examples) / computed


def load_learner(plan: Plan, material: Material, device: torch.device, report: Reporter) -> Learner:
    """Load the model and hand it to the tuning method.

    Raises:
        LmfError: The method cannot work with its options or this model, or the examples are too long for it.
    """
    settings = plan.settings
    config = load_config(plan.model, settings.trust_remote_code)
    spec = family(config.model_type, plan.plugins)
    tuner = plan.method.build(plan.method_options, spec)
    _check_length(config, material)
    compute = compute_dtype(settings.dtype, device)
    model: Any = load_model(
        plan.model,
        torch.float32 if compute == torch.float32 else None,
        attention=plan.kernel.load() if plan.kernel else None,
        allow_pickle=settings.allow_pickle,
        trust_remote_code=settings.trust_remote_code,
    )
    tokens = model.get_input_embeddings().weight.shape[0]
    if len(material.tokenizer) > tokens:
        model.resize_token_embeddings(len(material.tokenizer))
    grown = range(tokens, len(material.tokenizer))  # rows that the tokenizer has and the model had not
    new = sorted({*material.added, *grown, *unlearned(model, material)})
    if new:
        names = ", ".join(material.tokenizer.convert_ids_to_tokens(new))
        report.note(f"the base model never learned {names}: their embeddings are trained too")
    share = 0.0
    packed = plan.kernel is None and packing.packable(model)
    if packed:
        model.set_attn_implementation(packing.ATTENTION)
    else:
        why = "--attention was given" if plan.kernel else "this architecture cannot be packed"
        share = padding_share(material.train, settings.batch_size, settings.micro_batch_tokens, settings.seed)
        report.note(f"examples are padded: {why}; {share:.0%} of what is computed is padding")
    if settings.gradient_checkpointing:
        # the newer name of the same
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    _set_stops(model, material)
    model = tuner.prepare(model, new)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trained:
        raise ConfigError(f"The method {plan.method.name!r} leaves no parameter to train with these settings.")
    for parameter in model.parameters():  # trained weights in full precision, frozen ones in the precision of the pass
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else compute)
    total = sum(p.numel() for p in model.parameters())
    report.note(f"{plan.method.name}: {trained:,} of {total:,} parameters are trained, in {str(compute).split('.')[1]}")
    return Learner(
        model=model.to(device),
        tuner=tuner,
        spec=spec,
        packed=packed,
        padding=share,
        compute=compute,
        new_tokens=tuple(new),
    )


def _check_length(config: Any, material: Material) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    used = max(len(e.ids) for e in [*material.train, *material.held_out])
    if longest and used > longest:
        raise ConfigError(
            f"Examples have up to {used:,} tokens, but the model has {longest:,} positions. Lower --max-tokens."
        )


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision of the forward pass; ``auto`` is bfloat16 where the hardware computes in it."""
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else torch.float32


def unlearned(model: Any, material: Material) -> list[int]:
    """Return the template's tokens whose embedding the base model never trained.

    Such a row is all but zero, or equal to the row of another of these tokens: released base
    models reserve tokens that way (Llama 3 with near-zero rows).
    """
    if not material.template:
        return []
    known = material.tokenizer.get_vocab()
    ids = [known[token] for token in material.template.tokens if known[token] not in material.added]
    weight = model.get_input_embeddings().weight.detach().float()
    typical = weight[:: max(1, len(weight) // 1000)].norm(dim=1).median()
    rows = weight[ids]
    return [
        id
        for i, id in enumerate(ids)
        if rows[i].norm() < 0.01 * typical or any(torch.equal(rows[i], rows[j]) for j in range(len(ids)) if j != i)
    ]


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


def _set_stops(model: Any, material: Material) -> None:
    """Let generation end where the template ends a reply."""
    config, tokenizer = model.generation_config, material.tokenizer
    if material.template:
        texts = material.template.stops(material.encoder.eos)
        known = tokenizer.get_vocab()
        ids = [known[text] for text in texts if text in known]
        own = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        config.eos_token_id = sorted({*ids, *(id for id in own if id is not None)}) or None
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
