"""Kernels are tested on the CPU, in Triton's interpreter, which ``tests/conftest.py`` turns on."""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

create_dot = interpreter.InterpreterBuilder.create_dot


def wide(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """Give bfloat16 as float32; the interpreter keeps its bits as uint16 and would multiply these."""
    if handle.dtype.scalar == tl.bfloat16:
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    return handle


def create_wide_dot(self: interpreter.InterpreterBuilder, a: object, b: object, *rest: object) -> object:
    return create_dot(self, wide(a), wide(b), *rest)  # type: ignore[arg-type]


interpreter.InterpreterBuilder.create_dot = create_wide_dot  # type: ignore[method-assign]
