"""The acceptance rows of training data at full counts: cases and failures of each.

Usage: reliability.py MODEL [--rows B1,B2,...] [--count N] [--seed N] [--data FILE ...]

MODEL is what --model takes; of it only the tokenizer is used. The checks are those of
tests/core/test_acceptance.py and tests/core/test_bad_data.py:

- B1: random lengths by every policy for five templates; every example that is kept has something
  to learn, and no reply that is learned lacks its end
- B2: ids and labels against transformers, for every template on 60 conversations, and for six on
  up to 1,200 real ones of --data with the tokenizer of MODEL
- B3: 50 short answers, learned by a tiny model in padded batches, with the end token as padding
  and with another, on either side; by transformers' generate the model must stop by itself
- B4: the ids of every template whose official text is known, against that text; prompts of 48
  conversations against apply_chat_template and against training; the latter also with the
  tokenizer of MODEL
- B5: hostile conversations, N / 100 for each of ten templates, against their harmless twins
- B7: packed against alone, the largest difference of a token's log-likelihoods
- C6: N damaged files for each reader; nothing but an LmfError, within 2 seconds
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1] / "tests" / part) for part in ("core", ".")]

import test_acceptance as acceptance
import test_bad_data
import test_packing
from datafiles import core_plugins, providing
from lmf import Conversation, Kernel, LmfError
from lmf.data.reading import read
from lmf.models import load_tokenizer
from lmf.sources import find_model
from lmf.templates.traits import takes
from rows import measured
from tinyrun import PLUGINS, run

REAL = ("chatml", "llama3", "gemma", "qwen3", "llama3_1", "granite")
CONVERSATIONS = 1_200
ANSWERS, ENDED = 50, 49  # of so many short answers so many must end
SLOWEST = 2  # seconds for a small file


# B1 to B5


def b1(options: argparse.Namespace) -> Iterator[str]:
    for name in acceptance.CUT:
        yield from acceptance.truncations(name, 500, options.seed)


def b2(options: argparse.Namespace) -> Iterator[str]:
    for name in sorted({*acceptance.OFFICIAL, *acceptance.MARKED["templates"]}):
        yield from acceptance.labels(name, acceptance.tokenizer_for(name), acceptance.many(name))


def b2_real(options: argparse.Namespace) -> Iterator[str]:
    talks = real_conversations(options)
    for name in REAL:
        tokenizer = acceptance.with_template(model_tokenizer(options.model), name)
        taken = (one for one in talks if acceptance.honest(name, one[1]) and takes(PLUGINS.templates[name], one[1]))
        yield from acceptance.labels(name, tokenizer, itertools.islice(taken, CONVERSATIONS))


def real_conversations(options: argparse.Namespace) -> list[tuple[str, Conversation]]:
    """Return the conversations of the files of --data in random order."""
    records = [record for file in options.data for record in read([file], "conversation", PLUGINS).records]
    random.Random(options.seed).shuffle(records)
    return [(record.where, record.data) for record in records if isinstance(record.data, Conversation)]


def model_tokenizer(model: str) -> Any:
    return load_tokenizer(find_model(model, PLUGINS))


def b3(options: argparse.Namespace) -> Iterator[str]:
    eager = Kernel(name="eager", summary="Plain torch.", why_not=lambda: None, load=lambda: "eager")
    PLUGINS.register("acme-eager", providing("lmf_kernels", eager))  # with a kernel of its own, batches are padded
    words = ("one", "two", "three", "hello", "what", "answer", "the user", "say")
    talks = [(f"say {i}", f"{words[i % 8]} {words[i // 8]}") for i in range(ANSWERS)]
    for pad, side in itertools.product(("<|im_end|>", "<|endoftext|>"), ("left", "right")):
        with tempfile.TemporaryDirectory() as folder:
            ended, right = overfitted(Path(folder), talks, pad, side)
        print(f"  pad {pad}, {side}: {ended} of {ANSWERS} end by themselves, {right} as they were learned")
        yield "" if ended >= ENDED else f"pad {pad}, {side}: {ended} of {ANSWERS} end by themselves"


def overfitted(folder: Path, talks: list[tuple[str, str]], pad: str, side: str) -> tuple[int, int]:
    """Learn the talks. Returns how many replies end by themselves, and how many are those that were learned."""
    import torch
    from lmf.testing import tiny_checkpoint
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = tiny_checkpoint(folder / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side=side)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(model)
    data = folder / "talks.jsonl"
    lines = [json.dumps({"instruction": asked, "output": answer}) + "\n" for asked, answer in talks]
    data.write_text("".join(lines), encoding="utf-8")
    out = run(model, data, folder / "out", epochs=80, learning_rate=3e-3, attention="eager", cache=False)
    learned: Any = AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ended = right = 0
    for asked, answer in talks:
        messages = [{"role": "user", "content": asked}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        with torch.no_grad():
            reply = learned.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        ended += stop in reply.tolist()
        right += tokenizer.decode(reply, skip_special_tokens=True) == answer
    return ended, right


def b4(options: argparse.Namespace) -> Iterator[str]:
    for name in acceptance.OFFICIAL:
        tokenizer = acceptance.tokenizer_for(name)
        yield from acceptance.official_ids(name, tokenizer)
        yield from acceptance.chat_ids(name, tokenizer, acceptance.many(name, 48))


def b4_real(options: argparse.Namespace) -> Iterator[str]:
    for name in acceptance.OFFICIAL:
        tokenizer = acceptance.with_template(model_tokenizer(options.model), name)
        yield from acceptance.chat_ids(name, tokenizer, acceptance.many(name, 48), compare=False)


def b5(options: argparse.Namespace) -> Iterator[str]:
    for name in acceptance.FORGED:
        yield from acceptance.forgeries(name, options.count // 100, options.seed)


# B7


def b7(options: argparse.Namespace) -> Iterator[str]:
    import torch

    for name in test_packing.PACKED:
        plain, packed = test_packing.family(name), test_packing.family(name, test_packing.ATTENTION)
        batch = test_packing.pack(test_packing.EXAMPLES)
        with torch.no_grad():
            logits = packed(**batch.inputs).logits[0]
            alone = [plain(input_ids=torch.tensor([e.ids]), use_cache=False).logits[0] for e in test_packing.EXAMPLES]
        both = (each[batch.index].log_softmax(-1) for each in (logits, torch.cat(alone)))
        for position, (one, other) in enumerate(zip(*both, strict=True)):
            apart = (one - other).abs().max().item()
            yield "" if apart <= 1e-5 else f"{name}, token {position}: {apart:.1e}"


# C6


def c6(reader: str) -> Callable[[argparse.Namespace], Iterator[str]]:
    """Return the check of one reader. It reads in another process, which damaged data could kill."""

    def check(options: argparse.Namespace) -> Iterator[str]:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = multiprocessing.Pipe()
            work = multiprocessing.Process(target=damage, args=(reader, options, Path(folder), theirs))
            work.start()
            theirs.close()
            try:
                while True:
                    yield from ours.recv()
            except EOFError:
                work.join()
            if work.exitcode:
                (file,) = Path(folder).iterdir()
                yield f"{reader}: exit code {work.exitcode} while it read {file.read_bytes()!r}"

    return check


def damage(reader: str, options: argparse.Namespace, folder: Path, told: Any) -> None:
    """Read damaged files and tell what is wrong with each reading, in batches."""
    suffix, kind, contents = files()[reader]
    chance, plugins = random.Random(f"{reader}:{options.seed}"), core_plugins()
    verdicts: list[str] = []
    for _ in range(options.count):
        content = test_bad_data.mutated(chance.choice(contents), chance)
        if reader == "gz" and chance.random() < 0.5:  # damage that the checksum does not find
            content = gzip.compress(test_bad_data.mutated(gzip.decompress(contents[0]), chance), 1)
        file = folder / f"a{suffix}"
        file.write_bytes(content)
        start, fault = time.perf_counter(), ""
        try:
            read([str(file)], kind, plugins, on_bad_record=chance.choice(("error", "skip")))
        except LmfError:
            pass
        except Exception as error:
            fault = f"{reader}: {type(error).__name__}: {error}: {content!r}"
        if time.perf_counter() - start > SLOWEST:
            fault = f"{reader}: {time.perf_counter() - start:.1f} seconds: {content!r}"
        verdicts.append(fault)
        if len(verdicts) == 1000:
            told.send(verdicts)
            verdicts = []
    told.send(verdicts)


def files() -> dict[str, tuple[str, Any, list[bytes]]]:
    """Return for each reader the suffix of its files, what they hold, and whole files to begin with."""
    import pyarrow
    from pyarrow import parquet

    def of(suffix: str, kind: str) -> list[bytes]:
        return [content for name, content, held in test_bad_data.FILES if name == f"a.{suffix}" and held == kind]

    tables = []
    record = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    for compression in ("none", "snappy", "zstd"):
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist([record] * 3), buffer, compression=compression)
        tables.append(buffer.getvalue())
    lines = of("jsonl", "conversation")
    return {
        "JSON": (".json", "conversation", of("json", "conversation")),
        "JSONL": (".jsonl", "conversation", lines),
        "CSV": (".csv", "conversation", of("csv", "conversation")),
        "Parquet": (".parquet", "conversation", tables),
        "text": (".txt", "text", [b"Once.", "Zeile\r\nüber 你好 🙂\n".encode() * 3]),
        "gz": (".jsonl.gz", "conversation", [gzip.compress(content) for content in lines]),
    }


ROWS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "B1": b1,
    "B2": b2,
    "B2, real": b2_real,
    "B3": b3,
    "B4": b4,
    "B4, real": b4_real,
    "B5": b5,
    "B7": b7,
    **{f"C6, {reader}": c6(reader) for reader in ("JSON", "JSONL", "CSV", "Parquet", "text", "gz")},
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Cases and failures of the acceptance rows of training data.")
    parser.add_argument("model", help="what --model takes")
    parser.add_argument("--rows", help="rows to check, separated by commas; all by default")
    parser.add_argument("--count", type=int, default=100_000, help="damaged files for each reader (100,000)")
    parser.add_argument("--seed", type=int, default=0, help="decides what is random (0)")
    parser.add_argument("--data", nargs="*", default=[], help="files of real conversations")
    options = parser.parse_args()
    checks = {name: partial(check, options) for name, check in ROWS.items() if options.data or check is not b2_real}
    return measured(checks, options.rows, options.seed, ("torch", "transformers", "tokenizers"))


if __name__ == "__main__":
    sys.exit(main())
