"""The contracts of lmf: what a plugin describes and how the parts find it."""

from .config import option
from .errors import ConfigError, DataError, LmfError, PluginError, UnknownName
from .hookspecs import hookimpl
from .plugins import API_VERSION, Plugins
from .settings import RunSettings
from .specs import (
    Checkpoint,
    Command,
    Conversation,
    Criterion,
    DataFormat,
    DataSet,
    EvalTask,
    Kernel,
    ModelSpec,
    Objective,
    Optimizer,
    Problem,
    Record,
    Tuner,
    TuningMethod,
)
from .template import Message, Piece, Template

__all__ = [
    "API_VERSION",
    "Checkpoint",
    "Command",
    "ConfigError",
    "Conversation",
    "Criterion",
    "DataError",
    "DataFormat",
    "DataSet",
    "EvalTask",
    "Kernel",
    "LmfError",
    "Message",
    "ModelSpec",
    "Objective",
    "Optimizer",
    "Piece",
    "PluginError",
    "Plugins",
    "Problem",
    "Record",
    "RunSettings",
    "Template",
    "Tuner",
    "TuningMethod",
    "UnknownName",
    "hookimpl",
    "option",
]
