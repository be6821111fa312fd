"""Batches: a packed example has the loss and the gradients that it has alone in plain transformers."""

import copy
import functools
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from lmf.encoding.encoder import IGNORED, Example
from lmf.testing import tiny_model
from lmf.training import packing
from lmf.training.loss import token_loss
from lmf.training.packing import ATTENTION, micro_batches, pack, packable, pad
from torch import nn

VOCABULARY = 128
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW = {**SIZES, "sliding_window": 5}  # smaller than the examples
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
PLAIN = {key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "head_dim")}
FALCON = {**PLAIN, "bias": False}

PACKED: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen2, window": lambda: transformers.Qwen2Config(**WINDOW, use_sliding_window=True, max_window_layers=1),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES),
    "gemma": lambda: transformers.GemmaConfig(**SIZES),
    "gemma2": lambda: transformers.Gemma2Config(**MIXED, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**MIXED, query_pre_attn_scalar=5),
    "mistral": lambda: transformers.MistralConfig(**WINDOW),
    "phi3": lambda: transformers.Phi3Config(**WINDOW),
    "cohere": lambda: transformers.CohereConfig(**SIZES, logit_scale=0.25),
    "granite": lambda: transformers.GraniteConfig(**SIZES, logits_scaling=4.0),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2, scaled": lambda: transformers.GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**PLAIN, rotary_pct=0.5),
}
PADDED: dict[str, Callable[[], Any]] = {
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "falcon, alibi": lambda: transformers.FalconConfig(**FALCON, alibi=True, multi_query=False),
    "falcon, rotary": lambda: transformers.FalconConfig(**FALCON, alibi=False, new_decoder_architecture=True),
}
each_packed = pytest.mark.parametrize("name", PACKED)
each_family = pytest.mark.parametrize("name", PACKED | PADDED)


@functools.cache
def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config((PACKED | PADDED)[name](), attn_implementation="eager")
    for parameter in model.parameters():  # sharp attention: uniform attention would hide a wrong mask
        parameter.data *= 3 if parameter.ndim > 1 else 1
    return model.float().eval()


def family(name: str, attention: str = "eager") -> nn.Module:
    model = copy.deepcopy(made(name))
    model.set_attn_implementation(attention)
    return model


def examples(seed: int, *lengths: int) -> list[Example]:
    """Return random examples; about a third of their tokens are not trained, and the first may be."""
    rng = random.Random(seed)
    found = []
    for number, length in enumerate(lengths):
        ids = [rng.randrange(3, VOCABULARY) for _ in range(length)]
        labels = [id if rng.random() < 0.7 or i == length - 1 else IGNORED for i, id in enumerate(ids)]
        found.append(Example(ids, labels, f"data.jsonl:{number + 1}"))
    return found


EXAMPLES = examples(0, 13, 2, 24, 1, 7)


def alone(model: nn.Module, parts: Sequence[Example]) -> torch.Tensor:
    """Return the summed loss of examples that plain transformers gives to each by itself."""
    losses = []
    for example in parts:
        if example.weight:
            out = model(input_ids=torch.tensor([example.ids]), labels=torch.tensor([example.labels]), use_cache=False)
            losses.append(out.loss * example.weight)
    return torch.stack(losses).sum()


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in other.items():
        difference = (one[name] - gradient).norm() / gradient.norm().clamp_min(1e-6)
        assert difference < 1e-5, f"{name}: {difference:.1e}"


# Packed = padded = alone


@each_packed
def test_packed_examples_have_the_loss_and_the_gradients_that_they_have_alone(name: str) -> None:
    plain, packed = family(name), family(name, ATTENTION)
    batch, want = pack(EXAMPLES), alone(plain, EXAMPLES)
    assert batch.weight == sum(e.weight for e in EXAMPLES)
    loss = token_loss(packed, batch)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert_same_gradients(gradients(packed, loss), gradients(plain, want))


@each_family
def test_padded_examples_have_the_loss_and_the_gradients_that_they_have_alone(name: str) -> None:
    plain, padded = family(name), family(name)
    want, loss = alone(plain, EXAMPLES), token_loss(padded, pad(EXAMPLES))
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert_same_gradients(gradients(padded, loss), gradients(plain, want))


@pytest.mark.parametrize("name", [name for name in PACKED if name != "gemma2"])  # sdpa has no softcap
def test_packed_attention_agrees_with_that_of_torch(name: str) -> None:
    with torch.no_grad():
        want = alone(family(name, "sdpa"), EXAMPLES)
        assert token_loss(family(name, ATTENTION), pack(EXAMPLES)).item() == pytest.approx(want.item(), rel=1e-5)


