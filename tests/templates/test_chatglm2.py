"""ChatGLM2's rounds against the rule of its official code."""

from collections.abc import Sequence

import lmf_templates
import pytest
from lmf import Conversation, DataError, JinjaTemplate, Message, ToolCall

TEMPLATES = {t.name: t for t in lmf_templates.lmf_templates() if isinstance(t, JinjaTemplate)}
CHATGLM2, GENIE = TEMPLATES["chatglm2"], TEMPLATES["genie_chatglm2"]
TOKENS = {"bos": "<s>", "eos": "</s>"}
USER, REPLY = Message("user", "Hi"), Message("assistant", "Hello!")
ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}


def official(history: Sequence[tuple[str, str]], question: str) -> str:
    """Return the prompt of ``build_prompt`` in tokenization_chatglm.py, behind the prefix of that tokenizer."""
    rounds = [f"[Round {i}]\n\n问：{asked}\n\n答：{said}\n\n" for i, (asked, said) in enumerate(history, 1)]
    return "[gMASK]sop" + "".join(rounds) + f"[Round {len(history) + 1}]\n\n问：{question}\n\n答："


def talk(history: Sequence[tuple[str, str]], question: str) -> list[Message]:
    said = [Message(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]  # type: ignore[arg-type]
    return [*said, Message("user", question)]


@pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 99])
def test_a_prompt_is_the_official_one_but_for_the_ends_of_earlier_replies(count: int) -> None:
    history = [(f"q{i}", f" a{i}\n") for i in range(count)]
    pieces = CHATGLM2.render(talk(history, "你好"), reply=True, **TOKENS)
    assert [piece.text for piece in pieces if piece.trained] == [f"{said}</s>" for _, said in history]
    assert not any(piece.learned for piece in pieces)
    assert "".join(piece.text for piece in pieces) == official(
        [(asked, f"{said}</s>") for asked, said in history], "你好"
    )


def test_each_reply_is_trained_with_its_end() -> None:
    (pieces,) = CHATGLM2.examples(Conversation((USER, REPLY, USER, REPLY)), **TOKENS)
    assert [piece.text for piece in pieces if piece.trained] == ["Hello!</s>", "Hello!</s>"]


def test_the_system_text_stands_before_the_first_round() -> None:
    (piece,) = CHATGLM2.render([Message("system", "Be brief."), USER], reply=True, **TOKENS)
    assert piece.text == "[gMASK]sopBe brief.\n\n[Round 1]\n\n问：Hi\n\n答："


@pytest.mark.parametrize("template", [CHATGLM2, GENIE], ids=lambda template: template.name)
@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([USER, USER], "a user message behind another"),
        ([USER, REPLY, REPLY], "a reply behind no question"),
        ([REPLY], "a reply behind no question"),
        ([USER, Message("system", "s")], "a system message that is not the first"),
        ([USER, Message("assistant", "", calls=(ToolCall("add", {}),))], "tool calls"),
        ([USER, Message("assistant", "2", reasoning="hm")], "reasoning"),
        ([USER, Message("tool", "4")], "a tool message"),
    ],
)
def test_what_is_no_round_is_refused_by_name(template: JinjaTemplate, messages: list[Message], what: str) -> None:
    with pytest.raises(DataError, match=f"the template {template.name} has no place for {what}"):
        template.render(messages, **TOKENS)


def test_tools_are_refused() -> None:
    with pytest.raises(DataError, match="the template chatglm2 has no place for tools"):
        CHATGLM2.render([USER], tools=(ADD,), **TOKENS)


def test_there_is_no_prompt_behind_a_reply() -> None:
    with pytest.raises(DataError, match="the template chatglm2 has no place for a reply behind no question"):
        CHATGLM2.render([USER, REPLY], reply=True, **TOKENS)
