"""llama.cpp, where it is installed: the package ``cyllama`` (extra ``llama-cpp``), or its program ``llama-quantize``.

It runs in a process of its own, because it ends its process where a file is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from lmf import LmfError

PACKAGE = "cyllama"
INSTALL = "pip install 'lmf-export[llama-cpp]'"


@dataclass(frozen=True, slots=True)
class Seen:
    """What llama.cpp makes of a file.

    Attributes:
        ids: The tokens of each text.
        ends: Which of the ids that should end a reply do.
        logits: Those after each of the ids. Shape: (tokens, vocabulary).
    """

    ids: list[list[int]]
    ends: list[int]
    logits: np.ndarray


def installed() -> bool:
    """Return whether llama.cpp can read files here."""
    return importlib.util.find_spec(PACKAGE) is not None


def quantizes() -> bool:
    """Return whether llama.cpp can make small types here."""
    return installed() or shutil.which("llama-quantize") is not None


def quantize(source: Path, target: Path, kind: str) -> None:
    """Write a file in a smaller type.

    Raises:
        LmfError: llama.cpp does not do it.
    """
    if program := shutil.which("llama-quantize"):
        _run([program, str(source), str(target), kind.upper()], {})
    else:
        _run([sys.executable, "-m", __name__, "quantize"], {"source": str(source), "target": str(target), "kind": kind})


def read(file: Path, texts: Sequence[str], ids: Sequence[int], ends: Sequence[int], first: bool) -> Seen:
    """Return what llama.cpp makes of a file.

    Args:
        file: The file.
        texts: Texts with control tokens, which are read as such.
        ids: What to compute the logits of.
        ends: Ids that should end a reply.
        first: Put the first token (BOS) before the texts, if the file says so.

    Raises:
        LmfError: It does not read it.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        order = {"file": str(file), "texts": list(texts), "ids": list(ids), "ends": list(ends), "first": first}
        order["logits"] = str(out)
        told = json.loads(_run([sys.executable, "-m", __name__, "read"], order).splitlines()[-1])
        return Seen(told["ids"], told["ends"], np.load(out))


def _run(command: Sequence[str], order: Any) -> str:
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise LmfError(f"llama.cpp ended with code {done.returncode}: {''.join(said)[:500]}")
    return done.stdout


def _quantize(order: Any) -> None:
    from cyllama.llama import llama_cpp

    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype = int(LlamaFileType[f"MOSTLY_{order['kind'].upper()}"])
    llama_cpp.model_quantize(order["source"], order["target"], params)


def _read(order: Any) -> None:
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):
        @property
        def n_vocab(self) -> int:  # get_logits of cyllama 0.2.18 looks for it here
            return self.get_vocab().n_vocab

    params = llama_cpp.LlamaModelParams()
    params.n_gpu_layers = 0
    model = Model(order["file"], params)
    vocabulary = model.get_vocab()
    read = [vocabulary.tokenize(text, order["first"], True) for text in order["texts"]]
    options = llama_cpp.LlamaContextParams()
    options.type_k = options.type_v = int(GGMLQuantizationType.F32)  # so that only the weights make a difference
    options.flash_attn_type = 0
    options.n_ctx = max(256, len(order["ids"]))
    context = llama_cpp.LlamaContext(model, options)
    rows = []
    for place, token in enumerate(order["ids"]):
        batch = llama_cpp.LlamaBatch(n_tokens=1, embd=0, n_seq_max=1)
        batch.add(token, place, [0], True)
        context.decode(batch)
        rows.append(context.get_logits())
    np.save(order["logits"], np.array(rows, np.float32))
    print(json.dumps({"ids": read, "ends": [token for token in order["ends"] if vocabulary.is_eog(token)]}))


if __name__ == "__main__":
    {"quantize": _quantize, "read": _read}[sys.argv[1]](json.load(sys.stdin))
