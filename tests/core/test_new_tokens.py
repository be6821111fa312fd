"""``--train-new-tokens-only``: rows of new tokens learn with every method, and old rows stay bit for bit."""

import dataclasses
import json
import shutil

import pytest
import torch
from lmf import ConfigError, LmfError, Optimizer, Plugins, RunSettings
from lmf.config import make
from lmf.encoding.material import encode_data
from lmf.generate.opening import open_model
from lmf.models import NEW_TOKENS
from lmf.parallel.choice import Sharing
from lmf.plan import make_plan
from lmf.report import Reporter
from lmf.testing import tiny_model, tiny_tokenizer
from lmf.training.learner import load_learner
from lmf.training.loop import train
from terminal import lmf
from tinyrun import PLUGINS, Notes, plan, run, run_in_two, same, weights

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
FIRST, END = 292, 300  # ids of the new tokens: what the tiny tokenizer merged last
TEXTS = ["the user and the assistant say hello", "what is one and two, answer three", "say three and one hello"]
SEEN = sorted({id for text in TEXTS for id in tiny_tokenizer(END)(text).input_ids if id >= FIRST})
METHODS = {
    "full": {},
    "freeze": {},
    "lora": {"rank": 2},
    "lisa": {"interval": 1, "active_layers": 1},
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, tmp_path_factory):
    """A model whose last tokens were added to it."""
    folder = tmp_path_factory.mktemp("model") / "extended"
    made = tiny_model(vocab_size=320, tied=request.param)
    setattr(made.config, NEW_TOKENS, [FIRST, END])
    made.save_pretrained(folder)
    tiny_tokenizer(300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 4))
    return file


def rows(folder) -> list[torch.Tensor]:
    """Return the embeddings, and the head where it is another matrix, of a base or of what a run gave out."""
    model = open_model(str(folder), PLUGINS, merged=True).model
    found = [
        model.get_input_embeddings().weight.detach().clone(),
        model.get_output_embeddings().weight.detach().clone(),
    ]
    return found[:1] if model.config.tie_word_embeddings else found


def learned(model, data, out, method, *, report=None, **settings):
    given = {"steps": 4, "weight_decay": 0.1, "learning_rate": 0.01, "train_new_tokens_only": True, **settings}
    return run(model, data, out, method, objective="pretrain", options=METHODS[method], report=report, **given)


@pytest.mark.parametrize("method", METHODS)
def test_new_rows_learn_and_old_rows_stay_with_every_method(method, model, data, tmp_path):
    out = learned(model, data, tmp_path / "out", method)
    for before, after in zip(rows(model), rows(out), strict=True):
        assert torch.equal(before[:FIRST], after[:FIRST]) and torch.equal(before[END:], after[END:])
        assert not torch.isclose(before[SEEN], after[SEEN]).all(dim=1).any()


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "adamw-rows"])
def test_old_rows_stay_with_other_optimizers(optimizer, model, data, tmp_path):
    out = learned(model, data, tmp_path / "out", "full", optimizer=optimizer)
    for before, after in zip(rows(model), rows(out), strict=True):
        assert torch.equal(before[:FIRST], after[:FIRST])
        assert not torch.equal(before[FIRST:END], after[FIRST:END])


def test_a_new_row_gets_the_step_that_it_has_when_all_rows_are_trained(model, data, tmp_path):
    settings = {"steps": 1, "weight_decay": 0.0, "clip": 0.0}
    only = learned(model, data, tmp_path / "only", "full", **settings)
    all = learned(model, data, tmp_path / "all", "full", train_new_tokens_only=False, **settings)
    for one, other in zip(rows(only), rows(all), strict=True):
        assert torch.equal(one[FIRST:END], other[FIRST:END])
        assert not torch.equal(one[:FIRST], other[:FIRST])


def test_old_rows_stay_where_steps_are_taken_in_the_backward_pass(model, data, tmp_path):
    out = learned(model, data, tmp_path / "out", "full", step_in_backward=True, clip=0.0, batch_size=4, max_tokens=64)
    for before, after in zip(rows(model), rows(out), strict=True):
        assert torch.equal(before[:FIRST], after[:FIRST])
        assert not torch.equal(before[FIRST:END], after[FIRST:END])


