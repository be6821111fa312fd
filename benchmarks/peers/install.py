"""Make the environments of the peers, each in a folder of its own, with the versions that were measured.

Usage: install.py [--peers FOLDER] [--torch "PIP ARGUMENTS"] [NAME ...]

NAME is the name of a list of requirements in this folder; all of them by default. Every
environment has the same PyTorch, which is installed first by scripts/install_torch.py;
--torch is what that script is given, for example "torch==2.13.0 --index-url URL".
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# LLaMA-Factory brings CUDA builds of these, which do not load beside a CPU build of PyTorch. It
# runs without torchvision; for torchaudio, which it imports in any case, an empty module will do.
BROKEN = ("torchvision", "torchaudio")


def install(name: str, folder: Path, torch: list[str]) -> None:
    """Make the environment ``folder``, and leave nothing if that fails."""
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip"]
    try:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, ROOT / "scripts" / "install_torch.py", *torch], check=True)
        frozen = folder / "torch.txt"
        listed = subprocess.run([*pip, "list", "--format=freeze"], check=True, stdout=subprocess.PIPE, text=True)
        frozen.write_text("".join(f"{line}\n" for line in listed.stdout.split() if line.startswith("torch==")))
        requirements = ["-r", str(HERE / f"{name}.txt"), "-c", str(frozen)]
        subprocess.run([*pip, "install", "--quiet", *requirements], check=True)
        if name == "llamafactory":
            subprocess.run([*pip, "uninstall", "--quiet", "--yes", *BROKEN], check=True)
            (site,) = folder.glob("lib/python3*/site-packages")
            (site / "torchaudio.py").write_text('"""Stands in for a build that would not load."""\n')
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def main() -> None:
    names = sorted(file.stem for file in HERE.glob("*.txt"))
    parser = argparse.ArgumentParser(description="Make the environments of the peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="folder for everything (.peers)")
    parser.add_argument("--torch", default="", help="what scripts/install_torch.py is given")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in names]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(names)}")
    for name in options.names or names:
        folder = options.peers / "venv" / name
        if (folder / ".installed").exists():
            print(f"{name}: is there", flush=True)
            continue
        print(f"{name}: installing into {folder}", flush=True)
        install(name, folder, options.torch.split())
        (folder / ".installed").touch()


if __name__ == "__main__":
    sys.exit(main())