@each_packed
def test_each_token_has_the_loss_that_it_has_alone(name: str) -> None:
    plain, packed = family(name), family(name, ATTENTION)
    batch = pack(EXAMPLES)
    with torch.no_grad():
        logits = packed(**batch.inputs).logits[0]
        apart = torch.cat([plain(input_ids=torch.tensor([e.ids]), use_cache=False).logits[0] for e in EXAMPLES])
    for left, right in zip(logits[batch.index], apart[batch.index], strict=True):
        torch.testing.assert_close(left.log_softmax(-1), right.log_softmax(-1), rtol=0, atol=1e-5)


@each_packed
def test_another_first_document_leaves_the_logits_of_the_second_as_they_are(name: str) -> None:
    model = family(name, ATTENTION)
    first, other, second = examples(1, 17, 17, 20)
    with torch.no_grad():
        one, two = (model(**pack([example, second]).inputs).logits[0] for example in (first, other))
    assert torch.equal(one[17:], two[17:])
    assert not torch.equal(one[:17], two[:17])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_recomputed_activations_give_the_same_gradients_when_packed(name: str) -> None:
    plain, packed = family(name), family(name, ATTENTION).train()
    packed.gradient_checkpointing_enable({"use_reentrant": False})
    want = gradients(plain, alone(plain, EXAMPLES))
    assert_same_gradients(gradients(packed, token_loss(packed, pack(EXAMPLES))), want)


def test_a_batch_without_a_prediction_has_a_loss_and_gradients_of_zero() -> None:
    silent = Example([5, 6, 7], [5, IGNORED, IGNORED], "")
    for make, model in ((pack, family("llama", ATTENTION)), (pad, family("llama"))):
        loss = token_loss(model, make([silent]))
        assert loss.item() == 0
        assert all(not gradient.any() for gradient in gradients(model, loss).values())


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 4])
def test_attention_drops_weights_at_the_rate_that_it_is_given(softcap: float | None, window: int | None) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8)
    value = torch.eye(8)[:1].repeat(2, 9, 1)[
        None
    ]  # every value has a 1 in front: the output there is the sum of weights
    options: dict[str, Any] = {"bounds": (0, 9), "softcap": softcap, "sliding_window": window}
    whole, weights = packing.attention(nn.Module(), query, key, value, None, **options)
    assert weights is None and whole.shape == (1, 9, 4, 8)
    torch.testing.assert_close(whole[..., 0], torch.ones(1, 9, 4))
    sums = [
        packing.attention(nn.Module(), query, key, value, None, dropout=0.5, **options)[0][..., 0] for _ in range(300)
    ]
    kept = torch.stack(sums)
    assert kept.mean() == pytest.approx(1, abs=0.05)  # what is kept is scaled up
    assert set(kept[:, 0, 0].flatten().tolist()) == {0.0, 2.0}  # the first position has one weight: dropped or doubled


def test_dropout_in_attention_works_when_packed() -> None:
    model = tiny_model(vocab_size=VOCABULARY, dropout=0.5)
    model.set_attn_implementation(ATTENTION)
    batch = pack(EXAMPLES)
    with torch.no_grad():
        torch.manual_seed(0)
        first, second = token_loss(model.train(), batch), token_loss(model, batch)
        torch.manual_seed(0)
        again = token_loss(model, batch)
        still = token_loss(model.eval(), batch)
    assert first == again
    assert len({first.item(), second.item(), still.item()}) == 3


# Which models


@each_packed
def test_a_model_whose_attention_can_be_exchanged_is_packed(name: str) -> None:
    assert packable(made(name))


@pytest.mark.parametrize(
    "config",
    [
        *PADDED.values(),
        lambda: transformers.GptOssConfig(**WINDOW, num_local_experts=2, num_experts_per_tok=1),  # attention sinks
        lambda: transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]),
        lambda: transformers.Llama4TextConfig(**SIZES, num_local_experts=2, intermediate_size_mlp=48),  # chunks
        lambda: transformers.RecurrentGemmaConfig(**SIZES, lru_width=32),
        lambda: transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
    ],
)
def test_a_model_that_mixes_tokens_otherwise_is_not_packed(config: Callable[[], Any]) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config())
    assert not packable(model)


def test_a_module_that_is_no_model_of_transformers_is_not_packed() -> None:
    assert not packable(nn.Linear(2, 2))


# What is in a batch


def test_a_packed_batch_tells_where_examples_start_and_which_predictions_count() -> None:
    batch = pack([Example([5, 6, 7], [5, 6, 7], "a:1"), Example([8, 9], [IGNORED, 9], "a:2")])
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch.inputs["bounds"] == (0, 3, 5)
    assert batch.index.tolist() == [0, 1, 3]  # nothing predicts the first token of an example
    assert batch.targets.tolist() == [6, 7, 9]
    assert (batch.weight, batch.tokens, batch.where) == (3, 5, ("a:1", "a:2"))


def test_a_padded_batch_masks_what_fills_it_and_does_not_count_it() -> None:
    batch = pad([Example([5, 6, 7], [5, 6, 7], "a:1"), Example([8, 0], [IGNORED, 0], "a:2")])
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.index.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [6, 7, 0]
    assert (batch.weight, batch.tokens, batch.where) == (3, 5, ("a:1", "a:2"))


