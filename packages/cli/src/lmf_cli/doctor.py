"""``lmf doctor``: what commonly goes wrong on a machine, and the remedy."""

from __future__ import annotations

import ctypes.util
import dataclasses
import importlib.util
import json as jsonlib
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any, Literal

import typer
from lmf import Plugins
from lmf.report import size

from .listings import Json

LEAST = {"torch": (2, 10), "transformers": (5, 10), "accelerate": (1, 10), "safetensors": (0, 5)}
EXTRAS = ("peft", "deepspeed", "triton", "flash-attn", "bitsandbytes")  # told if they are there
PORT = 29500  # where torchrun and accelerate meet by default
FEW, SOME = 2**30, 20 * 2**30  # bytes of a disk: too few for anything, and too few for large models
SHM = Path("/dev/shm")
SHARED = 2**30  # bytes of shared memory that NCCL wants for several GPUs


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    Attributes:
        state: ``bad`` breaks something; a ``note`` is good to know, or breaks what not everybody needs.
        text: What it is.
        remedy: What to do about it.
    """

    state: Literal["ok", "note", "bad"]
    text: str
    remedy: str = ""


def doctor(plugins: Plugins) -> Callable[..., None]:
    """Return the command ``lmf doctor``."""

    def run(json: Json = False) -> None:
        findings = list(examine(plugins))
        if json:
            print(jsonlib.dumps([{"ok": f.state != "bad", **dataclasses.asdict(f)} for f in findings], indent=2))
        else:
            for finding in findings:
                print(f"{'BAD' if finding.state == 'bad' else finding.state:4}  {finding.text}")
                if finding.remedy:
                    print(f"      -> {finding.remedy}")
        if any(finding.state == "bad" for finding in findings):
            raise typer.Exit(1)

    return run


def examine(plugins: Plugins) -> Iterator[Finding]:
    """Yield what was found, of the packages first."""
    new = sys.version_info >= (3, 11)
    text = f"Python {sys.version.split()[0]} (3.11 or newer)"
    yield Finding("ok", text) if new else Finding("bad", text, "make an environment of a newer Python")
    yield _script()
    yield from _packages()
    problems = plugins.problems()
    for problem in problems:
        yield Finding("bad", problem, "update or uninstall it; LMF_DISABLE_PLUGINS=NAME leaves it out")
    if not problems:
        yield Finding("ok", f"{len(plugins.installed)} plugins are usable")
    gpus: list[Any] = []
    torch = _torch()
    if isinstance(torch, Finding):
        yield torch
    elif torch:
        reason = ""
        try:
            gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        except RuntimeError as error:  # the driver is too old for this torch
            reason = f": {' '.join(str(error).split())[:200]}"
        yield from _devices(torch, gpus, reason)
    yield from _network()
    yield from _compilers(bool(gpus))
    yield from _disks()
    yield from _shared_memory(len(gpus))
    yield _hub()


# What is installed


def _script() -> Finding:
    """Whether the command ``lmf`` is this one: other distributions install a script of that name too."""
    entry = re.compile(r"^\[console_scripts\]$[^\[]*^lmf\s*=", re.M)
    owners = {d.name or "?" for d in distributions() if entry.search(d.read_text("entry_points.txt") or "")}
    others = ", ".join(sorted(owners - {"lmf-cli"}))
    script = shutil.which("lmf")
    if others:
        text = f"{others} also installs a script named lmf; whichever came last owns it"
        return Finding("bad", text, "use python -m lmf_cli, or separate environments")
    if script and Path(script).parent != Path(sys.executable).parent:
        text = f"the lmf on PATH is {script}, not that of {sys.executable}"
        return Finding("bad", text, "use python -m lmf_cli, or activate the environment")
    return Finding("ok", "the script lmf is ours")


def _packages() -> Iterator[Finding]:
    for package, least in LEAST.items():
        need = ".".join(map(str, least))
        try:
            have = version(package)
        except PackageNotFoundError:
            yield Finding("bad", f"{package} is not installed", "pip install 'lmf-core[torch]'")
            continue
        numbers = tuple(int(part) for part in re.findall(r"\d+", have)[:2])
        old = numbers < least
        remedy = f"pip install --upgrade '{package}>={need}'" if old else ""
        yield Finding("bad" if old else "ok", f"{package} {have} ({need} or newer)", remedy)
    found = []
    for package in EXTRAS:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    if found:
        yield Finding("ok", f"besides: {', '.join(found)}")


def _torch() -> Any:
    """Return torch, a finding if it cannot be imported, or None if it is not there."""
    if not importlib.util.find_spec("torch"):
        return None
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of CUDA is missing or does not fit
        text = f"torch cannot be imported: {' '.join(str(error).split())}"
        return Finding("bad", text, "install a build of torch that fits this machine: https://pytorch.org")
    return torch


# Devices, and how they reach one another


def _devices(torch: Any, gpus: Sequence[Any], reason: str = "") -> Iterator[Finding]:
    if gpus:
        for number, gpu in enumerate(gpus):
            yield Finding("ok", f"GPU {number}: {gpu.name}, {size(gpu.total_memory)}")
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            yield Finding("note", "this GPU does not compute in bfloat16", "runs use float32: twice the memory")
    else:
        yield Finding("ok", f"devices: CPU with {torch.get_num_threads()} threads")
    if not gpus and (reason or any(Path("/dev").glob("nvidia[0-9]*"))):
        built = torch.version.cuda or "no CUDA"
        remedy = "install a build of torch for the CUDA of the driver (nvidia-smi): https://pytorch.org"
        text = f"there is an NVIDIA GPU, but torch {torch.__version__} ({built}) cannot use it{reason}"
        yield Finding("bad", text, remedy)
    pairs = [(a, b) for a in range(len(gpus)) for b in range(a)]
    apart = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
    if apart:
        names = ", ".join(f"{b}-{a}" for a, b in apart)
        text = f"GPUs that do not reach one another's memory: {names}; they exchange through main memory"
        yield Finding("note", text, "ddp sends least; fsdp and zero3 send weights in every pass")
    elif pairs:
        yield Finding("ok", f"all {len(gpus)} GPUs reach one another's memory")


def _network() -> Iterator[Finding]:
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    fast = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    text = f"network: {', '.join(names) or 'none'}" + (f"; InfiniBand: {', '.join(fast)}" if fast else "")
    yield Finding("ok", text)
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        remedy = f"add it to /etc/hosts: 127.0.0.1 {host}"
        text = f"the name of this machine, {host}, has no address; several machines may not meet"
        yield Finding("note", text, remedy)
    for port, what in ((0, "a free port"), (PORT, f"port {PORT}")):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if port:
                    text = f"{what} is in use ({error.strerror}); torchrun and accelerate meet there by default"
                    yield Finding("note", text, "lmf launch looks for a free one; give others --master-port")
                else:
                    text = f"no port can be opened here ({error.strerror}): several processes cannot meet"
                    yield Finding("bad", text, "allow connections to 127.0.0.1")
            else:
                yield Finding("ok", f"{what} can be opened")


def _compilers(gpu: bool) -> Iterator[Finding]:
    """Tell what DeepSpeed would need to build; what lmf uses of it needs a compiler for ``--offload nvme:`` alone."""
    if not importlib.util.find_spec("deepspeed"):
        return
    missing = [] if shutil.which("c++") else ["a C++ compiler"]
    missing += [] if shutil.which("ninja") else ["ninja"]
    missing += [] if ctypes.util.find_library("aio") else ["libaio"]
    if gpu and not (shutil.which("nvcc") or os.environ.get("CUDA_HOME")):
        missing.append("nvcc (CUDA_HOME)")
    if missing:
        text = f"DeepSpeed cannot build what --offload nvme:FOLDER needs, for want of {', '.join(missing)}"
        remedy = "apt install g++ libaio-dev; pip install ninja; where there is a GPU, CUDA's toolkit"
        yield Finding("note", text, remedy)
    else:
        yield Finding("ok", "DeepSpeed can build its parts (--offload nvme:FOLDER)")


# Room, and the network


def _disks() -> Iterator[Finding]:
    from lmf.sources import cache_folder

    for what, folder in (("this folder", Path()), ("the cache", cache_folder())):
        existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
        name = folder.absolute()
        if not os.access(existing, os.W_OK):
            remedy = "choose another --output" if what == "this folder" else "set LMF_CACHE to a folder of yours"
            yield Finding("bad" if what == "the cache" else "note", f"{what} {name} is not writable", remedy)
            continue
        free = shutil.disk_usage(existing).free
        remedy = "free some space, or choose another disk (--output, LMF_CACHE)" if free < SOME else ""
        state = "bad" if free < FEW else "note" if free < SOME else "ok"
        yield Finding(state, f"{what} {name} is writable, {size(free)} free", remedy)


def _shared_memory(gpus: int) -> Iterator[Finding]:
    if not SHM.is_dir():
        return
    room = shutil.disk_usage(SHM)
    if gpus > 1 and room.total < SHARED:
        text = f"shared memory ({SHM}) has {size(room.total)}: too little for NCCL between {gpus} GPUs"
        yield Finding("bad", text, "docker run --shm-size=8g, or --ipc=host")
    else:
        yield Finding("ok", f"shared memory ({SHM}): {size(room.free)} of {size(room.total)} free")


def _hub() -> Finding:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    offline = [name for name in names if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if offline:
        text = f"offline: {', '.join(offline)} is set; models and data come from files and caches alone"
        return Finding("note", text, f"unset {' '.join(offline)} to download what you name")
    where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return Finding("ok", f"online: models by hub names come from {where}; set HF_HUB_OFFLINE=1 to forbid it")
