"""How far packed training is from training example by example, in float32: losses and gradients.

Usage: packing.py MODEL

For the small models of tests/core/test_packing.py, and for the real MODEL on held-out conversations
of the data set ``cards``, prints the relative difference of the summed loss, and the largest one of
the gradients over all parameters, ‖packed − alone‖ / ‖alone‖.
"""

from __future__ import annotations

import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1] / "tests" / part) for part in ("core", ".")]

import lmf_smollm2
import test_packing
from lmf import Plugins
from lmf.data.reading import read
from lmf.encoding.encoder import Encoder, Example
from lmf.models import load_model, load_tokenizer
from lmf.sources import find_model
from lmf.training.loss import token_loss
from lmf.training.packing import ATTENTION, pack
from lmf_sft import Supervised, TrainOptions


def differences(plain: Any, packed: Any, examples: list[Example]) -> tuple[float, float]:
    """Return the relative difference of the losses, and the largest one of the gradients."""
    want, loss = test_packing.alone(plain, examples), token_loss(packed, pack(examples))
    theirs, ours = test_packing.gradients(plain, want), test_packing.gradients(packed, loss)
    apart = max(((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-6)).item() for name in theirs)
    return abs(loss.item() - want.item()) / want.item(), apart


def real(model: str) -> tuple[float, float]:
    plugins = Plugins()
    source = find_model(model, plugins)
    encoder = Encoder(load_tokenizer(source), plugins.templates["chatml"])
    records = read([str(lmf_smollm2.DATA / "cards-heldout.jsonl")], "conversation", plugins).records[:8]
    examples = list(Supervised(TrainOptions()).encode(records, encoder))
    packed = load_model(source, None).eval()
    packed.set_attn_implementation(ATTENTION)
    plain = load_model(source, None).eval()
    plain.set_attn_implementation("eager")
    return differences(plain.float(), packed.float(), examples)


def main(model: str) -> None:
    names = ("torch", "transformers")
    print(f"{date.today()}, Python {platform.python_version()}, {platform.machine()}")
    print(", ".join(f"{name} {version(name)}" for name in names) + ", CPU, float32\n")
    print(f"{'':28}{'loss':>10}{'gradients':>12}")
    for name in test_packing.PACKED:
        plain, packed = test_packing.family(name), test_packing.family(name, ATTENTION)
        loss, gradient = differences(plain, packed, test_packing.EXAMPLES)
        print(f"{name:28}{loss:10.1e}{gradient:12.1e}")
    loss, gradient = real(model)
    print(f"{Path(model).name + ', 8 conversations':28}{loss:10.1e}{gradient:12.1e}")


if __name__ == "__main__":
    main(sys.argv[1])
