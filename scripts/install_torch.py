"""Install PyTorch into this environment, but never gigabytes of CUDA by accident.

Usage: install_torch.py [PIP ARGUMENTS]

With arguments they are what pip installs. Without, it is the version below, unless pip would
pick a CUDA build on a machine without an NVIDIA GPU: then nothing is installed, and the
message says what to write instead.
"""

import importlib.util
import json
import shutil
import subprocess
import sys

TESTED = "torch==2.13.0"


def pip(*arguments: str) -> str:
    """Run pip in this environment and return what it prints."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    wanted = sys.argv[1:]
    if wanted:
        pip(*wanted)
    elif importlib.util.find_spec("torch") is None:
        report = json.loads(pip("--dry-run", "--report", "-", TESTED))
        names = [item["metadata"]["name"] for item in report["install"]]
        cuda = [name for name in names if name.startswith(("nvidia-", "cuda-")) or name == "triton"]
        if cuda and not shutil.which("nvidia-smi"):
            sys.exit(
                f"pip would install the CUDA build of {TESTED} ({len(cuda)} packages, gigabytes), "
                "but this machine has no NVIDIA GPU.\n"
                f'The CPU build: make install TORCH="{TESTED} --index-url URL", with the CPU index of pytorch.org;\n'
                f'the CUDA build all the same: make install TORCH="{TESTED}"'
            )
        pip(TESTED)


if __name__ == "__main__":
    main()
