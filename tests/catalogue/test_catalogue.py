"""The catalogue knows every name of its predecessors, and describes each so that it can be used."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import lmf_datasets
import pytest
from lmf import Conversation, DataError, Plugins, Preference
from lmf.data.cache import data_files

CATALOGUE = {dataset.name: dataset for dataset in lmf_datasets.lmf_datasets()}
README = Path(lmf_datasets.__file__).parents[2] / "README.md"


def names(text: str) -> list[str]:
    return text.split()


LLM_GENIE = names("""
alpaca_en alpaca_zh alpaca_gpt4_en alpaca_gpt4_zh self_cognition oaast_sft oaast_sft_zh sharegpt_zh lima example
guanaco belle_0.5m belle_1m belle_2m belle_dialog belle_math belle_multiturn firefly codealpaca alpaca_cot webqa
ultra_chat novel_tokens512_50k comparison_gpt4_en comparison_gpt4_zh hh_rlhf_en oaast_rm oaast_rm_zh wiki_demo
refinedweb starcoder wikipedia_en wikipedia_zh
""")
LMFLOW = names("""
agent_flan ultrafeedback-binarized-preferences-cleaned ubpc dpo-mix-7k MedMCQA MedQA-USMLE ni PubMedQA
example_dataset alpaca red_teaming wikitext-2-raw-v1 imdb wiki_cn gpt4_zh_eval multiturn_dialog_eval wiki_zh_eval
wiki_en_eval gpt4_en_eval common_sense_eval hh_rlhf lmflow_chat_en_dialog_multiturn_single_nll_text2text
lmflow_chat_cn_dialog_multiturn_single_nll_text2text lmflow_chat_en_dialog_multiturn_nll_text2text_nosharp
lmflow_chat_cn_dialog_multiturn_nll_text2text_nosharp coco2017 llava_instruction_finetune_80k
llava_cc3m_pretrain_595k example_doc_for_retrieval.txt
""")
ALPACA_FOLDERS = ["train", "test", "train_conversation", "test_conversation", "prompt_only"]

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
WORSE = [MESSAGES[0], {"role": "assistant", "content": "What?"}]
TWO = "\n\nHuman: Hi\n\nAssistant: "
# A record with the keys that each publisher's page shows; the data themselves are not here.
RECORDS = {
    "alpaca_en": {"instruction": "Hi", "input": "", "output": "Hello!"},
    "oaast_sft": {"instruction": "Hi", "input": "", "output": "Hello!", "history": []},
    "firefly": {"kind": "Dialog", "input": "Hi", "target": "Hello!"},
    "webqa": {"id": "1", "input": "Hi", "output": "Hello!"},
    "agent_flan": {"conversation": [{**each, "loss": True} for each in MESSAGES], "id": "1"},
    "wikipedia_zh": {"completion": "Hi", "source": "wikipedia.zh2307"},
    "imdb": {"text": "Hi", "label": 0},
    "hh_rlhf": {"chosen": f"{TWO}Hello!", "rejected": f"{TWO}What?"},
    "comparison_gpt4_en": {"instruction": "Hi", "input": "", "output": ["Hello!", "What?"]},
    "oaast_rm": {"instruction": "Hi", "input": "", "output": ["Hello!", "What?"], "history": []},
    "ubpc": {"source": "a", "prompt": "Hi", "chosen": MESSAGES, "chosen-rating": 5.0, "rejected": WORSE},
    "dpo-mix-7k": {"dataset": "a", "chosen": MESSAGES, "chosen_rating": 5.0, "rejected": WORSE},
}


def test_every_name_of_both_predecessors_is_there():
    assert len(set(LLM_GENIE)) == 33
    wanted = {*LLM_GENIE, *(name.lower() for name in LMFLOW), *(f"alpaca-{each}" for each in ALPACA_FOLDERS)}
    assert wanted - set(CATALOGUE) == set()


def test_the_plugin_is_usable_and_no_name_stands_twice():
    plugins = Plugins(only=["lmf-datasets"])
    assert plugins.problems() == []
    assert set(CATALOGUE) <= set(plugins.datasets)
    assert len(CATALOGUE) == len(lmf_datasets.lmf_datasets())


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_entry_says_what_it_is_and_where_it_comes_from(name):
    dataset = CATALOGUE[name]
    assert re.fullmatch(r"[^\n]{10,120}[.>]", dataset.summary), dataset.summary
    assert dataset.source.endswith(".")
    assert dataset.licence
    assert dataset.homepage.startswith("https://")
    assert dataset.size is None or dataset.size > 0
    assert dataset.files is None
    assert not dataset.unavailable or re.fullmatch(r"[a-z][^\n]*\.", dataset.unavailable)


@pytest.mark.parametrize("name", [name for name, each in CATALOGUE.items() if each.format])
def test_every_format_exists_and_columns_lead_to_its_keys(name):
    dataset = CATALOGUE[name]
    form = Plugins(only=[]).formats[dataset.format]
    for key in dataset.columns.values():
        assert f'"{key}"' in form.example


@pytest.mark.parametrize("name", [name for name, each in CATALOGUE.items() if each.remote])
def test_every_address_is_encrypted_and_its_files_have_names_of_their_own(name):
    remotes = CATALOGUE[name].remote
    for remote in remotes:
        parts = urlsplit(remote.url)
        assert parts.scheme == "https"
        assert parts.hostname in ("huggingface.co", "raw.githubusercontent.com")
        if parts.hostname == "huggingface.co":
            revision = r"(main|refs%2Fconvert%2Fparquet|[0-9a-f]{40})"
            assert re.fullmatch(rf"/datasets/[\w.-]+/[\w.-]+/resolve/{revision}/[\w./-]+", parts.path)
        if remote.sha256:
            assert "/main/" not in parts.path, "a checksum needs a revision that does not move"
    assert len({remote.path for remote in remotes}) == len(remotes)
    sizes = [remote.bytes for remote in remotes]
    if all(sizes):
        assert CATALOGUE[name].size == sum(map(int, filter(None, sizes)))


@pytest.mark.parametrize("name", CATALOGUE)
def test_what_is_not_here_says_how_to_get_it_or_why_it_cannot_be_had(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LMF_CACHE", str(tmp_path))
    message = "cannot be downloaded: " if CATALOGUE[name].unavailable else f"lmf data download {name} fetches "
    with pytest.raises(DataError, match=re.escape(message)):
        data_files(CATALOGUE[name])


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_with_the_publishers_keys_is_understood(name):
    dataset = CATALOGUE[name]
    columns = dataset.columns or {key: key for key in RECORDS[name]}
    record = {key: RECORDS[name][column] for column, key in columns.items()}
    form = Plugins(only=[]).formats[dataset.format]
    assert form.matches(record)
    content = form.read(record)
    if isinstance(content, Conversation):
        assert [message.content for message in content.messages] == ["Hi", "Hello!"]
    elif isinstance(content, Preference):
        assert [message.content for message in content.prompt.messages] == ["Hi"]
        assert [reply[-1].content for reply in (content.chosen, content.rejected)] == ["Hello!", "What?"]
    else:
        assert content == "Hi"


def test_the_readme_has_a_row_for_every_data_set_with_its_licence():
    rows = re.findall(r"^\| `(.+?)` \|.*\| (.+?) \|$", README.read_text(encoding="utf-8"), re.M)
    assert dict(rows) == {name: dataset.licence for name, dataset in CATALOGUE.items()}
