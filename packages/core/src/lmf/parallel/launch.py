"""Starts the processes of a run, one for each device, on one machine or several: torch's elastic launcher."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import cgroups
from ..config import option
from ..errors import ConfigError, LmfError
from ..runs import LAUNCHED
from .words import FOLDER, LOST, last_words, told

LAST = 6  # lines of a process that ended that are shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Which processes are started."""

    devices: int | None = option(None, "Processes on this machine; by default one for each GPU, or one.", min=1)
    nodes: int = option(1, "Machines that take part; start lmf launch on each of them.", min=1)
    node_rank: int = option(0, "The number of this machine, from 0; machine 0 speaks and writes.", min=0)
    rendezvous: str | None = option(None, "HOST:PORT of machine 0, where they meet.")
    restarts: int = option(0, "How often processes that died are started again; they go on by --resume.", min=0)
    wait: int = option(300, "Seconds to wait for the other machines.", min=1)
    grace: int = option(30, "Seconds that processes have to save after a signal.", min=1)


def launch(arguments: Sequence[str], options: Launch) -> None:
    """Run ``lmf`` with arguments in several processes, and end when they have ended.

    Raises:
        ConfigError: The options contradict one another.
        LmfError: A process has died; the message has its last words.
        SystemExit: A process ended with an error that it has told, or by a signal.
    """
    check_launch(arguments, options)
    import torch
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what went wrong is told below

    gpus = torch.cuda.device_count()
    devices = options.devices or max(1, gpus)
    if gpus and devices > gpus:
        raise ConfigError(f"--devices {devices} is more than the {gpus} GPUs of this machine.")
    _set_environment(options, devices)
    first = options.node_rank * devices
    with tempfile.TemporaryDirectory(prefix="lmf-launch-") as folder:
        os.environ[FOLDER] = folder
        quiet = {rank: Std.ALL for rank in range(devices) if first + rank > 0}  # process 0 has the terminal
        several = options.nodes > 1
        config = LaunchConfig(
            min_nodes=options.nodes,
            max_nodes=options.nodes,
            nproc_per_node=devices,
            rdzv_backend="static" if several else "c10d",
            rdzv_endpoint=options.rendezvous or "127.0.0.1:0",
            rdzv_configs={"rank": options.node_rank, "timeout": options.wait},
            run_id="lmf",
            max_restarts=options.restarts,
            shutdown_timeout=options.grace,
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=quiet),
            local_addr=None if several else "127.0.0.1",
        )
        command = ["-m", "lmf_cli", *arguments]
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException as stopped:
            raise SystemExit(128 + stopped.sigval) from None
        except ChildFailedError as error:
            _tell(error, Path(folder), first)
        except (torch.distributed.DistError, TimeoutError) as error:
            raise LmfError(_not_met(options, error)) from None
        finally:
            del os.environ[FOLDER]  # it is for the processes


def check_launch(arguments: Sequence[str], options: Launch) -> None:
    """Refuse options that contradict one another.

    Raises:
        ConfigError: They do.
    """
    if not arguments:
        raise ConfigError("lmf launch needs the command to run: lmf launch --devices 2 -- train lora --data ...")
    if options.nodes > 1 and options.rendezvous is None:
        raise ConfigError(f"--nodes {options.nodes} needs --rendezvous HOST:PORT, the address of machine 0.")
    if options.node_rank >= options.nodes:
        raise ConfigError(f"--node-rank {options.node_rank}: with --nodes {options.nodes}, they are numbered from 0.")
    if options.rendezvous is not None:
        host, colon, port = options.rendezvous.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise ConfigError(f"--rendezvous {options.rendezvous} is no address; write HOST:PORT, like 10.0.0.1:29500.")
        if options.nodes == 1:
            raise ConfigError("--rendezvous is for several machines; give --nodes, too.")


def _set_environment(options: Launch, devices: int) -> None:
    there = f" --nodes {options.nodes} --node-rank 0 --rendezvous {options.rendezvous}" if options.nodes > 1 else ""
    os.environ[LAUNCHED] = f"lmf launch --devices {devices}{there} --"
    cores = cgroups.cores() or os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // devices)))
    if options.rendezvous and (name := _interface(options.rendezvous.rpartition(":")[0])):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)  # gloo would take the first one, which may be the loopback


def _interface(host: str) -> str | None:
    """Return the network interface that leads to a host, or that has its address; None if nobody can tell."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    found = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
                except OSError:
                    continue  # it has no address
                if socket.inet_ntoa(found[20:24]) == own:
                    return name
    except OSError:
        return None
    return None


def _not_met(options: Launch, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    if options.node_rank == 0:
        return (
            f"Only a part of the {options.nodes} machines came to {options.rendezvous} within {options.wait} s: "
            f"{reason}.\nStart lmf launch with the same --nodes and --rendezvous on every machine."
        )
    return (
        f"Nobody answers at {options.rendezvous} after {options.wait} s: {reason}.\n"
        "Start lmf launch on machine 0 (--node-rank 0), and check the address, the port and the firewall."
    )


def _tell(error: object, folder: Path, first: int) -> None:
    """Say which process ended first and how.

    Raises:
        LmfError: One has died.
        SystemExit: Process 0 ended with an error, which it has told.
    """
    failures: dict[int, Any] = getattr(error, "failures")  # noqa: B009
    stopped = (128 + signal.SIGTERM, -signal.SIGTERM)  # by us, because of another one
    causes = {rank: f for rank, f in sorted(failures.items()) if f.exitcode not in stopped} or failures
    causes = {rank: f for rank, f in causes.items() if f.exitcode < 0} or causes  # the others noticed that they died
    start = max((int(path.name.removeprefix("attempt_")) for path in folder.glob("lmf_*/attempt_*")), default=0)
    own = {rank: told(folder, rank, start) for rank in (0, *causes)}
    causes = {rank: f for rank, f in causes.items() if not own[rank].startswith(f"error: {LOST}")} or causes
    if 0 in causes and causes[0].exitcode > 0:  # it has the terminal
        raise SystemExit(causes[0].exitcode)
    lines = []
    for rank, failure in causes.items():
        code = failure.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines.append(f"Process {rank} (pid {failure.pid}) {how}; its last word: {last_words(folder, rank)}.")
        if code > 0 and own[rank]:  # an error of ours
            if own[rank] != own[0]:
                print(f"{own[rank]}\n(process {rank})", file=sys.stderr)
            raise SystemExit(code)
        lines += [f"  | {line}" for line in _log(folder, rank - first)[-LAST:]]
    raise LmfError("\n".join(lines))


def _log(folder: Path, local: int) -> list[str]:
    """Return what a process of this machine wrote to its error output; nothing of the one with the terminal."""
    files = sorted(folder.glob(f"lmf_*/attempt_*/{local}/stderr.log"))
    return files[-1].read_text(errors="replace").splitlines() if files else []
