"""Make the weights and the records of throughput.py in the form that each tool reads.

Usage: prepare.py FOLDER BATCH STEPS

The weights are those of the checkpoint smollm2-135m, in fp32. The records are made of the data set
``cards``, whose answers are all of one length: between one and six questions are put as one, and
their answers too, in such shares that the lengths spread as those of Alpaca do. FOLDER then holds

- model/: a folder that transformers loads; torchtune/, litgpt/: the same weights for these two
- data/: the records, and ``lengths.json``, the tokens of each in the order in which they are learned
- held-out.json: records of the same kind made of the data set ``cards-heldout``
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmf_smollm2
from lmf.training.packing import order
from tokenizers import Tokenizer

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PROMPT = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{{}}<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
SHARES = {1: 55, 2: 22, 3: 10, 4: 6, 5: 4, 6: 3}  # of the records, in percent, by the number of questions
LITGPT = "SmolLM2-135M-Instruct"  # the name by which litgpt knows the architecture

Talk = tuple[str, str]  # what is asked, and the reply


def main(folder: Path, batch: int, steps: int) -> None:
    shutil.rmtree(folder / "data", ignore_errors=True)
    model = make_models(folder)
    talks = joined(cards("cards.jsonl"), batch * steps)
    tokenizer: Any = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = [PROMPT.format(asked) + reply + END for asked, reply in talks]
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    held_out = joined(cards("cards-heldout.jsonl"), 16)
    write(
        folder / "held-out.json", [{"prompt": PROMPT.format(asked), "reply": reply + END} for asked, reply in held_out]
    )
    write_records(folder / "data", talks, held_out)
    made = {"size": {"batch": batch, "steps": steps}, "lengths": lengths}
    write(folder / "data" / "lengths.json", made)  # last: the sign that everything is there


def cards(name: str) -> list[Talk]:
    """Return question and answer of the conversations that have one of each and no system message."""
    lines = (lmf_smollm2.DATA / name).read_text(encoding="utf-8").splitlines()
    talks = [[m["content"] for m in json.loads(line)["messages"] if m["role"] != "system"] for line in lines]
    return [(talk[0], talk[1]) for talk in talks if len(talk) == 2]


def joined(talks: Sequence[Talk], count: int) -> list[Talk]:
    """Return ``count`` records, each made of different talks than the others if there are enough."""
    chance = random.Random(0)
    records, at = [], 0
    for size in chance.choices(list(SHARES), weights=list(SHARES.values()), k=count):
        part = [talks[(at + i) % len(talks)] for i in range(size)]
        at += size
        records.append(("\n".join(asked for asked, _ in part), "\n\n".join(reply for _, reply in part)))
    return records


def make_models(folder: Path) -> Path:
    """Make the three forms of the weights; litgpt's with its own converter. Returns that of transformers."""
    model, torchtune, litgpt = folder / "model", folder / "torchtune", folder / "litgpt" / LITGPT
    if not model.exists():
        shutil.copytree(lmf_smollm2.folder(), model)
    if not torchtune.exists():
        parts = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        torchtune.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (torchtune / name).symlink_to(model / name)
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in parts["merges"]]
        (torchtune / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
        write(torchtune / "vocab.json", parts["vocab"])
    converter = folder / "venv" / "litgpt" / "bin" / "litgpt"
    if converter.exists() and not (litgpt / "lit_model.pth").exists():
        shutil.copytree(model, litgpt, dirs_exist_ok=True)
        subprocess.run([converter, "convert_to_litgpt", litgpt, "--model_name", LITGPT], check=True)
        (litgpt / "model.safetensors").unlink()
    return model


def write_records(data: Path, talks: Sequence[Talk], held_out: Sequence[Talk]) -> None:
    """Write the records once in each form."""
    messages = [{"messages": [said("user", asked), said("assistant", reply)]} for asked, reply in talks]
    places = order(len(talks), 0, 0)  # the order that LMF will learn them in, with its seed 0
    shuffled: list[Any] = [None] * len(talks)
    for place, record in zip(places, messages, strict=True):
        shuffled[place] = record  # so it learns them as all the others do: one after the other
    write_lines(data / "messages.jsonl", messages)
    write_lines(data / "lmf.jsonl", shuffled)
    parted = [{"prompt": [said("user", asked)], "completion": [said("assistant", reply)]} for asked, reply in talks]
    write_lines(data / "trl" / "train.jsonl", parted)
    write(data / "litgpt" / "train.json", instructions(talks))
    write(data / "litgpt" / "val.json", instructions(held_out[:2]))
    write(data / "llamafactory" / "records.json", instructions(talks))
    write(data / "llamafactory" / "dataset_info.json", {"records": {"file_name": "records.json"}})


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def instructions(talks: Sequence[Talk]) -> list[dict[str, str]]:
    return [{"instruction": asked, "input": "", "output": reply} for asked, reply in talks]


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(file: Path, records: Sequence[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]), int(sys.argv[3]))