@pytest.mark.parametrize("make", [pack, pad])
def test_a_batch_moves_to_a_device_as_a_whole(make: Callable[..., Any]) -> None:
    batch = make(EXAMPLES)
    moved = batch.to(torch.device("meta"))
    tensors = [*moved.inputs.values(), moved.index, moved.targets]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
    assert (moved.weight, moved.tokens, moved.where) == (batch.weight, batch.tokens, batch.where)


# Which examples go into which batch


def random_examples(rng: random.Random) -> list[Example]:
    return examples(rng.randrange(10**6), *(rng.randint(1, 40) for _ in range(rng.randint(1, 30))))


@pytest.mark.parametrize("packed", [True, False])
def test_micro_batches_hold_every_example_once_and_keep_the_bound(packed: bool) -> None:
    rng = random.Random(0)
    for _ in range(300):
        given, tokens = random_examples(rng), rng.randint(1, 120)
        found = micro_batches(given, tokens, packed)
        assert sorted(map(id, itertools.chain(*found))) == sorted(map(id, given))
        for batch in found:
            lengths = [len(e.ids) for e in batch]
            size = sum(lengths) if packed else max(lengths) * len(lengths)
            assert batch and (size <= tokens or len(batch) == 1)
        assert micro_batches(given, tokens, packed) == found


def test_packed_micro_batches_are_full() -> None:
    """Of two batches, the first example of the later one fitted into no earlier one."""
    rng = random.Random(1)
    for _ in range(100):
        given, tokens = random_examples(rng), rng.randint(40, 200)
        for earlier, later in itertools.combinations(micro_batches(given, tokens, packed=True), 2):
            assert sum(len(e.ids) for e in [*earlier, later[0]]) > tokens
    lengths = [60, 50, 40, 30, 10, 10]  # in this order they would need three
    assert [sum(len(e.ids) for e in b) for b in micro_batches(examples(0, *lengths), 100, packed=True)] == [100, 100]


def test_padded_micro_batches_are_not_smaller_than_they_have_to_be() -> None:
    rng = random.Random(1)
    for _ in range(100):
        given, tokens = random_examples(rng), rng.randint(40, 200)
        for batch, following in itertools.pairwise(micro_batches(given, tokens, packed=False)):
            assert max(len(e.ids) for e in [*batch, following[0]]) * (len(batch) + 1) > tokens


def test_padded_micro_batches_put_examples_of_like_length_together() -> None:
    found = micro_batches(examples(0, 1, 40, 1, 40), 80, packed=False)
    assert [[len(e.ids) for e in batch] for batch in found] == [[1, 1], [40, 40]]


def test_no_examples_make_no_micro_batches() -> None:
    assert micro_batches([], 10, True) == micro_batches([], 10, False) == []


def test_every_example_comes_once_an_epoch_in_an_order_that_seed_and_epoch_decide() -> None:
    rng = random.Random(0)
    for _ in range(100):
        count, size, seed = rng.randint(1, 50), rng.randint(1, 60), rng.randint(0, 9)
        given = examples(0, *[1] * count)
        per_epoch = packing.steps_per_epoch(count, size)
        for epoch in range(3):
            steps = list(packing.batches(given, size, seed, epoch * per_epoch, (epoch + 1) * per_epoch))
            assert [len(step) for step in steps[:-1]] == [size] * (per_epoch - 1)
            seen = [int(e.where.rpartition(":")[2]) - 1 for e in itertools.chain(*steps)]
            assert sorted(seen) == list(range(count))
            assert seen == packing.order(count, seed, epoch)


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {tuple(packing.order(20, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_any_slice_of_the_steps_agrees_with_the_whole() -> None:
    rng = random.Random(0)
    for _ in range(100):
        given, size = random_examples(rng), rng.randint(1, 9)
        whole = list(packing.batches(given, size, 3, 0, 30))
        start, stop = sorted(rng.choices(range(31), k=2))
        assert list(packing.batches(given, size, 3, start, stop)) == whole[start:stop]


def test_processes_share_the_examples_of_a_step_and_balance_their_lengths() -> None:
    rng = random.Random(0)
    for _ in range(200):
        given, ranks = random_examples(rng), rng.randint(1, 8)
        shares = [packing.share(given, rank, ranks) for rank in range(ranks)]
        assert sorted(map(id, itertools.chain(*shares))) == sorted(map(id, given))
        loads = [sum(len(e.ids) for e in part) for part in shares]
        assert max(loads) - min(loads) <= max(len(e.ids) for e in given)
    assert packing.share(given, 0, 1) == given


def test_a_process_with_a_long_example_gets_fewer() -> None:
    given = examples(0, 5, 9, 4)
    assert [[len(e.ids) for e in packing.share(given, rank, 2)] for rank in range(2)] == [[9], [5, 4]]
