"""The memory forecast of a run knows the state of these optimizers."""

import pytest
import torch
from lmf.memory.forecast import forecast, most_work
from tinyrun import plan, run, talks


def saved_state(output) -> int:
    """The bytes of the tensors in the last checkpoint's state of the optimizer, without their header."""
    file = max((output / "checkpoints").glob("step-*/optimizer.safetensors"))
    with file.open("rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")


@pytest.mark.parametrize("method", ["full", "lisa"])
def test_state_of_8_bits_is_forecast_to_the_byte(method, tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 24)
    settings = {"steps": 3, "optimizer": "adamw-8bit"}
    given = plan(tiny, data, tmp_path / "none", method, **settings)
    expected = forecast(given, torch.device("cpu"), most_work(given)).usage.state
    assert saved_state(run(tiny, data, tmp_path / "out", method, **settings)) == expected


def test_state_by_rows_is_forecast_as_that_of_adamw_which_it_is_at_most(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 24)
    found = {}
    for name in ("adamw", "adamw-rows"):
        given = plan(tiny, data, tmp_path / "none", steps=3, optimizer=name)
        found[name] = forecast(given, torch.device("cpu"), most_work(given)).usage.state
    assert found["adamw-rows"] == found["adamw"]
    assert saved_state(run(tiny, data, tmp_path / "out", steps=3, optimizer="adamw-rows")) < found["adamw"]
