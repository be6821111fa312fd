"""Large checkpoints, which are completed in the background while the training goes on."""

import errno
import signal
from pathlib import Path
from threading import Event, Timer

import pytest
from lmf import LmfError
from lmf.errors import Interrupted
from lmf.training import checkpoint
from tinyrun import At, ended, fork, kill_at, losses, run, same, talks

SETTINGS = {"steps": 6, "batch_size": 4, "save_every": 2, "keep": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 12)


@pytest.fixture(scope="module")
def straight(tiny, data, tmp_path_factory) -> Path:
    """A run that nothing happened to, whose checkpoints are small."""
    return run(tiny, data, tmp_path_factory.mktemp("straight") / "out", **SETTINGS)


@pytest.fixture
def large(monkeypatch) -> None:
    """Every checkpoint counts as a large one, which is completed while the training goes on."""
    monkeypatch.setattr("lmf.training.loop.LARGE", 0)


def hold(monkeypatch: pytest.MonkeyPatch, *steps: int, error: Exception | None = None) -> tuple[Event, Event]:
    """Let the first files to be hashed of the checkpoints of some steps wait, and then perhaps fail.

    Returns:
        What tells that one waits, and what lets them go on.
    """
    here, on = Event(), Event()
    file_hash = checkpoint.file_hash

    def slow(file: Path) -> str:
        if any(checkpoint.name(step) in str(file) for step in steps):
            here.set()
            assert on.wait(60)
            if error:
                raise error
        return file_hash(file)

    monkeypatch.setattr(checkpoint, "file_hash", slow)
    return here, on


def test_training_goes_on_while_a_large_checkpoint_is_completed(large, straight, tiny, data, tmp_path, monkeypatch):
    output = tmp_path / "out"
    here, on = hold(monkeypatch, 2)
    found = []

    def look() -> None:
        assert here.wait(60)
        found.append(sorted(path.name for path in (output / "checkpoints").iterdir()))
        on.set()

    run(tiny, data, output, report=At(4, look), **SETTINGS)
    assert found == [[".step-000002.partial"]]
    assert same(straight, output)
    kept = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (output, straight)]
    assert kept[0] == kept[1]
    assert not any(checkpoint.damage(folder) for folder in (output / "checkpoints").iterdir())


def test_a_small_checkpoint_is_complete_before_the_next_step(straight, tiny, data, tmp_path):
    whole = []
    output = tmp_path / "out"
    run(tiny, data, output, report=At(3, lambda: whole.append(checkpoint.find(output))), **SETTINGS)
    assert whole == [(output / "checkpoints/step-000002", [])]


@pytest.mark.parametrize("step", [2, 6])  # while the training goes on, and at its end
def test_what_goes_wrong_in_the_background_ends_the_run(step, large, straight, tiny, data, tmp_path, monkeypatch):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        _, on = hold(patch, step, error=OSError(errno.EIO, "Input/output error"))
        with pytest.raises(
            LmfError, match=f"^{output}/checkpoints/step-00000{step} could not be written: Input/output"
        ):
            run(tiny, data, output, report=At(step, on.set), **SETTINGS)
    kept = [f"step-00000{saved}" for saved in (2, 4) if saved < step]
    assert sorted(path.name for path in (output / "checkpoints").glob("*")) == kept
    assert len(losses(output)) < 6 or step == 6
    run(tiny, data, output, resume="auto", **SETTINGS)
    assert same(straight, output)


def test_a_signal_waits_for_what_is_completed(large, straight, tiny, data, tmp_path, monkeypatch):
    output = tmp_path / "out"
    here, on = hold(monkeypatch, 2)

    def stop() -> None:
        assert here.wait(60)
        Timer(0.2, on.set).start()
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(tiny, data, output, report=At(3, stop), **SETTINGS)
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    run(tiny, data, output, resume="newest", **SETTINGS)
    assert same(straight, output)


@pytest.mark.parametrize("number", range(1, 21, 3))
def test_a_run_killed_while_it_trains_beside_a_save_goes_on_to_the_same_bits(
    number, large, straight, tiny, data, tmp_path
):
    output = tmp_path / "out"

    def killed() -> None:
        kill_at(number, output, ".step-000004.partial")
        run(tiny, data, output, **SETTINGS)

    assert ended(fork(killed)) == -signal.SIGKILL
    run(tiny, data, output, resume="newest", **SETTINGS)
    assert same(straight, output) and not list(output.rglob(".*"))
    assert not any(checkpoint.damage(folder) for folder in (output / "checkpoints").iterdir())
