"""Scaled positions: the angles of the papers and of transformers, in the run, in what it saves, and in packed rows."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lmf import ConfigError, RunSettings, Sampling
from lmf.config import make
from lmf.encoding.encoder import Example
from lmf.generate.caches import runner_for
from lmf.generate.opening import open_model
from lmf.memory.forecast import forecast, most_work
from lmf.models import load_config, load_model, load_tokenizer
from lmf.rope import NTK, Scaling, positions, scale, scaled_by, scaling_of
from lmf.sources import find_model
from lmf.training.angles import apart
from lmf.training.packing import ATTENTION, pack
from terminal import lmf, lmf_without_torch, tree
from tinyrun import PLUGINS, Notes, plan, run, talks, weights
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# peft 0.21 asks transformers 5.23 by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TYPES = ("linear", "ntk", "dynamic", "yarn", "llama3")
TRAINED, FACTOR, THETA, WIDTH = 64, 4.0, 10_000.0, 16
LONG = int(TRAINED * FACTOR)
SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": TRAINED, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
each_type = pytest.mark.parametrize("kind", TYPES)


def config() -> Any:
    """A model with heads of another width than hidden_size tells."""
    return LlamaConfig(**SIZES, num_key_value_heads=2, head_dim=WIDTH)


def written(folder: Path, config: Any) -> Path:
    """A random model of a configuration, as a folder that ``--model`` takes."""
    from lmf.testing import tiny_tokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer(vocab_size=300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("llama"), LlamaConfig(**SIZES | {"vocab_size": 300}, head_dim=WIDTH))


def by_paper(kind: str, width: int, length: int, trained: int = TRAINED) -> tuple[torch.Tensor, float]:
    """Return the angles per position in float64, and what cosine and sine are multiplied by."""
    pairs = torch.arange(0, width, 2, dtype=torch.float64)
    usual = THETA ** -(pairs / width)
    match kind:
        case "linear":  # arXiv:2306.15595, equation 4
            return usual / FACTOR, 1.0
        case "ntk":
            return (THETA * FACTOR ** (width / (width - 2))) ** -(pairs / width), 1.0
        case "dynamic":
            grown = max(length, trained) / trained * FACTOR - (FACTOR - 1)
            return (THETA * grown ** (width / (width - 2))) ** -(pairs / width), 1.0
        case "yarn":  # arXiv:2309.00071, with the ramp over columns of its authors' code
            turns = [width * math.log(trained / (beta * 2 * math.pi)) / (2 * math.log(THETA)) for beta in (32, 1)]
            low, high = max(math.floor(turns[0]), 0), min(math.ceil(turns[1]), width - 1)
            ramp = ((torch.arange(width // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
            return usual / FACTOR * ramp + usual * (1 - ramp), 0.1 * math.log(FACTOR) + 1
    turns_in_training = trained * usual / (2 * math.pi)  # Llama 3.1: those below 1 are slow, those above 4 fast
    share = ((turns_in_training - 1) / 3).clamp(0, 1)
    return usual / FACTOR * (1 - share) + usual * share, 1.0


def angles(model: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines and sines of a text of some length, from the module that the model has for them."""
    (rotary,) = [module for name, module in model.named_modules() if name.endswith("rotary_emb")]
    return rotary(torch.zeros(1, 1), torch.arange(length)[None])


