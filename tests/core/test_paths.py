"""Names and paths in data and model files: none leads outside its own folder.

Row F4. Names of shards are in ``test_sources.py``, what an archive unpacks in ``test_archive.py``. Here
each file is used as a user would, and at the place outside lies a whole and valid file, so that it
would show if a path were followed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import DataError, LmfError, UnknownName
from lmf.data.reading import read
from lmf.generate.opening import open_model
from lmf.models import load_model, load_tokenizer
from lmf.sources import find_model
from lmf.templates.choose import own_template
from lmf.testing import tiny_model, tiny_tokenizer
from tinyrun import PLUGINS, run, talks

FOREIGN = "<|foreign|>"  # a token of the tokenizer outside
IDS = torch.arange(8, 40)[None]


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A model in a folder, beside the folder ``outside`` with other weights and another tokenizer."""
    outside = tmp_path / "outside"
    tiny_model(seed=1, vocab_size=300).save_pretrained(outside)
    tiny_tokenizer(special=("<s>", FOREIGN, "</s>")).save_pretrained(outside)
    (outside / "added_tokens.json").write_text(json.dumps({FOREIGN: 300}))
    (outside / "special_tokens_map.json").write_text(json.dumps({"pad_token": FOREIGN}))
    (outside / "chat_template.jinja").write_text(FOREIGN)
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def place(model: Path, file: str, how: str) -> str:
    return f"../outside/{file}" if how == "relative" else str(model.parent / "outside" / file)


each_way = pytest.mark.parametrize("how", ["relative", "absolute"])


@each_way
@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("tokenizer_file", "tokenizer.json"),
        ("vocab_file", "tokenizer.json"),
        ("merges_file", "tokenizer.json"),
        ("added_tokens_file", "added_tokens.json"),
        ("special_tokens_map_file", "special_tokens_map.json"),
        ("chat_template_file", "chat_template.jinja"),
        ("name_or_path", ""),
    ],
)
def test_no_file_that_a_tokenizer_names_outside_its_folder_is_read(model: Path, key: str, file: str, how: str) -> None:
    change(model / "tokenizer_config.json", **{key: place(model, file, how)})
    tokenizer = load_tokenizer(find_model(str(model), PLUGINS))
    assert FOREIGN not in tokenizer.get_vocab()
    assert FOREIGN not in (tokenizer.pad_token, tokenizer.chat_template)


@each_way
def test_weights_that_a_configuration_names_outside_its_folder_are_refused(model: Path, how: str) -> None:
    change(model / "config.json", transformers_weights=place(model, "model.safetensors", how))
    with pytest.raises(
        LmfError, match=f"^{model} cannot be loaded: .*must reference a file inside the model directory"
    ):
        load_model(find_model(str(model), PLUGINS))


@each_way
def test_the_model_that_a_configuration_says_it_came_from_is_not_loaded(model: Path, how: str) -> None:
    before = load_model(find_model(str(model), PLUGINS)).eval()(IDS).logits
    change(model / "config.json", _name_or_path=place(model, "", how), name_or_path=place(model, "", how))
    assert torch.equal(load_model(find_model(str(model), PLUGINS)).eval()(IDS).logits, before)


@each_way
def test_the_base_that_an_adapter_names_is_not_loaded_but_the_one_of_its_run(model: Path, how: str) -> None:
    data = talks(model.parent / "talks.jsonl", 4)
    output = run(model, data, model.parent / "output", "lora", steps=1)
    before = open_model(str(output), PLUGINS).model(IDS).logits
    change(output / "adapter_config.json", base_model_name_or_path=place(model, "", how))
    assert torch.equal(open_model(str(output), PLUGINS).model(IDS).logits, before)
    with pytest.raises(
        LmfError, match=f"^{output} holds an adapter for '.*outside/?', not a model. Give that model to"
    ):
        find_model(str(output), PLUGINS)


@pytest.mark.parametrize("how", ["include", "extends", "import"])
def test_a_chat_template_reads_no_other_file(model: Path, how: str) -> None:
    file = place(model, "chat_template.jinja", "absolute")
    statement = {"include": f"include '{file}'", "extends": f"extends '{file}'", "import": f"import '{file}' as x"}[how]
    (model / "chat_template.jinja").write_text(f"{{% {statement} %}}{{{{ messages[0].content }}}}")
    with pytest.raises(LmfError, match=r"^The model's own template fails: "):
        own_template(load_tokenizer(find_model(str(model), PLUGINS)))


@each_way
@pytest.mark.parametrize("name", ["talks.jsonl", ""])
def test_a_data_set_that_is_described_outside_its_folder_is_refused(tmp_path: Path, name: str, how: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    folder.mkdir()
    talks(outside / "talks.jsonl", 2)
    path = f"../outside/{name}" if how == "relative" else str(outside / name)
    described = {"file_name": path, "formatting": "sharegpt", "columns": {"messages": "messages"}}
    (folder / "dataset_info.json").write_text(json.dumps({"it": described}))
    with pytest.raises(DataError, match=r"it must be a path inside the folder of dataset_info\.json, without '\.\.'"):
        read([f"{folder}/dataset_info.json:it"], "conversation", PLUGINS)


@each_way
def test_a_version_of_the_tokenizer_outside_its_folder_is_refused(model: Path, how: str) -> None:
    outside = model.parent / "outside"
    shutil.copy(outside / "tokenizer.json", outside / "tokenizer.4.0.0.json")
    change(model / "tokenizer_config.json", fast_tokenizer_files=[place(model, "tokenizer.4.0.0.json", how)])
    with pytest.raises(LmfError, match="in fast_tokenizer_files, which is not a file in the same folder"):
        load_tokenizer(find_model(str(model), PLUGINS))


def test_an_adapter_beside_a_model_is_refused(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(LmfError, match=r"holds a model and an adapter; move adapter_config\.json and its weights"):
        find_model(str(model), PLUGINS)


def test_a_record_that_names_a_file_as_its_template_opens_no_file(model: Path, tiny: Path, tmp_path: Path) -> None:
    output = run(tiny, talks(tmp_path / "talks.jsonl", 3), tmp_path / "out", steps=1)
    file = model.parent / "outside" / "chat_template.jinja"
    change(output / "lmf.json", template=str(file))
    with pytest.raises(UnknownName, match="No template is called"):
        open_model(str(output), PLUGINS)
