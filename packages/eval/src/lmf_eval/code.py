"""Running what a model wrote, and how many of its programs pass.

**This is no sandbox against an attacker.** A program runs as the user who runs lmf and can read what that user can
read. What is kept from it is meant for programs that are wrong, not for hostile ones:

- Always: it is another process, in a folder of its own, with no environment, no input, and output that goes nowhere.
  Its processor time, the memory of each of its processes, open files, and the size of each file that it writes are
  limited. All its processes are killed when it ends or its time is over; on macOS, those of its process group.
- On Linux, where users may have namespaces of their own: there is no network, every file outside its folder is
  read-only, its folder holds 16 MiB, it signals no other process, and has at most 64. Containers and some
  distributions forbid this. Then a network is there, and what the user may write and signal, it may, too.

What it cannot do by mistake is pass: it must come to the end of its text, so neither ``sys.exit(0)`` nor
``os._exit(0)`` before its tests helps. A program written to deceive could still find the way.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from lmf import Metric, Problem, Written
from lmf.errors import LmfError

SECONDS = 3.0  # as HumanEval's own harness grants
COMMON = "import collections, functools, hashlib, heapq, itertools, math, random, re, string, typing"


def passes(program: str, seconds: float = SECONDS) -> str | None:
    """Run a program to its end.

    Args:
        program: Its text, tests included. Its ``__name__`` is not ``__main__``.
        seconds: What it may use of processor time, rounded up to whole seconds. Of real time it may use three times
            as much and a second, so that a busy machine fails none.

    Returns:
        None if it came to its end, else why not.

    Raises:
        LmfError: Programs cannot be run on this system.
    """
    if os.name != "posix":
        raise LmfError("Running what a model wrote needs Linux or macOS; on Windows, use WSL.")
    token = secrets.token_hex().encode()
    with (
        tempfile.TemporaryDirectory(prefix="lmf-code-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as channel,
    ):
        here, file = Path(folder, "here"), Path(folder, "program.py")
        here.mkdir()
        file.write_bytes(program.encode(errors="surrogatepass"))
        channel.write(token)
        channel.flush()
        status = _run(file, here, channel.fileno(), seconds)
        said = os.pread(channel.fileno(), 2000, len(token))
    return None if said == token else said.decode(errors="replace") or _ended(status, seconds)


def _run(file: Path, here: Path, channel: int, seconds: float) -> int | None:
    """Run a program's file in a folder; return its exit status, None where its time was over."""
    script = Path(__file__).with_name("confined.py")
    process = subprocess.Popen(
        # -s, -P, -B: only installed modules are imported, and none is compiled to a file
        [sys.executable, "-s", "-P", "-B", script, file, *map(str, (channel, math.ceil(seconds), os.getpid()))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=here,
        env={"PYTHONHASHSEED": "0"},  # the order of sets is the same each time
        pass_fds=(channel,),
        start_new_session=True,
    )
    try:
        return process.wait(3 * seconds + 1)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.terminate()  # the script ends what the program has started
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: the latter, of a group of zombies
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ended(status: int | None, seconds: float) -> str:
    if status is None:
        return f"took more than {3 * seconds + 1:g} seconds"
    number = -status if status < 0 else status - 128
    if number == signal.SIGXCPU:
        return f"took more than {math.ceil(seconds)} seconds of processor time"
    if number in {*signal.Signals}:
        return f"was ended by {signal.Signals(number).name}"
    return f"ended before its end, with exit status {status}"


@lru_cache
def _check() -> None:
    """Raise LmfError where no program passes here, so that this is not taken for a model's failure."""
    if why := passes(COMMON, 20):
        raise LmfError(f"Programs cannot be run here: one that only imports common modules failed ({why}).")


@lru_cache(maxsize=4096)
def _passed(program: str, seconds: float) -> bool:
    return passes(program, seconds) is None


def with_tests(problem: Problem, reply: str) -> str:
    """Return the program of a HumanEval problem and a reply that goes on with its prompt.

    ``Problem.more`` has the prompt, the ``test``, which defines ``check``, and the ``entry_point``, which it takes.
    """
    more = problem.more
    return f"{more['prompt']}{reply}\n{more['test']}\ncheck({more['entry_point']})"


def pass_at(
    k: int, seconds: float = SECONDS, program: Callable[[Problem, str], str] = with_tests, workers: int | None = None
) -> Metric:
    """Return the chance that one of k programs passes: 1 - C(n-c, k) / C(n, k), for c of n (arXiv:2107.03374).

    A problem with fewer than k replies does not count.

    Args:
        k: How many programs.
        seconds: What each may use of processor time.
        program: Makes the program of a problem and a reply.
        workers: How many programs of a problem run at the same time; by default, one for each processor.
    """

    def measure(problem: Problem, written: Written) -> tuple[float, float]:
        replies = len(written.texts)
        if replies < k:
            return 0.0, 0.0
        _check()
        programs = [program(problem, text) for text in written.texts]
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            passed = sum(pool.map(lambda text: _passed(text, seconds), programs))
        return 1 - math.comb(replies - passed, k) / math.comb(replies, k), 1.0

    return Metric(name=f"pass@{k}", measure=measure)
