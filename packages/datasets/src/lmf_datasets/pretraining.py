"""Texts to learn as a whole."""

from __future__ import annotations

from lmf import DataSet

from .places import LLAMA_FACTORY, LMFLOW, ONLY_LMFLOW, card, hub, llama_factory

_LARGE = "it is {size} in thousands of files; --data hf:{repository} reads it from the hub."

DATASETS = [
    DataSet(
        name="wiki_demo",
        summary="A few thousand lines of the English Wikipedia, to try pretraining.",
        source="LLaMA-Factory, from its repository at version 0.5.0.",
        licence="CC-BY-SA-3.0",
        size=1_500_000,
        format="text",
        homepage=LLAMA_FACTORY,
        remote=(llama_factory("wiki_demo.txt"),),
    ),
    DataSet(
        name="refinedweb",
        summary="RefinedWeb: 600 billion tokens of filtered English web pages (arXiv:2306.01116).",
        source="tiiuae/falcon-refinedweb on the hub.",
        licence="ODC-By-1.0, and Common Crawl's terms of use",
        size=568_000_000_000,
        format="text",
        columns={"content": "text"},
        homepage=card("tiiuae/falcon-refinedweb"),
        unavailable=_LARGE.format(size="568 GB", repository="tiiuae/falcon-refinedweb"),
    ),
    DataSet(
        name="starcoder",
        summary="StarCoder's training data: programs in 86 languages (arXiv:2305.06161).",
        source="bigcode/starcoderdata on the hub, once its conditions are accepted.",
        licence="that of each file",
        format="text",
        columns={"content": "text"},
        homepage=card("bigcode/starcoderdata"),
        unavailable=_LARGE.format(size="hundreds of GB", repository="bigcode/starcoderdata"),
    ),
    DataSet(
        name="wikipedia_en",
        summary="The English Wikipedia of December 2022.",
        source="olm/olm-wikipedia-20221220 on the hub.",
        licence="CC-BY-SA-3.0",
        size=12_000_000_000,
        format="text",
        homepage=card("olm/olm-wikipedia-20221220"),
        unavailable="the names of its files are not known here; --data hf:olm/olm-wikipedia-20221220 reads it.",
    ),
    DataSet(
        name="wikipedia_zh",
        summary="254,547 articles of the Chinese Wikipedia of July 2023, filtered.",
        source="pleisto/wikipedia-cn-20230720-filtered on the hub.",
        licence="CC-BY-SA-3.0",
        size=525_000_000,
        format="text",
        columns={"completion": "text"},
        homepage=card("pleisto/wikipedia-cn-20230720-filtered"),
        remote=(hub("pleisto/wikipedia-cn-20230720-filtered", "wikipedia-cn-20230720-filtered.json"),),
    ),
    DataSet(
        name="wikitext-2-raw-v1",
        summary="WikiText-2: good articles of Wikipedia (arXiv:1609.07843); its empty lines want --on-bad-record skip.",
        source="Salesforce/wikitext on the hub.",
        licence="CC-BY-SA-3.0 and GFDL",
        size=6_357_543,
        format="text",
        homepage=card("Salesforce/wikitext"),
        remote=(
            hub(
                "Salesforce/wikitext",
                "wikitext-2-raw-v1/train-00000-of-00001.parquet",
                "b08601e04326c79dfdd32d625aee71d232d685c3",
                sha256="e83889baabc497075506f91975be5fac0d45c5290b6b20582c8cd1e853d0c9f7",
                bytes=6_357_543,
            ),
        ),
    ),
    DataSet(
        name="imdb",
        summary="25,000 reviews of films in English; the label, praise or blame, is not read.",
        source="stanfordnlp/imdb on the hub.",
        format="text",
        homepage=card("stanfordnlp/imdb"),
        remote=(
            hub(
                "stanfordnlp/imdb",
                "plain_text/train-00000-of-00001.parquet",
                "e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
                sha256="db47d16b5c297cc0dd625e519c81319c24c9149e70e8496de5475f6fa928342c",
            ),
        ),
    ),
    DataSet(
        name="wiki_cn",
        summary="LMFlow's texts of the Chinese Wikipedia.",
        source="LMFlow, made from the Chinese Wikipedia.",
        licence="CC-BY-SA-3.0",
        format="text",
        homepage=LMFLOW,
        unavailable=f"{ONLY_LMFLOW} `wikipedia_zh` is of the same kind.",
    ),
    DataSet(
        name="example_doc_for_retrieval.txt",
        summary="LMFlow's example of a text to look answers up in.",
        source="LMFlow.",
        homepage=LMFLOW,
        unavailable=f"{ONLY_LMFLOW} Any text does as well.",
    ),
]
