"""Settings: checked values, TOML files, and where a value came from."""

import math
import random
import re
import tomllib
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
from lmf import ConfigError, PluginError, RunSettings, option
from lmf.config import check_declaration, flag, make, merge, read_toml, to_toml


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    model: str = option(help="The model.")
    files: tuple[Path, ...] = option((), "Files.")
    rank: int = option(8, "The rank.", min=1, max=16777216)
    rate: float = option(0.5, "The rate.", above=0, max=1)
    bits: Literal[4, 8] | None = option(None, "Bits of a weight.")
    side: Literal["left", "right"] = option("left", "The side.")
    quiet: bool = option(False, "Say nothing.")
    note: str | None = option(None, "A note.")
    folder: Path | None = option(None, "A folder.")
    scales: tuple[float, ...] = option((), "Scales.", min=0)


@dataclass(frozen=True, kw_only=True)
class More:
    batch_size: int = option(2, "Size of a batch.", min=1)


def refusal(call, *args: Any) -> str:
    """The message with which a call refuses its arguments."""
    with pytest.raises(ConfigError) as caught:
        call(*args)
    return str(caught.value)


# One value


def test_a_settings_object_has_the_defaults_of_its_class():
    assert make(Settings, {"model": "m"}) == Settings(model="m")


def test_a_required_setting_is_asked_for_with_its_help():
    assert refusal(make, Settings, {}) == "--model is required: The model."


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("rank", "8", "is '8'; it must be a whole number."),
        ("rank", 8.0, "is 8.0; it must be a whole number."),
        ("rank", True, "is True; it must be a whole number."),
        ("rank", None, "is None; it must be a whole number."),
        ("rate", "fast", "is 'fast'; it must be a number."),
        ("rate", False, "is False; it must be a number."),
        ("quiet", 1, "is 1; it must be true or false."),
        ("quiet", "yes", "is 'yes'; it must be true or false."),
        ("model", 3, "is 3; it must be text."),
        ("model", ["a"], "is ['a']; it must be text."),
        ("model", None, "is None; it must be text."),
        ("folder", 3, "is 3; it must be a path."),
        ("files", 3, "is 3; it must be a list."),
        ("files", {"a": 1}, "is {'a': 1}; it must be a list."),
        ("files", ["a", 3], "is 3; it must be a path."),
        ("scales", [0.5, "x"], "is 'x'; it must be a number."),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name, value, problem):
    assert refusal(make, Settings, {"model": "m", name: value}) == f"--{name} {problem}"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("rank", 0, "is 0; it must be at least 1."),
        ("rank", 16777217, "is 16777217; it must be at most 16777216."),
        ("rate", 0.0, "is 0.0; it must be greater than 0."),
        ("rate", 2, "is 2.0; it must be at most 1."),
        ("scales", (1.0, -0.5), "is -0.5; it must be at least 0."),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_the_bound(name, value, problem):
    assert refusal(make, Settings, {"model": "m", name: value}) == f"--{name} {problem}"


@pytest.mark.parametrize(("name", "value"), [("rank", 1), ("rank", 16777216), ("rate", 1e-300), ("rate", 1.0)])
def test_a_bound_that_is_allowed_is_accepted(name, value):
    assert getattr(make(Settings, {"model": "m", name: value}), name) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_must_be_finite(value):
    assert refusal(make, Settings, {"model": "m", "rate": value}) == f"--rate is {value}; it must be a finite number."


def test_a_number_too_large_for_a_float_is_refused():
    problem = refusal(make, Settings, {"model": "m", "rate": 10**400})
    assert problem == "--rate is too large; it must be a finite number."


@pytest.mark.parametrize(("name", "value"), [("model", ""), ("note", ""), ("folder", ""), ("files", ["a", ""])])
def test_empty_text_is_refused(name, value):
    assert refusal(make, Settings, {"model": "m", name: value}) == f"--{name} is empty."


def test_the_folder_one_stands_in_is_not_an_empty_path():
    assert make(Settings, {"model": "m", "folder": "."}).folder == Path()


def test_an_empty_list_does_not_satisfy_a_required_setting():
    assert refusal(make, RunSettings, {"model": "m", "data": []}) == "--data is empty."


def test_an_unknown_choice_is_answered_with_the_nearest_one():
    problem = refusal(make, Settings, {"model": "m", "side": "rihgt"})
    assert problem == "--side is 'rihgt'; it must be one of left, right. Did you mean 'right'?"


@pytest.mark.parametrize("value", [5, "4", True, 4.0, [4]])
def test_a_choice_of_numbers_is_checked_like_one_of_words(value):
    problem = refusal(make, Settings, {"model": "m", "bits": value})
    assert problem.startswith(f"--bits is {value!r}; it must be one of 4, 8.")


def test_a_choice_that_may_be_absent_is_a_choice():
    assert make(Settings, {"model": "m", "bits": 8}).bits == 8
    assert make(Settings, {"model": "m", "bits": None}).bits is None


