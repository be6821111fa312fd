"""The recipe of long contexts: what it names is there, and it runs."""

import tomllib
from pathlib import Path

import pytest
from lmf import Plugins
from terminal import lmf
from transformers import AutoConfig

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples/long-context.toml"
# peft 0.21 asks transformers 5.23 by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def test_the_recipe_names_installed_things_only():
    recipe, plugins = tomllib.loads(RECIPE.read_text(encoding="utf-8")), Plugins()
    assert recipe["method"] in plugins.methods
    assert recipe["objective"] in plugins.objectives
    assert all((ROOT / name).is_dir() for name in recipe["data"])


def test_the_recipe_runs_on_a_tiny_model_and_its_output_is_merged(tiny, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text("one two three say hello what is the answer " * 100)
    given = ("--config", RECIPE, "--model", tiny, "--data", data, "--output", tmp_path / "out", "--max-tokens", 1000)
    planned = lmf(*map(str, ("plan", "pretrain", *given)))
    assert planned.code == 0, planned.err
    assert "memory forecast" in planned.out
    done = lmf(*map(str, ("pretrain", *given, "--steps", 2, "--dtype", "float32")))
    assert done.code == 0, done.err
    merged = lmf("merge", str(tiny), str(tmp_path / "out"), str(tmp_path / "merged"))
    assert merged.code == 0, merged.err
    config = AutoConfig.from_pretrained(tmp_path / "merged")
    assert (config.rope_parameters["rope_type"], config.max_position_embeddings) == ("yarn", 1024)
