"""The settings that every training run has, whatever is learned and however, and those of replies."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .config import option
from .rope import FACTOR, ROPE, Rope

OUT = Path("out")
NEWEST, AUTO = "newest", "auto"  # of --resume
AUTO_TOKENS = 0  # what --micro-batch-tokens auto is until the largest that fits is found
WAYS = ("ddp", "fsdp", "zero1", "zero2", "zero3")  # to share a model among processes


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """The settings of a run. Those of its objective and its method come beside them."""

    model: str = option(help="Base model: a folder, a GGUF file, a checkpoint name (lmf models) or a hub id.")
    data: tuple[str, ...] = option(help="Training data: files, folders or data set names; give it again for more.")
    format: str | None = option(None, "Data format of all records; by default the keys of each tell it.")
    columns: tuple[str, ...] = option((), "Other names of keys, as KEY=COLUMN: instruction=question.", commas=True)
    streaming: bool = option(False, "Read the data while they are learned, whatever their size; needs --steps.")
    shuffle_buffer: int = option(10_000, "With --streaming: records that are read and shuffled at a time.", min=1)
    on_bad_record: Literal["error", "skip"] = option("error", "What to do with records that cannot be learned from.")
    mix: Literal["concat", "interleave-first", "interleave-all"] = option(
        "concat", "All data; or shares (--data NAME:WEIGHT) until the first or until all are used up."
    )
    dedup: bool = option(False, "Leave out records that hold exactly what an earlier one holds.")
    max_samples: int | None = option(None, "Most training records; the seed chooses them.", min=1)
    system: tuple[str, ...] = option(
        (), "System message for conversations without one; one text, or one for each --data."
    )
    output: Path = option(OUT, "Folder for the tuned model; must not exist yet.")
    overwrite: bool = option(False, "Replace an earlier run in the output folder.")
    resume: str | None = option(
        None,
        "Continue the run in the output folder from its newest whole checkpoint, or from step-000020; with auto, "
        "start it where nothing was saved yet.",
        bare=NEWEST,
    )

    template: str = option("auto", "Conversation template: a name, a Jinja file, or auto, the model's own.")
    reasoning: Literal["strip", "keep", "disable"] = option(
        "strip", "Thoughts: as the template does it by itself, also those of earlier turns, or none at all."
    )
    rope: Rope | None = option(None, ROPE)
    rope_factor: float | None = option(None, FACTOR, above=1, max=1000)
    max_tokens: int = option(2048, "Longest training example in tokens.", min=2)
    on_overflow: Literal["error", "drop", "truncate-left", "truncate-right", "split"] = option(
        "drop", "What to do with longer examples; truncate-right keeps the whole replies that fit."
    )
    max_dropped: float = option(0.05, "Largest share of the examples that may be dropped.", min=0, max=1)

    cache: bool = option(True, "Keep encoded data for the next run with the same data, template and tokenizer.")

    eval_data: tuple[str, ...] = option((), "Held-out data to measure the loss on.")
    eval_split: float = option(0.0, "Share of the training data to hold out instead.", min=0, max=0.5)
    eval_every: int | None = option(None, "Optimizer steps between two evaluations; each epoch by default.", min=1)
    eval_tasks: tuple[str, ...] = option(
        (), "Benchmarks to measure at the same steps: names of lmf eval tasks, .py or .toml files.", commas=True
    )
    eval_limit: int = option(100, "Most problems of each of them: the first.", min=1)
    patience: int | None = option(None, "Stop after this many evaluations without a better loss.", min=1)

    epochs: float = option(1.0, "Passes over the data; --steps overrides it.", above=0)
    steps: int | None = option(None, "Optimizer steps.", min=1)
    batch_size: int = option(16, "Conversations per optimizer step, over all devices.", min=1)
    micro_batch_tokens: int = option(
        4096,
        "Most tokens in one forward pass; bounds the memory. auto: as many as the free memory has room for.",
        min=1,
        words={"auto": AUTO_TOKENS},
    )

    optimizer: str = option("adamw", "Optimizer.")
    learning_rate: float | None = option(None, "Peak learning rate; the method's own by default.", above=0, max=1)
    schedule: Literal["linear", "cosine", "constant"] = option("cosine", "Course of the learning rate after warm-up.")
    warmup: float = option(0.03, "Share of the steps over which the learning rate rises.", min=0, max=1)
    weight_decay: float = option(0.0, "Decay of weights per step, relative to the rate; not on norms or biases.", min=0)
    clip: float = option(1.0, "Largest norm of the gradient; 0 for no limit.", min=0)
    step_in_backward: bool = option(
        False, "Step each parameter in the backward pass and drop its gradient; needs --clip 0 and one pass a step."
    )

    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "Precision; bfloat16 where the hardware has it.")
    train_new_tokens_only: bool = option(
        False, "Of embeddings and output head, train the rows of new tokens (lmf vocab apply), and no others."
    )
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass to save memory.")
    attention: str | None = option(None, "Kernel for attention; by default as --kernels says.")
    kernels: tuple[str, ...] = option(
        ("auto",), "Kernels for parts of the model: auto, those that can run here; none; or names.", commas=True
    )
    seed: int = option(0, "Seed of every random choice.", min=0, max=2**32 - 1)

    parallel: Literal["auto", "ddp", "fsdp", "zero1", "zero2", "zero3"] = option(
        "auto", "How several processes share the model: a copy each (ddp), or divided by FSDP2 or by DeepSpeed's ZeRO."
    )
    deepspeed: Path | None = option(
        None, 'DeepSpeed\'s configuration, a JSON file; what it leaves "auto" is filled in.'
    )
    timeout: int = option(1800, "Seconds that processes wait for one another before they give up.", min=1)
    offload: str | None = option(None, "Where divided weights and optimizer state are kept: cpu, or nvme:FOLDER.")

    save_every: int | None = option(None, "Optimizer steps between two checkpoints; each epoch by default.", min=1)
    save_best: bool = option(True, "Give out the weights with the lowest held-out loss, not the last ones.")
    keep: int = option(2, "Newest checkpoints to keep besides the best.", min=1)
    sample: str | None = option(None, "A prompt to answer before and after training, to see the difference.")
    log: tuple[str, ...] = option((), "Trackers to log to besides log.jsonl: tensorboard, wandb, trackio.", commas=True)

    allow_pickle: bool = option(False, "Load pickled weights, which can run code; only from sources you trust.")
    trust_remote_code: bool = option(False, "Run the Python code that the model's folder or repository brings.")

    @property
    def continues(self) -> bool:
        """Whether a run is continued, once a plan has settled what ``--resume auto`` means; else it is started."""
        return self.resume not in (None, AUTO)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a reply is written."""

    max_tokens: int = option(256, "Longest reply in tokens.", min=1)
    temperature: float = option(0.0, "0 takes the likeliest token each time; above, tokens are drawn.", min=0, max=10)
    top_p: float = option(1.0, "Draw from the likeliest tokens that have this probability together.", above=0, max=1)
    top_k: int = option(0, "Draw from so many of the likeliest tokens; 0 for no limit.", min=0)
    min_p: float = option(0.0, "Draw from tokens with this share of the likeliest one's probability.", min=0, max=1)
    repetition_penalty: float = option(
        1.0, "Above 1, tokens that the prompt or the reply has are less likely (arXiv:1909.05858).", above=0, max=10
    )
    presence_penalty: float = option(0.0, "Taken from the logit of each token that the reply has.", min=-2, max=2)
    frequency_penalty: float = option(0.0, "The same, times how often the reply has it.", min=-2, max=2)
    seed: int | None = option(None, "Start of the random numbers; another each time by default.", min=0)
    stop: tuple[str, ...] = option((), "Text that ends a reply; it is not part of it.")

    @property
    def likeliest(self) -> bool:
        """Whether the token that the model finds likeliest is taken each time."""
        return self.temperature == 0 and self.repetition_penalty == 1 and not self.penalized

    @property
    def penalized(self) -> bool:
        """Whether tokens that were written are less likely, or more, than they were."""
        return bool(self.presence_penalty or self.frequency_penalty)

    def draws(self, index: int = 0) -> random.Random:
        """Return the random numbers of one of several replies to a prompt."""
        return random.Random(f"{self.seed}:{index}" if self.seed is not None else None)


