"""Every installed template, method, objective and benchmark keeps its promises; checks fail where one is broken."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import (
    Conversation,
    Criterion,
    Message,
    Metric,
    ModelSpec,
    Objective,
    Piece,
    Record,
    Template,
    Tuner,
    TuningMethod,
)
from lmf.config import make
from lmf.encoding.encoder import Encoder, Example
from lmf.evaluate.metrics import ACC
from lmf.models import load_weights
from lmf.testing import check_method, check_objective, check_task, check_template
from lmf.training.loss import token_loss
from lmf.training.packing import pack
from lmf_full import FullOptions
from lmf_sft import Supervised, TrainOptions
from tinyrun import PLUGINS
from torch import nn

TEMPLATES = [(PLUGINS.templates.qualified(each), each) for _, each in PLUGINS.templates.all()]
METHODS = [(PLUGINS.methods.qualified(each), each) for _, each in PLUGINS.methods.all()]
TASKS = [(PLUGINS.tasks.qualified(each), each) for _, each in PLUGINS.tasks.all() if Path(each.data).is_file()]
OBJECTIVES = [(PLUGINS.objectives.qualified(each), each) for _, each in PLUGINS.objectives.all()]

# what a method needs to be told before it can train
NEEDED: dict[str, dict[str, Any]] = {"lmf-full:freeze": {"last_layers": 1}}
CHATML = PLUGINS.templates["chatml"]
DATA = {
    "conversation": [
        Record(f"talks:{number}", Conversation(messages))
        for number, messages in enumerate(
            [
                (Message("user", "hello"), Message("assistant", "what is one")),
                (Message("system", "say"), Message("user", "two"), Message("assistant", "answer three")),
                tuple(Message(role, f"{role} {i}") for i in range(3) for role in ("user", "assistant")),
            ],
            1,
        )
    ],
    "text": [Record("texts:1", "the user and the assistant say hello"), Record("texts:2", "one and two")],
}


def given(name: str, item: Any) -> Any:
    """The same method, built with the options it needs."""
    options = make(item.options, NEEDED.get(name, {}))
    return dataclasses.replace(item, build=lambda _, spec: item.build(options, spec))


@pytest.mark.parametrize(("name", "template"), TEMPLATES, ids=[name for name, _ in TEMPLATES])
def test_a_template_keeps_its_promises(name, template):
    check_template(template)


@pytest.mark.parametrize(("name", "task"), TASKS, ids=[name for name, _ in TASKS])
def test_a_benchmark_keeps_its_promises(name, task, tmp_path):
    check_task(task, tmp_path / "model")


def counted() -> Metric:
    """A figure that depends on how often it was asked for."""
    count = itertools.count()
    return Metric(name="counted", measure=lambda problem, outcome: float(next(count)))


@pytest.mark.parametrize(
    ("metric", "complaint"),
    [
        (counted(), "its figures depend on the order of the problems"),
        (Metric(name="always", measure=lambda problem, outcome: 1.0), "no figure is better for right answers"),
        (Metric(name="turned", measure=ACC.measure, higher=False), "no figure is better for right answers"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_benchmark_that_breaks_a_promise_is_caught(metric, complaint, tmp_path):
    task = dataclasses.replace(PLUGINS.tasks["hellaswag_sample"], metrics=(metric,))
    with pytest.raises(AssertionError, match=complaint):
        check_task(task, tmp_path / "model")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks for it
@pytest.mark.parametrize(("name", "method"), METHODS, ids=[name for name, _ in METHODS])
def test_a_method_keeps_its_promises(name, method, tmp_path):
    check_method(given(name, method), tmp_path)


@pytest.mark.parametrize("template", ["chatml", "llama3", "plain"])
@pytest.mark.parametrize(("name", "objective"), OBJECTIVES, ids=[name for name, _ in OBJECTIVES])
def test_an_objective_keeps_its_promises(name, objective, template):
    check_objective(objective, DATA[objective.data], PLUGINS.templates[template])


def test_something_is_installed_to_be_checked():
    assert len(TEMPLATES) >= 11
    assert {name for name, _ in METHODS} >= {"lmf-full:full", "lmf-full:freeze"}
    assert {name for name, _ in OBJECTIVES} >= {"lmf-sft:train", "lmf-sft:pretrain"}


# Templates that break a promise


class Twice(Template):
    def render(self, messages: Sequence[Message], **options: Any) -> list[Piece]:
        return [*super().render(messages, **options), Piece(messages[0].content)]


class TrainsAll(Template):
    def render(self, messages: Sequence[Message], **options: Any) -> list[Piece]:
        return [piece._replace(trained=True) for piece in super().render(messages, **options)]


class Trusting(Template):
    def render(self, messages: Sequence[Message], **options: Any) -> list[Piece]:
        return [piece._replace(control=True) for piece in super().render(messages, **options)]


class Powerless(Template):
    def render(self, messages: Sequence[Message], **options: Any) -> list[Piece]:
        return [piece._replace(control=False) for piece in super().render(messages, **options)]


class Endless(Template):
    def stops(self, eos: str = "") -> tuple[str, ...]:
        return ("<stop>",)


class Chatty(Template):
    def render(self, messages: Sequence[Message], *, reply: bool = False, **options: Any) -> list[Piece]:
        pieces = super().render(messages, reply=reply, **options)
        return [*pieces, Piece("Sure! ", control=True)] if reply else pieces


class Misspelt(Template):
    def jinja(self) -> str:
        return super().jinja().replace("<|im_end|>", "<|im_end|> ")


class ForgetsSystem(Template):
    def render(self, messages: Sequence[Message], **options: Any) -> list[Piece]:
        return super().render([message for message in messages if message.role != "system"], **options)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Twice, "chatml: 'Ping?' is not rendered once"),
        (ForgetsSystem, "chatml: 'Be brief!' is not rendered once"),
        (TrainsAll, "chatml: wrong text is trained: "),
        (Trusting, "chatml: content is control text: "),
        (Powerless, "chatml: its own text is not control text: "),
        (Endless, "chatml: a reply is trained without the stop string '<stop>'"),
        (Chatty, "chatml: prompts in chat differ from prompts in training"),
        (Misspelt, "chatml: its Jinja text "),
    ],
)
def test_a_template_that_breaks_a_promise_is_found(kind, message):
    fields = {field.name: getattr(CHATML, field.name) for field in dataclasses.fields(CHATML)}
    with pytest.raises(AssertionError) as found:
        check_template(kind(**fields))
    assert str(found.value).startswith(message)


# Methods that break a promise


class Idle(Tuner):
    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        return super().groups(model, 0.0, 0.0)


class Forgetful(Tuner):
    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters())[1:], "lr": learning_rate, "weight_decay": weight_decay}]


class Leaky(Tuner):
    """Decays what is frozen, by a hook on the first layer."""

    def prepare(self, model: Any, new_tokens: Sequence[int] = ()) -> Any:
        layer = model.model.layers[0].requires_grad_(False)

        def decay(module: nn.Module, *_: Any) -> None:
            module.self_attn.q_proj.weight.data.mul_(0.9)

        layer.register_forward_hook(decay)
        return model


class Frozen(Tuner):
    """Trains the layers and leaves the embeddings of new tokens as they are."""

    def prepare(self, model: Any, new_tokens: Sequence[int] = ()) -> Any:
        model.get_input_embeddings().requires_grad_(False)
        return model


class Careless(Tuner):
    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "weights.pt")


class Rounding(Tuner):
    def save(self, model: Any, folder: Path) -> None:
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.half())
        model.save_pretrained(folder)
        model.load_state_dict(kept)


class Stateful(Tuner):
    """Counts the steps by itself, so that a resumed run begins to count again."""

    def __init__(self) -> None:
        self.steps = 0

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        self.steps += 1
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / self.steps


class Lenient(Tuner):
    def load(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import load_file

        tensors = load_file(folder / "model.safetensors")
        own = model.state_dict()
        model.load_state_dict({n: t for n, t in tensors.items() if n in own and own[n].shape == t.shape}, strict=False)


class Numb(Tuner):
    """Takes any value, NaN too."""

    def load(self, model: nn.Module, folder: Path) -> None:
        try:
            load_weights(model, folder)
        except Exception as error:
            if "not finite" not in str(error):
                raise


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Idle, "own: the loss did not fall: "),
        (Forgetful, "own: trained parameters are in no group of the optimizer: ['model.embed_tokens.weight'"),
        (Leaky, "own: frozen parameters changed: ['model.layers.0.self_attn.q_proj.weight']"),
        (Frozen, "own: the embeddings of new tokens are not trained"),
        (Careless, "own: saves pickles: ['weights.pt']"),
        (Rounding, "own: what was saved gives other logits when it is loaded"),
        (Stateful, "own: a resumed run comes to other weights: "),
        (Lenient, "own: loads a missing tensor without an LmfError"),
        (Numb, "own: loads a value that is no number without an LmfError"),
    ],
)
def test_a_method_that_breaks_a_promise_is_found(kind, message, tmp_path):
    def build(options: Any, spec: ModelSpec) -> Tuner:
        return kind()

    method = TuningMethod(name="own", summary="Broken.", options=FullOptions, build=build)
    with pytest.raises(AssertionError) as found:
        check_method(method, tmp_path)
    assert str(found.value).startswith(message)


# Objectives that break a promise


def change(example: Example, **values: Any) -> Example:
    return dataclasses.replace(example, **values)


class Plain(Supervised):
    def __init__(self) -> None:
        super().__init__(TrainOptions())


class Empty(Plain):
    def encode(self, records: Sequence[Record], encoder: Encoder) -> list[Example]:
        return [change(each, labels=[-100] * len(each.ids)) for each in super().encode(records, encoder)]


class Nameless(Plain):
    def encode(self, records: Sequence[Record], encoder: Encoder) -> list[Example]:
        return [change(each, where="somewhere") for each in super().encode(records, encoder)]


class Shifted(Plain):
    def encode(self, records: Sequence[Record], encoder: Encoder) -> list[Example]:
        return [change(each, labels=[*each.labels[1:], -100]) for each in super().encode(records, encoder)]


class Mean(Plain):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return token_loss(model, batch) / batch.weight


class PerToken(Plain):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return token_loss(model, batch).expand(3)


class Infinite(Plain):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return token_loss(model, batch) * torch.inf


class Detached(Plain):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return token_loss(model, batch).detach()


class Leaking(Plain):
    """Packs without telling where an example ends."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        if "position_ids" in batch.inputs:
            ids = batch.inputs["input_ids"][0].tolist()
            batch = dataclasses.replace(batch, inputs=pack([Example(ids, ids, "all")]).inputs)
        return token_loss(model, batch)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Empty, "own: an example has nothing to learn"),
        (Nameless, "own: an example names no record"),
        (Shifted, "own: a label is not the id at its place"),
        (PerToken, "own: the loss is not a finite scalar"),
        (Infinite, "own: the loss is not a finite scalar"),
        (Detached, "own: the loss has no gradient"),
        (Mean, "own: the loss is "),
        (Leaking, "own: the loss is "),
    ],
)
def test_an_objective_that_breaks_a_promise_is_found(kind, message):
    def build(options: Any) -> Criterion:
        return kind()

    objective = Objective(name="own", summary="Broken.", data="conversation", options=TrainOptions, build=build)
    with pytest.raises(AssertionError) as found:
        check_objective(objective, DATA["conversation"], CHATML)
    assert str(found.value).startswith(message)
    if kind is Mean:
        assert str(found.value).endswith("one by one")
    if kind is Leaking:
        assert str(found.value).endswith("packed")


def test_an_objective_is_not_checked_on_a_single_record():
    with pytest.raises(AssertionError, match="need at least two records"):
        check_objective(PLUGINS.objectives["train"], DATA["conversation"][:1], CHATML)