def check_angles(model: Any, kind: str, width: int, length: int = LONG) -> None:
    each, sharper = by_paper(kind, width, length)
    turned = torch.outer(torch.arange(length, dtype=torch.float64), each)
    for ours, paper in zip(angles(model, length), (turned.cos(), turned.sin()), strict=True):
        assert (ours[0, :, : width // 2].double() - sharper * paper).abs().max() < 5e-5
        assert torch.equal(ours[0, :, : width // 2], ours[0, :, width // 2 :])


def rules_of_vllm(config: dict[str, Any]) -> float:
    """Return the longest text that vLLM allows, as its ``_get_and_verify_max_len`` derives it from config.json."""
    rope, most = config["rope_parameters"], config["max_position_embeddings"]
    if rope["rope_type"] == "llama3":
        return most
    if rope["rope_type"] == "yarn":
        most = rope["original_max_position_embeddings"]
    return most * rope.get("factor", 1.0)


@each_type
def test_the_angles_are_those_of_the_paper_in_the_model_and_in_what_it_saves(kind, llama, tmp_path):
    source = replace(find_model(str(llama), PLUGINS), rope=Scaling(kind, FACTOR))
    model = load_model(source)
    check_angles(model, kind, WIDTH)
    model.save_pretrained(tmp_path)
    check_angles(AutoModelForCausalLM.from_pretrained(tmp_path), kind, WIDTH)


@each_type
def test_the_angles_are_those_of_transformers_by_a_configuration_written_by_hand(kind, llama):
    rope: dict[str, Any] = {"rope_theta": THETA, "rope_type": kind, "factor": FACTOR}
    longer = {"max_position_embeddings": LONG}
    if kind == "ntk":
        rope = {"rope_type": "default", "rope_theta": THETA * FACTOR ** (WIDTH / (WIDTH - 2))}
    if kind in ("yarn", "llama3"):
        rope["original_max_position_embeddings"] = TRAINED
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind in ("linear", "dynamic"):
        longer = {}
    theirs = LlamaConfig(**SIZES | longer, head_dim=WIDTH, rope_parameters=rope)
    ours = load_config(replace(find_model(str(llama), PLUGINS), rope=Scaling(kind, FACTOR)))
    if kind != "ntk":
        for length in (None, LONG):
            expected, sharper = ROPE_INIT_FUNCTIONS[kind](theirs, seq_len=length)
            found, scaling = ROPE_INIT_FUNCTIONS[kind](ours, seq_len=length)
            assert torch.equal(found, expected)
            assert scaling == sharper
    torch.manual_seed(0)
    expected = angles(AutoModelForCausalLM.from_config(theirs), LONG)
    assert all(map(torch.equal, angles(AutoModelForCausalLM.from_config(ours), LONG), expected))


@each_type
def test_the_longer_context_is_known_to_lmf_and_to_vllm(kind, tmp_path):
    made = config()
    scale(made, Scaling(kind, FACTOR), "it")
    made.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert rules_of_vllm(saved) == positions(made) == LONG
    assert saved["max_position_embeddings"] == (TRAINED if kind in ("linear", "dynamic") else LONG)
    assert isinstance(saved["rope_parameters"].get("factor", 1.0), float)  # of another type, vLLM takes a list
    assert scaled_by(transformers.AutoConfig.from_pretrained(tmp_path)) == Scaling(kind, FACTOR)


@each_type
def test_of_a_model_that_turns_a_part_of_each_head_that_part_is_scaled(kind):
    sizes = {**SIZES, "hidden_size": 128}  # heads of 32, of which 16 columns are turned
    made = transformers.GPTNeoXConfig(**sizes, rotary_pct=0.5)
    scale(made, Scaling(kind, FACTOR), "it")
    check_angles(AutoModelForCausalLM.from_config(made), kind, 16)


def test_a_context_that_is_no_multiple_is_rounded_down():
    made = config()
    scale(made, Scaling("yarn", 1.3), "it")
    assert positions(made) == made.max_position_embeddings == 83


def test_the_trained_length_that_a_configuration_tells_apart_is_the_one_that_is_scaled():
    made = transformers.Phi3Config(**SIZES, original_max_position_embeddings=32)
    assert made.rope_parameters["rope_type"] == "default"
    scale(made, Scaling("yarn", 2.0), "it")
    made.standardize_rope_params()  # as transformers does before it computes
    assert made.rope_parameters["original_max_position_embeddings"] == TRAINED


@each_type
def test_what_is_scaled_just_so_stays_and_otherwise_is_refused(kind):
    made = config()
    scale(made, Scaling(kind, FACTOR), "it")
    before = made.to_dict()
    scale(made, Scaling(kind, FACTOR), "it")
    assert made.to_dict() == before
    with pytest.raises(ConfigError, match=f"as by --rope {kind} --rope-factor 4; leave --rope out"):
        scale(made, Scaling("yarn", 8.0), "it")


def test_a_model_without_rotary_positions_or_with_several_kinds_is_refused():
    with pytest.raises(ConfigError, match=r"mine has no rotary positions \(gpt2\), so --rope yarn --rope-factor 2"):
        scale(transformers.GPT2Config(), Scaling("yarn", 2.0), "mine")
    gemma = transformers.Gemma3TextConfig(**SIZES)
    with pytest.raises(ConfigError, match=r"another way in each kind of layer \(sliding_attention, full_attention\)"):
        scale(gemma, Scaling("linear", 2.0), "mine")
    assert positions(gemma) == TRAINED


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--rope", "yarn", "--rope-factor", "1"), "--rope-factor is 1.0; it must be greater than 1."),
        (("--rope", "yarn", "--rope-factor", "0.5"), "--rope-factor is 0.5; it must be greater than 1."),
        (("--rope", "yarn", "--rope-factor", "nan"), "--rope-factor is nan; it must be a finite number."),
        (("--rope", "yarn", "--rope-factor", "two"), "--rope-factor is 'two'; it must be a number."),
        (("--rope", "yarn"), "add --rope-factor 2."),
        (("--rope-factor", "2"), "add --rope yarn, or another."),
        (("--rope", "yran", "--rope-factor", "2"), "it must be one of linear, ntk, dynamic, yarn, llama3."),
    ],
)
def test_bad_settings_are_refused_before_torch_is_loaded(given, told, tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 4)
    before = tree(tmp_path)
    for command in (
        ("train", "full", "--model", tiny, "--data", data, "--output", tmp_path / "out"),
        ("eval", tiny, "--task", "samples", "--out", tmp_path / "out"),
        ("export", "hf", tiny, tmp_path / "out"),
    ):
        done = lmf_without_torch(*map(str, command), *given)
        assert done.code == 2 and told in done.err, done.err
    assert tree(tmp_path) == before


def test_a_run_on_a_model_without_rotary_positions_ends_before_its_data_are_encoded(tmp_path):
    model = written(tmp_path / "gpt2", transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4))
    data = talks(tmp_path / "talks.jsonl", 4)
    done = lmf("train", "full", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "out"),
               "--rope", "yarn", "--rope-factor", "2")  # fmt: skip
    assert done.code != 0 and "has no rotary positions (gpt2)" in done.err
    assert not (tmp_path / "out").exists()


