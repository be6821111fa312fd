"""Compile kernels for GPUs that need not be there, and read what they take of one.

Triton compiles for any architecture on any machine; ``cuobjdump``, which comes with it, reads the result.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_TYPE = re.compile(r"\*?(bf16|fp16|fp32|fp64|[iu]8|[iu]16|i32|i64)(:16)?|tensordesc<.*>")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to compile a kernel.

    Attributes:
        name: What tells it from the others, as ``rms_norm forward bf16 4096``.
        kernel: A function of ``triton.jit`` or ``gluon.jit``.
        arguments: The type of each argument as Triton writes it (``*bf16``, ``fp32``, ``i32``; ``i32:16`` for a
            multiple of 16, as pointers are; ``tensordesc<...>``), or its value, where it is a ``tl.constexpr``.
        warps: Warps of a program.
        stages: Depth of the pipeline of loads.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, Any]
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True, slots=True)
class Resources:
    """What a compiled kernel takes.

    Attributes:
        registers: Of one thread.
        shared: Bytes of shared memory of one program.
        spills: Instructions that write registers to local memory, because there are not enough of them.
        matrix: Instructions of the tensor cores: ``HMMA``, on sm90 ``HGMMA``, on sm100 ``UTCHMMA``.
    """

    registers: int
    shared: int
    spills: int
    matrix: Mapping[str, int] = field(default_factory=dict)


def compiled(variant: Variant, architecture: int) -> Resources:
    """Compile a variant for an architecture, as 90, and read what it takes.

    Raises:
        triton.CompilationError: Triton cannot compile it.
    """
    built = build(variant, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        code = _read("-sass", file.name)
        usage = re.search(r"REG:(\d+)", _read("--dump-resource-usage", file.name))
    assert usage, "cuobjdump tells no registers"
    found = {name: len(re.findall(rf"\b{name}\b", code)) for name in ("HMMA", "HGMMA", "UTCHMMA")}
    return Resources(
        registers=int(usage[1]),
        shared=built.metadata.shared,
        spills=len(re.findall(r"\bSTL\b", code)),
        matrix={name: count for name, count in found.items() if count},
    )


def build(variant: Variant, architecture: int) -> Any:
    """Compile a variant for an architecture; ``asm`` of the result has the code in each of its forms.

    Raises:
        triton.CompilationError: Triton cannot compile it.
    """
    given, names = variant.arguments, variant.kernel.arg_names
    typed = {name: value for name, value in given.items() if _TYPE.fullmatch(str(value)) and isinstance(value, str)}
    types = {name: typed.get(name, "constexpr").removesuffix(":16") for name in names}
    values = {(names.index(name),): value for name, value in given.items() if name not in typed}
    aligned = [name for name, kind in typed.items() if kind.startswith("*") or kind.endswith(":16")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    kind = GluonASTSource if variant.kernel.is_gluon() else ASTSource
    source = kind(variant.kernel, types, constexprs=values, attrs=attributes)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def _read(option: str, file: str) -> str:
    return subprocess.run([TOOL, option, file], capture_output=True, text=True, check=True).stdout
