"""LISA: the layers that change are those that were drawn, and nothing of a layer that was left stays or vanishes.

The published implementations had one fault each of these tests: state that grows, layers that are
"active" and never change, other layers after a resumption, draws from the global generator.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmf import ConfigError, RunSettings
from lmf.config import make
from lmf.errors import Interrupted
from lmf.testing import TINY, check_method, tiny_model
from lmf_lisa import LisaOptions, build
from lmf_lisa.precision import halved, joined, rounded_at_random
from lmf_lisa.sampling import drawn
from lmf_lisa.tuner import LisaTuner
from tinyrun import PLUGINS, Notes, apart, processes, run, run_in_two, stop_at, talks, weights
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS = 4  # of the tiny model


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 24)


def tuner(seed: int = 0, **options: Any) -> LisaTuner:
    made = build(make(LisaOptions, options), TINY)
    assert isinstance(made, LisaTuner)
    made.configure(RunSettings(model="m", data=("d",), seed=seed))
    return made


class Work:
    """The tiny model under LISA, stepped on random ids."""

    def __init__(self, low: bool = False, rate: float = 1e-2, seed: int = 0, **options: Any):
        self.tuner = tuner(seed, **options)
        self.model: Any = self.tuner.prepare(tiny_model())
        if low:  # as a run has them: frozen weights in 16 bits, trained ones in 32
            for parameter in self.model.parameters():
                parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else torch.bfloat16)
        self.optimizer = torch.optim.AdamW(self.tuner.groups(self.model, rate, 0.0), fused=True)
        self.done = 0

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.tuner.before_step(self.done, self.optimizer)
            ids = torch.randint(8, 300, (2, 8), generator=torch.Generator().manual_seed(self.done))
            with torch.autocast("cpu", torch.bfloat16):
                self.model(input_ids=ids, labels=ids).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.done += 1

    def layer(self, number: int) -> dict[str, torch.Tensor]:
        return {n: p for n, p in self.model.named_parameters() if f"layers.{number}." in n}

    def state_bytes(self) -> int:
        tensors = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)


def numbers(state: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> set[int]:
    """The layers of which something changed."""
    return {int(n.split("layers.")[1].split(".")[0]) for n in state if "layers." in n and not state[n].equal(before[n])}


# Which layers


@pytest.mark.parametrize("sampler", ["uniform", "reshuffle", "weighted"])
@pytest.mark.parametrize(("layers", "active"), [(4, 1), (4, 4), (7, 3), (32, 2)])
def test_a_draw_has_as_many_layers_as_asked_each_once(sampler, layers, active):
    for seed in range(3):
        for interval in range(40):
            found = drawn(sampler, seed, interval, layers, active, [1.0] * layers)
            assert len(found) == len(set(found)) == active
            assert list(found) == sorted(found) and set(found) <= set(range(layers))


def test_a_draw_depends_on_the_seed_and_the_interval_and_on_nothing_else():
    first = [drawn("uniform", 0, i, 32, 2) for i in range(50)]
    random.seed(1)
    np.random.seed(1)
    assert [drawn("uniform", 0, i, 32, 2) for i in reversed(range(50))] == first[::-1]
    before = random.getstate(), repr(np.random.get_state())
    drawn("weighted", 0, 0, 32, 2, [1.0] * 32)
    assert (random.getstate(), repr(np.random.get_state())) == before
    assert [drawn("uniform", 1, i, 32, 2) for i in range(50)] != first


def test_uniform_draws_every_pair_alike():
    """6 pairs of 4 layers in 6,000 intervals: a thousand each, within four standard deviations (29 each)."""
    counts = Counter(drawn("uniform", 5, i, 4, 2) for i in range(6000))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 4 * 29 for count in counts.values())


@pytest.mark.parametrize(("layers", "active"), [(8, 2), (7, 3), (30, 4)])
def test_reshuffle_takes_every_layer_before_one_again(layers, active):
    each = -(-layers // active)
    orders = set()
    for begin in range(0, 10 * each, each):
        sets = [drawn("reshuffle", 0, i, layers, active) for i in range(begin, begin + each)]
        counts = Counter(number for found in sets for number in found)
        assert set(counts) == set(range(layers))
        assert sum(counts.values()) - layers == each * active - layers
        assert max(counts.values()) <= 2
        orders.add(tuple(sets))
    assert len(orders) > 5


def test_weighted_draws_in_proportion_and_never_a_layer_twice():
    """Successive draws without replacement have this probability of the first and the second layer."""
    share = [0.1, 0.2, 0.3, 0.4]
    expected = defaultdict[tuple[int, ...], float](float)
    for i, first in enumerate(share):
        for j, second in enumerate(share):
            if i != j:
                expected[tuple(sorted((i, j)))] += first * second / (1 - first)
    counts = Counter(drawn("weighted", 3, i, 4, 2, [10 * s for s in share]) for i in range(20_000))
    for pair, probability in expected.items():
        deviation = (20_000 * probability * (1 - probability)) ** 0.5
        assert abs(counts[pair] - 20_000 * probability) < 4 * deviation


# What changes


@pytest.mark.parametrize("sampler", ["uniform", "reshuffle"])
@pytest.mark.parametrize("active", [1, 2, 3])
@pytest.mark.parametrize("state", ["reset", "park", "keep"])
def test_in_each_interval_the_layers_that_change_are_those_that_were_drawn(sampler, active, state):
    work = Work(interval=3, active_layers=active, sampler=sampler, state=state)
    for interval in range(8):
        before = {n: p.detach().clone() for n, p in work.model.named_parameters()}
        work.steps(3)
        now = dict(work.model.named_parameters())
        assert numbers(now, before) == set(drawn(sampler, 0, interval, LAYERS, active))
        assert all(not now[n].equal(before[n]) for n in before if "layers." not in n)  # always trained


def test_a_run_changes_the_layers_of_its_intervals(tiny, data, tmp_path):
    """Four steps of two intervals: through the loop, its optimizer and its saving."""
    out = run(tiny, data, tmp_path / "out", "lisa", steps=4, options={"interval": 2, "active_layers": 1})
    touched = {number for i in (0, 1) for number in drawn("uniform", 0, i, LAYERS, 1)}
    assert numbers(weights(out), weights(tiny)) == touched


@pytest.mark.parametrize("part", ["embeddings", "head", "norm"])
def test_what_is_beside_the_layers_is_trained_where_asked(part):
    name = {"embeddings": "model.embed_tokens.weight", "head": "lm_head.weight", "norm": "model.norm.weight"}[part]
    work = Work(**{f"train_{part}": False})
    before = {n: p.detach().clone() for n, p in work.model.named_parameters()}
    work.steps(2)
    outside = {n for n in before if "layers." not in n}
    same = {n for n, p in work.model.named_parameters() if n in outside and p.equal(before[n])}
    assert same == {name}


def test_the_loss_depends_on_the_number_of_layers(tiny, data, tmp_path):
    losses = set()
    for active in (1, 2, 4):
        out = run(tiny, data, tmp_path / str(active), "lisa", steps=6, options={"active_layers": active, "interval": 2})
        losses.add(json.loads((out / "log.jsonl").read_text().splitlines()[-1])["loss"])
    assert len(losses) == 3


@pytest.mark.parametrize("state", ["reset", "park", "keep"])
def test_all_layers_active_is_full_fine_tuning_bit_for_bit(state, tiny, data, tmp_path):
    full = run(tiny, data, tmp_path / "full", "full", steps=6)
    options = {"active_layers": LAYERS, "interval": 2, "state": state}
    lisa = run(tiny, data, tmp_path / "lisa", "lisa", steps=6, options=options)
    one, other = weights(full), weights(lisa)
    assert one.keys() == other.keys() and all(one[n].equal(other[n]) for n in one)


def test_below_the_lowest_layer_nothing_is_kept_for_a_backward_pass():
    """With the embeddings frozen the graph begins at the lowest layer that is trained."""
    work = Work(train_embeddings=False, active_layers=1, interval=1)
    while min(work.tuner.active) < 2:
        work.steps(1)
        work.tuner.before_step(work.done, work.optimizer)
    seen: dict[int, bool] = {}
    for number, layer in enumerate(work.model.model.layers):
        layer.register_forward_hook(
            lambda _, __, output, number=number: seen.update(
                {number: (output[0] if isinstance(output, tuple) else output).requires_grad}
            )
        )
    work.model(input_ids=torch.tensor([[8, 9, 10]]))
    assert seen == {number: number >= min(work.tuner.active) for number in range(LAYERS)}


# The state of the optimizer


def test_state_does_not_grow_over_a_hundred_switches():
    work = Work(interval=1, active_layers=1)
    work.steps(1)
    first = work.state_bytes()
    sizes = set()
    for _ in range(100):
        work.steps(1)
        sizes.add(work.state_bytes())
    assert sizes == {first}
    active = {p for p in work.model.parameters() if p.requires_grad}
    assert set(work.optimizer.state) == active
    assert all(p.grad is None for p in work.model.parameters())


@pytest.mark.parametrize("state", ["park", "keep"])
def test_state_that_is_kept_comes_back_and_no_other(state):
    work = Work(interval=1, active_layers=1, state=state)
    known: dict[int, dict[str, torch.Tensor]] = {}
    for _ in range(12):
        (number,) = drawn("uniform", 0, work.done, LAYERS, 1)
        work.tuner.before_step(work.done, work.optimizer)
        for name, parameter in work.layer(number).items():
            before = work.optimizer.state.get(parameter, {})
            expected = known.get(number, {})
            assert ("exp_avg" in before) == (name in expected)
            assert name not in expected or before["exp_avg"].equal(expected[name])
        work.steps(1)
        known[number] = {n: work.optimizer.state[p]["exp_avg"].clone() for n, p in work.layer(number).items()}


def test_bias_correction_counts_the_steps_of_each_layer():
    """AdamW of one tensor by hand, in float64: a layer that starts clean starts at step 1."""
    work = Work(interval=2, active_layers=1, train_embeddings=False, train_head=False, train_norm=False)
    name = "model.layers.{}.mlp.up_proj.weight"
    for interval in range(5):
        (number,) = drawn("uniform", 0, interval, LAYERS, 1)
        again = interval and drawn("uniform", 0, interval - 1, LAYERS, 1) == (number,)
        parameter = dict(work.model.named_parameters())[name.format(number)]
        work.tuner.before_step(work.done, work.optimizer)
        grads = []
        hook = parameter.register_hook(lambda grad, found=grads: found.append(grad.double().clone()))
        start = parameter.detach().double().clone()
        work.steps(2)
        hook.remove()
        steps = work.optimizer.state[parameter]["step"].item()
        assert steps == (2 if not again else steps)
        if again:
            continue
        mean = square = torch.zeros_like(start)
        for step, grad in enumerate(grads, 1):
            mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
            start -= 1e-2 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach().double(), start, rtol=1e-5, atol=1e-6)


# A run that goes on


@pytest.mark.parametrize(("state", "stop"), [("reset", 1), ("reset", 3), ("reset", 5), ("park", 4), ("keep", 4)])
def test_a_run_that_was_stopped_comes_to_the_same_bits(state, stop, tiny, data, tmp_path):
    settings = {"steps": 8, "options": {"interval": 3, "active_layers": 1, "state": state}}
    straight = run(tiny, data, tmp_path / "straight", "lisa", **settings)
    stopped = run_in_two(stop, tiny, data, tmp_path / "stopped", "lisa", **settings)
    one, other = weights(straight), weights(stopped)
    assert all(one[n].equal(other[n]) for n in one)


@pytest.mark.parametrize("state", ["reset", "park"])
def test_a_run_in_16_bits_that_was_stopped_comes_to_the_same_bits(state, tiny, data, tmp_path):
    settings = {"steps": 7, "dtype": "bfloat16", "options": {"interval": 2, "active_layers": 1, "state": state}}
    straight = run(tiny, data, tmp_path / "straight", "lisa", **settings)
    stopped = run_in_two(5, tiny, data, tmp_path / "stopped", "lisa", **settings)
    one, other = weights(straight), weights(stopped)
    assert all(one[n].equal(other[n]) for n in one)


def test_a_model_of_weights_of_16_and_32_bits_is_sampled(tiny, data, tmp_path):
    notes = Notes()
    run(tiny, data, tmp_path / "out", "lisa", steps=2, dtype="bfloat16", sample="what is one?", report=notes)
    assert [when for when, _, text in notes.samples if text] == ["before", "after"]


@pytest.mark.parametrize("options", [{}, {"train_embeddings": False, "train_head": False, "state": "park"}], ids=str)
def test_two_processes_compute_what_one_does(options, tiny, data, tmp_path):
    """Over two switches, with the wrapper of DDP renewed at each."""
    settings = {"steps": 6, "batch_size": 5, "learning_rate": 2e-5}
    settings["options"] = {"interval": 2, "active_layers": 1, **options}
    one = run(tiny, data, tmp_path / "one", "lisa", **settings)
    assert processes(2, lambda rank: run(tiny, data, tmp_path / "two", "lisa", **settings)) == [0, 0]
    difference = apart(one, tmp_path / "two")
    print(f"\n  two processes: {difference}")
    assert max(difference.values()) <= 1e-6


def test_two_processes_stop_and_go_on_in_an_interval_to_the_same_bits(tiny, data, tmp_path):
    settings = {"steps": 6, "batch_size": 4, "options": {"interval": 4, "active_layers": 1}}

    def stopped(rank: int) -> None:
        with pytest.raises(Interrupted, match="Stopped after step 5 of 6"):
            run(tiny, data, tmp_path / "out", "lisa", report=stop_at(5) if rank == 1 else None, **settings)

    assert processes(2, lambda rank: run(tiny, data, tmp_path / "straight", "lisa", **settings)) == [0, 0]
    assert processes(2, stopped) == [0, 0]
    assert processes(2, lambda rank: run(tiny, data, tmp_path / "out", "lisa", resume="newest", **settings)) == [0, 0]
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "out")
    assert all(one[n].equal(other[n]) for n in one)


def test_the_contract_of_a_method(tmp_path):
    check_method(PLUGINS.methods["lisa"], tmp_path, steps=6)


# Precision


def floats() -> torch.Tensor:
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    values = bits.view(torch.float32)
    special = torch.tensor([0.0, -0.0, 1.0, 1.00390625, 1.0078125, -1.00390625, 2**-149, -(2**-126), 3e38])
    return torch.cat([special, values[values.isfinite() & (values.abs() < 3.38e38)]])


def test_a_halved_weight_is_joined_bit_for_bit():
    values = floats()
    upper, remainder = halved(values)
    assert (upper.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
    assert joined(upper, remainder).view(torch.int32).equal(values.view(torch.int32))
    distance = (upper.double() - values.double()).abs()
    nearest = (values.bfloat16().double() - values.double()).abs()
    assert distance.equal(nearest)


def test_rounding_at_random_is_one_of_the_two_neighbours_and_right_on_average():
    value = torch.tensor([1.0 + 2**-7 * share for share in (0.0, 0.25, 0.5, 0.9)])
    drawn_ = torch.stack([rounded_at_random(value, seed).float() for seed in range(4000)])
    assert set(drawn_.unique().tolist()) == {1.0, 1.0 + 2**-7}
    ups = (drawn_ > 1).double().mean(0)
    torch.testing.assert_close(ups, torch.tensor([0.0, 0.25, 0.5, 0.9]).double(), atol=0.035, rtol=0)
    values = floats()
    exact = values.bfloat16().float()
    assert rounded_at_random(exact, 1).float().equal(exact)  # what is a bfloat16 already stays
    assert rounded_at_random(-values, 7).equal(-rounded_at_random(values, 7))
    state = torch.get_rng_state()
    rounded_at_random(values, 3)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("state", ["park", "keep"])
def test_no_bit_of_a_weight_of_16_bits_is_lost_where_its_state_stays(state):
    """Every switch: what a layer leaves as two halves comes back as it was."""
    work = Work(low=True, rate=1e-6, interval=1, active_layers=1, state=state)
    last: dict[int, dict[str, torch.Tensor]] = {}
    for _ in range(16):
        (number,) = drawn("uniform", 0, work.done, LAYERS, 1)
        work.tuner.before_step(work.done, work.optimizer)
        for name, parameter in work.layer(number).items():
            assert parameter.dtype == torch.float32
            if number in last:
                assert parameter.equal(last[number][name])
        work.steps(1)
        last[number] = {n: p.detach().clone() for n, p in work.layer(number).items()}
    left = {p.dtype for n in range(LAYERS) if n not in work.tuner.active for p in work.layer(n).values()}
    assert left == {torch.bfloat16}


def test_small_updates_of_weights_of_16_bits_do_not_vanish():
    """At a rate far below a rounding step, 80 intervals move the mean weight as they do in 32 bits."""
    moved = []
    for low in (False, True):
        work = Work(low=low, rate=1e-6, interval=1, active_layers=LAYERS - 1, train_embeddings=False)
        start = {n: p.detach().double().clone() for n, p in work.model.named_parameters() if "layers.1.mlp" in n}
        work.steps(80)
        now = dict(work.model.named_parameters())
        moved.append(sum((now[n].detach().double() - start[n]).abs().mean().item() for n in start))
    assert moved[0] > 0
    assert moved[1] > moved[0] / 2


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active_layers": 5}, "--active-layers 5 is more than the 4 decoder layers of the model."),
        ({"sampler": "weighted"}, "--sampler weighted and --layer-weights go together; give both or neither."),
        (
            {"layer_weights": Path("w.json")},
            "--sampler weighted and --layer-weights go together; give both or neither.",
        ),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        tuner(**options).prepare(tiny_model())


def test_options_that_do_not_fit_are_refused_before_data_are_encoded(tiny, data, tmp_path):
    notes = Notes()
    with pytest.raises(ConfigError, match="go together; give both or neither"):
        run(tiny, data, tmp_path / "out", "lisa", options={"sampler": "weighted"}, report=notes)
    assert notes.notes == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("{}", "is a JSON dict; it must be a list of 4 numbers"),
        ("[1, 2, 3]", "is a list of 3; it must be a list of 4 numbers"),
        ("[1, 2, 3, 0]", "the weight of layer 3 is 0; it must be above 0"),
        ('[1, 2, "3", 4]', "the weight of layer 2 is '3'"),
        ("[1, 2, true, 4]", "the weight of layer 2 is True"),
        ("[1, NaN, 1, 4]", "the weight of layer 1 is nan"),
        ("[1, 1, 1, Infinity]", "the weight of layer 3 is inf"),
    ],
    ids=str,
)
def test_weights_that_cannot_be_used_are_refused(content, message, tmp_path):
    file = tmp_path / "w.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        tuner(sampler="weighted", layer_weights=file).prepare(tiny_model())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_lora_run_tells_the_weights(tiny, data, tmp_path):
    """The ratio of norms by hand, from peft's merged weights."""
    out = run(
        tiny, data, tmp_path / "lora", "lora", steps=3, options={"rank": 4, "alpha": 8.0, "target": ("all-linear",)}
    )
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny)
    before = {n: p.detach().double().clone() for n, p in base.named_parameters()}
    merged = peft.PeftModel.from_pretrained(base, str(out)).merge_and_unload()
    expected = []
    for number in range(LAYERS):
        names = [n for n in before if f"layers.{number}." in n and n.endswith("proj.weight")]
        now = dict(merged.named_parameters())
        expected.append(
            sum(((now[n].double() - before[n]).norm() / before[n].norm()).item() for n in names) / len(names)
        )
    made = tuner(sampler="weighted", layer_weights=out)
    made.prepare(AutoModelForCausalLM.from_pretrained(tiny))
    torch.testing.assert_close(made._weights, expected, rtol=1e-3, atol=1e-9)


def test_tied_embeddings_are_one_tensor():
    def tied() -> Any:
        sizes: Any = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
        return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=True, **sizes))

    for given in ({"train_head": False}, {"train_embeddings": False}):
        with pytest.raises(ConfigError, match="one tensor for both: give --no-train-embeddings and --no-train-head"):
            tuner(**given).prepare(tied())
    frozen = tuner(train_head=False, train_embeddings=False).prepare(tied())
    trained = tuner().prepare(tied())
    models: list[Any] = [frozen, trained]
    assert [m.get_input_embeddings().weight.requires_grad for m in models] == [False, True]


def test_new_tokens_need_embeddings_and_head():
    for given in ({"train_head": False}, {"train_embeddings": False}):
        with pytest.raises(ConfigError, match="2 tokens that the model never learned"):
            tuner(**given).prepare(tiny_model(), (5, 7))
