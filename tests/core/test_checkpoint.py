"""Checkpoints under faults: killed processes, full disks, damaged files. What was saved stays usable."""

import builtins
import errno
import io
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmf.parallel.pieces
import lmf.training.checkpoint
import numpy as np
import pytest
import torch
import transformers.modeling_utils
from lmf import LmfError
from lmf.errors import Interrupted
from lmf.parallel.pieces import restore, state_of
from lmf.testing import tiny_model
from lmf.training import checkpoint
from safetensors import SafetensorError
from tinyrun import At, Notes, cut_at, ended, fork, kill_at, run, same, sha256, stop_at, talks

SETTINGS = {"steps": 6, "batch_size": 4, "save_every": 2, "keep": 2}
FILES = [
    *("config.json", "generation_config.json", "manifest.json", "model.safetensors"),
    *("optimizer.safetensors", "random.safetensors", "state.json"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 12)


@pytest.fixture(scope="module")
def straight(tiny, data, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    return run(tiny, data, tmp_path_factory.mktemp("straight") / "out", **SETTINGS)


@pytest.fixture(scope="module")
def interrupted(tiny, data, tmp_path_factory) -> Path:
    """A run that was stopped after step 5, with checkpoints of the steps 4 and 5."""
    output = tmp_path_factory.mktemp("interrupted") / "out"
    with pytest.raises(Interrupted):
        run(tiny, data, output, report=stop_at(5), **SETTINGS)
    return output


@pytest.fixture
def stopped(interrupted, tmp_path) -> Path:
    """A copy of the interrupted run, to be damaged."""
    shutil.copytree(interrupted, tmp_path / "out")
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256(file) for file in folder.rglob("*") if file.is_file()}


def test_a_checkpoint_holds_the_model_and_what_goes_on_from_it(straight):
    folder = straight / "checkpoints/step-000006"
    assert sorted(file.name for file in folder.iterdir()) == FILES
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest) == [name for name in FILES if name != "manifest.json"]
    for name, entry in manifest.items():
        assert entry == {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}


def test_the_newest_checkpoints_and_the_best_one_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 999_999, 1_000_000):
        (tmp_path / "checkpoints" / checkpoint.name(step)).mkdir(parents=True)
    (tmp_path / "checkpoints/step-notes").mkdir()
    checkpoint.prune(tmp_path, 1_000_000, 2, best=3)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"step-000003", "step-999999", "step-1000000", "step-notes"}
    checkpoint.prune(tmp_path, 999_999, 1, best=None)  # the newer one is of a timeline that a resumed run left
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"step-999999", "step-1000000", "step-notes"}


def test_random_numbers_go_on_where_they_were():
    def draw() -> tuple[Any, ...]:
        return random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(3).tolist()

    random.gauss(0, 1), np.random.normal()  # both keep a second number for the next call
    state = checkpoint.random_state()
    first = draw()
    draw()
    checkpoint.set_random_state({key: value.clone() for key, value in state.items()})
    assert draw() == first


class Counting(torch.optim.SGD):
    """An optimizer that keeps a count in its groups, as schedule-free ones do, and no tensor in its state."""

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["count"] = self.param_groups[0].get("count", 0) + 1
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["seen"] = self.state[parameter].get("seen", 0) + 1
        return super().step(closure)


