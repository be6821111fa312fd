"""The memory of a run: forecast on a model without weights, and measured on the real one.

The forecast has no arithmetic of its own. The code that trains runs on tensors that have a shape
and no storage, and a ``Ledger`` counts what they would take. So a method or an objective of a
plugin is forecast as well as one of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedFakeTensorException

from ..encoding.encoder import Example
from ..encoding.material import Material
from ..errors import LmfError
from ..models import added_tokens, load_config
from ..plan import Plan
from ..rope import positions
from ..specs import Criterion
from ..training import packing
from ..training.learner import Learner, blank_learner, longest_of
from ..training.packing import Batch
from ..training.supply import supply_of
from ..training.update import update_of
from .ledger import Ledger, Peak, Usage

DIVIDED = {  # what each way to share a model divides among the processes
    "ddp": (),
    "fsdp": ("weights", "gradients", "state"),
    "zero1": ("state",),
    "zero2": ("gradients", "state"),
    "zero3": ("weights", "gradients", "state"),
}
Shape = tuple[tuple[int, int], ...]  # for each example of a micro-batch, its tokens and those that the loss counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What decides on the memory of a run, besides its settings.

    Attributes:
        batches: Micro-batches of an optimizer step, in order.
        later: Whether others went before, so that there are gradients already.
        steps: Optimizer steps of the run.
        rows: Number of tokens that the tokenizer knows; 0 for those of the model.
        new: Ids of tokens that the base model never learned.
    """

    batches: tuple[Shape, ...]
    later: bool
    steps: int
    rows: int = 0
    new: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the largest micro-batch."""
        return max(sum(tokens for tokens, _ in batch) for batch in self.batches)


def most_work(plan: Plan, material: Material | None = None) -> Work:
    """Return the most that a plan can come to: full micro-batches, every token of which is learned.

    Args:
        plan: The run.
        material: What is learned from, if it is encoded already; then no example is longer than the longest of it.
    """
    settings = plan.settings
    config = load_config(plan.model, settings.trust_remote_code)
    bounds = [settings.max_tokens, positions(config), material and longest_of(material)]
    longest = min(filter(None, bounds))
    tokens = min(max(settings.micro_batch_tokens, longest), settings.batch_size * longest)
    lengths = [longest] * (tokens // longest) + [tokens % longest] * (tokens % longest > 1)
    if material:
        steps = supply_of(material.train, plan).steps
    else:
        steps = settings.steps or math.ceil(settings.epochs * math.ceil(len(plan.data.records) / settings.batch_size))
    return Work(
        batches=(tuple((length, length) for length in lengths),),
        later=settings.batch_size * longest > tokens,
        steps=max(1, steps),
        rows=len(material.tokenizer) if material else 0,
        new=tuple(added_tokens(config)) if settings.train_new_tokens_only else (),
    )


def forecast(plan: Plan, device: torch.device, work: Work) -> Peak:
    """Return the memory that a run would need for its tensors.

    Raises:
        LmfError: The method cannot work with its options or this model, or the model cannot run without its weights.
    """
    mode = _Unstored()
    with _explained(plan), mode, warnings.catch_warnings():
        # torch's own copy of a tensor looks whether it has storage
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor", UserWarning)
        learner = blank_learner(plan, device, work.rows, work.new)
    batches = [_blank(learner.batch([_example(*each) for each in batch]), mode) for batch in work.batches]
    criterion = plan.objective.build(plan.objective_options)
    run = _Run(plan, learner, criterion, device)
    with _explained(plan), mode, run.ledger:
        run.settle(work.steps)
        if work.later:
            run.fill()
        run.step([batch.to(device) for batch in batches])
    return run.ledger.peak()


def of_each(usage: Usage, way: str, count: int) -> Usage:
    """Return what each of several processes has of the memory of a run, if they share it in a way.

    What is sent is not counted, but for the buckets of DDP, in which all gradients are a second time.
    """
    if count == 1:
        return usage
    parts = dataclasses.asdict(usage)
    own = {name: -(-size // count) if name in DIVIDED[way] else size for name, size in parts.items()}
    if way == "ddp":
        own["temporaries"] += own["gradients"]
    return Usage(**own)


def measure(plan: Plan, material: Material, learner: Learner, device: torch.device, steps: int) -> tuple[Peak, Work]:
    """Take the first steps of a run and return the memory of its tensors, and what they had to do."""
    run = _Run(plan, learner, material.criterion, device)
    works = []
    for step, chunk in enumerate(islice(supply_of(material.train, plan).batches(0), steps)):
        parts = packing.micro_batches(chunk, plan.settings.micro_batch_tokens, learner.packed)
        works.append(_work(parts, step + 1, len(material.tokenizer), learner.new_tokens))
        with run.ledger:
            learner.tuner.before_step(step, run.optimizer)
            run.step([learner.batch(part).to(device) for part in parts])
    largest = max(works, key=lambda work: work.tokens)
    return run.ledger.peak(), dataclasses.replace(largest, steps=len(works))


def _work(parts: Sequence[Sequence[Example]], steps: int, rows: int, new: tuple[int, ...]) -> Work:
    """Return the work of a step: its first micro-batch, and the largest of those that find gradients."""
    shapes: list[Shape] = [tuple((len(e.ids), e.trained) for e in part) for part in parts]
    rest = sorted(shapes[1:], key=lambda shape: tuple(map(sum, zip(*shape, strict=True))))
    return Work(batches=(shapes[0], *rest[-1:]), later=False, steps=steps, rows=rows, new=new)


class _Unstored(FakeTensorMode):
    """Tensors without storage, of modules that can be moved.

    A conversion of a module (``Module.to``) swaps such parameters, and torch 2.13 refuses to swap what
    something refers to weakly, as the mode's own memory of where a tensor came from does. Nothing
    here is converted twice, so it forgets at once.

    A copy of a tensor is one of the same mode: peft copies modules that it trains whole.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unstored:
        return self

    def __torch_dispatch__(self, *args: Any, **kwargs: Any) -> Any:
        result = super().__torch_dispatch__(*args, **kwargs)
        memory = self.fake_tensor_converter.meta_converter.tensor_memo
        if memory:
            memory.clear()
        return result