def test_one_of_two_settings_alone_says_what_to_add():
    assert scaling_of(None, None) is None
    assert scaling_of("ntk", 2) == Scaling("ntk", 2.0)
    assert make(RunSettings, {"model": "m", "data": "d"}).rope is None


def loaded(folder: Path, kind: str) -> Any:
    model = load_model(replace(find_model(str(folder), PLUGINS), rope=Scaling(kind, FACTOR))).eval()
    for parameter in model.parameters():  # sharp attention, which shows other angles
        parameter.data *= 3 if parameter.ndim > 1 else 1
    return model


def examples(*lengths: int) -> list[Example]:
    chance = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, 128, (length,), generator=chance).tolist() for length in lengths]
    return [Example(ids, ids, f"data.jsonl:{number}") for number, ids in enumerate(texts, 1)]


@pytest.mark.parametrize("lengths", [(20, 30), (90, 20, 200, 64, 65, 30), (200, 90)])
@each_type
@torch.no_grad()
def test_a_packed_text_has_the_logits_that_it_has_alone_in_plain_transformers(kind, lengths, llama):
    texts = examples(*lengths)
    packed = loaded(llama, kind)
    packed.set_attn_implementation(ATTENTION)
    apart(packed)
    for _ in range(2):  # and no earlier row counts
        together = packed(**pack(texts).inputs).logits[0]
        for text, logits in zip(texts, together.split(lengths), strict=True):
            alone = loaded(llama, kind)(torch.tensor([text.ids])).logits[0]
            assert (logits - alone).abs().max() < 2e-4 * alone.abs().max()


