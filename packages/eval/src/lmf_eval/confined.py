"""Runs one program under limits: the script that ``lmf_eval.code`` starts, with nothing of lmf in it.

It is given the program's file, the number of an open file that holds a token, seconds of processor time, and the
process that started it. Once the program has come to its end, it reads the token and writes it again behind the first;
else it writes why not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

MEMORY = 2 << 30  # bytes of address space for each process
FILE = 16 << 20  # bytes for each file, and of all together in namespaces of its own
PROCESSES, SHARED_PROCESSES = 64, 4096  # where only the program's count, and where all of the user do
NOBODY = 65534

# From Linux's headers sched.h, prctl.h, capability.h, fcntl.h and mount.h
NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x00020000  # user, network, pid, ipc, mount
PARENT_DEATH_SIGNAL, CHILD_SUBREAPER, NO_NEW_PRIVILEGES = 1, 36, 38
CAPABILITY_VERSION = 0x20080522
MOUNT_SETATTR, HERE, RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
NO_SUID_NO_DEVICES = 2 | 4


def main(program: str, channel: int, seconds: int, parent: int) -> None:
    """Run a program, and write to the channel how it ended."""
    os.set_inheritable(channel, False)
    length = os.fstat(channel).st_size
    counted = sys.platform == "linux" and confine(parent)
    limit("RLIMIT_CPU", seconds, seconds + 1)
    limit("RLIMIT_AS", MEMORY)
    limit("RLIMIT_FSIZE", FILE)
    limit("RLIMIT_NOFILE", 64)
    limit("RLIMIT_CORE", 0)
    limit("RLIMIT_NPROC", PROCESSES if counted else SHARED_PROCESSES)
    sys.argv = [program]
    try:
        runpy.run_path(program, run_name="program")
        said = os.pread(channel, length, 0)
    except BaseException as error:  # SystemExit, too: who leaves early has not passed
        said = reason(error, program).encode(errors="replace")
    os.pwrite(channel, said, length)
    os._exit(0)  # waits for none of the program's threads


def limit(name: str, soft: int, hard: int | None = None) -> None:
    """Lower a limit of this process, where the system has it."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        kind = getattr(resource, name)
        most = resource.getrlimit(kind)[1]
        most = sys.maxsize if most == resource.RLIM_INFINITY else most
        resource.setrlimit(kind, (min(soft, most), min(hard or soft, most)))


def reason(error: BaseException, program: str) -> str:
    """Return what an exception says and where in the program it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == program]
    where = f"line {lines[-1]}: " if lines else ""
    return where + traceback.format_exception_only(error)[-1].strip()[:300]


def confine(parent: int) -> bool:
    """Give up what the program needs not, as far as Linux permits.

    Returns:
        Whether a limit of processes counts only the program's. Root's are never counted, so root becomes nobody there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    die_with_parent(libc)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)
    root = os.getuid() == 0
    if root:
        with contextlib.suppress(OSError):
            os.setresuid(NOBODY, 0, 0)  # files still belong to whom they belonged
    alone = separate(libc)
    if not alone:
        watch(libc)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    version, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    libc.capset(version, none)
    return alone or (root and os.getuid() != 0)


def die_with_parent(libc: ctypes.CDLL) -> None:
    """Let this process be killed when its parent ends."""
    libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)


def separate(libc: ctypes.CDLL) -> bool:
    """Enter namespaces without a network, with no process but the program's and no writable file but in here.

    Returns:
        Whether the system permitted them. What it does not permit in them is left out.
    """
    user, group, here = os.geteuid(), os.getegid(), Path.cwd()
    if libc.unshare(NEW_NAMESPACES):
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user or NOBODY} {user} 1"),
        ("gid_map", f"{group or NOBODY} {group} 1"),
    ):
        with contextlib.suppress(OSError):
            Path("/proc/self", name).write_text(text)
    for _ in range(2):  # the first ends all others with it, but no signal of its own ends it: so the second runs
        if child := os.fork():
            end_as(os.waitpid(child, 0)[1])
        die_with_parent(libc)
    read_only = (ctypes.c_uint64 * 4)(READ_ONLY)
    libc.syscall(MOUNT_SETATTR, HERE, b"/", RECURSIVE, ctypes.byref(read_only), ctypes.sizeof(read_only))
    libc.mount(b"tmpfs", os.fsencode(here), b"tmpfs", NO_SUID_NO_DEVICES, f"size={FILE}".encode())
    os.chdir(here)
    return True


def watch(libc: ctypes.CDLL) -> None:
    """Go on in a child, and end all that the program leaves, also what has left its group."""
    libc.prctl(CHILD_SUBREAPER, 1)
    child = os.fork()
    if not child:
        die_with_parent(libc)
        return
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    status = os.waitpid(child, 0)[1]
    left = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(OSError):  # none is left, or the system does not list them
        while True:
            for number in left.read_text().split():
                os.kill(int(number), signal.SIGKILL)
            os.waitpid(-1, 0)
    end_as(status)


def end_as(status: int) -> NoReturn:
    """End as a child has ended."""
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
