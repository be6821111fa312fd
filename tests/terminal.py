"""The command line as tests use it: inside the process of the test, or in a fresh one."""

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmf_cli
import pytest

HEAVY = ("torch", "transformers", "accelerate", "peft", "numpy", "safetensors", "tokenizers", "matplotlib")
RUNNING = ("encoding", "models", "generate", "training")  # modules and packages of lmf


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


def lmf(*args: str) -> Done:
    """Run ``lmf`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["lmf", *args])
        with pytest.raises(SystemExit) as ended:
            lmf_cli.main()
    return Done(ended.value.code or 0, out.getvalue(), err.getvalue())


def lmf_without_torch(*args: str) -> Done:
    """Run ``lmf`` in this process, where nothing that takes seconds to import can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        heavy = [name for name in sys.modules if name.partition(".")[0] in HEAVY]
        for name in (*heavy, *HEAVY, *(f"lmf.{module}" for module in RUNNING)):
            patch.setitem(sys.modules, name, None)
        return lmf(*args)


def fresh(
    *args: str, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m lmf_cli`` in a fresh process."""
    command = [sys.executable, "-m", "lmf_cli", *args]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True, text=True
    )


BATCH = """
import contextlib, io, json, sys
from pathlib import Path
import lmf_cli
from lmf.testing import tiny_checkpoint

if not Path("model").exists():
    tiny_checkpoint(Path("model"))
done = []
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["lmf", *line]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            lmf_cli.main()
    except SystemExit as ended:
        done.append([ended.code or 0, out.getvalue(), err.getvalue()])
json.dump(done, sys.stdout)
"""


def batch(folder: Path, lines: Iterable[Sequence[str]]) -> list[Done]:
    """Run many commands in one fresh process, which loads torch once, in a folder with a tiny model."""
    command = [sys.executable, "-c", BATCH]
    done = subprocess.run(command, input=json.dumps([*lines]), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Done(*row) for row in json.loads(done.stdout)]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: the contents of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def hollow_model(folder: Path, **config: object) -> Path:
    """Write a folder that looks like a model until somebody loads it: a plan goes no further."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (folder / "tokenizer.json").write_text('{"model": {}}')
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return folder


def talk(question: str = "Ping?", answer: str = "Pong!") -> str:
    """One line of data."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def distribution(site: Path, name: str, entry_points: str, **files: str) -> dict[str, str]:
    """Write an installed distribution; return an environment in which it is found."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for file, text in files.items():
        (site / f"{file}.py").write_text(text)
    return {"PYTHONPATH": str(site)}
