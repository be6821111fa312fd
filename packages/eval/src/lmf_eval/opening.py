"""The model that is measured: a base, what a run of lmf gave out, or a base with an adapter of peft."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmf import LmfError
from lmf.generate.opening import Chatter, open_model
from lmf.rope import scaling_of
from lmf.runs import RUN_FILE, read_run

from .order import Order, opened_with


def open_for(order: Order) -> Chatter:
    """Open the model of an order, with its adapter merged.

    Raises:
        LmfError: It cannot be opened, or the adapter does not belong to it.
    """
    adapter, named = order.wanted.adapter, opened_with(order.evaluation)
    rope = scaling_of(order.evaluation.rope, order.evaluation.rope_factor)
    if adapter is None:
        return open_model(order.model, order.plugins, named, merged=True, rope=rope)
    if (adapter / RUN_FILE).exists():
        base = read_run(adapter)["settings"]["model"]
        if base != order.model:
            raise LmfError(f"--adapter {adapter} was trained on {base}, not on {order.model}; give that as MODEL.")
        return open_model(str(adapter), order.plugins, named, merged=True, rope=rope)
    try:
        from peft import PeftModel
    except ImportError:
        raise LmfError(f"--adapter {adapter} needs the package peft: pip install lmf-lora") from None
    chatter = open_model(order.model, order.plugins, named, rope=rope)
    model: Any = chatter.model
    try:
        merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (ValueError, KeyError, RuntimeError, OSError, TypeError) as error:
        raise LmfError(f"--adapter {adapter} cannot be put on {order.model}: {error}") from None
    return replace(chatter, model=merged.eval())