def test_text_that_cannot_be_recorded_is_refused():
    for name in ("model", "note", "folder", "files"):
        problem = refusal(make, Settings, {"model": "m", name: "name\udcff"})
        assert problem == f"--{name} is 'name\\udcff'; it must be valid Unicode."


def test_a_path_cannot_hold_a_null_character():
    problem = refusal(make, Settings, {"model": "m", "folder": "a\0b"})
    assert problem == "--folder is 'a\\x00b'; a path cannot hold a null character."


def test_values_take_the_type_of_their_setting():
    made = make(Settings, {"model": "m", "folder": "out", "rate": 1, "files": "one.json", "scales": [1, 2.5]})
    assert made == Settings(model="m", folder=Path("out"), rate=1.0, files=(Path("one.json"),), scales=(1.0, 2.5))
    assert type(made.rate) is float
    assert [type(scale) for scale in made.scales] == [float, float]


def test_a_setting_is_written_with_hyphens_on_the_command_line():
    assert flag("batch_size") == "--batch-size"
    assert refusal(make, More, {"batch_size": 0}) == "--batch-size is 0; it must be at least 1."


# Defaults, file, flags


def test_a_file_overrides_a_default_and_a_flag_overrides_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "from file"\nrank = 4\nbatch_size = 3\n')
    (settings, more), origins = merge([Settings, More], file, {"rank": 2, "batch_size": None, "quiet": False})
    assert (settings.model, settings.rank, settings.side, more.batch_size) == ("from file", 2, "left", 3)
    named = {name: origins[name] for name in ("model", "rank", "side", "batch_size", "quiet")}
    expected = {"model": str(file), "rank": "flag", "side": "default", "batch_size": str(file), "quiet": "flag"}
    assert named == expected


def test_every_setting_has_an_origin():
    _, origins = merge([Settings, More], None, {"model": "m"})
    assert set(origins) == {f.name for kind in (Settings, More) for f in fields(kind)}


