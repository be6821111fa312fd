"""What all tests share: an environment that reaches no network, and real third-party plugins."""

import os
from pathlib import Path

import pytest
from distributions import pip_install

ROOT = Path(__file__).parents[1]

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LMF_CACHE": str(ROOT / ".cache")}
os.environ["TRITON_INTERPRET"] = "1"  # kernels that a test asks for run on the CPU; Triton is not imported yet
for variable in ("LMF_PLUGINS", "LMF_DISABLE_PLUGINS", "LMF_TRACE"):  # what the caller set must not decide a test
    os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def installed_plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the plugins of ``tests/plugins`` are installed."""
    folders = sorted(folder.parent for folder in (ROOT / "tests/plugins").glob("*/pyproject.toml"))
    return pip_install(tmp_path_factory.mktemp("site"), *folders)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with its tokenizer, as a folder that ``--model`` takes."""
    from lmf.testing import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
