"""How often SmolLM2-135M-Instruct finds a passkey, by the length of the text around it; nothing is trained.

Usage: passkey.py [--limit N] [--lengths N,...] [--factor F] [--types NAME,...]

The commands are ``lmf eval smollm2-135m --task passkey --lengths ... --limit N``, without and with ``--rope``. The
model was trained on 8,192 tokens; its weights are those of a file of 4 bits. The table goes to the standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

MODEL = "smollm2-135m"
NONE = "none"


def found(kind: str, given: argparse.Namespace, out: Path) -> dict[str, tuple[float, int]]:
    """Return how many keys are found, and of how many, by the tokens of a problem."""
    rope = [] if kind == NONE else ["--rope", kind, "--rope-factor", str(given.factor)]
    asked = ["--task", "passkey", "--lengths", given.lengths, "--limit", str(given.limit), *rope]
    command = [sys.executable, "-m", "lmf_cli", "eval", MODEL, *asked, "--out", str(out)]
    print(f"$ lmf eval {MODEL} {' '.join(asked)}", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")
    parts = json.loads((out / "results.json").read_text())["tasks"]["passkey"]["parts"]
    shares = {length: (part["figures"]["found"]["value"], part["items"]) for length, part in parts.items()}
    return {length: (round(share * count, 6), count) for length, (share, count) in shares.items()}


def main() -> None:
    """Ask, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=10, help="problems at each length")
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192,12288")
    parser.add_argument("--factor", type=float, default=2.0)
    parser.add_argument("--types", default=f"{NONE},yarn")
    given = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lmf-core", "lmf-eval"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}, {versions}, {date.today()}\n")
    lengths = sorted({int(length) for length in given.lengths.split(",")})
    print(f"SmolLM2-135M-Instruct from 4 bits, trained on 8,192 tokens, factor {given.factor:g}; nothing is trained")
    print("passkeys found, by the tokens of a problem")
    print(f"{'':10}" + "".join(f"{length:>12,}" for length in lengths))
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.types.split(","):
            cells = found(kind, given, Path(folder, kind))
            shown = (cells[str(length)] for length in lengths)
            print(f"{kind:10}" + "".join(f"{f'{some:g} of {count}':>12}" for some, count in shown), flush=True)


if __name__ == "__main__":
    main()
