"""The tools that throughput.py compares: how each is started, and how it tells of a step."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RATES = {"full": 2e-5, "lora": 2e-4, "lisa": 2e-5, "lisa-embeddings": 2e-5}
RANK, ALPHA, LONGEST = 8, 16, 512  # also in the files of settings beside this one


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a tool is asked to do.

    Attributes:
        folder: What prepare.py has filled; the environments of the peers are there too.
        output: Where the tool saves its model.
        method: full or lora; with LMF also lisa and lisa-embeddings.
        packed: Whether records share rows of 512 tokens; LMF packs anyhow, and takes so many at a time then.
        batch: Records in an optimizer step.
        rows: Packed rows in an optimizer step, about as many tokens.
        steps: Optimizer steps, if nothing is packed.
    """

    folder: Path
    output: Path
    method: str
    packed: bool
    batch: int
    rows: int
    steps: int

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def trainer(self) -> dict[str, Any]:
        """What all tools are told that use the Trainer of transformers."""
        return {
            "output_dir": self.output,
            "per_device_train_batch_size": self.size,
            "learning_rate": self.rate,
        }

    @property
    def size(self) -> int:
        """What the tool takes for its batch."""
        return self.rows if self.packed else self.batch

    @property
    def rate(self) -> float:
        return RATES[self.method]

    @property
    def lora(self) -> bool:
        return self.method == "lora"

    def program(self, peer: str, name: str) -> str:
        """Return the path of a program of a peer's environment."""
        return str(programs(self.folder, peer) / name)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One of the tools.

    Attributes:
        name: Its name here, and that of its environment.
        package: The distribution whose version counts.
        program: Its command.
        step: Matches the line that it prints after each optimizer step.
        command: Returns what does a job.
        methods: What is measured with it.
        packs: Whether it can pack records on a CPU.
    """

    name: str
    package: str
    program: str
    step: re.Pattern[str]
    command: Callable[[Job], list[str]]
    methods: tuple[str, ...] = ("full", "lora")
    packs: bool = True

    def bin(self, folder: Path) -> Path:
        """Return where the programs of its environment are."""
        return Path(sys.executable).parent if self.name == "lmf" else programs(folder, self.name)

    def python(self, folder: Path) -> Path:
        return Path(sys.executable) if self.name == "lmf" else self.bin(folder) / "python"


def programs(folder: Path, peer: str) -> Path:
    """Return the folder of the programs of a peer's environment."""
    return folder / "venv" / peer / "bin"


def lmf(job: Job) -> list[str]:
    method, *more = job.method.split("-")
    options: dict[str, Any] = {
        "model": job.model,
        "template": "smollm2",
        "data": job.data / "lmf.jsonl",
        "output": job.output,
        "max-tokens": LONGEST,
        "batch-size": job.batch,
        "steps": job.steps,
        "learning-rate": job.rate,
        "schedule": "constant",
        "warmup": 0,
        "clip": 0,
        "dtype": "float32",
    }
    if job.packed:
        options["micro-batch-tokens"] = LONGEST
    switches = ["--no-cache", "--overwrite"]
    if method == "lora":
        options |= {"rank": RANK, "alpha": ALPHA}
    if method == "lisa":
        options |= {"active-layers": 2, "interval": 1}  # the mean of many layers: low ones cost more
        if not more:
            switches += ["--no-train-embeddings", "--no-train-head", "--no-train-norm"]
    return [str(Path(sys.executable).parent / "lmf"), "train", method, *flags(options), *switches]


def trl(job: Job) -> list[str]:
    options = job.trainer | {
        "config": HERE / "trl.yaml",
        "model_name_or_path": job.model,
        "dataset_name": job.data / "trl",
        "use_peft": job.lora,
        "packing": job.packed,
    }
    return [job.program("trl", "trl"), "sft", *flags(options)]


