"""What the tests of data share: a good record and a bad one, small plugins, and the text of a refusal."""

from dataclasses import dataclass
from types import ModuleType

import pytest
from lmf import Conversation, DataError, DataSet, Message, Objective, Plugins, hookimpl
from lmf.data.reading import read

GOOD = b'{"input": "Hi", "output": "Hello!"}'
BAD = b'{"input": "Hi", "output": null}'
CAUSE = "output is null; it must be a text."
SAID = Conversation((Message("user", "Hi"), Message("assistant", "Hello!")))


@dataclass
class NoOptions:
    """The options of an objective that has none."""


def providing(hook, *items):
    """A module that provides some things by one hook."""
    module = ModuleType("stub")
    setattr(module, hook, hookimpl(lambda: items))
    return module


def objective(name, kind):
    return Objective(name=name, summary="", data=kind, options=NoOptions, build=lambda options: None)


def dataset(name, *files, **more):
    return DataSet(name=name, summary="", source="here", files=lambda: files, **more)


def core_plugins():
    """The core alone, with one objective for each of some kinds of data."""
    found = Plugins(only=())
    kinds = {"train": "conversation", "pretrain": "text", "dpo": "preference"}
    found.register("acme", providing("lmf_objectives", *(objective(name, kind) for name, kind in kinds.items())))
    return found


def refusal(plugins, *names, kind="conversation", **how):
    """The text with which data are refused; the exit code is that of bad data."""
    with pytest.raises(DataError) as caught:
        read(names, kind, plugins, **how)
    assert caught.value.exit_code == 4
    return str(caught.value)
