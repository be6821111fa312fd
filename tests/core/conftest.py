"""What the tests of data files are given."""

import sys
from pathlib import Path

import pytest
from datafiles import core_plugins

sys.path.append(str(Path(__file__).parents[1] / "cli"))  # where `terminal` is


@pytest.fixture
def plugins():
    """The core alone, with one objective for each of some kinds of data."""
    return core_plugins()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the current folder, which is empty, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
        return name

    return write
