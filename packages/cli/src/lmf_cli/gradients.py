"""``lmf profile gradients``: how much the data of a run would change each layer of the model."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

from .listings import table

if TYPE_CHECKING:
    from lmf.plan import Plan


def gradients(plan: Plan) -> None:
    """Print the norm of each layer's gradient: a table on standard error, a JSON list on standard output."""
    from lmf.models import quiet
    from lmf.training.gradients import measure  # torch is imported here, not for --help

    quiet()
    norms = measure(plan)
    with contextlib.redirect_stdout(sys.stderr):
        table(
            ["layer", "gradient norm", "share"],
            [[str(number), f"{norm:.4g}", f"{norm / sum(norms):.1%}"] for number, norm in enumerate(norms)],
        )
    print(json.dumps(norms))
