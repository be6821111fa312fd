"""``lmf doctor`` finds what commonly goes wrong, and says what to do about it."""

import json
import shutil
import socket
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lmf import Plugins
from lmf_cli import doctor
from lmf_cli.doctor import LEAST, Finding
from terminal import distribution, fresh, lmf_without_torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))


def texts(findings: Any, state: str = "bad") -> list[str]:
    """Return what was found that has a state; everything but what is well has a remedy."""
    found: list[Finding] = list(findings)
    assert all(bool(each.remedy) == (each.state != "ok") for each in found), found
    return [each.text for each in found if each.state == state]


def test_it_is_content_here(own_path):
    done = lmf_without_torch("doctor", "--json")
    findings = json.loads(done.out)
    assert done.code == 0, findings
    assert {"ok": True, "state": "ok", "text": "the script lmf is ours", "remedy": ""} in findings
    assert f"torch {version('torch')} (2.10 or newer)" in [each["text"] for each in findings]
    assert all(bool(each["remedy"]) == (each["state"] != "ok") for each in findings)
    lines = lmf_without_torch("doctor").out.splitlines()
    assert len([line for line in lines if not line.startswith("      -> ")]) == len(findings)
    for what in ("network: ", "a free port ", "port 29500 ", "this folder ", "the cache ", "offline: "):
        assert any(line[6:].startswith(what) for line in lines), what


def test_another_distribution_with_a_script_named_lmf(own_path, tmp_path):
    environment = distribution(tmp_path, "other-tool", "[console_scripts]\nlmf = other:main\n")
    done = fresh("doctor", "--json", environment=environment)
    assert (done.returncode, done.stderr) == (1, "")
    (bad,) = (finding for finding in json.loads(done.stdout) if not finding["ok"])
    assert bad["text"].startswith("other-tool also installs a script named lmf;")
    assert any(each["text"].startswith("devices: ") for each in json.loads(done.stdout))
    assert bad["remedy"] == "use python -m lmf_cli, or separate environments"


def test_an_lmf_of_another_python(tmp_path, monkeypatch):
    script = tmp_path / "lmf"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = lmf_without_torch("doctor")
    assert done.code == 1
    text = f"BAD   the lmf on PATH is {script}, not that of {sys.executable}\n      -> use python -m lmf_cli"
    assert text in done.out


def test_old_packages(monkeypatch):
    have = {"torch": "2.9.1+cpu", "transformers": "5.10.0.dev0", "accelerate": "1.10", "safetensors": "0.10"}
    monkeypatch.setattr(doctor, "version", lambda name: have.get(name, "1.0"))
    found = list(doctor._packages())
    assert texts(found) == ["torch 2.9.1+cpu (2.10 or newer)"]
    assert [each.remedy for each in found if each.state == "bad"] == ["pip install --upgrade 'torch>=2.10'"]


def test_it_asks_for_what_the_core_asks_for():
    needs = tomllib.loads((ROOT / "packages/core/pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, least in LEAST.items():
        assert any(need.startswith(f"{package}>={'.'.join(map(str, least))}") for need in needs["torch"])


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("LMF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert texts(doctor._disks()) == [f"the cache {tmp_path / 'cache'} is not writable"]


def test_a_disk_that_is_nearly_full(monkeypatch):
    for free, state in ((2**29, "bad"), (2**33, "note"), (2**40, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert len(texts(doctor._disks(), state)) == 2


def torch_with(gpus: int, reach: bool = True, bfloat16: bool = True) -> tuple[Any, list[Any]]:
    """Return what stands for a torch that sees GPUs, and these."""
    cuda = SimpleNamespace(
        is_bf16_supported=lambda including_emulation: bfloat16, can_device_access_peer=lambda a, b: reach
    )
    found = SimpleNamespace(cuda=cuda, get_num_threads=lambda: 2, __version__="2.13")
    found.version = SimpleNamespace(cuda=None)
    return found, [SimpleNamespace(name="H200", total_memory=139 * 2**30)] * gpus


def test_gpus_and_how_they_reach_one_another():
    assert texts(doctor._devices(*torch_with(2)), "ok") == [
        *("GPU 0: H200, 139.00 GiB", "GPU 1: H200, 139.00 GiB"),
        "all 2 GPUs reach one another's memory",
    ]
    (apart,) = texts(doctor._devices(*torch_with(2, reach=False)), "note")
    assert apart.startswith("GPUs that do not reach one another's memory: 0-1;")
    assert texts(doctor._devices(*torch_with(1, bfloat16=False)), "note") == ["this GPU does not compute in bfloat16"]


def test_a_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "nvidia0"]))
    (bad,) = texts(doctor._devices(*torch_with(0)))
    assert bad == "there is an NVIDIA GPU, but torch 2.13 (no CUDA) cannot use it"


def test_a_driver_that_is_too_old(own_path, monkeypatch):
    def fail(number: int) -> Any:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    torch, _ = torch_with(0)
    torch.cuda.device_count, torch.cuda.get_device_properties = lambda: 1, fail
    monkeypatch.setattr(doctor, "_torch", lambda: torch)
    (bad,) = texts(doctor.examine(Plugins()))
    assert bad.endswith("(no CUDA) cannot use it: The NVIDIA driver on your system is too old")


def test_ports_and_names(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        monkeypatch.setattr(doctor, "PORT", other.getsockname()[1])
        (used,) = texts(doctor._network(), "note")
    assert used.startswith(f"port {doctor.PORT} is in use")

    def unknown(*_: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(socket, "gethostname", lambda: "nowhere")
    assert "the name of this machine, nowhere, has no address; several machines may not meet" in texts(
        doctor._network(), "note"
    )


def test_what_deepspeed_would_build_with(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: None)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    (missing,) = texts(doctor._compilers(gpu=True), "note")
    assert "a C++ compiler, ninja, libaio, nvcc (CUDA_HOME)" in missing
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert not list(doctor._compilers(gpu=True))


def test_shared_memory_is_enough_for_several_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SHM", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**26, free=2**26))
    assert texts(doctor._shared_memory(2)) == [
        f"shared memory ({tmp_path}) has 64.0 MiB: too little for NCCL between 2 GPUs"
    ]
    assert texts(doctor._shared_memory(1), "ok")


def test_whether_names_of_the_hub_are_looked_up(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor._hub().state == "note" and doctor._hub().remedy == "unset HF_HUB_OFFLINE to download what you name"
    monkeypatch.setenv("HF_HUB_OFFLINE", "false")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert "https://mirror.example" in doctor._hub().text
