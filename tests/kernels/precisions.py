"""How far kernels may be from their definitions in float64: relative errors, as norms."""

import torch

ALLOWED = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
