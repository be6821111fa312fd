"""One run in several processes: however they share the model, the result is that of one process."""

import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import ConfigError, LmfError
from lmf.errors import Interrupted
from lmf.generate.opening import open_model
from lmf.models import NEW_TOKENS
from lmf.parallel import sharing
from lmf.parallel.copies import Copies
from lmf.settings import WAYS
from lmf.testing import tiny_model, tiny_tokenizer
from lmf.training import loop, packing, record
from lmf_export.ggufs import write_gguf
from safetensors.torch import load_file
from tinyrun import PLUGINS, At, apart, cut_at, held, log, processes, relative, run, same, stop_at, talks, weights
from transformers import AutoModelForCausalLM

# of torch, which DeepSpeed uses as it was
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated. Please use:FutureWarning"),
]
DIVIDED = [way for way in WAYS if way != "ddp"]
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze": {"last_layers": 1},
    "lora": {"rank": 4},
    "lisa": {"interval": 2, "active_layers": 1},
}
PAIRS = [(way, method) for way in WAYS for method in METHODS if way in PLUGINS.methods[method].parallel]
# steps of 19 and 1 of 20 records of unequal length: in every second step, one process has nothing to do
UNEVEN = {"steps": 4, "batch_size": 19, "learning_rate": 2e-5, "micro_batch_tokens": 100}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 20)


