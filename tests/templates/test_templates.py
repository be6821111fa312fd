"""The templates of fields against their official formats. ``test_export`` has what they export, and all others."""

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import lmf_templates
import pytest
from lmf import DataError, Message, Piece, Plugins, Template
from lmf.conversation import Role
from lmf.plugins import GROUP
from talks import TALKS, talk

REFERENCE = json.loads(Path(__file__).with_name("reference.json").read_text(encoding="utf-8"))
TEMPLATES = {template.name: template for template in lmf_templates.lmf_templates() if isinstance(template, Template)}
DOCS = Path(__file__).parents[2] / "docs" / "templates.md"
README = Path(lmf_templates.__file__).parents[2] / "README.md"


PLAIN_TEXT = {"<SYS>", "<|User|>", "<|Bot|>", "<extra_id_0>", "<extra_id_1>"}  # no tokens to the models either
ALIASES = {
    "disable": "empty",
    "vanilla": "empty",
    "qwen2": "qwen",
    "yi": "chatml",
    "gemma2": "gemma",
    "gemma3": "gemma",
    "deepseek": "deepseek_v2",
    "lmflow_qwen2": "chatml",
    "lmflow_deepseek_r1_distill": "lmflow_deepseek_r1",
}
REFUSED = [(name, role) for name, t in TEMPLATES.items() for role in ("system", "tool") if getattr(t, role) is None]
each_template = pytest.mark.parametrize("name", TEMPLATES)
each_official = pytest.mark.parametrize("name", REFERENCE["templates"])
each_reference = pytest.mark.parametrize("talk_name", REFERENCE["conversations"])


def tokens(name: str) -> dict[str, str]:
    """Return the bos and eos that models of this template have."""
    return {key: REFERENCE["templates"].get(name, {"bos": "<s>", "eos": "</s>"})[key] for key in ("bos", "eos")}


def talks(name: str) -> Iterator[tuple[str, list[Message]]]:
    """Yield the conversations that a template has a place for, and one that spells its own tokens."""
    template = TEMPLATES[name]
    own = "".join(("[INST]", *template.tokens, *template.stops(tokens(name)["eos"])))
    for talk_name, messages in (*TALKS.items(), ("its own tokens", talk(("user", own), ("assistant", own + "x")))):
        if template.system is not None or messages[0].role != "system":
            yield talk_name, messages


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def trained(pieces: list[Piece]) -> list[bool]:
    """Return for each character whether it is trained."""
    return [piece.trained for piece in pieces for _ in piece.text]


def stretches(pieces: list[Piece]) -> list[str]:
    """Return the stretches of text that are trained."""
    marks = "".join("x" if mark else " " for mark in trained(pieces))
    return [text(pieces)[match.start() : match.end()] for match in re.finditer("x+", marks)]


def reference(name: str, talk_name: str) -> tuple[list[Message], str]:
    """Return a conversation and its official text, with « and » around what is trained."""
    return talk(*REFERENCE["conversations"][talk_name]), REFERENCE["templates"][name][talk_name]


def test_the_documentation_lists_what_the_package_provides() -> None:
    names = DOCS.read_text(encoding="utf-8").partition("\n## Names\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", names, re.MULTILINE)
    assert sorted(listed) == sorted(Plugins(only=["lmf-templates"]).templates)


