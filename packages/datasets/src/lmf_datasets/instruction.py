"""Instructions with one reply each."""

from __future__ import annotations

from lmf import DataSet

from .places import LLAMA_FACTORY, LMFLOW, ONLY_LMFLOW, card, github, hub, llama_factory

_ALPACA = github(
    "tatsu-lab/stanford_alpaca",
    "761dc5bfbdeeffa89b8bff5d038781a4055f796a",
    "alpaca_data.json",
    sha256="2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
)
_BELLE = "GPL-3.0, research use only"
_SPLIT = f"{ONLY_LMFLOW} The records are those of `alpaca`; --eval-split holds some of them out."

DATASETS = [
    DataSet(
        name="alpaca",
        summary="Stanford Alpaca: 52,002 instructions in English, replies by text-davinci-003. LMFlow's name for it.",
        source="Stanford Alpaca, from its repository; LMFlow's copy on lmflow.org:5000 came without a checksum.",
        licence="CC-BY-NC-4.0",
        size=22_800_000,
        format="alpaca",
        homepage="https://github.com/tatsu-lab/stanford_alpaca",
        remote=(_ALPACA,),
    ),
    DataSet(
        name="alpaca_en",
        summary="Stanford Alpaca: 52,002 instructions in English, replies by text-davinci-003.",
        source="Stanford Alpaca, from its repository.",
        licence="CC-BY-NC-4.0",
        size=22_800_000,
        format="alpaca",
        homepage="https://github.com/tatsu-lab/stanford_alpaca",
        remote=(_ALPACA,),
    ),
    *(
        DataSet(
            name=f"alpaca-{part}",
            summary=f"LMFlow's folder alpaca/{part}: {what}.",
            source="LMFlow, made from Stanford Alpaca.",
            licence="CC-BY-NC-4.0",
            format=form,
            homepage=LMFLOW,
            unavailable=_SPLIT,
        )
        for part, what, form in (
            ("train", "texts to train on", "text"),
            ("test", "texts held out", "text2text"),
            ("train_conversation", "conversations to train on", "messages"),
            ("test_conversation", "conversations held out", "messages"),
            ("prompt_only", "the prompts alone", "text"),
        )
    ),
    DataSet(
        name="alpaca_zh",
        summary="51,000 Alpaca instructions translated into Chinese.",
        source="Chinese-LLaMA-Alpaca, in LLaMA-Factory's copy on the hub.",
        licence="Apache-2.0",
        size=18_000_000,
        format="alpaca",
        homepage=card("llamafactory/alpaca_zh"),
        remote=(hub("llamafactory/alpaca_zh", "alpaca_data_zh_51k.json"),),
    ),
    DataSet(
        name="alpaca_gpt4_en",
        summary="52,002 Alpaca instructions in English, replies by GPT-4 (arXiv:2304.03277).",
        source="GPT-4-LLM, in LLaMA-Factory's copy on the hub.",
        licence="CC-BY-NC-4.0",
        size=43_000_000,
        format="alpaca",
        homepage=card("llamafactory/alpaca_gpt4_en"),
        remote=(hub("llamafactory/alpaca_gpt4_en", "alpaca_gpt4_data_en.json"),),
    ),
    DataSet(
        name="alpaca_gpt4_zh",
        summary="Alpaca instructions translated into Chinese, replies by GPT-4 (arXiv:2304.03277).",
        source="GPT-4-LLM, in LLaMA-Factory's copy on the hub.",
        licence="CC-BY-NC-4.0",
        size=28_000_000,
        format="alpaca",
        homepage=card("llamafactory/alpaca_gpt4_zh"),
        remote=(hub("llamafactory/alpaca_gpt4_zh", "alpaca_gpt4_data_zh.json"),),
    ),
    DataSet(
        name="self_cognition",
        summary="80 questions of who the model is; <NAME> and <AUTHOR> in the replies are to be replaced first.",
        source="LLaMA-Factory, from its repository at version 0.5.0.",
        licence="Apache-2.0",
        size=18_517,
        format="alpaca",
        homepage=LLAMA_FACTORY,
        remote=(llama_factory("self_cognition.json"),),
    ),
    DataSet(
        name="lima",
        summary="LIMA: 1,030 instructions chosen by hand, some of several turns (arXiv:2305.11206).",
        source="GAIR/lima, in the form that LLaMA-Factory 0.5.0 had; on the hub it wants its conditions accepted.",
        licence="CC-BY-NC-SA, or what the source of each record demands",
        size=2_989_075,
        format="alpaca",
        homepage=card("GAIR/lima"),
        remote=(llama_factory("lima.json"),),
    ),
    DataSet(
        name="example",
        summary="LLM-Genie's example of a data set with a loading script; two records.",
        source="LLM-Genie.",
        homepage=LLAMA_FACTORY,
        unavailable="it only showed how to write a loading script, which lmf never runs; `cards` is an example here.",
    ),
    DataSet(
        name="example_dataset",
        summary="LMFlow's examples of its data formats.",
        source="LMFlow.",
        homepage=LMFLOW,
        unavailable=f"{ONLY_LMFLOW} `cards` is an example here.",
    ),
    DataSet(
        name="guanaco",
        summary="Guanaco: 279,644 instructions in English, Chinese, Japanese and German; the part without dialogue.",
        source="JosephusCheung/GuanacoDataset on the hub.",
        licence="GPL-3.0",
        format="alpaca",
        homepage=card("JosephusCheung/GuanacoDataset"),
        remote=(hub("JosephusCheung/GuanacoDataset", "guanaco_non_chat-utf8.json"),),
    ),
    *(
        DataSet(
            name=name,
            summary=summary,
            source=f"BelleGroup/{repository} on the hub.",
            licence=_BELLE,
            size=size,
            format="alpaca",
            homepage=card(f"BelleGroup/{repository}"),
            remote=(hub(f"BelleGroup/{repository}", file),),
        )
        for name, repository, file, size, summary in (
            (
                "belle_0.5m",
                "train_0.5M_CN",
                "Belle_open_source_0.5M.json",
                None,
                "BELLE: 500,000 in Chinese, replies by ChatGPT.",
            ),
            (
                "belle_1m",
                "train_1M_CN",
                "Belle_open_source_1M.json",
                437_000_000,
                "BELLE: 1 million in Chinese, replies by ChatGPT.",
            ),
            ("belle_2m", "train_2M_CN", "train_2M_CN.json", None, "BELLE: 2 million in Chinese, replies by ChatGPT."),
            (
                "belle_math",
                "school_math_0.25M",
                "school_math_0.25M.json",
                132_000_000,
                "BELLE: 250,000 sums of school in Chinese, solved by ChatGPT.",
            ),
        )
    ),
    DataSet(
        name="firefly",
        summary="Firefly: 1.1 million instructions in Chinese, of 23 kinds of tasks.",
        source="YeungNLP/firefly-train-1.1M on the hub.",
        size=1_171_119_212,
        format="text2text",
        columns={"input": "input", "target": "output"},
        homepage=card("YeungNLP/firefly-train-1.1M"),
        remote=(hub("YeungNLP/firefly-train-1.1M", "firefly-train-1.1M.jsonl"),),
    ),
    DataSet(
        name="codealpaca",
        summary="Code Alpaca: 20,022 instructions for writing programs.",
        source="sahil2801/CodeAlpaca-20k on the hub; its repository says CC-BY-NC-4.0 of the same data.",
        licence="CC-BY-4.0 or CC-BY-NC-4.0",
        size=8_000_000,
        format="alpaca",
        homepage=card("sahil2801/CodeAlpaca-20k"),
        remote=(hub("sahil2801/CodeAlpaca-20k", "code_alpaca_20k.json"),),
    ),
    DataSet(
        name="alpaca_cot",
        summary="Alpaca-CoT: a collection of instruction data, 3.7 GB in folders by kind.",
        source="QingyiSi/Alpaca-CoT on the hub.",
        licence="Apache-2.0; its parts have licences of their own",
        size=3_700_000_000,
        format="alpaca",
        homepage=card("QingyiSi/Alpaca-CoT"),
        unavailable="it is many data sets of several shapes; choose files on its page and give them to --data.",
    ),
    DataSet(
        name="webqa",
        summary="WebQA: Chinese questions and short answers from the web.",
        source="suolyer/webqa on the hub.",
        size=15_000_000,
        format="text2text",
        homepage=card("suolyer/webqa"),
        remote=(hub("suolyer/webqa", "train.json"),),
    ),
    DataSet(
        name="novel_tokens512_50k",
        summary="50,000 instructions to go on with a Chinese web novel.",
        source="zxbsmk/webnovel_cn on the hub.",
        licence="MIT; the novels have authors",
        size=603_000_000,
        format="alpaca",
        homepage=card("zxbsmk/webnovel_cn"),
        remote=(hub("zxbsmk/webnovel_cn", "novel_cn_token512_50k.json"),),
    ),
    DataSet(
        name="ni",
        summary="Super-NaturalInstructions: 1,616 tasks with definition, examples and instances (arXiv:2204.07705).",
        source="allenai/natural-instructions; LMFlow's own form of it was on lmflow.org:5000 only.",
        licence="Apache-2.0",
        homepage="https://github.com/allenai/natural-instructions",
        unavailable="it is one file for each task, in a shape of its own; clone its repository and choose tasks.",
    ),
]
