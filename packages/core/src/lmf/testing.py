"""The promises a plugin must keep, as checks that any plugin's tests can call.

Each check raises AssertionError with the name of what it checked. The tiny model and
tokenizer are random and made on the spot, so nothing is downloaded.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LmfError
from .specs import ModelSpec, Objective, Record, TuningMethod
from .template import Message, Template

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TALK = (Message("user", "Ping?"), Message("assistant", "Pong!"), Message("user", "Bye."), Message("assistant", "Ciao!"))
TINY = ModelSpec(
    name="tiny",
    model_types=frozenset({"llama"}),
    template="chatml",
    projections=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_model(seed: int = 0, vocab_size: int = 300, tied: bool = False, dropout: float = 0.0) -> LlamaForCausalLM:
    """Return a random Llama with 4 layers of width 64."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=2,
            attention_dropout=dropout,
            tie_word_embeddings=tied,
        )
        return LlamaForCausalLM(config)


def tiny_tokenizer(vocab_size: int = 300, special: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a few merges; the last special token ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(["the user and the assistant say hello", "what is one and two, answer three"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=special[0], eos_token=special[-1])


def tiny_checkpoint(folder: Path, **model: Any) -> Path:
    """Write the tiny model and tokenizer into a folder that ``--model`` takes."""
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer), **model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def check_template(template: Template, talk: Sequence[Message] = TALK) -> None:
    """Every message is rendered once, only replies are trained, each reply ends with a stop string,
    a prompt in chat is how the same conversation began in training, and transformers renders the same."""
    talks = [tuple(talk)]
    if template.system is not None:
        talks.append((Message("system", "Be brief!"), *talk))
    if template.tool is not None:
        talks.append((*talk, Message("tool", "4 degrees"), Message("assistant", "It is cold.")))
    for each in talks:
        _check_rendering(template, each)
        _check_jinja(template, each)


def _check_rendering(template: Template, talk: Sequence[Message]) -> None:
    name = template.name
    pieces = template.render(talk, bos="<BOS>", eos="<EOS>")
    text = "".join(p.text for p in pieces)
    trained = "".join(p.text for p in pieces if p.trained)
    for message in talk:
        assert text.count(message.content) == 1, f"{name}: {message.content!r} is not rendered once"
        want = message.role == "assistant"
        assert (message.content in trained) == want, f"{name}: wrong text is trained: {trained!r}"
    contents, plain = {m.content for m in talk}, {p.text for p in pieces if not p.control}
    assert contents <= plain, f"{name}: content is control text: {contents - plain}"
    assert plain <= contents | {template.default_system}, (
        f"{name}: its own text is not control text: {plain - contents}"
    )
    replies = [m for m in talk if m.role == "assistant"]
    stop = template.stops("<EOS>")[0]
    assert trained.count(stop) >= len(replies), f"{name}: a reply is trained without the stop string {stop!r}"
    for i, message in enumerate(talk):
        if message.role == "assistant":
            prompt = "".join(p.text for p in template.render(talk[:i], reply=True, bos="<BOS>", eos="<EOS>"))
            assert text.startswith(prompt), f"{name}: prompts in chat differ from prompts in training"


def _check_jinja(template: Template, talk: Sequence[Message]) -> None:
    tokenizer = tiny_tokenizer()
    messages = [{"role": m.role, "content": m.content} for m in talk]
    for count, reply in ((len(talk), False), (len(talk) - 1, True)):
        pieces = template.render(talk[:count], reply=reply, bos=SPECIAL[0], eos=SPECIAL[-1])
        theirs = tokenizer.apply_chat_template(
            messages[:count], chat_template=template.jinja(), add_generation_prompt=reply, tokenize=False
        )
        ours = "".join(p.text for p in pieces)
        assert theirs == ours, f"{template.name}: its Jinja text renders {theirs!r} instead of {ours!r}"


def check_method(method: TuningMethod, folder: Path, steps: int = 4) -> None:
    """Training lowers the loss, leaves frozen weights alone and learns new tokens; what is saved gives the
    same bits again, at the end and as a checkpoint between two steps, and damage to it is refused."""
    import torch

    assert dataclasses.is_dataclass(method.options), f"{method.name}: options must be a dataclass"
    with torch.random.fork_rng():
        for new_tokens in ((), (5, 7)):
            _check_training(method, folder / f"{len(new_tokens)}-new", steps, new_tokens)


def _check_training(method: TuningMethod, folder: Path, steps: int, new_tokens: Sequence[int]) -> None:
    import torch

    from . import checkpoint

    name, base = method.name, tiny_model()
    ids = torch.randint(8, 300, (4, 16), generator=torch.Generator().manual_seed(0))
    ids[:, 2:4] = torch.tensor([5, 7])

    def begin(seed: int) -> tuple[Any, Any, Any]:
        torch.manual_seed(seed)
        tuner = method.build(method.options(), TINY)
        model = tuner.prepare(copy.deepcopy(base), new_tokens).train()
        return tuner, model, torch.optim.AdamW(tuner.groups(model, 1e-2, 0.0))

    def work(tuner: Any, model: Any, optimizer: Any, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            tuner.before_step(step, optimizer)
            known = {p for group in optimizer.param_groups for p in group["params"]}
            left = [n for n, p in model.named_parameters() if p.requires_grad and p not in known]
            assert not left, f"{name}: trained parameters are in no group of the optimizer: {left[:3]}"
            frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            changed = [n for n, p in model.named_parameters() if n in frozen and not torch.equal(p, frozen[n])]
            assert not changed, f"{name}: frozen parameters changed: {changed[:3]}"
        return losses

    tuner, model, optimizer = begin(0)
    half = steps // 2
    embedded = model.get_input_embeddings()(torch.tensor([5, 7])).detach().clone()
    losses = work(tuner, model, optimizer, 0, half)
    saved = checkpoint.save(
        *(folder, half, lambda path: tuner.save(model, path), model, optimizer, {}, [checkpoint.random_state()])
    )
    losses += work(tuner, model, optimizer, half, steps)
    assert losses[-1] < losses[0], f"{name}: the loss did not fall: {losses}"
    after = model.get_input_embeddings()(torch.tensor([5, 7]))
    learned = (after != embedded).any(dim=1).all()
    assert learned or not new_tokens, f"{name}: the embeddings of new tokens are not trained"

    out = folder / "out"
    out.mkdir()
    tuner.save(model, out)
    pickles = [p.name for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not pickles, f"{name}: saves pickles: {pickles}"
    other, again, _ = begin(1)
    other.load(again, out)
    with torch.no_grad():
        same = torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
    assert same, f"{name}: what was saved gives other logits when it is loaded"

    other, again, optimizer = begin(2)
    other.load(again, saved)
    checkpoint.load(saved, again, optimizer)
    work(other, again, optimizer, half, steps)
    straight, resumed = model.state_dict(), again.state_dict()
    differ = [n for n in straight if not torch.equal(straight[n], resumed[n])]
    assert not differ, f"{name}: a resumed run comes to other weights: {differ[:3]}"
    _check_damage(name, out, lambda: begin(3)[:2])


def _check_damage(name: str, folder: Path, begin: Callable[[], tuple[Any, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    first = next(iter(tensors))
    for what, harmed in (
        ("a missing tensor", {n: t for n, t in tensors.items() if n != first}),
        ("a foreign tensor", tensors | {"foreign.weight": tensors[first].clone()}),
        ("a tensor of another shape", tensors | {first: tensors[first][:1].clone()}),
        ("a value that is no number", tensors | {first: tensors[first] * float("nan")}),
    ):
        save_file(harmed, file, {"format": "pt"})
        tuner, model = begin()
        try:
            tuner.load(model, folder)
        except LmfError:
            continue
        raise AssertionError(f"{name}: loads {what} without an LmfError")


def check_objective(objective: Objective, records: Iterable[Record], template: Template) -> None:
    """Examples hold something to learn and name their records, and the loss is a finite sum with a gradient that
    does not depend on how examples are batched, padded or packed.

    Args:
        objective: The objective.
        records: At least two, of the kind that it learns from.
        template: What renders conversations.
    """
    import torch

    from .encode import IGNORED, Encoder
    from .packing import ATTENTION, pack, pad

    name, records = objective.name, list(records)
    special = [token for token in dict.fromkeys((*SPECIAL, *template.tokens)) if token != SPECIAL[-1]]
    tokenizer = tiny_tokenizer(special=[*special, SPECIAL[-1]])
    assert len(records) > 1, "two ways to batch the examples need at least two records"
    assert dataclasses.is_dataclass(objective.options), f"{name}: options must be a dataclass"
    criterion = objective.build(objective.options())
    examples = criterion.encode(records, Encoder(tokenizer, template))
    assert examples and all(e.weight for e in examples), f"{name}: an example has nothing to learn"
    places = {r.where for r in records}
    assert all(any(place in e.where for place in places) for e in examples), f"{name}: an example names no record"
    for e in examples:
        paired = zip(e.labels, e.ids, strict=True)
        assert all(label in (IGNORED, id) for label, id in paired), f"{name}: a label is not the id at its place"
    model = tiny_model(vocab_size=len(tokenizer)).eval()
    for parameter in model.parameters():  # as it is made, a model hardly looks at other tokens
        parameter.data *= 6 if parameter.ndim > 1 else 1
    together = criterion.loss(model, pad(examples))
    assert together.ndim == 0 and torch.isfinite(together), f"{name}: the loss is not a finite scalar"
    assert together.requires_grad, f"{name}: the loss has no gradient"
    padded = together.item()
    with torch.no_grad():
        alone = sum(criterion.loss(model, pad([e])).item() for e in examples)
        model.set_attn_implementation(ATTENTION)
        packed = criterion.loss(model, pack(examples)).item()
    for what, loss in (("one by one", alone), ("packed", packed)):
        close = math.isclose(padded, loss, rel_tol=1e-5)
        assert close, f"{name}: the loss is {padded} in one padded batch, but {loss} {what}"
