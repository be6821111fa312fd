"""From a plan to what a training loop needs: examples, a model, and what tunes it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import packing
from .choose import AUTO, own_template, settled, with_reasoning
from .encode import Encoder, Example
from .errors import ConfigError, DataError
from .jinja import AnyTemplate, JinjaTemplate
from .models import load_config, load_model, load_tokenizer
from .plan import Plan
from .report import Reporter
from .settings import RunSettings
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
        train: The training examples.
        held_out: The examples to measure the loss on.
        added: Ids of tokens that the tokenizer lacked.
    """

    tokenizer: PreTrainedTokenizerBase
    template: AnyTemplate | None
    template_name: str | None
    encoder: Encoder
    criterion: Criterion
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
        compute: Precision of the forward pass.
        new_tokens: Ids of the template's tokens that the base never learned.
    """

    model: nn.Module
    tuner: Tuner
    spec: ModelSpec
    packed: bool
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
    encoder = Encoder(tokenizer, template, settings.max_tokens)
    criterion = plan.objective.build(plan.objective_options)
    examples = fit(criterion.encode(plan.data.records, encoder), settings, "training", report)
    held_out: list[Example] = []
    if plan.held_out.records:
        held_out = fit(criterion.encode(plan.held_out.records, encoder), settings, "held-out", report)
    elif settings.eval_split:
        examples, held_out = split(examples, settings.eval_split, settings.seed)
        report.note(f"{len(held_out):,} of the training examples are held out")
    return Material(
        tokenizer=tokenizer,
        template=template,
        template_name=name,
        encoder=encoder,
        criterion=criterion,
        train=examples,
        held_out=held_out,
        added=added,
    )


def fit(examples: Sequence[Example], settings: RunSettings, name: str, report: Reporter) -> list[Example]:
    """Apply ``--max-tokens`` and leave out examples without anything to learn; every one is counted and told.

    Raises:
        DataError: Some are too long and that is not allowed, or nothing is left.
    """
    limit, policy = settings.max_tokens, settings.too_long
    long = [e for e in examples if len(e.ids) > limit]
    if long and policy == "error":
        longest = max(long, key=lambda e: len(e.ids))
        raise DataError(
            f"{len(long):,} of {len(examples):,} {name} examples are longer than --max-tokens {limit}; "
            f"the longest has {len(longest.ids):,} tokens ({longest.where}).\n"
            "Raise --max-tokens, or choose --too-long skip or --too-long cut."
        )
    if long:
        report.note(
            f"{len(long):,} {name} examples longer than {limit} tokens: {'left out' if policy == 'skip' else 'cut'}"
        )
    kept = [
        e if len(e.ids) <= limit else Example(e.ids[:limit], e.labels[:limit], e.where)
        for e in examples
        if len(e.ids) <= limit or policy == "cut"
    ]
    learned = [e for e in kept if e.weight]
    if len(learned) < len(kept):
        first = next(e for e in kept if not e.weight)
        report.note(
            f"{len(kept) - len(learned):,} {name} examples without a token to learn left out, first {first.where}"
        )
    if not learned:
        raise DataError(
            f"None of the {len(examples):,} {name} examples has a token to learn within --max-tokens {limit}.\n"
            "The loss counts the assistant's replies; see that there are some and that they come early enough."
        )
    tokens, trained = sum(len(e.ids) for e in learned), sum(e.weight for e in learned)
    report.note(f"{len(learned):,} {name} examples, {tokens:,} tokens, {trained:,} of them learned")
    return learned


def split(examples: list[Example], part: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Hold out a share of the examples, chosen by the seed; both parts keep their order."""
    count = max(1, round(len(examples) * part))
    if count >= len(examples):
        raise DataError(f"--eval-split {part} leaves nothing to train on: there are {len(examples)} examples.")
    chosen = set(random.Random(f"{seed}:split").sample(range(len(examples)), count))
    return (
        [e for i, e in enumerate(examples) if i not in chosen],
        [e for i, e in enumerate(examples) if i in chosen],
    )


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
    packed = plan.kernel is None and packing.packable(model)
    if packed:
        model.set_attn_implementation(packing.ATTENTION)
    else:
        report.note(
            "examples are padded: " + ("--attention was given" if plan.kernel else "this architecture cannot be packed")
        )
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
        model=model.to(device), tuner=tuner, spec=spec, packed=packed, compute=compute, new_tokens=tuple(new)
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
