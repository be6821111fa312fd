"""Finding a model and checking its files, before anything in them is loaded or run."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lmf import Checkpoint, ConfigError, LmfError, ModelSpec, PluginError, Plugins, hookimpl
from lmf.errors import UnknownName
from lmf.sources import Source, cache_folder, check_folder, check_safetensors, checkpoints, family, find_model, shards

PLUGINS = Plugins(only=["lmf-smollm2"])


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return shutil.copytree(tiny, tmp_path / "model")


def refusal(call: Callable[..., Any], *args: Any, kind: type[LmfError] = LmfError) -> str:
    with pytest.raises(kind) as caught:
        call(*args)
    return str(caught.value)


def families(*specs: ModelSpec, package: str = "acme", plugins: Plugins | None = None) -> Plugins:
    class Module:
        @hookimpl
        def lmf_models(self) -> list[ModelSpec]:
            return list(specs)

    plugins = plugins or Plugins(only=[])
    plugins.register(package, Module())
    return plugins


def checkpoint(name: str, folder: Path = Path("nowhere")) -> Checkpoint:
    return Checkpoint(name=name, summary="-", folder=lambda: folder, template="chatml")


# What --model may be


def test_a_folder_is_found_by_its_path(tiny: Path) -> None:
    assert find_model(str(tiny), PLUGINS) == Source(str(tiny), str(tiny))
    assert find_model(str(tiny), PLUGINS).folder == tiny


def test_a_folder_is_found_in_the_home_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert find_model(f"~/{tiny.name}", PLUGINS).folder == tiny


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    assert find_model(str(tmp_path / "m.gguf"), PLUGINS) == Source(
        str(tmp_path / "m.gguf"), str(tmp_path), gguf="m.gguf"
    )


def test_a_checkpoint_has_the_folder_and_the_template_that_its_family_declares(tiny: Path) -> None:
    plugins = families(ModelSpec(name="acme", template="chatml", checkpoints=(checkpoint("acme-1b", tiny),)))
    assert find_model("acme-1b", plugins) == Source("acme-1b", str(tiny), template="chatml")


def test_an_owner_and_a_name_are_a_hub_id() -> None:
    source = find_model("acme/large", PLUGINS)
    assert source == Source("acme/large", "acme/large")
    assert source.folder is None


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    message = refusal(find_model, "smolm2-135m", PLUGINS, kind=UnknownName)
    assert message.startswith("No model is called 'smolm2-135m'. Did you mean 'smollm2-135m'?")
    assert "A folder needs a path (./NAME); a hub id needs its owner (OWNER/NAME)." in message


@pytest.mark.parametrize("name", ["./acme/large", "/acme/large", "~/acme/large", "a/b/c", "acme/", "../large"])
def test_a_path_that_does_not_exist_is_no_hub_id(name: str) -> None:
    assert refusal(find_model, name, PLUGINS, kind=ConfigError).startswith(f"--model {name}: no such folder (")


def test_a_path_that_does_not_exist_is_refused_with_the_nearest_one(tiny: Path) -> None:
    message = refusal(find_model, str(tiny.with_name("tinny")), PLUGINS, kind=ConfigError)
    assert message.endswith("Did you mean 'tiny'?")


def test_another_file_is_no_model(tiny: Path) -> None:
    message = refusal(find_model, str(tiny / "model.safetensors"), PLUGINS, kind=ConfigError)
    assert "is a file; it must be a folder, a GGUF file, a checkpoint name or a hub id" in message


def test_a_gguf_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"<html>")
    assert refusal(find_model, str(tmp_path / "m.gguf"), PLUGINS).startswith(f"{tmp_path}/m.gguf is not a GGUF file")


# Families and checkpoints


def test_a_family_covers_its_model_types() -> None:
    spec = ModelSpec(name="acme", model_types=frozenset({"acme", "acme2"}), template="chatml")
    assert family("acme2", families(spec)) is spec


def test_a_model_type_of_no_family_is_refused_with_those_there_are() -> None:
    plugins = families(ModelSpec(name="acme", model_types=frozenset({"acme"}), template="chatml"))
    message = refusal(family, "acne", plugins, kind=UnknownName)
    assert message == "No model type is called 'acne'. Did you mean 'acme'?\nInstalled: acme."


def test_a_model_type_of_two_families_is_refused_naming_both() -> None:
    spec = ModelSpec(name="acme", model_types=frozenset({"acme"}), template="chatml")
    plugins = families(spec, package="other", plugins=families(spec))
    message = refusal(family, "acme", plugins, kind=PluginError)
    assert message.startswith("acme:acme and other:acme both cover models of type 'acme'.")
    assert "LMF_DISABLE_PLUGINS" in message


def test_a_checkpoint_that_two_families_have_needs_the_name_of_its_family() -> None:
    first = ModelSpec(name="first", template="t", checkpoints=(checkpoint("small"), checkpoint("large")))
    second = ModelSpec(name="second", template="t", checkpoints=(checkpoint("small"), checkpoint("a:b")))
    plugins = families(first, second)
    assert checkpoints(plugins) == {
        "first:small": first.checkpoints[0],
        "second:small": second.checkpoints[0],
        "large": first.checkpoints[1],
        "a:b": second.checkpoints[1],
    }
    assert find_model("second:small", plugins).asked == "second:small"
    assert "first:small" in refusal(find_model, "small", plugins, kind=UnknownName)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMF_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert cache_folder() == Path("/a")
    monkeypatch.setenv("LMF_CACHE", "")
    assert cache_folder() == Path("/b/lmf")
    monkeypatch.delenv("LMF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/c/.cache/lmf")


# The files of a folder


def safetensors(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def shard(folder: Path, names: Any) -> None:
    """Turn the one file of weights into shards with these names in the index."""
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}), encoding="utf-8")


def write(name: str, data: bytes | str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def cut(name: str, size: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def instead(name: str) -> Callable[[Path], Any]:
    """Put a pickle in the place of the weights."""
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "{folder} holds no model: config.json is missing"),
    "empty config": (write("config.json", ""), "{folder}/config.json is not readable as JSON: Expecting value"),
    "cut config": (cut("config.json", 50), "{folder}/config.json is not readable as JSON"),
    "deep config": (write("config.json", "[" * 100_000), "{folder}/config.json is not readable as JSON"),
    "config in UTF-16": (write("config.json", "{}".encode("utf-16")), "{folder}/config.json is not readable as JSON"),
    "config that is a list": (write("config.json", "[]"), "{folder}/config.json must hold a JSON object"),
    "no model_type": (write("config.json", "{}"), "{folder}/config.json has no model_type"),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "{folder} holds no tokenizer: tokenizer.json is missing. Copy it from the base model.",
    ),
    "garbage in tokenizer.json": (write("tokenizer.json", "nope"), "{folder}/tokenizer.json is not readable as JSON"),
    "cut tokenizer.json": (cut("tokenizer.json", 999), "{folder}/tokenizer.json is not readable as JSON"),
    "another tokenizer.json": (write("tokenizer.json", "{}"), "{folder}/tokenizer.json holds no tokenizer"),
    "bad tokenizer_config": (write("tokenizer_config.json", "{"), "{folder}/tokenizer_config.json is not readable"),
    "bad generation_config": (write("generation_config.json", "{"), "{folder}/generation_config.json is not readable"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "{folder} holds no weights: neither model.safetensors",
    ),
    "empty weights": (
        write("model.safetensors", b""),
        "{folder}/model.safetensors is not a safetensors file: it has 0",
    ),
    "cut header": (cut("model.safetensors", 100), "model.safetensors is not a safetensors file: its header is longer"),
    "cut weights": (cut("model.safetensors", 500_000), "{folder}/model.safetensors has 500,000 bytes, but its header"),
    "longer weights": (
        lambda f: write("model.safetensors", (f / "model.safetensors").read_bytes() + b"x")(f),
        "{folder}/model.safetensors has",
    ),
    "garbage weights": (write("model.safetensors", b"\x10" + bytes(99)), "is not a safetensors file: Expecting value"),
    "header of 8 EiB": (write("model.safetensors", b"\xff" * 99), "is not a safetensors file: its header is longer"),
    "header that is a list": (write("model.safetensors", safetensors([])), "its header is no JSON object"),
    "header without offsets": (write("model.safetensors", safetensors({"a": {}})), "is not a safetensors file: 'data"),
    "header with bad offsets": (
        write("model.safetensors", safetensors({"a": ENTRY | {"data_offsets": [0, "4"]}, "b": ENTRY}, bytes(4))),
        "{folder}/model.safetensors is not a safetensors file",
    ),
    "header with one offset": (
        write("model.safetensors", safetensors({"a": ENTRY | {"data_offsets": [0]}}, bytes(4))),
        "{folder}/model.safetensors is not a safetensors file",
    ),
    "deep header": (
        write("model.safetensors", safetensors(b"[" * 100_000)),
        "{folder}/model.safetensors is not a safetensors file",
    ),
    "pointer of git-lfs": (
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "it is a pointer of git-lfs; get the file itself with git lfs pull",
    ),
    "folder of that name": (
        lambda f: [(f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()],
        "{folder}/model.safetensors cannot be read: Is a directory",
    ),
    "no weight_map": (lambda f: shard(f, []), "{folder}/model.safetensors.index.json has no weight_map"),
    "empty weight_map": (lambda f: shard(f, {}), "{folder} holds no weights"),
    "missing shard": (
        lambda f: shard(f, {"x": "a.safetensors", "y": "b.safetensors"}),
        "{folder} lacks b.safetensors, which model.safetensors.index.json names",
    ),
    "cut shard": (
        lambda f: [shard(f, {"x": "a.safetensors"}), cut("a.safetensors", 500_000)(f)],
        "{folder}/a.safetensors has 500,000 bytes",
    ),
    "adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json").write_text('{"base_model_name_or_path": "b"}'),
        "{folder} holds an adapter for 'b', not a model",
    ),
    "pickle": (
        instead("pytorch_model.bin"),
        "{folder} has its weights as pickle (pytorch_model.bin), and loading a pickle can run code.\n"
        "Convert it to safetensors, or add --allow-pickle if you trust where it comes from.",
    ),
    "pickle in shards": (instead("pytorch_model-00001-of-00002.bin"), "{folder} has its weights as pickle"),
    "pickle of another name": (instead("consolidated.00.pth"), "has its weights as pickle (consolidated.00.pth)"),
    "pickle that holds no weights": (instead("training_args.bin"), "{folder} holds no weights"),
}


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD)
def test_a_damaged_folder_is_refused_naming_file_and_cause(
    model: Path, damage: Callable[[Path], Any], message: str
) -> None:
    find_model(str(model), PLUGINS)
    damage(model)
    assert message.format(folder=model) in refusal(find_model, str(model), PLUGINS)


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/a.safetensors", "x/a.safetensors", "..", ".", "", "a.bin", 5, None, ["a.safetensors"]],
)
def test_a_shard_lies_in_the_folder_and_is_no_pickle(model: Path, name: Any) -> None:
    shutil.copy(model / "model.safetensors", model.parent / "a.safetensors")
    (model / "a.bin").touch()
    shard(model, {"x": "a.safetensors", "y": name})
    message = refusal(find_model, str(model), PLUGINS)
    assert message == (
        f"{model}/model.safetensors.index.json names {name!r}, which is not a .safetensors file in the same folder."
    )


def test_pickles_are_found_where_they_are_allowed(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    check_folder(model, allow_pickle=True)


def test_a_pickled_shard_lies_in_the_folder_too(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model-1.bin")
    index = model / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"x": "pytorch_model-1.bin"}}')
    check_folder(model, allow_pickle=True)
    index.write_text('{"weight_map": {"x": "../pytorch_model-1.bin"}}')
    assert refusal(check_folder, model, True).startswith(f"{index} names '../pytorch_model-1.bin', which is not a .bin")


def test_allowing_pickles_does_not_do_without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert refusal(check_folder, model, True).startswith(f"{model} holds no weights")


def test_the_shards_of_a_folder_are_its_files_of_weights(model: Path) -> None:
    assert shards(model) == [model / "model.safetensors"]
    shutil.copy(model / "model.safetensors", model / "b.safetensors")
    shard(model, {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"})
    assert shards(model) == [model / "a.safetensors", model / "b.safetensors"]
    check_folder(model)


def test_the_weights_of_an_adapter_are_its_one_file(tmp_path: Path) -> None:
    assert shards(tmp_path) == []
    (tmp_path / "adapter_model.safetensors").touch()
    assert shards(tmp_path) == [tmp_path / "adapter_model.safetensors"]


def test_an_empty_file_of_safetensors_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(safetensors({}))
    assert check_safetensors(file) == {}


def test_a_missing_file_of_safetensors_is_refused(tmp_path: Path) -> None:
    assert refusal(check_safetensors, tmp_path / "a") == f"{tmp_path}/a cannot be read: No such file or directory."