def test_the_readme_lists_the_families() -> None:
    listed = re.findall(r"^\| `(\w+)`", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == sorted(Plugins(only=["lmf-templates"]).models)


def test_the_tables_of_the_readme_say_what_the_families_hold() -> None:
    readme = README.read_text(encoding="utf-8")
    for family in lmf_templates.lmf_models():
        (model_type,) = family.model_types
        cells = (f"`{family.name}`", model_type, family.template, family.layers, " ".join(family.projections))
        assert f"| {' | '.join(cells)} |" in readme


def test_the_documentation_says_the_default_system_texts() -> None:
    docs = DOCS.read_text(encoding="utf-8").partition("\n## Names\n")[2]
    for name, template in TEMPLATES.items():
        row = re.search(rf"^\| `{name}` \| (?:[^|\\]|\\.)* \| (.*?) \|", docs, re.MULTILINE)
        assert row, name
        shown = row[1].strip('"').removesuffix(" ...")
        if template.system is None:
            assert shown == "no system text", name
        elif not template.default_system:
            assert shown == ("none" if template.default_system is None else "the header alone"), name
        else:
            assert template.default_system.startswith(shown), name


def test_the_plugin_in_the_readme_works() -> None:
    readme = README.read_text(encoding="utf-8")
    project, module = (re.search(f"```{kind}\n(.*?)```", readme, re.DOTALL)[1] for kind in ("toml", "python"))  # type: ignore[index]
    assert tomllib.loads(project)["project"]["entry-points"] == {GROUP: {"acme": "lmf_acme"}}
    assert module.startswith("# src/lmf_acme/__init__.py\n")
    acme = ModuleType("lmf_acme")
    exec(module, vars(acme))
    plugins = Plugins(only=[])
    plugins.register("lmf-acme", acme)
    pieces = plugins.templates["acme"].render(talk(("user", "Hi"), ("assistant", "Hello!")))
    assert text(pieces) == "<|user|>Hi\n<|bot|>Hello!<|end|>"
    assert stretches(pieces) == ["Hello!<|end|>"]


def test_there_are_many_kinds_of_conversations() -> None:
    assert len(TALKS) >= 30


@each_official
@each_reference
def test_the_text_is_the_official_one(name: str, talk_name: str) -> None:
    messages, marked = reference(name, talk_name)
    rendered = text(TEMPLATES[name].render(messages, **tokens(name)))
    assert rendered == re.sub("[«»]", "", marked)


@each_official
@each_reference
def test_trained_is_a_reply_and_what_ends_it_but_not_what_asks_for_it(name: str, talk_name: str) -> None:
    messages, marked = reference(name, talk_name)
    pieces = TEMPLATES[name].render(messages, **tokens(name))
    assert stretches(pieces) == re.findall("«(.*?)»", marked, re.DOTALL)


@each_official
@each_reference
def test_generation_starts_where_the_trained_text_starts(name: str, talk_name: str) -> None:
    messages, marked = reference(name, talk_name)
    prompt = TEMPLATES[name].render(messages[:-1], reply=True, **tokens(name))
    assert text(prompt) == re.sub("[«»]", "", marked.rpartition("«")[0])


@each_template
def test_a_prompt_is_the_beginning_of_the_conversation_that_follows(name: str) -> None:
    for talk_name, messages in talks(name):
        whole = TEMPLATES[name].render(messages, **tokens(name))
        for i, message in enumerate(messages):
            if message.role == "assistant":
                prompt = TEMPLATES[name].render(messages[:i], reply=True, **tokens(name))
                end = len(text(prompt))
                assert text(whole)[:end] == text(prompt), talk_name
                assert trained(whole)[:end] == trained(prompt), talk_name
                assert trained(whole)[end - 1 : end + 1] == [False, True], talk_name


@each_template
def test_every_reply_is_trained_up_to_its_stop(name: str) -> None:
    stop = TEMPLATES[name].stops(tokens(name)["eos"])[0]
    assert stop
    for talk_name, messages in talks(name):
        replies = stretches(TEMPLATES[name].render(messages, **tokens(name)))
        contents = [message.content for message in messages if message.role == "assistant"]
        for reply, content in zip(replies, contents, strict=True):
            assert reply.endswith(stop), talk_name
            assert content.strip() in reply, talk_name


@each_template
def test_only_what_the_template_wrote_is_control_text(name: str) -> None:
    messages = talk(("user", "ASK"), ("assistant", "ANSWER"))
    if TEMPLATES[name].system is not None:
        messages = [*talk(("system", "SYS")), *messages]
    pieces = TEMPLATES[name].render(messages, **tokens(name))
    assert [piece.text for piece in pieces if not piece.control] == [message.content for message in messages]


@pytest.mark.parametrize(("name", "role"), REFUSED)
def test_a_role_without_a_place_is_refused_by_name(name: str, role: Role) -> None:
    with pytest.raises(DataError, match=f"the template '{name}' has no place for a {role} message"):
        TEMPLATES[name].render([*talk(("user", "Hi")), Message(role, "{}")], **tokens(name))


@each_template
def test_the_special_tokens_are_those_that_the_format_spells(name: str) -> None:
    spelled = set(re.findall(r"<[|｜▁\w]+>", TEMPLATES[name].controls())) - PLAIN_TEXT
    if name == "zephyr":  # its marks are plain text to its models
        spelled -= {"<|system|>", "<|user|>", "<|assistant|>"}
    assert set(TEMPLATES[name].tokens) == spelled


def test_an_alias_has_the_formats_of_what_it_stands_for() -> None:
    for alias, name in ALIASES.items():
        same = dataclasses.replace(TEMPLATES[alias], name=name, source=TEMPLATES[name].source)
        assert same == TEMPLATES[name], alias


@each_template
def test_the_source_is_an_address(name: str) -> None:
    assert re.fullmatch(r"https://\S+", TEMPLATES[name].source)
