"""DeepSpeed's configuration: files of the older systems load as they are, and what contradicts the run is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from lmf import ConfigError, RunSettings
from lmf.parallel.choice import Sharing, check_sharing, sharing_of
from lmf.parallel.zerofile import fill_zero, read_zero
from lmf.settings import WAYS
from tinyrun import PLUGINS, apart, processes, run, talks

pytestmark = [  # of torch, which DeepSpeed uses as it was
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated. Please use:FutureWarning"),
]
AUTO = "auto"
BATCH = {
    "train_batch_size": AUTO,
    "train_micro_batch_size_per_gpu": AUTO,
    "gradient_accumulation_steps": AUTO,
    "gradient_clipping": AUTO,
    "steps_per_print": 100,
    "wall_clock_breakdown": False,
}
LOW = {
    "fp16": {"enabled": AUTO, "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2},
    "bf16": {"enabled": AUTO},
}
PLACE = {"device": "cpu", "pin_memory": True}
NONE = {"device": "none", "pin_memory": True}
THREE = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": AUTO,
    "stage3_prefetch_bucket_size": AUTO,
    "stage3_param_persistence_threshold": AUTO,
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}
TWO = {
    "stage": 2,
    "allgather_partitions": True,
    "allgather_bucket_size": 2e8,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 2e8,
    "contiguous_gradients": True,
}
ADAM = {
    "optimizer": {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), AUTO)},
    "scheduler": {
        "type": "WarmupLR",
        "params": dict.fromkeys(("warmup_max_lr", "warmup_num_steps"), AUTO),
    },
}
# the shapes of LMFlow's and Qwen's files, and the way that each asks for
FILES: dict[str, tuple[dict[str, Any], str]] = {
    "lmflow zero0": ({**BATCH, **LOW, "zero_allow_untested_optimizer": True, "zero_optimization": {"stage": 0}}, "ddp"),
    "lmflow zero2": ({**BATCH, **LOW, "zero_optimization": {**TWO, "offload_optimizer": PLACE}}, "zero2"),
    "lmflow zero2 no offload": ({**BATCH, **LOW, "zero_optimization": TWO}, "zero2"),
    "lmflow zero3": (
        {**BATCH, **LOW, "zero_optimization": {**THREE, "offload_optimizer": PLACE, "offload_param": PLACE}},
        "zero3",
    ),
    "lmflow zero3 no offload": ({**BATCH, **LOW, "zero_optimization": THREE}, "zero3"),
    "qwen zero2": ({**BATCH, **LOW, **ADAM, "zero_optimization": {**TWO, "offload_optimizer": NONE}}, "zero2"),
    "qwen zero3": (
        {
            **BATCH,
            **LOW,
            **ADAM,
            "zero_optimization": {**THREE, "offload_optimizer": NONE, "offload_param": NONE},
        },
        "zero3",
    ),
}


def write(folder: Path, config: Any) -> Path:
    file = folder / "ds.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return file


def checked(file: Path, **given: Any) -> Sharing:
    """Choose and check, as a plan does."""
    settings = RunSettings(model="m", data=("d",), deepspeed=file, **given)
    sharing = sharing_of(settings, {})
    check_sharing(sharing, settings, 2e-5, PLUGINS.methods["full"], PLUGINS.optimizers["adamw"])
    return sharing


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_older_systems_load_as_they_are(name, tmp_path):
    config, way = FILES[name]
    file = write(tmp_path, config)
    found = checked(file)
    assert (found.way, found.file, found.offload) == (way, file, None)
    stage = WAYS.index(way) - 1 if way != "ddp" else 0
    filled = fill_zero(read_zero(file), stage=stage, offload=None, clip=1.0, bfloat16=True, hidden=64, processes=2)
    assert AUTO not in json.dumps(filled)
    assert (filled["train_batch_size"], filled["gradient_clipping"], filled["bf16"]) == (2, 1.0, {"enabled": True})
    zero = filled["zero_optimization"]
    if way == "zero3":  # as transformers fills them in
        sizes = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
        assert [zero[size] for size in sizes] == [64 * 64, int(0.9 * 64 * 64), 640]
    assert zero == zero | {k: v for k, v in config["zero_optimization"].items() if v != AUTO}


@pytest.mark.parametrize("name", ["lmflow zero3", "qwen zero2", "lmflow zero2"])
def test_a_run_with_such_a_file_does_what_one_process_does(name, tiny, tmp_path):
    data, file = talks(tmp_path / "talks.jsonl", 20), write(tmp_path, FILES[name][0])
    settings = {"steps": 3, "batch_size": 7, "micro_batch_tokens": 100, "learning_rate": 2e-5}
    one = run(tiny, data, tmp_path / "one", **settings)
    assert processes(2, lambda rank: run(tiny, data, tmp_path / "two", deepspeed=file, **settings)) == [0, 0]
    difference = apart(one, tmp_path / "two")
    print(f"\n  {name}: {difference}")
    assert max(difference.values()) <= 1e-5


@pytest.mark.parametrize("way", ["fsdp", "zero2", "zero3"])
def test_what_is_kept_in_main_memory_changes_nothing(way, tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 20)
    settings = {"steps": 3, "batch_size": 7, "micro_batch_tokens": 100, "learning_rate": 2e-5}
    one = run(tiny, data, tmp_path / "one", **settings)
    out = tmp_path / "two"
    assert processes(2, lambda rank: run(tiny, data, out, parallel=way, offload="cpu", **settings)) == [0, 0]
    assert max(apart(one, out).values()) <= 1e-5


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        ("[1]", {}, "must hold a JSON object"),
        ("{", {}, "cannot be read: Expecting property name"),
        ({"zero_optimisation": {"stage": 2}}, {}, "'zero_optimisation' is no key .* Did you mean 'zero_optimization'"),
        ({"zero_optimization": 3}, {}, "zero_optimization must be an object"),
        ({"zero_optimization": {"stage": 4}}, {}, "zero_optimization.stage is 4; it must be 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": True}}, {}, "zero_optimization.stage is True"),
        ({"train_batch_size": 32}, {}, "has train_batch_size 32, but --batch-size is 16"),
        (
            {"train_micro_batch_size_per_gpu": 4},
            {},
            "passes are bounded by their tokens: write .auto. there",
        ),
        ({"gradient_accumulation_steps": 4}, {}, "has gradient_accumulation_steps 4, but passes"),
        ({"gradient_clipping": 0.5}, {}, "has gradient_clipping 0.5, but --clip is 1.0"),
        ({"fp16": {"enabled": True}}, {}, "enables fp16; lmf computes in bfloat16 or float32"),
        ({"bf16": {"enabled": True}}, {"dtype": "float32"}, "has bf16.enabled true, but --dtype is float32"),
        ({"optimizer": {"type": "Lamb"}}, {}, "has the optimizer Lamb; choose one by --optimizer"),
        ({"optimizer": {"params": {"lr": 1e-3}}}, {}, "has lr 0.001 for the optimizer, but --learning-rate is 2e-05"),
        (
            {"optimizer": {"params": {"betas": [0.8, 0.999]}}},
            {},
            "has betas .0.8, 0.999. .*, but lmf's is .0.9",
        ),
        ({"scheduler": {"params": {"warmup_num_steps": 10}}}, {}, "has warmup_num_steps for its scheduler; --schedule"),
        ({"zero_optimization": {"stage": 2}}, {"parallel": "zero3"}, "--parallel is zero3, but .* asks for stage 2"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            {"offload": "cpu"},
            "has offload_param to nvme, but --offload is cpu",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_or_contradicts_the_run_is_refused(config, given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        checked(write(tmp_path, config), **given)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"^--deepspeed \S+/no\.json cannot be read: No such file or directory\.$"):
        checked(tmp_path / "no.json")


def test_what_says_the_same_is_no_contradiction(tmp_path):
    same = {"train_batch_size": 16, "gradient_clipping": 1.0, "bf16": {"enabled": False}, "fp16": {"enabled": False}}
    same |= {"optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.999]}}}
    assert checked(write(tmp_path, same | {"zero_optimization": {"stage": 1}})).way == "zero1"


def test_an_unknown_key_of_zero_is_named_before_a_step(tiny, tmp_path):
    data = talks(tmp_path / "talks.jsonl", 4)
    file = write(tmp_path, {"zero_optimization": {"stage": 1, "overlap_com": True}})

    def work(rank: int) -> None:
        with pytest.raises(ConfigError, match=r"zero_optimization\.overlap_com is no key of DeepSpeed\. Did you mean"):
            run(tiny, data, tmp_path / "out", deepspeed=file, steps=1)

    assert processes(2, work) == [0, 0]
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_file_that_accelerate_was_told_of_is_used(tmp_path):
    file = write(tmp_path, {"zero_optimization": {"stage": 3}})
    environ = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    found = sharing_of(RunSettings(model="m", data=("d",)), environ)
    assert (found.way, found.file, found.offload) == ("zero3", file, None)
