"""The catalogue: public data sets by the names that LLM-Genie and LMFlow gave them."""

from __future__ import annotations

from lmf import DataSet, hookimpl

from . import dialogue, evaluation, instruction, preference, pretraining


@hookimpl
def lmf_datasets() -> list[DataSet]:
    modules = (instruction, dialogue, preference, pretraining, evaluation)
    return [dataset for module in modules for dataset in module.DATASETS]
