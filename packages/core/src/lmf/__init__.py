"""The contracts of lmf: what a plugin describes and how the parts find it."""

from .config import option
from .conversation import Conversation, Message, Preference, Ranking, Record, ToolCall, Unpaired
from .errors import ConfigError, DataError, LmfError, PluginError, UnknownName
from .evaluate.task import Chosen, EvalTask, Likelihood, Metric, Problem, Written
from .hookspecs import hookimpl
from .plugins import API_VERSION, Plugins
from .settings import Evaluation, Opening, RunSettings, Sampling
from .specs import (
    Checkpoint,
    Command,
    Criterion,
    DataFormat,
    DataSet,
    Kernel,
    ModelSpec,
    Objective,
    Optimizer,
    Remote,
    Tuner,
    TuningMethod,
)
from .templates.jinja import JinjaTemplate
from .templates.template import Piece, Template

__all__ = [
    "API_VERSION",
    "Checkpoint",
    "Chosen",
    "Command",
    "ConfigError",
    "Conversation",
    "Criterion",
    "DataError",
    "DataFormat",
    "DataSet",
    "EvalTask",
    "Evaluation",
    "JinjaTemplate",
    "Kernel",
    "Likelihood",
    "LmfError",
    "Message",
    "Metric",
    "ModelSpec",
    "Objective",
    "Opening",
    "Optimizer",
    "Piece",
    "PluginError",
    "Plugins",
    "Preference",
    "Problem",
    "Ranking",
    "Record",
    "Remote",
    "RunSettings",
    "Sampling",
    "Template",
    "ToolCall",
    "Tuner",
    "TuningMethod",
    "UnknownName",
    "Unpaired",
    "Written",
    "hookimpl",
    "option",
]
