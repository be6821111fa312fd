"""A plugin that breaks when it is asked what it provides, after it gave half of it."""

from collections.abc import Iterator

import lmf


@lmf.hookimpl
def lmf_optimizers() -> Iterator[lmf.Optimizer]:
    yield lmf.Optimizer(name="acme-sgd", summary="Never usable.", build=lambda groups: None)
    raise OSError("the catalogue of optimizers is gone")