def llamafactory(job: Job) -> list[str]:
    options = job.trainer | {
        "model_name_or_path": job.model,
        "dataset_dir": job.data / "llamafactory",
        "finetuning_type": job.method,
        "packing": job.packed,
        "neat_packing": job.packed,  # without it records see one another
    }
    return [job.program("llamafactory", "llamafactory-cli"), "train", str(HERE / "llamafactory.yaml"), *pairs(options)]


def swift(job: Job) -> list[str]:
    options = job.trainer | {
        "model": job.model,
        "dataset": job.data / "messages.jsonl",
        "tuner_type": job.method,
    }
    return [job.program("swift", "swift"), "sft", str(HERE / "swift.yaml"), *flags(options)]


def litgpt(job: Job) -> list[str]:
    adam = '{"class_path": "torch.optim.AdamW", "init_args": {"lr": %g, "weight_decay": 0, "fused": true}}'
    options: dict[str, Any] = {
        "config": HERE / "litgpt.yaml",
        "data.init_args.json_path": job.data / "litgpt",
        "out_dir": job.output,
        "train.micro_batch_size": job.batch,
        "train.global_batch_size": job.batch,
        "optimizer": adam % job.rate,
    }
    if job.lora:
        options |= {"lora_r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0}
        options |= {f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")}
    (model,) = (job.folder / "litgpt").iterdir()
    run = [job.program("litgpt", "python"), str(HERE / "litgpt_steady.py"), f"finetune_{job.method}", str(model)]
    return [*run, *flags(options)]


def torchtune(job: Job) -> list[str]:
    model = job.folder / "torchtune"
    options: dict[str, Any] = {
        "output_dir": job.output,
        "checkpointer.output_dir": job.output,
        "checkpointer.checkpoint_dir": model,
        "tokenizer.path": model / "vocab.json",
        "tokenizer.merges_file": model / "merges.txt",
        "dataset.data_files": job.data / "messages.jsonl",
        "dataset.packed": job.packed,
        "batch_size": job.size,
        "optimizer.lr": job.rate,
    }
    if job.lora:
        options |= {
            "model._component_": "torchtune.models.llama3_2.lora_llama3_2",
            "model.lora_attn_modules": "[q_proj,k_proj,v_proj,output_proj]",
            "model.apply_lora_to_mlp": True,
            "model.lora_rank": RANK,
            "model.lora_alpha": ALPHA,
            "model.lora_dropout": 0.0,
        }
    recipe = f"{job.method}_finetune_single_device"
    run = [job.program("torchtune", "tune"), "run", recipe, "--config", str(HERE / "torchtune.yaml")]
    return [*run, *pairs(options)]


def flags(options: dict[str, Any]) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", text(value))]


def pairs(options: dict[str, Any]) -> list[str]:
    return [f"{key}={text(value)}" for key, value in options.items()]


def text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


TRAINER = re.compile(r"\{'loss'")  # what the Trainer of transformers prints

TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            name="lmf",
            package="lmf-core",
            program="lmf",
            step=re.compile(r"^step \d+/"),
            command=lmf,
            methods=("full", "lora", "lisa", "lisa-embeddings"),
        ),
        Tool(name="trl", package="trl", program="trl", step=TRAINER, command=trl),
        Tool(
            name="llamafactory",
            package="llamafactory",
            program="llamafactory-cli",
            step=TRAINER,
            command=llamafactory,
        ),
        Tool(
            name="swift",
            package="ms-swift",
            program="swift",
            step=TRAINER,
            command=swift,
            packs=False,  # not without flash-attention
        ),
        Tool(
            name="litgpt",
            package="litgpt",
            program="litgpt",
            step=re.compile(r"loss train:"),
            command=litgpt,
            packs=False,
        ),
        Tool(
            name="torchtune",
            package="torchtune",
            program="tune",
            step=re.compile(r"Step \d+ \| loss"),
            command=torchtune,
        ),
    )
}
