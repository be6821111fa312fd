"""A table of checks: cases and failures of each row. Its scripts have the folders of the tests among their modules."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version

from test_acceptance import failures


def measured(
    checks: Mapping[str, Callable[[], Iterator[str]]], rows: str | None, seed: int, packages: Sequence[str]
) -> int:
    """Do checks and print what came of each.

    Args:
        checks: By the name of the row; what stands before a comma is what to ask for. Each yields what is wrong with a
            case, or nothing.
        rows: The rows that are asked for, separated by commas; None for all.
        seed: Decides what is random.
        packages: Whose versions to print.

    Returns:
        The exit code: 1 if something is wrong.
    """
    asked = rows.split(",") if rows else [name.partition(",")[0] for name in checks]
    print(f"{date.today()}, Python {platform.python_version()}, {platform.machine()}, seed {seed}")
    print(", ".join(f"{name} {version(name)}" for name in packages) + "\n")
    print(f"{'row':16}{'cases':>10}{'failures':>10}{'seconds':>10}", flush=True)
    failed = 0
    for name, check in checks.items():
        if name.partition(",")[0] in asked:
            start = time.perf_counter()
            cases, wrong = failures(check())
            print(f"{name:16}{cases:10,}{len(wrong):10,}{time.perf_counter() - start:10.0f}", flush=True)
            for fault in wrong[:5]:
                print(f"  {fault[:1000]}", flush=True)
            failed += len(wrong)
    return 1 if failed else 0
