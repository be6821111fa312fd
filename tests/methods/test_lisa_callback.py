"""LISA under the Trainer of transformers does what it does in the loop of lmf."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import LmfError
from lmf.testing import tiny_model
from lmf_lisa.callback import LisaCallback
from lmf_lisa.sampling import drawn
from transformers import Trainer, TrainerCallback, TrainingArguments

LAYERS = 4


class Watch(TrainerCallback):
    """Notes which layers changed in each step, and the size of the optimizer's state."""

    def __init__(self) -> None:
        self.changed: list[set[int]] = []
        self.sizes: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.before = {n: p.detach().clone() for n, p in given["model"].named_parameters()}

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        now = dict(given["model"].named_parameters())
        moved = [n for n in now if "layers." in n and not now[n].equal(self.before[n])]
        self.changed.append({int(n.split("layers.")[1].split(".")[0]) for n in moved})
        state = given["optimizer"].state.values()
        self.sizes.append(sum(v.numel() for each in state for v in each.values() if isinstance(v, torch.Tensor)))


def train(folder: Path, steps: int, resume: bool = False, model: Any = None, **options: Any) -> tuple[Any, Watch]:
    watch = Watch()
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(8, 300, (12,), generator=generator) for _ in range(40)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_steps=5,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
    )
    trainer = Trainer(
        model=tiny_model() if model is None else model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],  # type: ignore[arg-type]
        callbacks=[LisaCallback(interval=3, active_layers=1, **options), watch],
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer.model, watch


def test_the_layers_that_change_are_those_that_were_drawn_and_state_does_not_grow(tmp_path):
    _, watch = train(tmp_path, 30)
    assert watch.changed == [set(drawn("uniform", 3, step // 3, LAYERS, 1)) for step in range(30)]
    assert len(set(watch.sizes)) == 1


def test_a_run_that_goes_on_in_an_interval_comes_to_the_same_weights(tmp_path):
    straight, _ = train(tmp_path / "one", 8)
    train(tmp_path / "two", 5)
    resumed, watch = train(tmp_path / "two", 8, resume=True)
    assert watch.changed == [set(drawn("uniform", 3, step // 3, LAYERS, 1)) for step in range(5, 8)]
    for (name, one), (_, two) in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)


def test_what_was_frozen_before_is_refused(tmp_path):
    model = tiny_model()
    model.model.layers[2].requires_grad_(False)
    optimizer_lacks = r"The optimizer does not know model\.layers\.2\..* and \d+ others, so they would never change"
    with pytest.raises(LmfError, match=optimizer_lacks):
        train(tmp_path, 2, model=model)


def test_several_processes_need_unused_parameters():
    args = TrainingArguments(output_dir="out", use_cpu=True, report_to=[])
    args.__dict__["fsdp"], args.__dict__["deepspeed"] = [], None
    callback = LisaCallback()
    given = {"model": tiny_model(), "optimizer": torch.optim.SGD(tiny_model().parameters())}
    for name in ("fsdp", "deepspeed"):
        args.__dict__[name] = "on"
        with pytest.raises(LmfError, match="LISA cannot run under"):
            callback.on_train_begin(args, None, None, **given)
        args.__dict__[name] = None
