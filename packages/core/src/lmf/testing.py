"""The promises a plugin must keep, as checks that any plugin's tests can call.

Each check raises AssertionError with the name of what it checked. The tiny model and
tokenizer are random and made on the spot, so nothing is downloaded.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    and a prompt in chat is how the same conversation began in training."""
    tokens = {"bos": "<BOS>", "eos": "<EOS>"}
    pieces = template.render(talk, **tokens)
    text = "".join(p.text for p in pieces)
    for message in talk:
        assert text.count(message.content) == 1, f"{template.name}: {message.content!r} is not rendered once"
        trained = "".join(p.text for p in pieces if p.trained)
        want = message.role == "assistant"
        assert (message.content in trained) == want, f"{template.name}: wrong text is trained: {trained!r}"
    assert not any(p.control for p in pieces if p.text in {m.content for m in talk}), (
        f"{template.name}: content is control text"
    )
    replies = [m.content for m in talk if m.role == "assistant"]
    stop = template.stops("<EOS>")[0]
    assert trained.count(stop) >= len(replies), f"{template.name}: a reply is trained without the stop string {stop!r}"
    for i, message in enumerate(talk):
        if message.role == "assistant":
            prompt = "".join(p.text for p in template.render(talk[:i], reply=True, **tokens))
            assert text.startswith(prompt), f"{template.name}: prompts in chat differ from prompts in training"


def check_method(method: TuningMethod, folder: Path, steps: int = 4) -> None:
    """Training lowers the loss, leaves frozen weights alone, and survives saving bit for bit."""
    import torch

    assert dataclasses.is_dataclass(method.options), f"{method.name}: options must be a dataclass"
    base = tiny_model()

    def prepared() -> tuple[Any, Any]:
        tuner = method.build(method.options(), TINY)
        return tuner, tuner.prepare(copy.deepcopy(base), [])

    tuner, model = prepared()
    optimizer = torch.optim.AdamW(tuner.groups(model.train(), 1e-2, 0.0))
    ids = torch.randint(3, 300, (4, 16), generator=torch.Generator().manual_seed(0))
    losses = []
    for step in range(steps):
        tuner.before_step(step, optimizer)
        frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        changed = [n for n, p in model.named_parameters() if n in frozen and not torch.equal(p, frozen[n])]
        assert not changed, f"{method.name}: frozen parameters changed: {changed[:3]}"
    assert losses[-1] < losses[0], f"{method.name}: the loss did not fall: {losses}"
    tuner.save(model, folder)
    other, again = prepared()
    other.load(again, folder)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, model.eval()(ids).logits, rtol=0, atol=0)


def check_objective(objective: Objective, records: Iterable[Record], template: Template) -> None:
    """Examples hold something to learn, and the loss is a finite sum that does not depend on how they are batched."""
    import torch

    from .encode import Encoder
    from .packing import pack, pad

    assert dataclasses.is_dataclass(objective.options), f"{objective.name}: options must be a dataclass"
    tokens = [token for token in template.tokens if token not in SPECIAL]
    tokenizer = tiny_tokenizer(special=(SPECIAL[0], *tokens, *SPECIAL[1:]))
    criterion = objective.build(objective.options())
    examples = criterion.encode(list(records), Encoder(tokenizer, template))
    assert examples and all(e.weight for e in examples), f"{objective.name}: an example has nothing to learn"
    model = tiny_model(vocab_size=len(tokenizer)).eval()
    with torch.no_grad():
        together = criterion.loss(model, pad(examples))
        alone = sum(criterion.loss(model, pad([e])) for e in examples)
    assert together.ndim == 0 and torch.isfinite(together), f"{objective.name}: the loss is not a finite scalar"
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    assert pack(examples).weight == sum(e.weight for e in examples)
