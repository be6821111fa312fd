"""litgpt with a constant learning rate and the records in their order, for which it has no settings.

Its own schedule starts at zero and falls to zero, so that its losses would compare with nobody's.
Everything else is litgpt's command line.
"""

# pyright: reportMissingImports=false
from typing import Any

import torch
from litgpt.__main__ import main
from litgpt.data import json_data
from litgpt.finetune import full, lora


def steady(optimizer: torch.optim.Optimizer, **_: Any) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def in_order(*arguments: Any, **settings: Any) -> Any:
    return torch.utils.data.DataLoader(*arguments, **settings | {"shuffle": False})


full.get_lr_scheduler = lora.get_lr_scheduler = steady
json_data.DataLoader = in_order
main()