def test_the_state_of_any_optimizer_comes_back(tmp_path):
    model = tiny_model()
    optimizer = Counting(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.step()
    folder = checkpoint.write(tmp_path, 3, model.save_pretrained, state_of(model, optimizer), {"best": None}).complete()
    other = Counting(model.parameters(), lr=0.5)
    state, saved = checkpoint.load(folder)
    restore(model, other, saved)
    assert state == {"best": None, "step": 3}
    assert (other.param_groups[0]["count"], other.param_groups[0]["lr"]) == (3, 0.1)
    assert [state["seen"] for state in other.state.values()] == [3] * len(list(model.parameters()))
    state = json.loads((folder / "state.json").read_text())
    state["optimizer"]["foreign.weight/seen"] = 1
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(LmfError, match=r"optimizer state for 'foreign\.weight', which the model does not know"):
        restore(model, other, checkpoint.load(folder)[1])


# Killed


# The second save begins with 1 and is in its place after 9, the first one is removed from 10 to 18,
# the third save goes from 21 to 29, and what the run gives out is written from 39 to 62.
MOMENTS = [1, 4, 6, 7, 8, 9, 10, 11, 14, 18, 21, 25, 29, 30, 34, 38, 39, 44, 50, 53, 56, 58, 59, 62]


@pytest.mark.parametrize("number", MOMENTS)
def test_a_run_killed_while_it_writes_goes_on_to_the_same_bits(number, straight, tiny, data, tmp_path):
    output = tmp_path / "out"
    settings = SETTINGS | {"keep": 1}

    def killed() -> None:
        kill_at(number, output, ".step-000004.partial")
        run(tiny, data, output, **settings)

    assert ended(fork(killed)) == -signal.SIGKILL
    saved = 2 if number <= 9 else 4 if number <= 29 else 6
    report = Notes()
    run(tiny, data, output, resume="newest", report=report, **settings)
    assert f"resumed from step-00000{saved}" in report.notes
    assert same(straight, output)
    assert not list(output.rglob(".*")), "leftovers were not cleaned"
    kept = list((output / "checkpoints").iterdir())
    assert len(kept) == 1 + (number == 30)  # killed just before the last removal, when nothing more is saved
    assert not any(checkpoint.damage(folder) for folder in kept)
    assert json.loads((output / "lmf.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("file", ["model", "optimizer", "random"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_run_killed_amid_a_file_goes_on_to_the_same_bits(file, share, straight, tiny, data, tmp_path):
    output = tmp_path / "out"

    def killed() -> None:
        cut_at(f"step-000004.partial/{file}.", share)
        run(tiny, data, output, **SETTINGS)

    assert ended(fork(killed)) == -signal.SIGKILL
    assert (output / f"checkpoints/.step-000004.partial/{file}.safetensors").exists()
    report = Notes()
    run(tiny, data, output, resume="newest", report=report, **SETTINGS)
    assert "resumed from step-000002" in report.notes
    assert same(straight, output) and not list(output.rglob(".*"))


def test_what_a_killed_run_left_half_written_is_cleaned_by_the_next_save(stopped):
    left = [stopped / ".lmf.json.partial", stopped / ".model.partial/x", stopped / "checkpoints/.step-000003.partial/x"]
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_text("half")
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint.write(stopped, 6, model.save_pretrained, state_of(model, optimizer), {}).complete()
    assert not any(file.exists() for file in left)
    assert not (stopped / "checkpoints/.step-000003.partial").exists()
    assert [path.name[-1] for path in sorted((stopped / "checkpoints").iterdir())] == ["4", "5", "6"]


# A full disk


def fill_disk(monkeypatch: pytest.MonkeyPatch, place: str, error: Exception) -> list[Path]:
    """Let every file whose path has ``place`` in it fail to be written."""
    hits: list[Path] = []

    def check(path: Any) -> None:
        if place in str(path):
            hits.append(Path(path))
            raise error

    opened, saved = builtins.open, lmf.training.checkpoint.save_file

    def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            check(file)
        return opened(file, mode, *args, **kwargs)

    def save(tensors: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        check(path)
        saved(tensors, path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", open_)
    monkeypatch.setattr(io, "open", open_)
    monkeypatch.setattr(lmf.training.checkpoint, "save_file", save)
    monkeypatch.setattr(lmf.parallel.pieces, "save_file", save)
    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", save)
    return hits


FULL = OSError(errno.ENOSPC, "No space left on device")
RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("file", FILES)
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint(file, straight, tiny, data, tmp_path, monkeypatch):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        hits = fill_disk(patch, f"step-000004.partial/{file}", RUST if file.endswith("tensors") else FULL)
        with pytest.raises(LmfError) as failed:
            run(tiny, data, output, **SETTINGS)
    assert len(hits) == 1
    first, second = str(failed.value).splitlines()
    assert first.startswith(f"{output}/checkpoints/step-000004 could not be written: the disk is full (")
    assert second == "Free some space and continue with --resume; earlier checkpoints are untouched."
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000002"]
    assert checkpoint.damage(output / "checkpoints/step-000002") is None
    run(tiny, data, output, resume="newest", **SETTINGS)
    assert same(straight, output)


@pytest.mark.parametrize("place", ["/log.jsonl", ".model.partial/model.safetensors", ".model.partial/tokenizer_config"])
def test_a_disk_that_fills_up_elsewhere_is_told_and_the_run_can_go_on(
    place, straight, tiny, data, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(tiny, data, output, report=stop_at(2), **SETTINGS)
    with monkeypatch.context() as patch:
        assert not fill_disk(patch, place, RUST if place.endswith("tensors") else FULL)
        with pytest.raises(LmfError, match=f"{output}(/log.jsonl)? could not be written: the disk is full"):
            run(tiny, data, output, resume="newest", **SETTINGS)
    run(tiny, data, output, resume="newest", **SETTINGS)
    assert same(straight, output)


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """A disk of 20 MB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(mount("size=20m", place), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def mount(options: str, place: Path) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]


@pytest.mark.parametrize("left", [0, 500_000, 1_500_000])
def test_a_real_disk_that_fills_up_leaves_the_earlier_checkpoint(left, small, straight, tiny, data):
    output, ballast = small / "out", small / "ballast"

    def fill() -> None:
        ballast.write_bytes(bytes(shutil.disk_usage(small).free - left))

    with pytest.raises(LmfError, match=f"{output}/.* could not be written: the disk is full"):
        run(tiny, data, output, report=At(3, fill), **SETTINGS)
    assert checkpoint.find(output) == (output / "checkpoints/step-000002", [])
    ballast.unlink()
    run(tiny, data, output, resume="newest", **SETTINGS)
    assert same(straight, output)


def test_a_folder_that_becomes_read_only_is_told(small, straight, tiny, data):
    output, folder = small / "out", str(small / "out/checkpoints")

    def close() -> None:
        for how in (["--bind", folder], ["-o", "remount,bind,ro"]):
            subprocess.run(["mount", *how, folder], check=True)

    try:
        with pytest.raises(LmfError, match=f"^{folder}/step-000004 could not be written: Read-only file system"):
            run(tiny, data, output, report=At(3, close), **SETTINGS)
    finally:
        subprocess.run(["umount", folder], check=True)
    run(tiny, data, output, resume="newest", **SETTINGS)
    assert same(straight, output)


def test_nothing_depends_on_the_clock(straight, tiny, data, tmp_path, monkeypatch):
    """It jumps back by a day at each look, and the files of checkpoints come to be of another age than they have."""
    now = itertools.count(time.time(), -86_400)
    monkeypatch.setattr(time, "time", lambda: next(now))
    with pytest.raises(Interrupted):
        run(tiny, data, tmp_path, report=stop_at(5), **SETTINGS)
    for age, folder in enumerate(sorted((tmp_path / "checkpoints").iterdir())):
        for path in (folder, *folder.iterdir()):
            os.utime(path, (1e9 - 1e6 * age,) * 2)
    report = Notes()
    run(tiny, data, tmp_path, resume="newest", report=report, **SETTINGS)
    assert "resumed from step-000005" in report.notes
    assert same(straight, tmp_path)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (SafetensorError("Error while serializing: header too large"), "header too large"),
    ],
)
def test_another_failure_to_write_names_path_and_reason(error, text, tiny, data, tmp_path, monkeypatch):
    fill_disk(monkeypatch, "step-000004.partial/random", error)
    with pytest.raises(LmfError, match=f"^{tmp_path}/checkpoints/step-000004 could not be written: .*{text}"):
        run(tiny, data, tmp_path, **SETTINGS)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


def test_an_output_that_is_removed_while_a_run_works_is_told(tiny, data, tmp_path):
    output = tmp_path / "out"

    class Remove(Notes):
        def step(self, entry: Any) -> None:
            if entry["step"] == 3:
                shutil.rmtree(output)

    with pytest.raises(LmfError, match=f"{output}/log.jsonl could not be written: No such file or directory"):
        run(tiny, data, output, report=Remove(), **SETTINGS)


def test_a_disk_that_is_too_small_is_found_before_the_first_step(tiny, data, tmp_path, monkeypatch):
    asked = []

    def usage(path: Any) -> Any:
        asked.append(path)
        return SimpleNamespace(free=9_600_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(LmfError) as refused:
        run(tiny, data, tmp_path / "new/out", **SETTINGS)
    assert asked == [tmp_path]
    # 186,432 weights of 4 bytes: once given out, and in four checkpoints with the two moments of each
    text = f"{tmp_path} has 9.2 MiB left, but the run will write about {186_432 * 4 * (1 + 4 * 3) / 2**20:.1f} MiB."
    assert str(refused.value).splitlines()[0] == text
    assert not (tmp_path / "new").exists()


# Damage


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["a flipped bit", "cut", "removed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(harm, file, stopped):
    newest = stopped / "checkpoints/step-000005"
    assert checkpoint.find(stopped) == (newest, [])
    harm(newest / file)
    folder, skipped = checkpoint.find(stopped)
    assert folder == stopped / "checkpoints/step-000004"
    (reason,) = skipped
    assert reason.startswith("step-000005 is damaged: ")
    assert file in reason or file == "manifest.json"


def test_a_manifest_that_names_nothing_is_damage(stopped):
    (stopped / "checkpoints/step-000005/manifest.json").write_text("{}")
    assert checkpoint.damage(stopped / "checkpoints/step-000005") == "manifest.json does not name state.json"


def test_any_flipped_bit_and_any_cut_is_found(interrupted, tmp_path):
    """A hundred of each, anywhere in the 2 MB of a checkpoint."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(interrupted / "checkpoints/step-000005", folder)
    dice = random.Random(0)
    files = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
    for _ in range(100):
        (file,) = dice.choices(files, [path.stat().st_size for path in files])
        content = file.read_bytes()
        position = dice.randrange(len(content))
        for harmed in (
            content[:position] + bytes([content[position] ^ 1 << dice.randrange(8)]) + content[position + 1 :],
            content[:position],
        ):
            file.write_bytes(harmed)
            assert file.name in (checkpoint.damage(folder) or "")
        file.write_bytes(content)
    assert checkpoint.damage(folder) is None


def test_a_run_goes_on_from_an_older_checkpoint_to_the_same_bits(stopped, straight, tiny, data):
    cut(stopped / "checkpoints/step-000005/model.safetensors")
    report = Notes()
    run(tiny, data, stopped, resume="newest", report=report, **SETTINGS)
    assert "resumed from step-000004" in report.notes
    assert [note for note in report.notes if note.startswith("step-000005 is damaged: model.safetensors has ")]
    assert same(straight, stopped)


def test_a_newer_checkpoint_that_is_damaged_does_not_push_out_a_whole_one(stopped, tiny, data):
    shutil.copytree(stopped / "checkpoints/step-000005", stopped / "checkpoints/step-000099")
    cut(stopped / "checkpoints/step-000099/model.safetensors")
    run(tiny, data, stopped, resume="newest", **SETTINGS | {"keep": 1})
    kept = [path.name for path in sorted((stopped / "checkpoints").iterdir())]
    assert kept == ["step-000006", "step-000099"]
    assert checkpoint.find(stopped)[0] == stopped / "checkpoints/step-000006"


def test_without_a_whole_checkpoint_the_error_says_what_to_do(stopped, tiny, data):
    for folder in (stopped / "checkpoints").iterdir():
        flip(folder / "optimizer.safetensors")
    before = contents(stopped)
    report = Notes()
    with pytest.raises(LmfError) as refused:
        run(tiny, data, stopped, resume="newest", report=report, **SETTINGS)
    assert str(refused.value) == (f"{stopped} has no whole checkpoint to resume from. Start again with --overwrite.")
    assert [note.partition(":")[0] for note in report.notes if "damaged" in note] == [
        "step-000005 is damaged",
        "step-000004 is damaged",
    ]
    assert contents(stopped) == before


def test_nothing_is_unpickled_when_a_run_goes_on(stopped, straight, tiny, data, monkeypatch):
    """Files that would run code if they were unpickled lie in the checkpoint, and loading pickles fails."""
    import pickle

    class Canary:
        def __reduce__(self) -> Any:
            return Path.touch, (stopped / "canary",)

    for name in ("optimizer.pt", "random.pkl", "training_args.bin", "pytorch_model.bin"):
        (stopped / "checkpoints/step-000005" / name).write_bytes(pickle.dumps(Canary()))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was unpickled")

    loads = pickle.loads
    for module, name in ((pickle, "load"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    # the records of the run lie packed in its own memory
    monkeypatch.setattr(pickle, "loads", lambda data: loads(data) if isinstance(data, mmap.mmap) else refuse())
    run(tiny, data, stopped, resume="newest", **SETTINGS)
    assert same(straight, stopped)
    assert not (stopped / "canary").exists()


def test_a_checkpoint_loads_in_transformers(stopped, straight):
    model = transformers.AutoModelForCausalLM.from_pretrained(straight / "checkpoints/step-000006")
    assert all(p.isfinite().all() for p in model.parameters())
    assert sha256(straight / "checkpoints/step-000006/model.safetensors") == sha256(straight / "model.safetensors")
