"""Templates against what two older systems and Qwen's scripts wrote, with every difference named.

A model that was trained with NAME of LMFlow is spoken to with ``lmflow_NAME`` where there is one, and
with ``NAME`` otherwise; LLM-Genie's likewise with ``genie_NAME``.
"""

import json
import re
from pathlib import Path

import lmf_templates
import pytest
from lmf import DataError, Message, Piece, Template
from lmf.templates.jinja import AnyTemplate

HERE = Path(__file__).parent
OLDER = {name: d for name, d in json.loads((HERE / "older.json").read_text(encoding="utf-8")).items() if name != "note"}
OFFICIAL = json.loads((HERE / "reference.json").read_text(encoding="utf-8"))["templates"]
TEMPLATES: dict[str, AnyTemplate] = {template.name: template for template in lmf_templates.lmf_templates()}
DOCS = Path(__file__).parents[2] / "docs" / "templates.md"

TALK = [Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "1+1?"), Message("assistant", "2")]
TOOL_TALK = [
    Message("user", "weather?"),
    Message("assistant", "[get_weather()]"),
    Message("tool", "sunny"),
    Message("assistant", "It is sunny."),
]

# What is not the text of the older system: (system, its name) to (what it wrote, what stands there now, why).
DIFFERENT = {
    ("lmflow", "phi3"): [
        ("<|end|>\n</s>»", "<|end|>\n»", "no text end after the last message: a conversation that goes on has none")
    ],
    ("lmflow", "chatglm3"): [
        ("2»", "2<|user|>»", "every reply ends, and with the mark that stands behind it in a conversation")
    ],
    ("lmflow", "hymba"): [
        ("2\n</s>»", "2\n<extra_id_1>»", "every reply ends, and with the mark that stands behind it in a conversation")
    ],
    ("lmflow", "empty_no_special_tokens"): [
        ("!»", "!</s>»", "every reply ends: what is never learned is never written"),
        ("2»", "2</s>»", "every reply ends: what is never learned is never written"),
    ],
    ("lmflow", "llama3_for_tool"): [
        (
            "[get_weather()]<|eot_id|>»",
            "[get_weather()]<|eot_id|>»<|start_header_id|>tool<|end_header_id|>\n\nsunny<|eot_id|>"
            "«<|start_header_id|>assistant<|end_header_id|>\n\nIt is sunny.<|eot_id|>»",
            "nothing is dropped after a tool call",
        )
    ],
    ("genie", "vanilla"): [("<s>1+1?", "<s>Hi«Hello!</s>»<s>1+1?", "earlier turns are not dropped")],
}
REFUSED = {("genie", "vanilla"): "a system text is refused, where it was dropped"}


def template_of(system: str, name: str) -> AnyTemplate | None:
    return TEMPLATES.get(f"{system}_{name}", TEMPLATES.get(name))


CASES = [
    (system, name, talk)
    for system, names in OLDER.items()
    for name, talks in names.items()
    for talk in talks
    if template_of(system, name)
]
WITH_TEXT = [
    (system, name, talk)
    for system, name, talk in CASES
    if OLDER[system][name][talk] and not (talk == "system" and (system, name) in REFUSED)
]
WITHOUT = [case for case in CASES if case not in WITH_TEXT]


def expected(system: str, name: str, talk: str) -> str:
    """Return the text of the older system, with the differences applied and « and » around what it trained."""
    marked = OLDER[system][name][talk]
    for theirs, ours, _ in DIFFERENT.get((system, name), []):
        marked = marked.replace(theirs, ours)
    return marked


def render(system: str, name: str, talk: str) -> list[Piece]:
    template = template_of(system, name)
    assert template
    messages = TOOL_TALK if talk == "tool" else TALK
    text = "SYSTOOLSPEC" if "TOOLSPEC" in (OLDER[system][name][talk] or "") else "SYS"
    messages = messages if talk == "no system" else [Message("system", text), *messages]
    return template.render(messages, bos="<s>", eos="</s>")


@pytest.mark.parametrize(("system", "name", "talk"), WITH_TEXT)
def test_the_text_is_that_of_the_older_system(system: str, name: str, talk: str) -> None:
    rendered = "".join(piece.text for piece in render(system, name, talk))
    last = rendered[rendered.rindex(TALK[-1].content if talk != "tool" else TOOL_TALK[-1].content) :]
    tail = getattr(template_of(system, name), "after_reply", "").replace("{bos}", "<s>")
    theirs = re.sub("[«»]", "", expected(system, name, talk))
    assert last.endswith(tail)
    assert rendered in (theirs, theirs + tail)  # what stands between two turns also closes the last one


@pytest.mark.parametrize(
    ("system", "name", "talk"), [case for case in WITH_TEXT if isinstance(template_of(*case[:2]), Template)]
)
def test_trained_are_the_replies_and_their_ends(system: str, name: str, talk: str) -> None:
    template = template_of(system, name)
    assert template
    marked = "".join(f"«{piece.text}»" if piece.trained else piece.text for piece in render(system, name, talk))
    replies = re.findall("«(.*?)»", marked.replace("»«", ""), re.DOTALL)
    contents = [m.content for m in (TOOL_TALK if talk == "tool" else TALK) if m.role == "assistant"]
    assert all(reply.strip().startswith(content) for reply, content in zip(replies, contents, strict=True))
    assert all(reply.endswith(template.stops("</s>")[0]) for reply in replies)


@pytest.mark.parametrize(("system", "name", "talk"), WITHOUT)
def test_a_system_text_that_had_no_place_is_refused(system: str, name: str, talk: str) -> None:
    with pytest.raises(DataError, match="has no place for a system message"):
        render(system, name, talk)


def test_every_difference_is_one() -> None:
    for (system, name), differences in DIFFERENT.items():
        for theirs, _, _ in differences:
            assert any(theirs in (marked or "") for marked in OLDER[system][name].values()), (system, name, theirs)


def test_every_template_of_the_older_systems_is_there() -> None:
    missing = [(system, name) for system, names in OLDER.items() for name in names if not template_of(system, name)]
    assert missing == []


def test_every_template_has_an_official_text_or_an_older_one() -> None:
    older = [template_of(system, name) for system, names in OLDER.items() for name in names]
    for template in TEMPLATES.values():
        assert template.name in OFFICIAL or template in older or not isinstance(template, Template)


def test_the_documentation_names_every_difference() -> None:
    docs = DOCS.read_text(encoding="utf-8")
    for (system, name), differences in DIFFERENT.items():
        for _, _, why in differences:
            assert f"| `{system}` `{name}` | {why} |" in docs
    for (system, name), why in REFUSED.items():
        assert f"| `{system}` `{name}` | {why} |" in docs
