"""What plugins describe: immutable values with a name.

Nothing here imports torch, so every description can be listed in milliseconds. The
callables in them may; they run only when the thing they build is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from .config import check_declaration
from .conversation import Content, Kind, Record
from .errors import PluginError
from .settings import RunSettings

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from .encoding.encoder import Encoder, Example
    from .training.packing import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights that have a name.

    Attributes:
        name: What to write after ``--model``.
        summary: One line for ``lmf models``.
        folder: Returns the folder of the model, making it on first use.
        template: The template it was trained with; the family's by default.
    """

    name: str
    summary: str
    folder: Callable[[], Path]
    template: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What lmf must know about one family of models.

    Attributes:
        name: The family, for example ``llama``.
        model_types: The ``model_type`` values in config.json that it covers.
        template: The template for a model of the family that brings none of its own.
        layers: The dotted path from the model to its list of decoder layers.
        projections: Names of the linear layers that adapters attach to by default.
        checkpoints: Weights of the family that have a name.
    """

    name: str
    model_types: frozenset[str] = frozenset()
    template: str
    layers: str = "model.layers"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    checkpoints: tuple[Checkpoint, ...] = ()


class Tuner:
    """What a tuning method does to one model during one run.

    The run calls ``configure`` and ``prepare`` once, ``groups`` once, ``before_step`` before every optimizer
    step, and ``save`` for every checkpoint. The defaults train every parameter.
    """

    def configure(self, settings: RunSettings) -> None:
        """Learn the settings of the run, before the model is loaded.

        Raises:
            ConfigError: The method cannot work with them.
        """

    def prepare(self, model: nn.Module, new_tokens: Sequence[int] = ()) -> nn.Module:
        """Freeze or wrap the model; parameters that require gradients are trained.

        Args:
            model: The base model, every parameter requiring gradients.
            new_tokens: Ids of tokens that the template uses and the base never learned;
                their embeddings must be among what is trained.
        """
        return model

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; matrices decay, norms and biases do not."""
        groups = [(decayed := [], weight_decay), (plain := [], 0.0)]
        for parameter in self.trained(model):
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
        return [{"params": ps, "lr": learning_rate, "weight_decay": decay} for ps, decay in groups if ps]

    def trained(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters that are trained at any time of the run, in the order of the model."""
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Change what is trained. ``step`` counts optimizer steps from 0."""

    def saved(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters that ``save`` writes and ``load`` reads. No others are put together for them."""
        return list(model.parameters())

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the prepared model into a folder, in the form that transformers or peft load."""
        cast("PreTrainedModel", model).save_pretrained(folder)

    def merge(self, model: nn.Module) -> nn.Module:
        """Return a model that needs nothing beside it: with what was trained in its own weights."""
        return model

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put what ``save`` wrote back into a prepared model, bit for bit.

        Raises:
            LmfError: A tensor is missing, foreign, of another shape, or not finite.
        """
        from .models import load_weights

        load_weights(model, folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningMethod:
    """A way to tune a model: which parameters learn.

    Attributes:
        name: The name in ``lmf OBJECTIVE NAME``.
        summary: One line for ``lmf train --help``.
        options: A dataclass of ``lmf.option`` fields; each becomes a flag.
        build: Makes the tuner from the options and the model's family.
        learning_rate: The peak learning rate where none is given.
        parallel: The ways to share a model among processes (``lmf.settings.WAYS``) in which it works.
    """

    name: str
    summary: str
    options: type
    build: Callable[[Any, ModelSpec], Tuner]
    learning_rate: float = 2e-5
    parallel: tuple[str, ...] = ("ddp",)

    def __post_init__(self) -> None:
        _check_options("tuning method", self.name, self.options)


class Criterion:
    """What an objective does with data and model during one run.

    The defaults are next-token prediction: the loss is the negative log-likelihood of
    the labelled tokens, in nats.
    """

    def encode(self, records: Iterable[Record], encoder: Encoder) -> Iterable[Example]:
        """Turn records into token ids with labels, best as they are asked for: there may be very many."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss **summed** over what counts, a scalar.

        The run divides by the sum of ``batch.weight`` over a whole optimizer step and all
        devices, so neither micro-batches nor devices change the result.
        """
        from .training.loss import token_loss

        return token_loss(model, batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is learned.

    Attributes:
        name: The name in ``lmf NAME METHOD``.
        summary: One line for ``lmf --help``.
        data: The kind of records it learns from.
        options: A dataclass of ``lmf.option`` fields; each becomes a flag.
        build: Makes the criterion from the options.
    """

    name: str
    summary: str
    data: Kind
    options: type
    build: Callable[[Any], Criterion]

    def __post_init__(self) -> None:
        _check_options("objective", self.name, self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """An optimizer.

    Attributes:
        name: The name in ``--optimizer NAME``.
        summary: One line for ``lmf plugins``.
        build: Makes it from parameter groups; each has ``params``, ``lr`` and ``weight_decay``.
        why_not: Why it cannot run on this machine, or None if it can.
        parallel: The ways to share a model among processes (``lmf.settings.WAYS``) in which it works; where a model
            is divided, it gets parts of weights, of any shape.
    """

    name: str
    summary: str
    build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    why_not: Callable[[], str | None] = lambda: None
    parallel: tuple[str, ...] = ("ddp",)


Part = Literal["attention", "rms_norm", "add_rms_norm", "glu", "rotary", "linear_cross_entropy"]  # of a model


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A faster way to compute a part of a model.

    Attributes:
        name: The name in ``--kernels NAME``, or in ``--attention NAME``.
        summary: One line for ``lmf plugins``.
        why_not: Why it cannot run on this machine, or None if it can.
        load: Imports it and returns a function with the arguments and the result of the plain one that has the name of
            the part: ``lmf.layers.rms_norm``, ``add_rms_norm``, ``glu``, ``rotary`` and ``attention``, or
            ``lmf.losses.linear_cross_entropy``. Of attention it may also return the name of an implementation that
            transformers knows; that one gets padded rows. On a device that it is not for, the function calls the plain
            one. What it does not compute, it refuses with an LmfError.
        part: What it computes.
        automatic: Whether ``--kernels auto`` takes it, if it is the first of its part that can run.
    """

    name: str
    summary: str
    why_not: Callable[[], str | None]
    load: Callable[[], Any]
    part: Part = "attention"
    automatic: bool = False

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            raise PluginError(
                f"the kernel {self.name!r} computes {self.part!r}; it must be {', '.join(get_args(Part))}"
            )

    def reason(self) -> str | None:
        """Return why it cannot run on this machine, also if it cannot tell; None if it can run."""
        try:
            return self.why_not()
        except Exception as error:  # of any type: it is a plugin's
            return f"it cannot tell: {type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFormat:
    """A shape that records come in.

    Attributes:
        name: The name that reports use.
        summary: One line for ``lmf plugins``.
        data: The kind of record it gives.
        example: A record in this format, as JSON text for error messages.
        matches: Whether a JSON object looks like this format, judged by its keys.
        read: Turns the object into what a record of that kind holds. Raises ``DataError`` that
            names the key; the reader adds file and line.
        write: Turns that back into an object of which ``read`` gives the same. Raises
            ``DataError`` that says what the format cannot express. None if it is only read.
    """

    name: str
    summary: str
    data: Kind
    example: str
    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any]], Content]
    write: Callable[[Any], dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file that a data set is downloaded from.

    Attributes:
        url: Its address: https, or file.
        path: Its name in the data set's folder. Of an archive, the files come into a folder of this
            name without its suffix.
        sha256: The SHA-256 that it must have, in hexadecimal; None where nobody published one.
        bytes: The length that it must have; None where it is not known.
        members: Globs of the files to take out of an archive; empty for a file that is none.
    """

    url: str
    path: str
    sha256: str | None = None
    bytes: int | None = None
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.path):
            raise PluginError(f"the path {self.path!r} of {self.url} must be a plain file name")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise PluginError(f"the sha256 {self.sha256!r} of {self.url} must be 64 hexadecimal digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Data that have a name: files that are there, files to download, or the reason why there are none.

    Attributes:
        name: What to write after ``--data``.
        summary: One line for ``lmf data list``.
        source: Where the data come from.
        licence: Under what terms; "unknown" where nobody says.
        size: What there is to download or to read, in bytes; None where it is not known.
        format: The data format of its records; "" where it has none that lmf reads.
        columns: The columns of its records that are read, and the keys that its format has for
            them; empty where they have the same names.
        homepage: The page that tells of it.
        files: Returns the files.
        remote: What to download. Nothing is ever downloaded by a run.
        unavailable: Why it can neither be read nor downloaded.
    """

    name: str
    summary: str
    source: str
    licence: str = "unknown"
    size: int | None = None
    format: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    homepage: str = ""
    files: Callable[[], Sequence[Path]] | None = None
    remote: tuple[Remote, ...] = ()
    unavailable: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.files, self.remote, self.unavailable))) != 1:
            raise PluginError(f"the data set {self.name!r} must have one of files, remote and unavailable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that a plugin adds to ``lmf``.

    Attributes:
        name: The name in ``lmf NAME``.
        summary: One line for ``lmf --help``.
        build: Returns a function that Typer can turn into a command, functions by their names for a group, or a
            Typer application. A parameter of a function whose type is a dataclass of ``lmf.option`` fields becomes a
            flag for each of them. It is called when the command is, so what it imports costs nothing before.
    """

    name: str
    summary: str
    build: Callable[[], Any]


def _check_options(kind: str, name: str, options: type) -> None:
    if not (isinstance(options, type) and is_dataclass(options)):
        raise PluginError(f"options of the {kind} {name!r} must be a dataclass of lmf.option fields")
    try:
        check_declaration(options)
    except PluginError as error:
        raise PluginError(f"options of the {kind} {name!r}: {error}") from None
    reserved = {"config", "help", "method", "objective"}  # flags and file keys that are no setting
    taken = {f.name for f in fields(options)} & ({f.name for f in fields(RunSettings)} | reserved)
    if taken:
        raise PluginError(f"option {min(taken)!r} of the {kind} {name!r} is already a setting of every run")
