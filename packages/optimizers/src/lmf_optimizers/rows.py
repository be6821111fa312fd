"""AdamW, exact, without state for rows that never had a gradient.

The rows of the input embeddings are tokens, and most runs see a part of the vocabulary. A row that never had a
gradient has moments of zero and an update of zero, so nothing is lost without them. Which matrices these are
shows in their gradients: no names are needed.

Shapes: V is the number of rows of a matrix, D their width, R the number of rows that ever had a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lmf import LmfError
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import AdamW, adamw

ROWS = "rows"  # the key in the state of a matrix that is kept by rows: their numbers, (R,)
MOMENTS = ("exp_avg", "exp_avg_sq")
WHOLE = 0.9  # the share of touched rows from which a matrix is kept whole, for speed
CHUNK = 2**20  # numbers at a time: enough to fill a device, and little memory
FUSED = {"cpu", "cuda", "mps", "xpu"}  # devices for which torch has a fused AdamW


class AdamWRows(AdamW):
    """torch's AdamW, fused where there is such a kernel, with the moments of some matrices by rows.

    Such a matrix has ``exp_avg`` and ``exp_avg_sq`` of shape (R, D), in the order in which rows were touched.
    Its gradient may be dense or sparse (``nn.Embedding(sparse=True)``).
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float):
        if any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"]):
            raise LmfError(
                "--optimizer adamw-rows cannot step weights that FSDP2 has sharded: it would need to know which rows "
                "each process holds. Use --optimizer adamw."
            )
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        super().__init__(groups, betas=betas, eps=eps, fused=devices <= FUSED)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step.

        Raises:
            LmfError: It is the first one, and no matrix has rows without a gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        first = not self.state and all(p.grad is not None for p in trained)  # not one of many, in the backward pass
        apart = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if self._by_rows(p)]
        if first and not apart and not self._forecast():
            raise LmfError(
                "--optimizer adamw-rows would save nothing: every row of every trained matrix has a gradient. So it is "
                "where the output head is the input embeddings, or where these are frozen. Use --optimizer adamw."
            )
        for parameter, _, _ in apart:
            parameter.grad = None
        super().step()
        for parameter, grad, group in apart:
            assert grad is not None
            parameter.grad = grad
            self._step_rows(parameter, grad, group)
        return loss

    def _forecast(self) -> bool:
        return any(isinstance(p.grad, FakeTensor) for group in self.param_groups for p in group["params"])

    def _by_rows(self, parameter: nn.Parameter) -> bool:
        """Tell whether a matrix is kept by rows, after room has been made for those that are new."""
        grad, state = parameter.grad, self.state.get(parameter)
        if grad is None or parameter.ndim != 2 or isinstance(grad, FakeTensor):
            return False  # what has no numbers is a forecast of memory, and nobody knows the rows: all, at most
        if state and ROWS not in state:  # kept whole
            parameter.grad = _dense(grad)
            return False
        if grad.is_sparse:
            parameter.grad = grad = grad.coalesce()
        state = state or self._begun(parameter)
        touched = _touched(grad)
        touched[state[ROWS]] = False
        new = touched.nonzero().squeeze(1)
        if len(state[ROWS]) + len(new) > WHOLE * len(parameter):
            rows = state.pop(ROWS)
            for key in MOMENTS:
                state[key] = torch.zeros_like(parameter).index_copy_(0, rows, state[key])
            parameter.grad = _dense(grad)
            return False
        if len(new):
            state[ROWS] = torch.cat([state[ROWS], new])
            for key in MOMENTS:
                state[key] = torch.cat([state[key], parameter.new_zeros(len(new), parameter.shape[1])])
        return True

    def _begun(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Return the state of a matrix of which no row was touched."""
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device if self.defaults["fused"] else "cpu")  # as torch has it
        state[ROWS] = torch.zeros(0, dtype=torch.int64, device=parameter.device)
        for key in MOMENTS:
            state[key] = parameter.new_zeros(0, parameter.shape[1])
        return state

    def _step_rows(self, parameter: nn.Parameter, grad: torch.Tensor, group: dict[str, Any]) -> None:
        """Step the rows that have moments, and decay the others."""
        state = self.state[parameter]
        rows, before = state[ROWS], state["step"].clone()
        size = max(1, CHUNK // parameter.shape[1])
        slots = None
        if grad.is_sparse:  # where the values of a row are; behind the last for a row without any
            values = torch.cat([grad.values(), grad.values().new_zeros(1, parameter.shape[1])])
            slots = torch.full((len(parameter),), len(values) - 1, device=grad.device)
            slots[grad.indices()[0]] = torch.arange(len(values) - 1, device=grad.device)
            grad = values
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            weight = parameter[part]
            moments = [state[key][start : start + size] for key in MOMENTS]
            self._kernel(weight, grad[part if slots is None else slots[part]], moments, before.clone(), group)
            parameter[part] = weight
        state["step"] += 1
        if group["weight_decay"]:
            untouched = torch.ones(len(parameter), dtype=torch.bool, device=parameter.device)
            untouched[rows] = False
            zeros = [parameter.new_zeros(size, parameter.shape[1]) for _ in range(3)]  # and zeros they stay
            for part in untouched.nonzero().squeeze(1).split(size):
                weight = parameter[part]
                grad, *moments = (zero[: len(part)] for zero in zeros)
                self._kernel(weight, grad, moments, before.clone(), group)
                parameter[part] = weight

    def _kernel(
        self,
        weight: torch.Tensor,
        grad: torch.Tensor,
        moments: Sequence[torch.Tensor],
        step: torch.Tensor,
        group: dict[str, Any],
    ) -> None:
        """Step some rows in place: the kernel that torch takes for whole tensors."""
        adamw(
            [weight],
            [grad],
            [moments[0]],
            [moments[1]],
            [],
            [step],
            foreach=False if not group["fused"] else None,
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _touched(grad: torch.Tensor) -> torch.Tensor:
    """Return which rows of a matrix have a gradient that is not zero, (V,); all that a sparse one names."""
    if not grad.is_sparse:
        return grad.any(dim=1)
    touched = torch.zeros(len(grad), dtype=torch.bool, device=grad.device)
    touched[grad.indices()[0]] = True
    return touched


def _dense(grad: torch.Tensor) -> torch.Tensor:
    return grad.to_dense() if grad.is_sparse else grad
