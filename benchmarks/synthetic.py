"""Models of a given shape with random weights, batches of random tokens, and the steps of a run on them.

Nothing of a model or of data is read: the plan is made by hand, and everything after it is the code of a run.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lmf import Plugins, RunSettings
from lmf.config import make
from lmf.data.reading import Data
from lmf.data.records import Records
from lmf.encoding.encoder import Example
from lmf.memory.ledger import Ledger, Peak
from lmf.models import inner
from lmf.plan import Plan
from lmf.sources import Source
from lmf.training.learner import blank_learner
from lmf.training.loss import Learned
from lmf.training.packing import Batch, pack
from lmf.training.update import update_of
from torch import nn
from transformers import LlamaConfig

FIRST = ("q_proj", "k_proj", "v_proj")  # these read what enters a layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a Llama.

    Attributes:
        layers: Decoder layers.
        width: Numbers in a hidden state.
        inside: Numbers in the middle of an MLP.
        heads: Heads of attention.
        keys: Heads of keys and values.
        vocabulary: Tokens.
        positions: The longest document.
    """

    layers: int
    width: int
    inside: int
    heads: int
    keys: int
    vocabulary: int
    positions: int = 8192

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            intermediate_size=self.inside,
            num_attention_heads=self.heads,
            num_key_value_heads=self.keys,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.positions,
            tie_word_embeddings=False,
            architectures=["LlamaForCausalLM"],
            dtype="bfloat16",
        )


def plan(shape: Shape, folder: Path, method: str, options: Mapping[str, Any], **settings: Any) -> Plan:
    """Return the plan of a run that has no data.

    Args:
        shape: The model.
        folder: Where its configuration is written.
        method: Name of the tuning method.
        options: The method's options that are not at their defaults.
        settings: The run's settings that are not.
    """
    shape.config().save_pretrained(folder)
    plugins = _plugins()
    way, goal = plugins.methods[method], plugins.objectives["train"]
    values = {"model": str(folder), "data": ["none"], "output": folder / "out", "learning_rate": way.learning_rate}
    made: RunSettings = make(RunSettings, values | settings)
    return Plan(
        plugins=plugins,
        objective=goal,
        method=way,
        settings=made,
        objective_options=goal.options(),
        method_options=make(way.options, options),
        origins={},
        model=Source(str(folder), str(folder)),
        template=None,
        kernels={},
        optimizer=plugins.optimizers[made.optimizer],
        data=Data(Records(), []),
        held_out=Data(Records(), []),
        stream=None,
    )


@functools.cache
def _plugins() -> Plugins:
    return Plugins()


def batch(lengths: Sequence[int], vocabulary: int, device: torch.device) -> Batch:
    """Return documents of random tokens, end to end; every token but the first of each is learned."""
    chance = torch.Generator().manual_seed(sum(lengths))
    documents = [torch.randint(vocabulary, (length,), generator=chance).tolist() for length in lengths]
    return pack([Example(ids, ids, "") for ids in documents]).to(device)


class Run:
    """A model with random weights, and what the loop does with a batch in each step.

    Attributes:
        model: The prepared model.
        layers: Its decoder layers.
        tuner: The method at work.
        optimizer: The optimizer.
    """

    def __init__(self, plan: Plan, device: torch.device):
        torch.manual_seed(plan.settings.seed)
        self.learner = learner = blank_learner(plan, device)
        self.device = device
        self.model: Any = learner.model.train()
        self.tuner = learner.tuner
        self.layers = list(inner(self.model).get_submodule(learner.spec.layers))
        self.learned = Learned(self.model, plan.objective.build(plan.objective_options))
        rate = plan.settings.learning_rate
        assert rate is not None
        groups = self.tuner.groups(self.model, rate, plan.settings.weight_decay)
        self.optimizer = plan.optimizer.build(groups)
        self.update = update_of(self.model, self.optimizer, plan.settings)

    def deepest(self, steps: int) -> int:
        """Return which of the first steps trains the lowest weights: its backward pass goes down to them."""
        parameters, found = list(self.model.parameters()), []
        for step in range(steps):
            self.tuner.before_step(step, self.optimizer)
            found.append((next(n for n, p in enumerate(parameters) if p.requires_grad), step))
        return min(found)[1]

    def step(self, number: int, batch: Batch, ledger: Ledger | None = None) -> float:
        """Do the optimizer step of this number and wait for it. Returns its loss in nats per token."""
        self.tuner.before_step(number, self.optimizer)
        with self.learner.precision(self.device):
            loss = self.learned(batch) / batch.weight
        with ledger.backward() if ledger else contextlib.nullcontext():
            loss.backward()
        norm = self.update.norm()
        total, _ = torch.stack([loss.detach().to(norm), norm]).tolist()
        self.update.step(norm)
        return total

    def count(self, number: int, batch: Batch) -> Peak:
        """Do a step and return the bytes of its tensors, by what they are for, as ``lmf profile memory`` does."""
        ledger = Ledger(self.device, self.model.config.get_text_config().vocab_size)
        ledger.enter_run(self.model, self.optimizer)
        entered = self.optimizer.register_step_pre_hook(lambda *_: ledger.enter_run(self.model, self.optimizer))
        with ledger:
            self.step(number, batch, ledger)
        ledger.enter_run(self.model, self.optimizer)
        entered.remove()
        return ledger.peak()

    def state(self) -> int:
        """Return the bytes of the optimizer's state."""
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def work(run: Run, lengths: Sequence[int], counted: int) -> tuple[int, int]:
    """Return the FLOPs of the multiplications of matrices in a step: of the forward pass, and of the backward pass.

    Each weight of a linear layer counts 2 a token forward, 2 for the gradient of its input if anything before it
    is trained, and 2 for its own if it is. Causal attention counts half of the matrix of scores, and twice as
    much backward. What is computed again counts once, for it is not needed.

    Args:
        run: The run, with what is trained now.
        lengths: Tokens of each document.
        counted: Predictions that the loss counts; the head works on no others.
    """
    config = run.model.config
    size = config.num_attention_heads * config.head_dim
    attention = 4 * size * sum(length * length for length in lengths) // 2
    tokens = sum(lengths)
    forward = backward = 0
    flows = any(p.requires_grad for p in run.model.get_input_embeddings().parameters())
    for layer in run.layers:
        linears = {path: module for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
        apart = {id(p) for module in linears.values() for p in module.parameters()}
        scaled = any(p.requires_grad and id(p) not in apart for p in layer.parameters())  # the norms
        trained = any(p.requires_grad for p in layer.parameters())
        for path, linear in linears.items():
            first = any(name in path for name in FIRST) and "lora_B" not in path
            share = 2 * tokens * linear.weight.numel()
            forward += share
            backward += share * (linear.weight.requires_grad + (flows or (scaled if first else trained)))
        flows = flows or trained
        forward += attention
        backward += 2 * attention * flows
    head = run.model.get_output_embeddings().weight
    beside = {id(p) for layer in run.layers for p in layer.parameters()} | {id(head)}
    flows = flows or any(p.requires_grad for p in run.model.parameters() if id(p) not in beside)  # the last norm
    share = 2 * counted * head.numel()
    return forward + share, backward + share * (head.requires_grad + flows)
