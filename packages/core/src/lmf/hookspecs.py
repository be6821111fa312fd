"""Everything a plugin may contribute, on one page.

A plugin is a module that an entry point of the group ``lmf.v1`` names. It defines any of
these functions, decorated with ``lmf.hookimpl``. Each takes nothing, is called once when
the plugins are loaded, and returns descriptions (``specs.py``) of the one kind that its
signature names. It must not import torch: listing plugins has to stay fast. A hook that
raises makes its plugin unusable, with the reason in ``lmf plugins``, and no other.
"""

# pyright: reportReturnType=false
# (a specification has a signature and no body)

from collections.abc import Iterable

import pluggy

from .evaluate.task import EvalTask, Metric
from .specs import (
    Command,
    DataFormat,
    DataSet,
    Kernel,
    ModelSpec,
    Objective,
    Optimizer,
    TuningMethod,
)
from .templates.jinja import AnyTemplate

hookspec = pluggy.HookspecMarker("lmf")
hookimpl = pluggy.HookimplMarker("lmf")


@hookspec
def lmf_models() -> Iterable[ModelSpec]:
    """Families of models: their layers, their template, where adapters attach, named checkpoints."""


@hookspec
def lmf_templates() -> Iterable[AnyTemplate]:
    """Conversation templates: each becomes a choice of ``--template``."""


@hookspec
def lmf_objectives() -> Iterable[Objective]:
    """Objectives, what is learned: each becomes ``lmf NAME METHOD``."""


@hookspec
def lmf_methods() -> Iterable[TuningMethod]:
    """Tuning methods, which parameters learn: each becomes ``lmf OBJECTIVE NAME``."""


@hookspec
def lmf_optimizers() -> Iterable[Optimizer]:
    """Optimizers: each becomes a choice of ``--optimizer``."""


@hookspec
def lmf_kernels() -> Iterable[Kernel]:
    """Faster parts of models: each becomes a choice of ``--kernels``, and of ``--attention`` if it is one."""


@hookspec
def lmf_formats() -> Iterable[DataFormat]:
    """Shapes that data records come in; the reader finds the one that matches."""


@hookspec
def lmf_datasets() -> Iterable[DataSet]:
    """Data that have a name: each becomes a choice of ``--data``."""


@hookspec
def lmf_tasks() -> Iterable[EvalTask]:
    """Benchmarks: each becomes a choice of ``lmf eval --task``."""


@hookspec
def lmf_metrics() -> Iterable[Metric]:
    """Figures that benchmarks written as TOML files may name."""


@hookspec
def lmf_commands() -> Iterable[Command]:
    """Commands: each becomes ``lmf NAME``."""
