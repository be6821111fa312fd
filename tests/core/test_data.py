"""Files become records, or one error that names every problem and its line."""

import gzip
import hashlib
import json
import random
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lmf import DataFormat, DataSet, Objective, Plugins, Record, hookimpl
from lmf.data import read
from lmf.errors import DataError, PluginError
from lmf.template import Message

GOOD = b'{"input": "Hi", "output": "Hello!"}'
BAD = b'{"input": "Hi", "output": null}'
CAUSE = "output is null; it must be a text"
SAID = (Message("user", "Hi"), Message("assistant", "Hello!"))


def plugin(hook, *items):
    """A module that provides some things by one hook."""
    module = ModuleType("stub")

    def provide():
        return items

    setattr(module, hook, hookimpl(provide, specname=hook))
    return module


@pytest.fixture
def plugins():
    """The core alone, with two objectives that stand for those of lmf-sft."""
    found = Plugins(only=())
    options = type(found.installed[0])  # any dataclass
    for name, kind in (("train", "conversation"), ("pretrain", "text")):
        objective = Objective(name=name, summary="", data=kind, options=options, build=lambda options: None)
        found.register(f"lmf-{name}", plugin("lmf_objectives", objective))
    return found