@torch.no_grad()
def test_packed_texts_that_are_long_and_short_have_the_angles_of_longrope_that_they_have_alone():
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]}
    rope = {"rope_type": "longrope", "rope_theta": THETA, "original_max_position_embeddings": TRAINED, "factor": FACTOR}
    made = LlamaConfig(**SIZES | {"max_position_embeddings": LONG}, head_dim=WIDTH, rope_parameters=rope | factors)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made)
    alone = {length: angles(model, length) for length in (20, 90)}
    apart(model)
    (rotary,) = [module for name, module in model.named_modules() if name.endswith("rotary_emb")]
    row = torch.tensor([[*range(20), *range(90), *range(20)]])
    cosines = rotary(torch.zeros(1, 1), row)[0].split((20, 90, 20), dim=1)
    assert all(torch.equal(part, alone[length][0]) for part, length in zip(cosines, (20, 90, 20), strict=True))


@each_type
@torch.no_grad()
def test_a_long_prompt_is_read_as_transformers_reads_it_whatever_was_read_before(kind, llama):
    chatter = open_model(str(llama), PLUGINS, rope=Scaling(kind, FACTOR))
    assert chatter.context == LONG
    assert chatter.tokenizer.model_max_length >= LONG
    engine = chatter.engine(runner_for(chatter.model))
    prompts = [text.ids for text in examples(200, 90, 30)]
    for ids in (*prompts, prompts[1]):
        (ours,) = engine.submit(ids, Sampling(max_tokens=8))
        engine.finish([ours])
        model = load_model(replace(find_model(str(llama), PLUGINS), rope=Scaling(kind, FACTOR))).eval()
        theirs = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
        assert ours.ids == theirs[0, len(ids) :].tolist()


@each_type
def test_a_tuned_model_is_saved_with_its_scaled_positions(kind, tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 8)
    notes = Notes()
    out = run(tiny, data, tmp_path / "out", steps=2, rope=kind, rope_factor=2.0, report=notes)
    assert f"--rope {kind} --rope-factor 2: the model reads 1,024 tokens" in notes.notes
    assert not any("adapter" in note for note in notes.notes)
    saved = transformers.AutoConfig.from_pretrained(out)
    assert positions(saved) == 1024 and scaled_by(saved) == Scaling(kind, 2.0)
    chatter = open_model(str(out), PLUGINS)
    assert chatter.context == 1024
    ids = torch.arange(3, 250)[None].repeat(1, 3)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(out).eval()
        assert torch.equal(chatter.model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("kind", ["ntk", "dynamic", "yarn"])
def test_an_adapter_is_opened_merged_and_exported_with_the_positions_of_its_run(kind, tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 8)
    notes = Notes()
    options = {"rank": 4}
    scaled = {"rope": kind, "rope_factor": 2.0}
    out = run(
        tiny, data, tmp_path / "out", "lora", options=options, steps=4, learning_rate=0.02, report=notes, **scaled
    )
    told = next(note for note in notes.notes if note.startswith("an adapter does not tell"))
    assert told.endswith(f"lmf export hf {tiny} FOLDER --rope {kind} --rope-factor 2")
    opened = open_model(str(out), PLUGINS, merged=True)
    assert opened.context == 1024
    ids = torch.arange(3, 250)[None].repeat(1, 3)
    with torch.no_grad():
        expected = opened.model(ids).logits
        bare = open_model(str(tiny), PLUGINS).model(ids).logits
    assert (expected - bare).abs().max() > 1e-3
    for command in (("merge", tiny, out, tmp_path / "merged"), ("export", "hf", out, tmp_path / "exported")):
        done = lmf(*map(str, command))
        assert done.code == 0, done.err
    for folder in ("merged", "exported"):
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval()
        assert scaled_by(plain.config) == Scaling(kind, 2.0)
        assert load_tokenizer(find_model(str(tmp_path / folder), PLUGINS)).model_max_length >= 1024
        with torch.no_grad():
            apart_by = (plain(ids).logits - expected).abs().max()
        assert apart_by < 1e-4 * expected.abs().max()
    base = lmf("export", "hf", str(tiny), str(tmp_path / "base"), "--rope", kind, "--rope-factor", "2")
    assert base.code == 0, base.err
    again = lmf("merge", str(tmp_path / "base"), str(out), str(tmp_path / "again"))  # a base that is scaled just so
    assert again.code == 0, again.err
    assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "merged/config.json").read_bytes()


