"""The templates of Qwen, DeepSeek, GLM, Granite and SmolLM3 against what the models' own templates write."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lmf import Conversation, DataError, JinjaTemplate, Message, Piece, ToolCall
from lmf.templates.choose import with_reasoning
from lmf.templates.sandbox import DATE, compiled
from lmf_templates import deepseek, glm, granite, qwen, smollm
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

REFERENCE = json.loads(Path(__file__).with_name("official_a.json").read_text(encoding="utf-8"))
TEMPLATES = {template.name: template for line in (deepseek, glm, granite, qwen, smollm) for template in line.TEMPLATES}
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "quiet": {"enable_thinking": False},
    "thinking": {"enable_thinking": True},
}
OPENS_THOUGHT = {"deepseek_r1", "deepseek_r1_distill", "qwen_qwq"}  # the prompt does
THINKS = {*OPENS_THOUGHT, "qwen3", "smollm3"}


class Official(NamedTuple):
    """What an official template writes: all of a conversation, and the prompt for its last reply."""

    text: str
    prompt: str | None


def message(role: str, content: str, reasoning_content: str = "", tool_calls: Any = (), name: str = "") -> Message:
    calls = tuple(ToolCall(**call) for call in tool_calls)
    return Message(role, content, reasoning=reasoning_content, calls=calls, name=name)  # type: ignore[arg-type]


def conversation(messages: list[list[Any]], tools: Sequence[str] = ()) -> Conversation:
    said = (message(role, content, **(more[0] if more else {})) for role, content, *more in messages)
    return Conversation(tuple(said), tuple(REFERENCE["tools"][name] for name in tools))


TALKS = {name: conversation(**parts) for name, parts in REFERENCE["conversations"].items()}


def renderings(name: str) -> dict[str, dict[str, list[Any]]]:
    found = REFERENCE["templates"][name]["renderings"]
    return renderings(found) if isinstance(found, str) else found


REFUSED = {name: [talk for talk in TALKS if talk not in renderings(name)["default"]] for name in TEMPLATES}
each_template = pytest.mark.parametrize("name", TEMPLATES)


def grid(name: str) -> Iterator[tuple[str, str, Conversation]]:
    """Yield every mode and conversation, with its name, for which there is an official rendering."""
    for mode, talks in renderings(name).items():
        for talk_name in talks:
            yield mode, talk_name, TALKS[talk_name]


def ended(talk: Conversation) -> bool:
    return talk.messages[-1].role == "assistant"


def official(name: str, mode: str, talk: str) -> Official:
    """Return what the official template writes, unpacked."""
    text, prompt = renderings(name)[mode][talk]
    if isinstance(prompt, str):
        prompt = text + prompt
    elif prompt is not None:
        length, behind = prompt if isinstance(prompt, list) else (prompt, "")
        start = len(re.match(r"(\$\d+)?", text)[0])  # type: ignore[index]
        prompt = text[: start + length] + behind
    texts = REFERENCE["templates"][name]["texts"]
    whole = [part and re.sub(r"^\$(\d+)", lambda found: texts[int(found[1])], part) for part in (text, prompt)]
    return Official(*whole)


def _last_thought(of: Official, talk: Conversation, mode: str) -> Official:
    last = talk.messages[-1]
    if last.role != "assistant" or of.prompt is None:
        return of
    inside = last.content.partition("<think>")[2].partition("</think>")
    thought = last.reasoning or (inside[0] if inside[1] else "")
    asked, opened, _ = of.prompt.partition("<think>") if of.prompt.endswith("<think>\n") else (of.prompt, "", "")
    if opened:
        asked = of.prompt.removesuffix("<think>\n")
    elif not thought:
        return of
    said = of.text[len(asked) :].split("</think>")[-1].lstrip("\n")
    thought = thought.strip("\n")
    return of._replace(text=f"{asked}<think>\n{thought}\n</think>\n\n{said}")


def _last_stop(of: Official, talk: Conversation, mode: str) -> Official:
    last = talk.messages[-1]
    stop = "<|observation|>" if last.calls else "<|user|>"
    return of._replace(text=of.text + stop) if last.role == "assistant" else of


def _quiet_content(of: Official, talk: Conversation, mode: str) -> Official:
    if mode != "quiet":
        return of
    return of._replace(text=re.sub(r"<think>\n.+?\n</think>", "<think>\n\n</think>", of.text, flags=re.DOTALL))


def _closed_system(of: Official, talk: Conversation, mode: str) -> Official:
    head = r"\A(<\|im_start\|>system\n## (?:(?!<\|im_end\|>).)*?\n\n)(?=<\|im_start\|>|\Z)"
    return Official(*(part and re.sub(head, r"\1<|im_end|>\n", part, flags=re.DOTALL) for part in of))


def _quiet_smollm3(of: Official, talk: Conversation, mode: str) -> Official:
    if mode != "quiet":
        return of
    twice = r"(?<=<think>\n\n</think>\n)<think>\n.+?\n</think>\n+"
    return Official(*(part and re.sub(twice, "", part, flags=re.DOTALL) for part in of))


def _granite_content(of: Official, talk: Conversation, mode: str) -> Official:
    if mode != "thinking" or not any(said.content.startswith("<think>") for said in talk.messages):
        return of
    inside = r"<think>\n(.+?)\n</think>\n\n(.+?)(?=<\|end_of_text)"
    apart = r"<think>\1</think><response>\2</response>"
    return Official(*(part and re.sub(inside, apart, part, flags=re.DOTALL) for part in of))


def _replaced(old: str, new: str) -> Callable[[Official, Conversation, str], Official]:
    return lambda of, talk, mode: Official(*(part and part.replace(old, new) for part in of))


def _only(name: str, change: Callable[[Official, Conversation, str], Official]) -> Any:
    return lambda of, talk, mode: change(of, talk, mode) if talk is TALKS[name] else of


# Where a template differs from the official one on purpose: which, why, and what becomes of the official text.
DIFFERENCES = (
    (
        OPENS_THOUGHT,
        "The prompt opens the thought, and the official text of a reply has none. Here the last reply, the one "
        "that is learned, stands as the model writes it: the thought (perhaps empty) and what is said.",
        _last_thought,
    ),
    (
        {"chatglm3", "glm4"},
        "A reply ends with the token that the model stops at, also where no message follows that opens with it.",
        _last_stop,
    ),
    (
        {"deepseek_v3", "deepseek_r1"},
        "Results are closed also where a question follows; the official template leaves them open.",
        _replaced("<｜tool▁output▁end｜><｜User｜>", "<｜tool▁output▁end｜><｜tool▁outputs▁end｜><｜User｜>"),
    ),
    (
        {"deepseek_v3"},
        "A reply behind no question is opened as the prompt opens it.",
        _only("a reply first", _replaced("<｜begin▁of▁sentence｜>", "<｜begin▁of▁sentence｜><｜Assistant｜>")),
    ),
    (
        {"deepseek_v3"},
        "A reply behind no question is opened as the prompt opens it.",
        _only("two replies", _replaced("<｜end▁of▁sentence｜>c", "<｜end▁of▁sentence｜><｜Assistant｜>c")),
    ),
    (
        {"qwen3"},
        "The prompt behind a reply shows that reply as it stands when the next one has come.",
        _only("two replies", _replaced("<think>\n\n</think>\n\nb", "b")),
    ),
    (
        {"qwen3"},
        "With thinking off no thought stands in the last replies, whatever the data hold.",
        _quiet_content,
    ),
    (
        {"smollm3"},
        "With thinking off no thought stands in a reply, whatever the data hold.",
        _quiet_smollm3,
    ),
    (
        {"granite"},
        "With thinking on a thought inside the content is written as one apart from it.",
        _granite_content,
    ),
    (
        {"smollm3"},
        "The system turn is closed, as it was in the model's training; the official template closes it only "
        "behind tools.",
        _closed_system,
    ),
)


def expected(name: str, mode: str, talk: str) -> Official:
    """Return what is due: the official text but for the differences."""
    of = official(name, mode, talk)
    for names, _, change in DIFFERENCES:
        if name in names:
            of = change(of, TALKS[talk], mode)
    return of


def template(name: str, mode: str = "default", **variables: Any) -> JinjaTemplate:
    return dataclasses.replace(TEMPLATES[name], variables={**MODES[mode], **variables})


def text(template: JinjaTemplate, talk: Conversation, count: int | None = None, reply: bool = False) -> str:
    """Return what a template writes of the first messages."""
    part = dataclasses.replace(talk, messages=talk.messages[:count])
    return template.text_of(part, reply=reply, bos=REFERENCE["templates"][template.name]["bos"])


def examples(template: JinjaTemplate, talk: Conversation) -> list[list[Piece]]:
    return template.examples(talk, bos=REFERENCE["templates"][template.name]["bos"])


def replies(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.learned]


def test_there_is_a_reference_for_every_template() -> None:
    assert set(TEMPLATES) == set(REFERENCE["templates"])


@each_template
def test_the_text_is_the_official_one(name: str) -> None:
    for mode, talk_name, talk in grid(name):
        assert text(template(name, mode), talk) == expected(name, mode, talk_name).text, (mode, talk_name)


@each_template
def test_the_prompt_is_the_official_one(name: str) -> None:
    for mode, talk_name, talk in grid(name):
        prompt = text(template(name, mode), talk, -1 if ended(talk) else None, reply=True)
        assert prompt == expected(name, mode, talk_name).prompt, (mode, talk_name)


@each_template
def test_the_last_reply_is_what_the_official_text_has_behind_the_prompt(name: str) -> None:
    for mode, talk_name, talk in grid(name):
        if ended(talk):
            whole, prompt = expected(name, mode, talk_name)
            learned = replies(examples(template(name, mode), talk)[-1])[-1]
            assert prompt, (mode, talk_name)
            assert whole.removesuffix("\n") == prompt + learned, (mode, talk_name)


@each_template
def test_every_reply_is_learned_once_with_all_that_is_said_and_its_end(name: str) -> None:
    stops = TEMPLATES[name].stop
    for mode, talk_name, talk in grid(name):
        learned = [reply for pieces in examples(template(name, mode), talk) for reply in replies(pieces)]
        said = [m for m in talk.messages if m.role == "assistant"]
        for reply, message in zip(learned, said, strict=True):
            assert reply.endswith(stops[-1] if message.calls else stops[0]), (mode, talk_name)
            thought, _, content = message.content.rpartition("</think>")
            assert content.strip() in reply, (mode, talk_name)
            assert mode == "quiet" or thought.removeprefix("<think>").strip() in reply, (mode, talk_name)
            assert mode == "quiet" or message.reasoning.strip() in reply, (mode, talk_name)
            assert all(call.name in reply for call in message.calls), (mode, talk_name)


@each_template
def test_a_reply_follows_the_prompt_for_it(name: str) -> None:
    for mode, talk_name, talk in grid(name):
        asked = template(name, mode)
        learned = iter([reply for pieces in examples(asked, talk) for reply in replies(pieces)])
        for i, message in enumerate(talk.messages):
            if message.role == "assistant":
                prompt = text(asked, talk, i, reply=True)
                assert text(asked, talk, i + 1).removesuffix("\n") == prompt + next(learned), (mode, talk_name)


@each_template
def test_a_steady_template_never_changes_what_stands_before(name: str) -> None:
    changed = []
    for mode, talk_name, talk in grid(name):
        whole = text(template(name, mode), talk)
        for i, message in enumerate(talk.messages):
            if message.role == "assistant" and not whole.startswith(text(template(name, mode), talk, i, reply=True)):
                changed.append((mode, talk_name))
    assert TEMPLATES[name].steady == (not changed)


@pytest.mark.parametrize("name", sorted(THINKS - {"smollm3"}))
def test_an_earlier_thought_is_dropped_unless_it_is_to_be_kept(name: str) -> None:
    talk = TALKS["thoughts"]
    first, last = (m.reasoning for m in talk.messages if m.role == "assistant")
    assert (first in text(template(name), talk), last in text(template(name), talk)) == (False, True)
    assert first in text(template(name, keep_reasoning=True), talk)


@each_template
def test_with_reasoning_kept_each_reply_stands_as_it_was_generated(name: str) -> None:
    for mode, talk_name, talk in grid(name):
        kept = template(name, mode, keep_reasoning=True)
        (pieces,) = examples(kept, talk)
        whole, learned = "".join(piece.text for piece in pieces), iter(replies(pieces))
        for i, message in enumerate(talk.messages):
            if message.role == "assistant":
                reply = next(learned)
                assert whole.startswith(text(kept, talk, i, reply=True) + reply), (mode, talk_name)
                assert mode == "quiet" or message.reasoning.strip() in reply, talk_name


@pytest.mark.parametrize("name", sorted(THINKS))
@pytest.mark.parametrize("talk", ["one turn", "thought", "thoughts"])
def test_with_thinking_off_the_prompt_ends_with_an_empty_thought_and_the_reply_has_none(name: str, talk: str) -> None:
    quiet = template(name, "quiet")
    messages = TALKS[talk].messages
    prompt = text(quiet, TALKS[talk], -1, reply=True)
    assert re.search(r"<think>\n\n</think>\n+\Z", prompt)
    assert replies(examples(quiet, TALKS[talk])[-1])[-1] == messages[-1].content + TEMPLATES[name].stop[0]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, mode) for name in (*sorted(OPENS_THOUGHT), "qwen3") for mode in MODES),
        *(("smollm3", "quiet"), ("granite", "quiet"), ("granite", "thinking")),
    ],
)
def test_a_thought_in_the_content_is_learned_as_one_apart_from_it(name: str, mode: str) -> None:
    asked, answered = TALKS["one turn"].messages
    for content in ("<think>\nhm\n</think>\n\nHello!", "<think>hm</think>Hello!"):
        inside = dataclasses.replace(answered, content=content)
        apart = dataclasses.replace(answered, content="Hello!", reasoning="hm")
        found, due = (examples(template(name, mode), Conversation((asked, reply))) for reply in (inside, apart))
        assert found == due
        assert ("hm" in replies(due[0])[0]) == (mode != "quiet")


def test_granite_thinks_where_reasoning_is_to_be_kept() -> None:
    talk = TALKS["thoughts"]
    for mode, reasons in (("keep", True), ("disable", False)):
        chosen = with_reasoning(TEMPLATES["granite"], mode)  # type: ignore[arg-type]
        learned = replies(examples(chosen, talk)[0])
        said = [message for message in talk.messages if message.role == "assistant"]
        thoughts = [f"<think>{m.reasoning}</think><response>{m.content}</response>" for m in said]
        assert learned == [f"{text}<|end_of_text|>" for text in (thoughts if reasons else [m.content for m in said])]
        assert ("Write your thoughts between" in text(chosen, talk, 1, reply=True)) == reasons


@each_template
def test_what_a_format_cannot_say_is_refused_by_name(name: str) -> None:
    for talk in REFUSED[name]:
        with pytest.raises(DataError, match=f"the template {name} has no place for "):
            text(TEMPLATES[name], TALKS[talk])


@pytest.mark.parametrize(
    ("names", "talk", "what"),
    [
        ("chatglm3 deepseek_v3 glm4 qwen2_5 qwen2_5_1m qwen2_5_math", "thought", "reasoning$"),
        ("granite", "thought", "reasoning unless enable_thinking is on: choose --reasoning keep"),
        ("deepseek_r1_distill", "call", "tools"),
        ("deepseek_r1_distill", "call, no tool declared", "tool calls"),
        ("deepseek_r1 deepseek_v3 smollm3", "system in the middle", "a system message that is not the first"),
        ("chatglm3 glm4", "system in the middle", "a system message behind a reply"),
        ("chatglm3 glm4", "two replies", "an assistant message behind a reply"),
        ("chatglm3", "calls at once", "several calls at once"),
        ("glm4", "call without a result", "a user message behind calls"),
    ],
)
def test_a_refusal_says_what_has_no_place(names: str, talk: str, what: str) -> None:
    for name in names.split():
        with pytest.raises(DataError, match=f"the template {name} has no place for {what}"):
            text(TEMPLATES[name], TALKS[talk])


@each_template
def test_an_unknown_role_is_refused(name: str) -> None:
    talk = Conversation((Message("user", "Hi"), Message("critic", "Hm.")))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"the template {name} has no place for a critic message"):
        text(TEMPLATES[name], talk)


def test_smollm3_refuses_tools_beside_a_system_text_that_replaces_all_of_its_own() -> None:
    talk = Conversation((Message("system", "Be brief. /system_override"), Message("user", "Hi")), TALKS["call"].tools)
    with pytest.raises(DataError, match="the template smollm3 has no place for tools beside /system_override"):
        text(TEMPLATES["smollm3"], talk)


@each_template
def test_the_special_tokens_are_those_that_the_format_spells(name: str) -> None:
    spelled = set(re.findall(r"<[|｜][^<>|｜ ]+[|｜]>|<sop>|\[gMASK\]", TEMPLATES[name].text))
    assert set(TEMPLATES[name].tokens) - {"sop"} == spelled


@each_template
def test_the_source_is_an_address(name: str) -> None:
    assert re.fullmatch(r"https://\S+", TEMPLATES[name].source)


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer that has one token for each character."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=REFERENCE["templates"][name]["bos"] or None)
    made.chat_template = TEMPLATES[name].jinja()
    return made


def as_openai(talk: Conversation, nothing: str | None = None) -> list[dict[str, Any]]:
    """Return messages in OpenAI's form, with ``nothing`` as the content of one that only calls."""
    dicts = []
    for said in talk.messages:
        one: dict[str, Any] = {"role": said.role, "content": said.content or (nothing if said.calls else "")}
        if said.reasoning:
            one["reasoning_content"] = said.reasoning
        if said.calls:
            one["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in said.calls
            ]
        dicts.append(one)
    return dicts


class _Today(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return DATE


@each_template
def test_transformers_writes_and_marks_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", _Today)
    speaker, program = tokenizer(name), compiled(TEMPLATES[name].text)
    for mode, talk_name, talk in grid(name):
        given = {"tools": list(talk.tools) or None, **MODES[mode]}
        bos = REFERENCE["templates"][name]["bos"]
        ours = program.render({"messages": as_openai(talk, ""), "bos_token": bos, **given}, size=10_000)
        encoded = speaker.apply_chat_template(
            as_openai(talk),
            **given,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        marked = {
            character
            for span, mark in zip(encoded["offset_mapping"], encoded["assistant_masks"], strict=True)
            for character in range(*span)
            if mark
        }
        assert speaker.apply_chat_template(as_openai(talk), **given, tokenize=False) == ours.text, (mode, talk_name)
        assert marked == {i for span in ours.generated or () for i in range(*span)}, (mode, talk_name)
        assert len(ours.generated or ()) == sum(said.role == "assistant" for said in talk.messages)
