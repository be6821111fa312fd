"""The ``lmf`` command: assembled from whatever is installed."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from lmf import LmfError, Plugins, cgroups
from lmf.parallel.words import tell


def main() -> None:
    """Run the command line."""
    from .app import build

    sys.stdout = sys.stdout or io.StringIO()  # there is none where it was closed, as in `lmf plugins >&-`
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter ends no run
    _limit_threads()
    _quiet_deepspeed()
    if "LOCAL_RANK" in os.environ:  # the launcher of deepspeed gives it as an argument, too
        sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    try:
        try:
            build(Plugins())()
        finally:
            sys.stdout.flush()  # when Python ends it would be too late to notice a closed pipe
    except LmfError as error:
        print(f"error: {error}", file=sys.stderr)
        tell(f"error: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of our output went away, as in `lmf plugins | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


ACCELERATORS = ("nvidia*", "kfd", "dxg", "dri", "davinci*", "accel*")  # devices that DeepSpeed may look for


def _quiet_deepspeed() -> None:
    """Tell DeepSpeed what it would find out by itself, and print where replies are printed: that there is no GPU."""
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in ACCELERATORS):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _limit_threads() -> None:
    """Have no more threads than there is time for: torch starts one for each core that it sees, in a container too."""
    cores = cgroups.cores()
    if cores and cores < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