class _Run:
    """What the loop does to tensors, and nothing else of it."""

    def __init__(self, plan: Plan, learner: Learner, criterion: Criterion, device: torch.device):
        self.settings, self.learner, self.criterion, self.device = plan.settings, learner, criterion, device
        self.model: Any = learner.model.train()
        rate = plan.settings.learning_rate or plan.method.learning_rate
        groups = learner.groups(rate, plan.settings.weight_decay)
        self.optimizer = plan.optimizer.build(groups)
        self.update = update_of(self.model, self.optimizer, plan.settings)
        self.ledger = Ledger(device, self.model.config.get_text_config().vocab_size)
        self.optimizer.register_step_pre_hook(lambda *_: self._enter())  # while the gradients are there
        self._enter()

    def settle(self, steps: int) -> None:
        """Bring the optimizer to the state that it has when all was trained that ever is.

        Where a method changes what is trained, what trains the lowest weights comes last: the
        backward pass goes down to them.
        """
        tuner, parameters = self.learner.tuner, list(self.model.parameters())
        if steps == 1:  # which finds no state
            tuner.before_step(0, self.optimizer)
            return
        ever = set(tuner.trained(self.model))
        trained: list[int] = []  # numbers of parameters
        lowest, at = len(parameters), 0
        for step in range(steps):
            tuner.before_step(step, self.optimizer)
            now = [number for number, parameter in enumerate(parameters) if parameter.requires_grad]
            if now != trained:
                trained = now
                lowest, at = min((lowest, at), (now[0], step))
                ever -= {parameters[number] for number in now}
                self._make_state()
            if not ever:
                break
        tuner.before_step(at, self.optimizer)
        self._make_state()

    def fill(self) -> None:
        """Make gradients, as an earlier micro-batch would have."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        self._enter()

    def step(self, batches: Sequence[Batch]) -> None:
        """Do an optimizer step."""
        self._enter()  # the method may have changed weights
        weight = sum(batch.weight for batch in batches)
        for batch in batches:
            with self.learner.precision(self.device):
                loss = self.criterion.loss(self.model, batch) / weight
            with self.ledger.backward():
                loss.backward()
        self.update.step(self.update.norm())
        self._enter()

    def _make_state(self) -> None:
        """Let the optimizer make the state of what is trained, with as many gradients at a time as a step has."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for group in [[parameter] for parameter in trained] if self.settings.step_in_backward else [trained]:
            for parameter in group:
                parameter.grad = torch.zeros_like(parameter)
            self.optimizer.step()
            for parameter in group:
                parameter.grad = None
        self._enter()

    def _enter(self) -> None:
        self.ledger.enter_run(self.model, self.optimizer)


def _example(tokens: int, counted: int) -> Example:
    """Return an example; the first token of one is never counted."""
    labels = [packing.IGNORED] * (tokens - counted) + [0] * counted
    return Example([0] * tokens, labels, "")


def _blank(batch: Batch, mode: FakeTensorMode) -> Batch:
    """Return a batch of the same shapes without storage."""

    def blank(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    inputs = {name: blank(value) for name, value in batch.inputs.items()}
    return dataclasses.replace(
        batch, inputs=inputs, index=blank(batch.index), targets=blank(batch.targets), weights=blank(batch.weights)
    )


@contextlib.contextmanager
def _explained(plan: Plan) -> Iterator[None]:
    """Say what cannot be forecast."""
    try:
        yield
    except LmfError:
        raise
    except (UnsupportedFakeTensorException, RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise LmfError(
            f"{plan.method.name} on {plan.settings.model} cannot run without the weights of the model: "
            f"{type(error).__name__}: {text}"
        ) from error