def test_a_run_is_not_opened_with_other_positions_than_it_was_trained_with(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 8)
    for method in ("lora", "full"):
        out = run(tiny, data, tmp_path / method, method, steps=1, rope="yarn", rope_factor=2.0)
        with pytest.raises(ConfigError, match="leave --rope out"):
            open_model(str(out), PLUGINS, rope=Scaling("linear", 2.0))
        assert open_model(str(out), PLUGINS, rope=Scaling("yarn", 2.0)).context == 1024


def test_a_resumed_run_must_scale_as_it_began(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 8)
    out = run(tiny, data, tmp_path / "out", steps=2, rope="yarn", rope_factor=2.0)
    with pytest.raises(ConfigError, match=r"--rope-factor: 2\.0 then, 4.0 now"):
        plan(tiny, data, out, steps=2, rope="yarn", rope_factor=4.0, resume="newest")


@each_type
def test_longer_examples_are_learned_and_their_memory_is_forecast(kind, tiny, tmp_path):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": "hello assistant " * count}) + "\n" for count in (200, 10, 20, 400)))
    more = {"objective": "pretrain", "max_tokens": 1000, "on_overflow": "truncate-right", "steps": 1, "batch_size": 4}
    with pytest.raises(ConfigError, match="or scale the positions by --rope"):
        run(tiny, data, tmp_path / "short", **more)
    scaled = {"rope": kind, "rope_factor": 2.0}
    out = run(tiny, data, tmp_path / "out", **more, **scaled)
    assert weights(out)
    planned = plan(tiny, data, tmp_path / "other", **more, **scaled)
    work = most_work(planned)
    assert max(length for batch in work.batches for length, _ in batch) == 1000
    with_it = forecast(planned, torch.device("cpu"), work).usage.total
    usual = plan(tiny, data, tmp_path / "other", **more, **scaled | {"rope": "linear"})
    assert with_it == pytest.approx(forecast(usual, torch.device("cpu"), work).usage.total, rel=0.02)


def test_the_marker_of_ntk_is_saved_and_unknown_to_nobody(llama, tmp_path, caplog):
    load_model(replace(find_model(str(llama), PLUGINS), rope=Scaling("ntk", 2.0))).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[NTK] == 2.0
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not caplog.records


def test_a_gguf_file_of_scaled_positions_says_how_long_texts_may_be(tiny, tmp_path):
    import gguf

    for kind in ("linear", "ntk", "yarn", "llama3"):
        folder, file = tmp_path / kind, tmp_path / f"{kind}.gguf"
        assert lmf("export", "hf", str(tiny), str(folder), "--rope", kind, "--rope-factor", "2").code == 0
        done = lmf("export", "gguf", str(folder), str(file))
        assert done.code == 0, done.err
        assert gguf.GGUFReader(file).fields["llama.context_length"].contents() == 1024