@pytest.fixture(scope="module")
def alone(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one process, by their methods."""
    folder = tmp_path_factory.mktemp("alone")
    return {method: run(tiny, data, folder / method, method, **settings(method, data)) for method in METHODS}


def settings(method: str, data: Path) -> dict[str, Any]:
    return UNEVEN | {"eval_data": [str(data)], "save_every": 2, "options": METHODS[method]}


def test_every_pair_is_said_to_work_or_refused():
    assert [(way, method) for way in WAYS for method in METHODS if method != "lisa" or way in ("ddp", "fsdp")] == PAIRS


def test_the_table_on_the_page_is_what_methods_and_optimizers_declare():
    page = (Path(__file__).parents[2] / "docs/parallel.md").read_text()
    parts = [("method", PLUGINS.methods[name]) for name in sorted(PLUGINS.methods)]
    parts += [("optimizer", PLUGINS.optimizers[name]) for name in sorted(PLUGINS.optimizers)]
    rows = [
        [f"{kind} `{part.name}`", *("yes" if way in part.parallel else "no" for way in WAYS)] for kind, part in parts
    ]
    table = [["", *WAYS], ["---"] * (len(WAYS) + 1), *rows]
    lines = ["|" + "|".join(row) + "|" if row[0] == "---" else "| " + " | ".join(row) + " |" for row in table]
    assert "\n".join(lines).replace("|  |", "| |") in page


@pytest.mark.parametrize(("way", "method"), PAIRS)
def test_two_processes_do_what_one_does(way, method, alone, tiny, data, tmp_path):
    one, two = alone[method], tmp_path / "two"
    work = lambda rank: run(tiny, data, two, method, parallel=way, **settings(method, data))  # noqa: E731
    assert processes(2, work) == [0, 0]
    told = json.loads((two / "lmf.json").read_text())
    assert (told["processes"], told["parallel"]) == (2, way)
    held_out = [[line["eval_loss"] for line in log(output, "eval_loss")] for output in (one, two)]
    difference = apart(one, two) | {"held-out loss": max(map(relative, *held_out))}
    print(f"\n  {way} {method}: {difference}")
    assert max(difference.values()) <= 1e-5
    if method != "lora":
        whole = AutoModelForCausalLM.from_pretrained(two)  # plain transformers
        saved = load_file(two / "model.safetensors")
        assert all(tensor.numel() for tensor in saved.values())
        assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in saved.items())


@pytest.mark.parametrize("way", WAYS)
def test_new_rows_that_lora_trains_are_those_of_one_process(way, data, tmp_path):
    base = tmp_path / "base"
    model = tiny_model()
    setattr(model.config, NEW_TOKENS, [290, 300])  # what the tiny tokenizer merged last
    model.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    given = settings("lora", data) | {"train_new_tokens_only": True}
    one = run(base, data, tmp_path / "one", "lora", **given)
    assert sum("trainable_tokens_delta" in name for name in weights(one)) == 2
    assert processes(2, lambda rank: run(base, data, tmp_path / "two", "lora", parallel=way, **given)) == [0, 0]
    assert max(apart(one, tmp_path / "two").values()) <= 1e-5


@pytest.mark.parametrize(
    ("way", "weights", "state"),
    [("ddp", 1, 1), ("fsdp", 0.5, 0.5), ("zero1", 1, 0.5), ("zero2", 1, 0.5), ("zero3", 0.5, 0.5)],
)
def test_each_process_has_its_part_and_no_more(way, weights, state, tiny, data, tmp_path, monkeypatch):
    """Counted at the end of a run: bytes of the weights and of the optimizer's state, of what one process has."""
    finish = Copies.finite

    def count(shared: Any) -> bool:
        (tmp_path / f"{shared.processes.count}-{shared.processes.rank}.json").write_text(json.dumps(held(shared)))
        return finish(shared)

    for kind in {sharing.kind_of(way), Copies}:
        monkeypatch.setattr(kind, "finite", count)
    run(tiny, data, tmp_path / "one", steps=1)
    assert processes(2, lambda rank: run(tiny, data, tmp_path / "two", steps=1, parallel=way)) == [0, 0]
    one, *two = (json.loads((tmp_path / name).read_text()) for name in ("1-0.json", "2-0.json", "2-1.json"))
    for each in two:
        assert each[0] == pytest.approx(one[0] * weights, rel=0.01)
        assert each[1] == pytest.approx(one[1] * state, rel=0.01)


def place_of(parameter: torch.Tensor) -> str:
    """Return the file that a parameter is a page of."""
    address = parameter.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= address < end:
            return line.partition("/")[2]
    return ""


def as_low(tiny: Path, folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(tiny).bfloat16().save_pretrained(folder)
    return folder


def as_pickle(tiny: Path, folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def as_gguf(tiny: Path, folder: Path) -> Path:
    write_gguf(open_model(str(tiny), PLUGINS), folder / "model.gguf", "q8_0", "tiny", first=False)
    return folder / "model.gguf"


@pytest.mark.parametrize(
    ("way", "method", "kind"),
    [("fsdp", "full", as_low), ("fsdp", "lora", as_gguf), ("zero3", "full", as_pickle)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_cannot_be_mapped_is_converted_once_and_divided_alike(
    way, method, kind, tiny, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("LMF_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    model = kind(tiny, folder)
    for file in tiny.glob("*token*"):
        shutil.copy(file, folder)
    given = UNEVEN | {"options": METHODS[method], "allow_pickle": kind is as_pickle}
    one, two = run(model, data, tmp_path / "one", method, **given), tmp_path / "two"
    share = loop.share

    def look(plan: Any, learner: Any, *args: Any) -> Any:
        places = [place_of(p) for name, p in learner.model.named_parameters() if "lora" not in name]
        (tmp_path / f"places-{os.environ['RANK']}.json").write_text(json.dumps(places))
        return share(plan, learner, *args)

    monkeypatch.setattr(loop, "share", look)
    assert processes(2, lambda rank: run(model, data, two, method, parallel=way, **given)) == [0, 0]
    assert max(apart(one, two).values()) <= 1e-5
    first, second = (json.loads((tmp_path / f"places-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert all("/cache/converted/" in place for place in first)
    assert not list((tmp_path / "cache/converted").iterdir())
    if method == "lora":
        assert json.loads((two / "adapter_config.json").read_text()) == json.loads(
            (one / "adapter_config.json").read_text()
        )


RESUMED = {"steps": 6, "batch_size": 7, "learning_rate": 2e-4, "micro_batch_tokens": 100, "sample": "hello"}


def interrupted(tiny: Path, data: Path, output: Path, way: str, method: str) -> None:
    def work(rank: int) -> None:
        with pytest.raises(Interrupted, match="Stopped after step 3 of 6"):
            options = METHODS[method]
            run(tiny, data, output, method, parallel=way, report=stop_at(3), options=options, **RESUMED)

    assert processes(2, work) == [0, 0]


@pytest.mark.parametrize(("way", "method"), [("fsdp", "lisa"), ("zero1", "full"), ("zero2", "lora"), ("zero3", "full")])
def test_a_divided_run_goes_on_to_the_same_bits(way, method, tiny, data, tmp_path):
    whole = RESUMED | {"parallel": way, "options": METHODS[method]}
    assert processes(2, lambda rank: run(tiny, data, tmp_path / "straight", method, **whole)) == [0, 0]
    interrupted(tiny, data, tmp_path / "out", way, method)
    assert processes(2, lambda rank: run(tiny, data, tmp_path / "out", method, resume="newest", **whole)) == [0, 0]
    assert apart(tmp_path / "straight", tmp_path / "out") == {"loss": 0, "gradient_norm": 0, "weights": 0}


@pytest.mark.parametrize(
    ("way", "ranks", "after", "method"),
    [
        *[("fsdp", 1, "ddp", "full"), ("zero3", 1, "ddp", "lora"), ("zero1", 3, "fsdp", "full")],
        *[("ddp", 2, "zero3", "full"), ("fsdp", 3, "zero2", "lora"), ("fsdp", 1, "ddp", "lisa")],
    ],
)
def test_a_run_goes_on_in_other_processes_that_share_otherwise(way, ranks, after, method, tiny, data, tmp_path):
    options = METHODS[method]
    straight = run(tiny, data, tmp_path / "straight", method, options=options, **RESUMED)
    interrupted(tiny, data, tmp_path / "out", way, method)

    def go_on(rank: int) -> None:
        run(tiny, data, tmp_path / "out", method, resume="newest", parallel=after, options=options, **RESUMED)

    if ranks == 1:
        go_on(0)
    else:
        assert processes(ranks, go_on) == [0] * ranks
    difference = apart(straight, tmp_path / "out")
    print(f"\n  {method}: 2 of {way}, then {ranks} of {after}: {difference}")
    assert max(difference.values()) <= 1e-5


def test_a_missing_part_of_the_optimizer_is_found(tiny, data, tmp_path):
    interrupted(tiny, data, tmp_path / "out", "fsdp", "full")
    folder = tmp_path / "out/checkpoints/step-000003"
    assert sorted(p.name for p in folder.glob("optimizer*")) == ["optimizer-1.safetensors", "optimizer.safetensors"]
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "optimizer-1.safetensors").unlink()
    with pytest.raises(LmfError, match="no whole checkpoint"):
        run(tiny, data, tmp_path / "out", resume="newest", **RESUMED)
    del manifest["optimizer-1.safetensors"]  # and nobody knows of it any more
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LmfError, match=r"step-000003 lacks a part of the optimizer's \S+/exp_avg\S*\."):
        run(tiny, data, tmp_path / "out", resume="newest", **RESUMED)


@pytest.mark.parametrize("way", ["fsdp", "zero3"])
def test_the_best_weights_of_a_divided_run_are_given_out(way, tiny, data, tmp_path):
    out = tmp_path / way
    best = {"steps": 60, "batch_size": 4, "eval_split": 0.3, "eval_every": 2, "patience": 3, "keep": 1, "parallel": way}
    fast = best | {"learning_rate": 0.02, "schedule": "constant"}
    assert processes(2, lambda rank: run(tiny, data, out, **fast)) == [0, 0]
    record = json.loads((out / "lmf.json").read_text())
    assert 0 < record["best"]["step"] == record["steps"] - 6
    kept = load_file(out / f"checkpoints/step-{record['best']['step']:06d}/model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in weights(out).items())


def test_records_come_once_in_an_epoch_whatever_the_number_of_processes(tiny, data, tmp_path, monkeypatch):
    """Counted where batches are made, of whole data and of a stream that is interrupted amid a block."""
    batch = packing.pack

    def noting(examples: Any) -> Any:
        with (tmp_path / f"seen-{noting.name}").open("a") as file:  # type: ignore[attr-defined]
            file.writelines(f"{e.where}\n" for e in examples)
        return batch(examples)

    monkeypatch.setattr(packing, "pack", noting)
    for streaming in (False, True):
        common: dict[str, Any] = {"steps": 4, "batch_size": 5, "micro_batch_tokens": 60, "max_tokens": 60}
        common |= {"streaming": True, "shuffle_buffer": 7} if streaming else {}
        seen = []
        for ranks in (1, 2, 3):
            noting.name = f"{streaming}-{ranks}"  # type: ignore[attr-defined]
            out = tmp_path / noting.name  # type: ignore[attr-defined]

            def stopped(rank: int, out: Path = out, common: dict[str, Any] = common) -> None:
                with pytest.raises(Interrupted):
                    run(tiny, data, out, report=stop_at(2), **common)

            assert processes(ranks, stopped) == [0] * ranks
            go_on = lambda rank, out=out, common=common: run(tiny, data, out, resume="newest", **common)  # noqa: E731
            assert processes(ranks, go_on) == [0] * ranks
            lines = Counter((tmp_path / f"seen-{noting.name}").read_text().splitlines())  # type: ignore[attr-defined]
            lines.pop("", None)  # what find_head tries
            seen.append(lines)
        assert seen == [Counter(f"{data}:{line}" for line in range(1, 21))] * 3


# What is refused


@pytest.mark.parametrize("way", ["zero1", "zero2", "zero3"])
def test_what_a_method_or_optimizer_does_not_do_is_refused_before_data_are_read(way, tiny, tmp_path):
    with pytest.raises(ConfigError, match=f"^The method lisa does not work with --parallel {way}; it does with ddp"):
        run(tiny, tmp_path / "no such file", tmp_path / "out", "lisa", parallel=way)
    with pytest.raises(
        ConfigError, match=r"^The optimizer adamw-rows does not work with --parallel .*; it does with ddp\."
    ):
        run(tiny, tmp_path / "no such file", tmp_path / "out", optimizer="adamw-rows", parallel=way)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"offload": "cpu"}, "--offload cpu needs a model that is divided: --parallel fsdp or zero2"),
        ({"offload": "disk", "parallel": "fsdp"}, "--offload disk is no place; write cpu, or nvme:FOLDER"),
        ({"offload": "nvme:/x", "parallel": "fsdp"}, "--offload nvme:/x works with --parallel zero3 alone"),
        (
            {"step_in_backward": True, "clip": 0, "batch_size": 1, "max_tokens": 64, "parallel": "fsdp"},
            "--step-in-backward does not work with --parallel fsdp",
        ),
    ],
)
def test_settings_that_contradict_are_refused(given, message, tiny, data, tmp_path):
    with pytest.raises(ConfigError, match=f"^{message}"):
        run(tiny, data, tmp_path / "out", **given)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("data", "data: "),
        ("settings", "settings: learning_rate 0.0"),
        ("versions", r"versions: torch \S+ in process 0 \(.*\), torch 9.9 in process 1 \("),
        ("plugins", r"plugins: lmf-lora \S+ in process 0 \(.*\), lmf-lora 9.9 in process 1 \("),
    ],
)
def test_processes_that_would_learn_something_else_are_refused(what, expected, tiny, data, tmp_path, monkeypatch):
    other = talks(tmp_path / "other.jsonl", 21)

    def work(rank: int) -> None:
        given = {"learning_rate": 2e-4} if rank and what == "settings" else {}
        if rank and what == "versions":
            monkeypatch.setattr(record, "version", lambda name: "9.9" if name == "torch" else version(name))
        if rank and what == "plugins":
            (lora,) = (plugin for plugin in PLUGINS.installed if plugin.package == "lmf-lora")
            others = [replace(plugin, version="9.9") if plugin is lora else plugin for plugin in PLUGINS.installed]
            monkeypatch.setattr(PLUGINS, "installed", others)
        with pytest.raises(ConfigError, match=f"^The processes do not agree on {expected}"):
            run(tiny, other if rank and what == "data" else data, tmp_path / "out", steps=2, **given)

    assert processes(2, work) == [0, 0]
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(("victim", "place"), [(0, "model."), (1, "optimizer-1.")])
def test_a_divided_run_killed_amid_a_save_goes_on_to_the_same_bits(victim, place, tiny, data, tmp_path):
    common = {"steps": 6, "save_every": 2, "parallel": "fsdp"}

    def work(rank: int) -> None:
        if rank == victim:
            cut_at(f"step-000004.partial/{place}", 0.5)
        with pytest.raises(LmfError, match=r"^Another process of the run has ended.*\n.*step-000002\. Continue: lmf"):
            run(tiny, data, tmp_path / "out", **common)

    codes = processes(2, work)
    assert (codes[victim], codes[1 - victim]) == (-9, 0)
    for name, more in (("out", {"resume": "newest"}), ("straight", {})):
        assert processes(2, lambda rank, n=name, m=more: run(tiny, data, tmp_path / n, **common, **m)) == [0, 0]
    assert same(tmp_path / "straight", tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_process_that_dies_ends_the_others_with_what_is_left(tiny, data, tmp_path):
    common = {"steps": 6, "save_every": 2}

    def work(rank: int) -> None:
        if rank:
            run(tiny, data, tmp_path / "out", report=At(3, lambda: os.kill(os.getpid(), signal.SIGKILL)), **common)
        with pytest.raises(LmfError, match=r"^Another process of the run has ended.*\n.*step-000002\. Continue: lmf"):
            run(tiny, data, tmp_path / "out", **common)

    assert processes(2, work) == [0, -9]
    assert processes(2, lambda rank: run(tiny, data, tmp_path / "out", resume="newest", **common)) == [0, 0]
    straight = run(tiny, data, tmp_path / "straight", **common)
    assert max(apart(straight, tmp_path / "out").values()) <= 1e-5
