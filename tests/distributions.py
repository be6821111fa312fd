"""Installs distributions for a test, as a user's pip would."""

import os
import subprocess
import sys
from pathlib import Path


def pip_install(target: Path, *folders: Path) -> dict[str, str]:
    """Install distributions into a folder, without a network.

    Returns:
        An environment for subprocesses in which they are found.
    """
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"pip and hatchling are needed to install the test plugins:\n{done.stderr}"
    path = [str(target), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}
