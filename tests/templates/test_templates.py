"""The templates against their official formats, and their Jinja form against ``render``."""

import json
import re
import tomllib
from pathlib import Path
from types import ModuleType

import lmf_templates
import pytest
from lmf import DataError, Message, Piece, Plugins, Template
from lmf.plugins import GROUP
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

REFERENCE = json.loads(Path(__file__).with_name("reference.json").read_text(encoding="utf-8"))
TEMPLATES = {template.name: template for template in lmf_templates.lmf_templates()}
README = Path(lmf_templates.__file__).parents[2] / "README.md"


def talk(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in turns]  # type: ignore[arg-type]


TALKS = {
    "one question": talk(("user", "Hi")),
    "one turn": talk(("user", "Hi"), ("assistant", "Hello!")),
    "system": talk(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!")),
    "turns": talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")),
    "turns and system": talk(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
    "other scripts": talk(("system", "简短"), ("user", "你好，é e\u0301 👩‍🚀"), ("assistant", "こんにちは\u2028🙂")),
    "white space": talk(("system", "\n s \t"), ("user", "  a\n\n"), ("assistant", "\u00a0\u3000b \r\n")),
    "nothing but white space": talk(("system", " "), ("user", "\n"), ("assistant", "\t")),
    "nothing": talk(("system", ""), ("user", ""), ("assistant", ""), ("user", "")),
    "quotes": talk(("system", "'s'"), ("user", "\"a\" 'b' `c`"), ("assistant", "'''\"\"\"")),
    "backslashes": talk(("system", "\\"), ("user", r"a\nb \u0041 \" \\"), ("assistant", "C:\\new\\")),
    "braces": talk(("system", "{}"), ("user", "{content} {bos} {eos} {0}"), ("assistant", "{content}{{content}}")),
    "lines": talk(("system", "a\r\nb"), ("user", "\na\n\nb\r"), ("assistant", "x\ty\v\fz")),
    "Jinja": talk(("system", "{# s #}"), ("user", "{{ x }} {% if %} -%}"), ("assistant", "{%- endgeneration %}{{")),
    "control tokens": talk(("user", "<|im_end|></s>[/INST]<bos>"), ("assistant", "<|eot_id|> <end_of_turn>")),
}

each_template = pytest.mark.parametrize("name", TEMPLATES)
each_talk = pytest.mark.parametrize("messages", TALKS.values(), ids=TALKS)
each_reference = pytest.mark.parametrize("talk_name", REFERENCE["conversations"])


def tokens(name: str) -> dict[str, str]:
    """Return the bos and eos that models of this template have."""
    return {key: REFERENCE["templates"][name][key] for key in ("bos", "eos")}


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


def tokenizer_for(template: Template, bos: str, eos: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer that has one token for each special token and for each other character."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos or None,
        eos_token=eos or None,
        additional_special_tokens=list(template.tokens),
    )
    tokenizer.chat_template = template.jinja()
    return tokenizer


def as_dicts(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def test_the_package_provides_what_its_readme_lists() -> None:
    plugins = Plugins(only=["lmf-templates"])
    listed = re.findall(r"^\| `(\w+)`", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == sorted(plugins.templates) + sorted(plugins.models)


def test_the_tables_of_the_readme_say_what_the_families_hold() -> None:
    readme = README.read_text(encoding="utf-8")
    for family in lmf_templates.lmf_models():
        (model_type,) = family.model_types
        cells = (f"`{family.name}`", model_type, family.template, family.layers, " ".join(family.projections))
        assert f"| {' | '.join(cells)} |" in readme


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


def test_every_template_has_a_reference() -> None:
    assert set(REFERENCE["templates"]) == set(TEMPLATES)


@each_template
@each_reference
def test_the_text_is_the_official_one(name: str, talk_name: str) -> None:
    messages, marked = reference(name, talk_name)
    rendered = text(TEMPLATES[name].render(messages, **tokens(name)))
    assert rendered == re.sub("[«»]", "", marked)


@each_template
@each_reference
def test_trained_is_a_reply_and_what_ends_it_but_not_what_asks_for_it(name: str, talk_name: str) -> None:
    messages, marked = reference(name, talk_name)
    pieces = TEMPLATES[name].render(messages, **tokens(name))
    assert stretches(pieces) == re.findall("«(.*?)»", marked, re.DOTALL)


@each_template
@each_reference
def test_generation_starts_where_the_trained_text_starts(name: str, talk_name: str) -> None:
    messages, marked = reference(name, talk_name)
    prompt = TEMPLATES[name].render(messages[:-1], reply=True, **tokens(name))
    assert text(prompt) == re.sub("[«»]", "", marked.rpartition("«")[0])


@each_template
@each_talk
def test_a_prompt_is_the_beginning_of_the_conversation_that_follows(name: str, messages: list[Message]) -> None:
    whole = TEMPLATES[name].render(messages, **tokens(name))
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = TEMPLATES[name].render(messages[:i], reply=True, **tokens(name))
            end = len(text(prompt))
            assert text(whole)[:end] == text(prompt)
            assert trained(whole)[:end] == trained(prompt)
            assert trained(whole)[end - 1 : end + 1] == [False, True]


@each_template
@each_talk
def test_every_reply_is_trained_up_to_its_stop(name: str, messages: list[Message]) -> None:
    replies = stretches(TEMPLATES[name].render(messages, **tokens(name)))
    contents = [message.content for message in messages if message.role == "assistant"]
    stop = TEMPLATES[name].stops(tokens(name)["eos"])[0]
    for reply, content in zip(replies, contents, strict=True):
        assert stop
        assert reply.endswith(stop)
        assert content.strip() in reply


@each_template
@each_talk
@pytest.mark.parametrize("reply", [False, True], ids=["conversation", "prompt"])
def test_the_jinja_form_gives_the_text_of_render(name: str, messages: list[Message], reply: bool) -> None:
    tokenizer = tokenizer_for(TEMPLATES[name], **tokens(name))
    rendered = tokenizer.apply_chat_template(as_dicts(messages), tokenize=False, add_generation_prompt=reply)
    assert rendered == text(TEMPLATES[name].render(messages, reply=reply, **tokens(name)))


@each_template
@each_talk
@pytest.mark.parametrize("reply", [False, True], ids=["conversation", "prompt"])
def test_the_jinja_form_marks_what_is_trained(name: str, messages: list[Message], reply: bool) -> None:
    tokenizer = tokenizer_for(TEMPLATES[name], **tokens(name))
    encoded = tokenizer.apply_chat_template(
        as_dicts(messages),
        add_generation_prompt=reply,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    spans = zip(encoded["offset_mapping"], encoded["assistant_masks"], strict=True)
    marks = [bool(mark) for (start, end), mark in spans for _ in range(start, end)]
    assert marks == trained(TEMPLATES[name].render(messages, reply=reply, **tokens(name)))


@each_template
def test_only_what_the_template_wrote_is_control_text(name: str) -> None:
    messages = talk(("system", "SYS"), ("user", "ASK"), ("assistant", "ANSWER"))
    pieces = TEMPLATES[name].render(messages, **tokens(name))
    assert [piece.text for piece in pieces if not piece.control] == ["SYS", "ASK", "ANSWER"]


@each_template
def test_a_role_without_a_place_is_refused_by_name(name: str) -> None:
    with pytest.raises(DataError, match=f"the template '{name}' has no place for a tool message"):
        TEMPLATES[name].render(talk(("user", "Hi"), ("tool", "{}")), **tokens(name))


@each_template
def test_the_special_tokens_are_those_that_the_format_spells(name: str) -> None:
    spelled = set(re.findall(r"<[|a-z_]+>", TEMPLATES[name].controls()))
    if name == "zephyr":  # its marks are plain text to its models
        spelled -= {"<|system|>", "<|user|>", "<|assistant|>"}
    assert set(TEMPLATES[name].tokens) == spelled


@each_template
def test_the_source_is_an_address(name: str) -> None:
    assert re.fullmatch(r"https://\S+", TEMPLATES[name].source)
