"""The one family of errors, and the suggestions in them."""

import pytest
from lmf import ConfigError, DataError, LmfError, PluginError, UnknownName
from lmf.errors import Interrupted, did_you_mean


def test_every_kind_of_error_has_an_exit_code_of_its_own():
    kinds = [LmfError, ConfigError, PluginError, DataError]
    assert [kind.exit_code for kind in kinds] == [1, 2, 3, 4]
    assert all(issubclass(kind, LmfError) for kind in kinds)


def test_a_run_that_a_signal_ended_exits_as_a_shell_expects():
    assert [Interrupted("saved", number).exit_code for number in (2, 15)] == [130, 143]


def test_an_unknown_name_is_an_error_of_usage():
    assert issubclass(UnknownName, ConfigError)
    assert UnknownName("template", "x", []).exit_code == ConfigError.exit_code


def test_an_unknown_name_is_answered_with_the_nearest_one_and_the_whole_list():
    error = UnknownName("template", "chatlm", ["zephyr", "chatml"])
    assert str(error).splitlines() == [
        "No template is called 'chatlm'. Did you mean 'chatml'?",
        "Installed: chatml, zephyr.",
    ]


def test_an_unknown_name_is_answered_with_what_might_have_brought_it():
    error = UnknownName("template", "acme", [], ["acme-templates 0.1 is installed but unusable: no luck"])
    assert str(error).splitlines() == [
        "No template is called 'acme'.",
        "Installed: none.",
        "acme-templates 0.1 is installed but unusable: no luck",
    ]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("lroa", " Did you mean 'lora'?"), ("LoRA", " Did you mean 'lora'?"), ("gguf", ""), ("", "")],
)
def test_a_suggestion_is_made_only_when_a_name_is_near_whatever_its_case(name, suggestion):
    assert did_you_mean(name, ["full", "lora", "lisa"]) == suggestion


def test_a_suggestion_is_spelled_as_the_name_is():
    assert did_you_mean("qwen2", ["Qwen3"]) == " Did you mean 'Qwen3'?"