def test_a_run_that_was_interrupted_gives_the_same_bits(model, data, tmp_path):
    given = {"objective": "pretrain", "steps": 4, "save_every": 1, "train_new_tokens_only": True}
    whole = run(model, data, tmp_path / "whole", "freeze", **given)
    assert same(whole, run_in_two(2, model, data, tmp_path / "parts", "freeze", **given))


def test_two_stages_first_the_rows_and_then_all(model, data, tmp_path):
    first = learned(model, data, tmp_path / "first", "freeze")
    others = {name: tensor for name, tensor in weights(model).items() if "embed" not in name and "head" not in name}
    assert all(torch.equal(tensor, weights(first)[name]) for name, tensor in others.items())
    second = learned(first, data, tmp_path / "second", "full")
    assert any(not torch.equal(tensor, weights(second)[name]) for name, tensor in others.items())
    for before, after in zip(rows(model), rows(second), strict=True):
        assert torch.equal(before[:FIRST], after[:FIRST])


def test_without_it_a_method_that_leaves_new_rows_alone_says_so(model, data, tmp_path):
    notes = Notes()
    out = learned(model, data, tmp_path / "out", "lora", train_new_tokens_only=False, report=notes)
    assert "the rows of 8 added tokens stay as they are; --train-new-tokens-only trains them" in notes.notes
    assert all(torch.equal(one, other) for one, other in zip(rows(model), rows(out), strict=True))


def test_it_is_refused_for_a_model_to_which_no_token_was_added(tiny, data, tmp_path):
    with pytest.raises(ConfigError) as refused:
        learned(tiny, data, tmp_path / "out", "lora")
    told = f"--train-new-tokens-only: no tokens were added to {tiny}. Make a model with new ones: lmf vocab apply."
    assert str(refused.value) == told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "ids", [None, 7, "all", [5], [5, 3], [-1, 5], [0, 10**12], [0.0, 5.0], [True, 5], {"0": 1}], ids=str
)
def test_a_configuration_with_something_else_in_their_place_is_refused(ids, model, data, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {NEW_TOKENS: ids}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"{NEW_TOKENS} is .* it must be the first new id and the one after the last"):
        learned(folder, data, tmp_path / "out", "full")
    assert not (tmp_path / "out").exists()


def test_it_is_refused_where_matrices_are_divided(model, data, tmp_path):
    planned = plan(model, data, tmp_path / "out", objective="pretrain", train_new_tokens_only=True)
    divided = dataclasses.replace(planned, sharing=Sharing("fsdp"))
    with pytest.raises(ConfigError, match=r"--train-new-tokens-only cannot hold rows of .*embed_tokens.weight.* fsdp"):
        load_learner(divided, encode_data(planned, Reporter()), torch.device("cpu"), Reporter())


class Noisy(torch.optim.SGD):
    """Changes what has no gradient."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(1e-4)


def test_an_optimizer_that_changes_rows_without_a_gradient_is_found_out_after_one_step(model, data, tmp_path):
    plugins = Plugins()
    plugins.optimizers.add(Optimizer(name="noisy", summary="", build=Noisy), "acme")
    values = {"model": str(model), "data": [str(data)], "output": tmp_path / "out", "optimizer": "noisy", "steps": 3}
    settings = make(RunSettings, {**values, "train_new_tokens_only": True})
    with pytest.raises(LmfError, match="the optimizer changes rows that have no gradient"):
        train(make_plan(plugins, "pretrain", "full", settings))


@pytest.mark.parametrize("method", ["freeze", "lora"])
def test_the_plan_forecasts_it(method, model, data, tmp_path):
    common = ("--model", str(model), "--data", str(data), "--output", str(tmp_path / "out"))
    done = lmf("plan", "pretrain", method, *common, "--train-new-tokens-only")
    assert done.code == 0, done.err
    assert "memory" in done.out


def test_a_lora_run_with_trained_rows_writes_text_and_is_merged(model, data, tmp_path):
    out = learned(model, data, tmp_path / "out", "lora", sample="hello")
    apart, merged = tmp_path / "out", tmp_path / "merged"
    assert lmf("merge", str(model), str(out), str(merged)).code == 0
    written = [lmf("generate", str(each), "hello", "--max-tokens", "8") for each in (apart, merged)]
    assert [done.code for done in written] == [0, 0], written
    assert written[0].out == written[1].out
