"""Install each distribution alone in a fresh environment, import it, and see that its plugin is usable.

Usage: isolation.py [PIP ARGUMENTS FOR TORCH]

A distribution gets lmf-core beside it and nothing else of ours, so a hidden dependency on
another package shows.
"""

import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECK = """
import importlib, sys
module, package = sys.argv[1:]
importlib.import_module(module)
from lmf import Plugins
ours = {p.package: p for p in Plugins().installed}
assert set(ours) <= {package, "lmf-core"}, set(ours)
assert not any(p.problem for p in ours.values()), ours
"""


def main() -> None:
    files = sorted([*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("packages/*/*/pyproject.toml")])
    for file in files:
        project = tomllib.loads(file.read_text())["project"]
        name = project["name"]
        module = "lmf" if name == "lmf-core" else name.replace("-", "_")
        with tempfile.TemporaryDirectory() as folder:
            venv.create(folder, with_pip=True)
            python = f"{folder}/bin/python"
            if any("[torch]" in need for need in project["dependencies"]):
                subprocess.run([python, ROOT / "scripts/install_torch.py", *sys.argv[1:]], check=True)
            install = [python, "-m", "pip", "install", "--quiet", str(ROOT / "packages/core"), str(file.parent)]
            subprocess.run(install, check=True)
            subprocess.run([python, "-c", CHECK, module, name], check=True, cwd=folder)
        print(f"{name}: imports alone, its plugin is usable", flush=True)


if __name__ == "__main__":
    main()
