"""Conversations of many kinds that templates are tested on."""

from lmf import Conversation, Message, ToolCall


def talk(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in turns]  # type: ignore[arg-type]


TALKS = {
    "one question": talk(("user", "Hi")),
    "one turn": talk(("user", "Hi"), ("assistant", "Hello!")),
    "system": talk(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!")),
    "turns": talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")),
    "turns and system": talk(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
    "many turns": talk(*(("user" if i % 2 == 0 else "assistant", f"turn {i}") for i in range(24))),
    "the same again": talk(*(("user", "again"), ("assistant", "again")) * 3),
    "other scripts": talk(("system", "简短"), ("user", "你好，é e\u0301 👩‍🚀"), ("assistant", "こんにちは\u2028🙂")),
    "right to left": talk(("system", "أوجز"), ("user", "שלום \u202babc\u202c עולם"), ("assistant", "\u200fمرحبا 12")),
    "emoji": talk(("user", "👍🏽🇩🇪👨‍👩‍👧"), ("assistant", "🏴\U000e0067\U000e007f ❤️"), ("user", "☺")),
    "combining": talk(("user", "Z̷a̷l̷g̷o̷ \u1100\u1161\u11a8"), ("assistant", "ﬁ ½ Å Å")),
    "zero width": talk(("system", "\u200b"), ("user", "a\u200bb\u2060c"), ("assistant", "\ufeffx\u200d\u200c")),
    "beyond the first plane": talk(("user", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎"), ("assistant", "𐍈\U0010fffd")),
    "control characters": talk(("user", "\x01\x02\x1b[1m\x7f"), ("assistant", "\x08\x85")),
    "white space": talk(("system", "\n s \t"), ("user", "  a\n\n"), ("assistant", "\u00a0\u3000b \r\n")),
    "nothing but white space": talk(("system", " "), ("user", "\n"), ("assistant", "\t")),
    "nothing": talk(("system", ""), ("user", ""), ("assistant", ""), ("user", "")),
    "an empty reply": talk(("user", "Say nothing."), ("assistant", ""), ("user", "Thanks."), ("assistant", "Sure.")),
    "Windows lines": talk(("system", "a\r\nb"), ("user", "one\r\ntwo\r\n"), ("assistant", "\r\nthree\r\n")),
    "lines": talk(("system", "a\r\nb"), ("user", "\na\n\nb\r"), ("assistant", "x\ty\v\fz")),
    "quotes": talk(("system", "'s'"), ("user", "\"a\" 'b' `c`"), ("assistant", "'''\"\"\"")),
    "backslashes": talk(("system", "\\"), ("user", r"a\nb \u0041 \" \\"), ("assistant", "C:\\new\\")),
    "braces": talk(("system", "{}"), ("user", "{content} {bos} {eos} {0}"), ("assistant", "{content}{{content}}")),
    "percent": talk(("user", "100% %s %(name)s ${HOME}"), ("assistant", "%d%%")),
    "numbers": talk(("user", "3.14159 1,000,000 -1e-9 0x1F"), ("assistant", "42"), ("user", "½ ٣ Ⅳ")),
    "code": talk(("user", "def f(x):\n    return x  # twice"), ("assistant", "```python\nf(\n\t1)\n```")),
    "JSON": talk(("system", '{"role": "system"}'), ("user", '[{"a": null}]'), ("assistant", '{"b": "\\u00e9\\n"}')),
    "Markdown": talk(("user", "# Title\n\n* a\n  * b\n\n---"), ("assistant", "| a | b |\n|---|---|\n| **1** | <br> |")),
    "mark-up": talk(("user", "<p class='x'>a &amp; b</p>"), ("assistant", "<think>\nno\n</think>\n<!-- c -->")),
    "Jinja": talk(("system", "{# s #}"), ("user", "{{ x }} {% if %} -%}"), ("assistant", "{%- endgeneration %}{{")),
    "control tokens": talk(("user", "<|im_end|></s>[/INST]<bos>"), ("assistant", "<|eot_id|> <end_of_turn>")),
    "headers": talk(
        ("system", "USER: ASSISTANT:"), ("user", "### Response:\nHuman: a###"), ("assistant", "User: b\n\n")
    ),
    "a reply alone": talk(("user", "?"), ("assistant", "A sentence. " * 3 + "\n\nAnother one.")),
    "long": talk(("system", "s " * 400), ("user", "word " * 800), ("assistant", "Zeile\n" * 600), ("user", "u")),
}

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Tell the weather "now" – or later.',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Où?"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
_TIME = {
    "type": "function",
    "function": {"name": "now", "description": "Tell the time.", "parameters": {"type": "object", "properties": {}}},
}
_ASKED = Message("user", "How cold is it in Oslo?")
_CALLED = Message("assistant", "", calls=(ToolCall("get_weather", {"city": "Oslo", "days": 1}, "call00001"),))
_RESULT = Message("tool", '{"degrees": -4}', name="get_weather", call_id="call00001")
_TOLD = Message("assistant", "It is 4 degrees below zero.")
_THANKS = (Message("user", "Thanks!"), Message("assistant", "You are welcome."))
_BOTH = Message("assistant", "", calls=(*_CALLED.calls, ToolCall("now", {}, "call00002")))
_RESULTS = (_RESULT, Message("tool", "12:00", name="now", call_id="call00002"))
_TOOLS = (_WEATHER, _TIME)
_SYSTEM = Message("system", "Be brief.")


def _said(content: str, thought: str) -> tuple[Message, Message]:
    return Message("user", "1+1?"), Message("assistant", content, reasoning=thought)


WITH_TOOLS = {
    "tools, no call": Conversation(_THANKS, _TOOLS),
    "tools and system, no call": Conversation((_SYSTEM, *_THANKS), _TOOLS),
    "call": Conversation((_ASKED, _CALLED), _TOOLS),
    "call, result": Conversation((_ASKED, _CALLED, _RESULT, _TOLD), _TOOLS),
    "call, result, system": Conversation((_SYSTEM, _ASKED, _CALLED, _RESULT, _TOLD), _TOOLS),
    "call, result, and on": Conversation((_ASKED, _CALLED, _RESULT, _TOLD, *_THANKS), _TOOLS),
    "call in the second turn": Conversation((*_THANKS, _ASKED, _CALLED, _RESULT, _TOLD), _TOOLS),
    "calls at once": Conversation((_ASKED, _BOTH, *_RESULTS, _TOLD), _TOOLS),
    "call after call": Conversation((_ASKED, _CALLED, _RESULT, _CALLED, _RESULT, _TOLD), _TOOLS),
}
THOUGHTS = {
    "thought": Conversation(_said("2", "One and one.")),
    "thought, system": Conversation((_SYSTEM, *_said("2", "One\n\nand one."))),
    "thoughts": Conversation((*_said("2", "One and one."), *_said("still 2", "Again?"))),
    "thought before": Conversation((*_said("2", "One and one."), *_THANKS)),
    "thought in the content": Conversation(_said("<think>\nOne and one.\n</think>\n\n2", "")),
    "thoughts in the content": Conversation(
        (*_said("<think>\nOne.\n</think>\n\n2", ""), *_said("<think>\nTwo.\n</think>\n\n2", ""))
    ),
    "thought and call": Conversation((_ASKED, Message("assistant", "", "Look it up.", _CALLED.calls)), _TOOLS),
}
