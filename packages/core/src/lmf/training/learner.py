"""From a plan and its examples to a model, and what tunes it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..encoding.encoder import Example
from ..encoding.examples import Examples
from ..encoding.material import Material
from ..encoding.stream import Stream
from ..errors import ConfigError
from ..models import added_tokens, ends, fingerprint, inner, load_config, load_model, stops
from ..plan import Plan
from ..report import Reporter
from ..rope import lengthen, positions
from ..sources import Source, family
from ..specs import ModelSpec, Tuner
from . import packing
from .angles import apart
from .lean import lean
from .loss import find_head, use_loss
from .packing import Batch
from .parts import PLAIN, Parts, load_parts
from .rows import Rows

NAMED = 20  # new tokens that are told by their names


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
        new_tokens: Ids of tokens that the base never learned: the template's, and those that were added to it.
        base: The fingerprint of the base model; "" without weights.
        kernels: The names of the kernels at work, by the parts that they compute.
        rows: Where only the rows of new tokens are trained, what has such rows.
    """

    model: nn.Module
    tuner: Tuner
    spec: ModelSpec
    packed: bool
    padding: float
    compute: torch.dtype
    new_tokens: tuple[int, ...]
    base: str = ""
    kernels: Mapping[str, str] = field(default_factory=dict)
    rows: Rows | None = None

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Lay examples out as this model takes them."""
        return (packing.pack if self.packed else packing.pad)(examples)

    def dtype(self, parameter: nn.Parameter) -> torch.dtype:
        """Return the precision of a weight: full where it is trained, else that of the forward pass."""
        return torch.float32 if parameter.requires_grad else self.compute

    def settle(self, device: torch.device) -> None:
        """Bring the whole model to the device."""
        for parameter in self.model.parameters():
            # a copy, for these may be pages of a file, and the first step would copy them one by one: ten times as slow
            copy = parameter.requires_grad and device.type == "cpu"
            parameter.data = parameter.data.to(self.dtype(parameter), copy=copy)
        self.model.to(device)
        if self.rows:
            self.rows.hold()

    def groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups."""
        groups = self.tuner.groups(self.model, learning_rate, weight_decay)
        return self.rows.groups(groups) if self.rows else groups

    def precision(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward pass.

        Autocast would keep its copy of each weight until the pass ends, to use it again; a pass uses each once.
        """
        if self.compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.compute, cache_enabled=False)


def padding_share(examples: Examples, batch_size: int, micro_batch_tokens: int, seed: int) -> float:
    """Return the share of padding in what the first epoch computes where examples are padded."""
    steps = packing.steps_per_epoch(len(examples), batch_size)
    batches = [
        batch
        for chunk in packing.batches(examples, batch_size, seed, 0, steps)
        for batch in packing.micro_batches(chunk, micro_batch_tokens, packed=False)
    ]
    computed = sum(len(batch) * max(len(e.ids) for e in batch) for batch in batches)
    return 1 - sum(examples.lengths) / computed


def check_tuner(plan: Plan) -> None:
    """Refuse what the method cannot do, and then what no run can, before data are encoded.

    Raises:
        LmfError: The method cannot work with its options, or here.
    """
    config = load_config(plan.model, plan.settings.trust_remote_code)
    _tuner(plan, family(config.model_type, plan.plugins))
    if plan.settings.train_new_tokens_only and not added_tokens(config):
        raise ConfigError(
            f"--train-new-tokens-only: no tokens were added to {plan.model.asked}. Make a model with new ones: "
            "lmf vocab apply."
        )


def load_learner(
    plan: Plan,
    material: Material,
    device: torch.device,
    report: Reporter,
    settled: bool = True,
    source: Source | None = None,
) -> Learner:
    """Load the model and hand it to the tuning method.

    Args:
        plan: The run.
        material: What is learned from.
        device: Where it is to compute.
        report: Is told what was found.
        settled: Whether to bring it there; else its weights stay as they were loaded, perhaps pages of a file.
        source: Other files of the plan's model, to load it from.

    Raises:
        LmfError: The method cannot work with its options or this model, or the examples are too long for it.
    """
    settings = plan.settings
    config = load_config(plan.model, settings.trust_remote_code)
    spec = family(config.model_type, plan.plugins)
    tuner = _tuner(plan, spec)
    _check_length(config, material)
    if plan.model.rope:
        lengthen(material.tokenizer, config)
    parts = load_parts(plan.kernels, plan.asked, config, compute_dtype(settings.dtype, device), device, report)
    model: Any = load_model(
        source or plan.model,
        stored_dtype(plan, device),
        attention=_padded(parts),
        allow_pickle=settings.allow_pickle,
        trust_remote_code=settings.trust_remote_code,
    )
    model.name_or_path = plan.model.path  # which peft writes into an adapter
    base = fingerprint(model)
    tokens = model.get_input_embeddings().weight.shape[0]
    if len(material.tokenizer) > tokens:
        model.resize_token_embeddings(len(material.tokenizer))
    grown = range(tokens, len(material.tokenizer))  # rows that the tokenizer has and the model had not
    added = added_tokens(config) if settings.train_new_tokens_only else range(0)
    new = sorted({*material.added, *grown, *unlearned(model, material), *added})
    if new:
        names = material.tokenizer.convert_ids_to_tokens(new)
        told = ", ".join(names) if len(names) <= NAMED else f"{len(names):,} tokens"
        report.note(f"the base model never learned {told}: their embeddings are trained too")
    _set_stops(model, material)
    learner = replace(_prepared(plan, model, spec, tuner, new, device, parts, report), base=base)
    if (
        (count := len(added_tokens(config)))
        and not added
        and not any(p.requires_grad for end in ends(learner.model) for p in end.parameters())
    ):
        report.note(f"the rows of {count:,} added tokens stay as they are; --train-new-tokens-only trains them")
    if settled:
        learner.settle(device)
    if plan.model.rope:
        _tell_scaled(plan, learner, config, report)
    if not learner.packed:
        why = f"the kernel {parts.kernels['attention']}" if _padded(parts) else "this architecture cannot be packed"
        if isinstance(material.train, Examples):
            share = padding_share(material.train, settings.batch_size, settings.micro_batch_tokens, settings.seed)
            learner = replace(learner, padding=share)
            why += f"; {share:.0%} of what is computed is padding" if share else ""
        report.note(f"examples are padded: {why}")
    trained = sum(p.numel() for p in learner.model.parameters() if p.requires_grad)
    trained -= learner.rows.held if learner.rows else 0
    total = sum(p.numel() for p in learner.model.parameters())
    precision = str(learner.compute).split(".")[1]
    report.note(f"{plan.method.name}: {trained:,} of {total:,} parameters are trained, in {precision}")
    return learner


def blank_learner(plan: Plan, device: torch.device, rows: int = 0, new: Sequence[int] = ()) -> Learner:
    """Prepare the model without its weights, to be called where tensors have no storage (``FakeTensorMode``).

    Everything after the loading is the code of ``load_learner``.

    Args:
        plan: The run.
        device: The device that it would run on.
        rows: Number of tokens of the tokenizer, if they may be more than the model's.
        new: Ids of tokens that the base never learned.

    Raises:
        LmfError: The method cannot work with its options or this model.
    """
    from transformers import AutoModelForCausalLM

    trust = plan.settings.trust_remote_code
    config = load_config(plan.model, trust)
    spec = family(config.model_type, plan.plugins)
    tuner = _tuner(plan, spec)
    kernel = plan.kernels.get("attention")
    loaded = kernel.load() if kernel and plan.asked(kernel) else None
    parts = replace(PLAIN, attention=loaded) if isinstance(loaded, str) else PLAIN  # others have the plain shapes
    options: dict[str, Any] = {"attn_implementation": padded} if (padded := _padded(parts)) else {}
    dtype = stored_dtype(plan, device) or (torch.float32 if plan.model.gguf else config.dtype)
    with device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust, **options)
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)  # their mean is nothing without values
    learner = _prepared(plan, model, spec, tuner, new, device, parts, Reporter())
    learner.settle(device)
    return learner


def _tuner(plan: Plan, spec: ModelSpec) -> Tuner:
    tuner = plan.method.build(plan.method_options, spec)
    tuner.configure(replace(plan.settings, parallel=plan.sharing.way))
    return tuner


def stored_dtype(plan: Plan, device: torch.device) -> torch.dtype | None:
    """Return the precision in which weights are loaded; None for that of the files."""
    compute = compute_dtype(plan.settings.dtype, device)
    return torch.float32 if compute == torch.float32 else None


def _padded(parts: Parts) -> str | None:
    """Return the name of an implementation of attention that wants padded rows; None if ours is used."""
    return parts.attention if isinstance(parts.attention, str) else None


def _prepared(
    plan: Plan,
    model: Any,
    spec: ModelSpec,
    tuner: Tuner,
    new: Sequence[int],
    device: torch.device,
    parts: Parts,
    report: Reporter,
) -> Learner:
    """Make a model ready for the loop, on the device where it is.

    Raises:
        LmfError: The method cannot work with this model, or a kernel that was asked for has nothing to do in it.
    """
    settings = plan.settings
    compute = compute_dtype(settings.dtype, device)
    packed = not _padded(parts) and packing.packable(model)
    if packed:
        model.set_attn_implementation(packing.attention_by(parts))
        apart(model)
    if settings.gradient_checkpointing:
        # the newer name of the same
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    done = lean(model, parts)
    done["attention"] += packed or bool(_padded(parts))
    if "linear_cross_entropy" in parts.kernels:
        done["linear_cross_entropy"] += find_head(model, packed) is not None
        use_loss(model, parts.linear_cross_entropy)
    used = _used(plan, parts, done, report)
    model = tuner.prepare(model, new)
    rows = Rows(model, new) if settings.train_new_tokens_only else None
    if rows and rows.matrices and plan.sharing.way != "ddp":
        raise ConfigError(
            f"--train-new-tokens-only cannot hold rows of {', '.join(rows.matrices)}, which --parallel "
            f"{plan.sharing.way} divides. Use --parallel ddp, or the method lora, which has the new rows apart."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"The method {plan.method.name!r} leaves no parameter to train with these settings.")
    return Learner(
        model=model,
        tuner=tuner,
        spec=spec,
        packed=packed,
        padding=0.0,
        compute=compute,
        new_tokens=tuple(new),
        kernels=used,
        rows=rows if rows and rows.matrices else None,
    )


def _used(plan: Plan, parts: Parts, done: Mapping[str, int], report: Reporter) -> dict[str, str]:
    """Return and say which kernels are used, and refuse those that were asked for and have nothing to do."""
    for part, name in parts.kernels.items():
        if not done[part]:
            if plan.asked(plan.kernels[part]):
                raise ConfigError(
                    f"The kernel {name} computes {part}, and this model has no part that is known as one."
                )
            report.note(f"the kernel {name} is not used: this model has no part that is known as {part}")
    used = {part: name for part, name in parts.kernels.items() if done[part]}
    if used:
        report.note(f"kernels: {', '.join(f'{name} ({part})' for part, name in used.items())}")
    return used


def _check_length(config: Any, material: Material) -> None:
    most, used = positions(config), longest_of(material)
    if most and used > most:
        rotary = getattr(config.get_text_config(), "rope_parameters", None)
        raise ConfigError(
            f"Examples have up to {used:,} tokens, but the model has {most:,} positions. Lower --max-tokens"
            f"{', or scale the positions by --rope' if rotary else ''}."
        )


def _tell_scaled(plan: Plan, learner: Learner, config: Any, report: Reporter) -> None:
    """Say what the model reads now, and what an adapter alone does not say."""
    report.note(f"{plan.model.rope}: the model reads {positions(config):,} tokens")
    if inner(learner.model) is not learner.model:
        report.note(
            "an adapter does not tell how the positions of its base are scaled. lmf knows it from the run; for peft "
            f"and vLLM, write the base so: lmf export hf {plan.settings.model} FOLDER {plan.model.rope}"
        )


def longest_of(material: Material) -> int:
    """Return the tokens of the longest example that is learned from or measured on; of a stream, the most it may be."""
    streamed = [material.encoder.max_tokens] if isinstance(material.train, Stream) else material.train.lengths
    return max([*streamed, *material.held_out.lengths])


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


def _set_stops(model: Any, material: Material) -> None:
    """Let generation end where the template ends a reply."""
    config, tokenizer = model.generation_config, material.tokenizer
    if material.template:
        ids, _ = stops(model, tokenizer, material.template.stops(material.encoder.eos))
        config.eos_token_id = sorted(ids) or None
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