def test_an_error_in_the_file_names_the_file_and_an_error_in_a_flag_the_flag(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "m"\nrank = 0\n')
    assert refusal(merge, [Settings], file, {}) == f"rank in {file} is 0; it must be at least 1."
    assert refusal(merge, [Settings], file, {"rank": -1}) == "--rank is -1; it must be at least 1."


def test_an_unknown_key_is_answered_with_the_nearest_one_and_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "m"\nrnak = 4\n')
    first, second = refusal(merge, [Settings, More], file, {}, ["method"]).splitlines()
    assert first == f"{file}: no setting is called 'rnak'. Did you mean 'rank'?"
    assert second == (
        "Settings here: batch_size, bits, files, folder, method, model, note, quiet, rank, rate, scales, side."
    )


def test_a_file_may_hold_the_names_that_are_known_besides(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('method = "lora"\nmodel = "m"\n')
    (settings,), origins = merge([Settings], file, {}, ["method"])
    assert settings.model == "m"
    assert "method" not in origins


def test_two_classes_with_a_setting_of_one_name_cannot_be_merged():
    @dataclass(frozen=True, kw_only=True)
    class Other:
        rank: int = option(1, "Another rank.")

    with pytest.raises(PluginError, match=r"^--rank is a setting of .*\.Settings and of .*\.Other; the two cannot"):
        merge([Settings, Other], None, {"model": "m"})


# Files


def test_a_key_is_the_same_with_hyphens_and_with_underscores(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("batch-size = 3\n")
    assert read_toml(file) == {"batch_size": 3}
    file.write_text("batch-size = 3\nbatch_size = 4\n")
    assert refusal(read_toml, file) == f"{file} sets 'batch_size' twice, once with '-' and once with '_'."


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    file = tmp_path / "run.toml"
    file.write_bytes(b'\xef\xbb\xbfmodel = "m"\r\nrank = 4\r\n')
    assert read_toml(file) == {"model": "m", "rank": 4}


@pytest.mark.parametrize(
    "content",
    [
        b"rank",
        b"rank = 4\nrank = 5\n",
        b"rank = " + b"9" * 5000,
        b"rank = " + b"[" * 100_000,
        b'note = "a\x7f"',
        b'note = "\\ud800"',
        b"PK\x03\x04",
    ],
    ids=["no value", "twice", "endless number", "endless list", "raw DEL", "surrogate", "archive"],
)
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path, content):
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    assert refusal(read_toml, file).startswith(f"{file} is not valid TOML: ")


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    assert refusal(read_toml, tmp_path / "none.toml") == f"--config {tmp_path / 'none.toml'} does not exist."
    assert refusal(read_toml, tmp_path) == f"--config {tmp_path} cannot be read: Is a directory."
    file = tmp_path / "run.toml"
    file.write_bytes(b'model = "caf\xe9"\n')
    assert refusal(read_toml, file) == f"{file} is not UTF-8 text (byte 12)."


# Writing TOML: what tomllib reads back is the independent judge

ODD = [chr(code) for code in (*range(0x20), 0x7F, 0x80, 0x85, 0xA0, 0x2028, 0x2029, 0xD7FF, 0xE000, 0xFEFF, 0xFFFF)]
ODD += [*"\"'\\#=[]{}/%é漢🙂", "\U0010ffff", '"""', "'''", "\\u0041", "\\/", "\r\n", "a", " "]


def test_every_single_odd_character_survives_in_a_file(tmp_path):
    for text in ODD:
        file = tmp_path / "run.toml"
        file.write_text(to_toml({"note": text, "files": [text, text]}), encoding="utf-8")
        assert read_toml(file) == {"note": text, "files": [text, text]}


def test_random_strings_of_odd_characters_survive():
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices(ODD, k=draw.randrange(12)))
        assert tomllib.loads(to_toml({"note": text, text: [text]})) == {"note": text, text: [text]}, repr(text)


def test_random_numbers_survive_with_their_type():
    draw = random.Random(0)
    values: list[Any] = [0, -1, 2**63 - 1, 0.0, -0.0, 1e-5, 1e22, 5e-324, 1.7976931348623157e308, True, False]
    values += [draw.uniform(-1, 1) * 10 ** draw.randint(-300, 300) for _ in range(500)]
    values += [draw.randint(-(2**63), 2**63 - 1) for _ in range(500)]
    for value in values:
        again = tomllib.loads(to_toml({"x": value}))["x"]
        assert (type(again), repr(again)) == (type(value), repr(value))


def test_a_settings_object_survives_in_a_file(tmp_path):
    settings = Settings(
        model='a "b"\\c',
        files=(Path("x\ty"), Path("ü")),
        rate=1e-7,
        bits=4,
        quiet=True,
        folder=Path("o"),
        scales=(2.0,),
    )
    file = tmp_path / "run.toml"
    file.write_text(to_toml({f.name: getattr(settings, f.name) for f in fields(settings)}), encoding="utf-8")
    assert merge([Settings], file, {})[0] == [settings]


def test_what_is_none_is_left_out():
    assert to_toml({"note": None, "rank": 8}) == "rank = 8\n"


@pytest.mark.parametrize("value", ["\ud800", "a\udcff", Path("a\udcff")])
def test_text_that_toml_cannot_hold_is_refused_when_written(value):
    problem = refusal(to_toml, {"note": value})
    assert problem == f"{str(value)!r} cannot be written as TOML; it must be valid Unicode."


@pytest.mark.parametrize("value", [{"a": 1}, [None], {1}, b"x"])
def test_a_value_that_is_no_setting_is_not_written_as_something_else(value):
    with pytest.raises(TypeError, match=r"^TOML has no way to write "):
        to_toml({"note": value})


# Declarations


def declared(hint: Any, default: Any, **bounds: float) -> type:
    """A settings class with one field, ``size``."""
    return make_dataclass("Options", [("size", hint, option(default, "x", **bounds))])


@pytest.mark.parametrize("kind", [Settings, More, RunSettings])
def test_a_sound_declaration_is_accepted(kind):
    check_declaration(kind)


def test_a_union_written_the_old_way_is_accepted():
    check_declaration(declared(Optional[int], None))  # noqa: UP045 -- what is tested


@pytest.mark.parametrize(
    ("hint", "default", "bounds", "problem"),
    [
        (dict[str, int], None, {}, "the type of --size is dict[str, int]; it must be bool, int, float, str, Path, a"),
        (int | str, 1, {}, "the type of --size is int | str; it must be"),
        (tuple[int, int], (1, 2), {}, "the type of --size is tuple[int, int]; it must be"),
        (list[int], None, {}, "the type of --size is list[int]; it must be"),
        (Literal["a", None], None, {}, "the type of --size is typing.Literal['a', None]; it must be"),
        (int, 0, {"min": 1}, "the default of --size is 0; it must be at least 1"),
        (int, None, {}, "the default of --size is None; it must be a whole number"),
        (int, 1.5, {}, "the default of --size is 1.5; it must be a whole number"),
        (str, "", {}, "the default of --size is empty"),
        (Path, "out", {}, "the default of --size is 'out'; it must be a path"),
        (tuple[str, ...], "one", {}, "the default of --size is 'one'; it must be a tuple"),
        (Literal["a", "b"], "c", {}, "the default of --size is 'c'; it must be one of a, b"),
        (int | None, 4, {}, "--size may be None, which TOML cannot write, so None must be its default"),
    ],
)
def test_an_option_that_could_not_be_set_or_saved_is_refused_when_declared(hint, default, bounds, problem):
    with pytest.raises(PluginError, match=f"^{re.escape(problem)}"):
        check_declaration(declared(hint, default, **bounds))


def test_a_field_must_be_declared_with_option():
    @dataclass
    class Options:
        size: int = 3
        names: tuple[str, ...] = field(default_factory=tuple)

    with pytest.raises(PluginError, match=r"^the field 'size' of Options must be declared with lmf\.option$"):
        check_declaration(Options)


def test_an_option_name_must_be_one_that_a_flag_can_have():
    @dataclass
    class Options:
        Size: int = option(3, "x")

    with pytest.raises(PluginError, match=r"^the option name 'Size' must be lower-case letters, digits or '_'$"):
        check_declaration(Options)
