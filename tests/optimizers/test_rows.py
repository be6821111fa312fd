"""AdamW by rows has the bits of torch's AdamW, and no state for rows that never had a gradient."""

import pytest
import torch
import torch.distributed as dist
from lmf import LmfError, Plugins
from lmf.parallel.pieces import restore, state_of
from lmf.training import checkpoint
from lmf_optimizers.rows import AdamWRows
from tinyrun import SWITCHING, processes, run, run_in_two, talks, weights
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import embedding

ROWS = 500


class Work:
    """An embedding and a matrix behind it, stepped on tokens of which more and more are new."""

    def __init__(self, name: str, width: int = 48, decay: float = 0.0, sparse: bool = False):
        chance = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(ROWS, width, generator=chance))
        self.matrix = nn.Parameter(torch.randn(width, 20, generator=chance))
        self.sparse, self.done, self.seen = sparse, 0, set[int]()
        groups = [{"params": [self.table, self.matrix], "lr": 1e-2, "weight_decay": decay}]
        self.optimizer = Plugins().optimizers[name].build(groups)

    def steps(self, count: int, below: int | None = None) -> None:
        for _ in range(count):
            chance = torch.Generator().manual_seed(self.done)
            for _ in range(2):  # gradients of two micro-batches are added up
                ids = torch.randint(0, below or 40 + 5 * self.done, (15,), generator=chance)
                self.seen |= set(ids.tolist())
                (embedding(ids, self.table, sparse=self.sparse) @ self.matrix).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.done += 1


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("width", [48, 64, 7])
def test_every_bit_is_that_of_torch_fused_adamw(width, decay, sparse, monkeypatch):
    monkeypatch.setattr("lmf_optimizers.rows.CHUNK", 16 * width)  # several parts a step
    reference, work = Work("adamw", width, decay), Work("adamw-rows", width, decay, sparse)
    reference.steps(40)
    work.steps(40)
    assert reference.optimizer.defaults["fused"] and work.optimizer.defaults["fused"]
    assert work.table.equal(reference.table)
    assert work.matrix.equal(reference.matrix)
    assert len(work.seen) < ROWS / 2


def test_there_is_state_for_the_rows_that_had_a_gradient_and_for_no_other():
    work = Work("adamw-rows")
    for _ in range(5):
        work.steps(4)
        state = work.optimizer.state[work.table]
        assert sorted(state["rows"].tolist()) == sorted(work.seen)
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == (len(work.seen), 48)
    size = sum(value.numel() * value.element_size() for value in state.values())
    assert size == len(work.seen) * (2 * 4 * 48 + 8) + 4
    assert "rows" not in work.optimizer.state[work.matrix]


def test_moments_of_a_row_are_those_of_torch():
    reference, work = Work("adamw"), Work("adamw-rows")
    reference.steps(12)
    work.steps(12)
    whole, state = reference.optimizer.state[reference.table], work.optimizer.state[work.table]
    for key in ("exp_avg", "exp_avg_sq"):
        assert state[key].equal(whole[key][state["rows"]])
    assert state["step"].equal(whole["step"])


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_matrix_is_kept_whole_once_nearly_all_of_its_rows_were_touched(sparse):
    reference, work = Work("adamw", decay=0.1), Work("adamw-rows", decay=0.1, sparse=sparse)
    reference.steps(120, below=ROWS)
    work.steps(10, below=ROWS)
    assert "rows" in work.optimizer.state[work.table]
    work.steps(110, below=ROWS)
    assert work.optimizer.state[work.table].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert work.table.equal(reference.table)
    assert work.matrix.equal(reference.matrix)


def test_a_gradient_that_is_no_number_is_not_hidden():
    work = Work("adamw-rows")
    work.steps(1)
    work.table.grad = torch.zeros_like(work.table)
    work.table.grad[7, 3] = torch.nan
    work.optimizer.step()
    assert work.table[7, 3].isnan()


def test_a_checkpoint_brings_the_state_back_bit_for_bit(tmp_path):
    straight, work = Work("adamw-rows"), Work("adamw-rows")
    straight.steps(20)
    work.steps(9)
    model = nn.ParameterDict({"table": work.table, "matrix": work.matrix})
    folder = checkpoint.write(tmp_path, 9, lambda folder: None, state_of(model, work.optimizer), {}).complete()
    again = Work("adamw-rows")
    again.table.data, again.matrix.data, again.done = work.table.data.clone(), work.matrix.data.clone(), 9
    model = nn.ParameterDict({"table": again.table, "matrix": again.matrix})
    restore(model, again.optimizer, checkpoint.load(folder)[1])
    again.steps(11)
    assert again.table.equal(straight.table)
    assert again.matrix.equal(straight.matrix)


@pytest.mark.parametrize(("method", "options"), SWITCHING, ids=str)
def test_a_run_has_the_bits_of_adamw_also_where_it_was_stopped(method, options, tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 24)
    settings = {"steps": 7, "options": options, "weight_decay": 0.1}
    reference = run(tiny, data, tmp_path / "adamw", method, **settings)
    settings["optimizer"] = "adamw-rows"
    found = run_in_two(3, tiny, data, tmp_path / "rows", method, **settings)
    one, other = weights(reference), weights(found)
    assert all(one[n].equal(other[n]) for n in one)
    sizes = [
        max((folder / "checkpoints").glob("step-*/optimizer.safetensors")).stat().st_size
        for folder in (reference, found)
    ]
    assert sizes[1] < sizes[0]


def test_where_every_row_has_a_gradient_it_is_refused():
    """The head gives every row of tied embeddings a gradient."""
    table = nn.Parameter(torch.randn(50, 8))
    optimizer = AdamWRows([{"params": [table], "lr": 1e-2, "weight_decay": 0.0}], (0.9, 0.999), 1e-8)
    (embedding(torch.tensor([1, 2]), table) @ table.T).logsumexp(-1).sum().backward()
    with pytest.raises(LmfError, match=r"^--optimizer adamw-rows would save nothing: .* Use --optimizer adamw\.$"):
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw-8bit", "adamw-rows"])
def test_weights_that_fsdp2_has_sharded_are_refused(name):
    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        model = fully_shard(nn.Linear(8, 8))
        groups = [{"params": list(model.parameters()), "lr": 1e-3, "weight_decay": 0.0}]
        with pytest.raises(LmfError, match=rf"^--optimizer {name} cannot step weights that FSDP2 has sharded: .* Use "):
            Plugins().optimizers[name].build(groups)
        dist.destroy_process_group()

    assert processes(1, work) == [0]