LOOKUP = "lookup"  # the drafter that needs no model


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """How a model is opened to talk to it."""

    template: str = option("auto", "A template by name, or a Jinja file; auto is the model's own.")
    context: int | None = option(None, "Most tokens of a prompt and its reply; what the model reads by default.", min=2)
    draft_model: str | None = option(
        None, "A smaller model with the same tokens that guesses ahead, or lookup, to guess what the text had before."
    )
    draft_tokens: int = option(5, "Tokens that are guessed at a time.", min=1, max=64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How the problems of a benchmark are asked."""

    limit: int | None = option(None, "Most problems of each task: the first, or with --seed drawn ones.", min=1)
    seed: int | None = option(
        None, "Draws problems, examples and replies; without it, the first ones are taken.", min=0
    )
    shots: int | None = option(None, "Examples before each problem; as many as the task has it by default.", min=0)
    template: str | None = option(
        None, "A template by name, a Jinja file, auto for the model's own, or none; as the task has it by default."
    )
    prompt_structure: str | None = option(None, "A text with {input} where the prompt stands, in place of a template.")
    max_tokens: int | None = option(None, "Longest reply in tokens; as the task has it by default.", min=1)
    rope: Rope | None = option(None, ROPE)
    rope_factor: float | None = option(None, FACTOR, above=1, max=1000)
    lengths: tuple[int, ...] = option(
        (),
        "Tokens of the problems of tasks by length; powers of two up to what the model reads by default.",
        commas=True,
        min=2,
    )
    samples: int = option(1, "Replies to each problem; more than one needs --temperature.", min=1, max=256)
    temperature: float = option(0.0, "0 takes the likeliest token each time; above, tokens are drawn.", min=0, max=10)
    window: int = option(1024, "Tokens of a text that are read at a time, where its likelihood is asked.", min=2)
    stride: int = option(512, "Tokens after which the next such window begins.", min=1)
    context: int | None = option(None, "Most tokens of a prompt and its reply; what the model reads by default.", min=2)
    on_overflow: Literal["error", "cut"] = option("error", "What to do with prompts that are longer.")
    batch_tokens: int | None = option(
        None, "Most tokens in one forward pass; by default what the device works on well.", min=1
    )
