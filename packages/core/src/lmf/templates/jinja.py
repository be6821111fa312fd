"""Templates that are written in Jinja: those of formats with tools and reasoning, and every model's own.

The text follows the conventions of transformers' chat templates. What is trained is found in it
by rendering: the reply to ``messages[:i]`` is what ``messages[:i + 1]`` has behind the prompt, up to
the token that ends it. A format may write earlier turns in another way once a conversation goes on
(Qwen3 drops what was thought). Then one rendering would train text that is never generated, and
each reply becomes an example of its own, exactly as the model is asked for it later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from ..conversation import Conversation, Message, Role, ToolCall
from ..errors import DataError, LmfError
from .template import Piece, Template

AUTO = "auto"  # the name of the chat template that a model brings
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_BLANK = re.compile(r"\s*")
_SWITCHES = ("/no_think", "/think", "/system_override")  # in a system text; SmolLM3's format obeys and removes them


@dataclass(frozen=True, slots=True, kw_only=True)
class JinjaTemplate:
    """A conversation template in Jinja.

    The variables are those of transformers: ``messages`` (OpenAI's dicts; ``content`` is a str, what is
    not there has no key), ``tools``, ``add_generation_prompt``, ``bos_token``, ``eos_token``. A template
    with reasoning also reads ``enable_thinking`` (False: replies without it) and ``keep_reasoning`` (True:
    earlier turns keep theirs). What it has no place for, it refuses with ``raise_exception``.

    Attributes:
        name: The name on the command line.
        source: Where the format is defined (a URL or a paper).
        text: The Jinja text. ``{% generation %}`` marks what the assistant writes, its end included.
            Without marks, a reply ends with the last token of ``stop`` that stands in it. A mark without
            any of them goes on to the one that follows at once.
        stop: Tokens that end a reply, the usual one first.
        tokens: Special tokens that the text spells; those that a tokenizer lacks are added.
        steady: A conversation that goes on never changes what stands before, whatever it holds, and
            marks are there: one rendering is enough.
        variables: More variables.
    """

    name: str
    source: str
    text: str
    stop: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    steady: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    # what samples showed of it; see _View._drops
    _known: dict[tuple[_Part, str, str], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        reply: bool = False,
        bos: str = "",
        eos: str = "",
    ) -> list[Piece]:
        """Render messages as pieces of text, in order.

        The pieces are control text throughout: Jinja does not tell what came from a message.
        ``Encoder`` keeps special tokens out of messages before it calls this.

        Args:
            messages: The conversation.
            tools: The tools that the assistant may call.
            reply: End where the assistant starts to speak; all replies have a weight of 0 then. In both
                cases those are replies, that the whole rendering shows as they were generated.
            bos: The tokenizer's token for the beginning of a text, or "".
            eos: The tokenizer's token for its end, or "".

        Raises:
            DataError: The template refuses the conversation, fails, or drops some of it.
        """
        view = _View(self, Conversation(tuple(messages), tuple(tools)), bos, eos)
        whole = view.text(len(messages), reply)
        if reply:
            view.check(whole, [i for i, message in enumerate(messages) if message.role != "assistant"])
            return _cut(whole, view.earlier(whole))
        if self.steady:
            return view.marked()
        spans = [(start, end, m) for m, text, start, end in view.replies() if whole.startswith(text[:end])]
        return _cut(whole, spans)

    def examples(self, conversation: Conversation, *, bos: str = "", eos: str = "") -> list[list[Piece]]:
        """Render what is to be learned from a conversation: all of it at once, or else each reply by itself.

        Raises:
            DataError: The template refuses the conversation, drops some of it, or is not made to be learned from.
        """
        view = _View(self, conversation, bos, eos)
        if self.steady:
            return [view.marked()]
        replies = view.replies()
        whole = view.text(len(conversation.messages))
        if all(whole.startswith(text[:end]) for _, text, _, end in replies):
            return [_cut(whole, [(start, end, message) for message, _, start, end in replies])]
        if self.variables.get("keep_reasoning") and not all(
            _holds(whole, parted(said).reasoning, 0) for said, *_ in replies
        ):
            raise DataError(
                f"{self.called} drops the reasoning of earlier replies even when told to keep it. "
                "Choose --reasoning strip, or another --template."
            )
        return [
            _cut(text[:end], [*view.earlier(text[:start]), (start, end, message)])
            for message, text, start, end in replies
            if message.weight
        ]

    def text_of(self, conversation: Conversation, *, reply: bool = False, bos: str = "", eos: str = "") -> str:
        """Return what the Jinja text writes, unchecked.

        Raises:
            DataError: It refuses the conversation or fails.
        """
        return _View(self, conversation, bos, eos).text(len(conversation.messages), reply)

    @property
    def called(self) -> str:
        """What to call the template in a sentence."""
        return "the model's own template" if self.name == AUTO else f"the template {self.name!r}"

    def stops(self, eos: str = "") -> tuple[str, ...]:
        """Return the tokens that end a reply, with the tokenizer's own filled in."""
        return tuple(stop.replace("{eos}", eos) for stop in self.stop)

    def controls(self) -> str:
        """Return all the text that the template itself may write."""
        return "\n".join((self.text, *self.stop))

    def jinja(self) -> str:
        """Return the chat template for ``transformers``."""
        return self.text


AnyTemplate = Template | JinjaTemplate


class _View:
    """Renderings of the beginnings of one conversation."""

    def __init__(self, template: JinjaTemplate, conversation: Conversation, bos: str, eos: str):
        from jinja2 import TemplateSyntaxError

        from .sandbox import compiled

        self.template, self.conversation = template, conversation
        try:
            self.program = compiled(template.text)
        except TemplateSyntaxError as error:
            where = f"line {error.lineno}: {error.message}"
            raise DataError(f"{template.called} is not valid Jinja: {where}") from None
        self.messages = [_dict(message) for message in conversation.messages]
        self.size = 10_000 + len(repr(conversation.tools)) + sum(map(_size, conversation.messages))
        self.context = {"bos_token": bos, "eos_token": eos, "tools": list(conversation.tools) or None}
        self.context |= template.variables
        self.bos, self.eos = bos, eos
        self.stops = template.stops(eos)
        first = conversation.messages[0] if conversation.messages else None
        self.system = bool(first and first.role == "system" and _says(first.content))
        self.quiet = not template.variables.get("enable_thinking", True)
        self._texts: dict[tuple[int, bool], Any] = {}

    def text(self, count: int, reply: bool = False) -> str:
        """Return the text of the first messages, or the prompt behind them."""
        return self.rendering(count, reply).text

    def rendering(self, count: int, reply: bool = False) -> Any:
        from jinja2 import TemplateError

        if (count, reply) not in self._texts:
            context = {**self.context, "messages": self.messages[:count], "add_generation_prompt": reply}
            try:
                self._texts[count, reply] = self.program.render(context, self.size)
            except TemplateError as error:
                raise DataError(f"{self.template.called} fails: {error}") from None
        return self._texts[count, reply]

    def replies(self) -> list[tuple[Message, str, int, int]]:
        """Return each reply: the message, the text up to it, and where in the text it starts and ends."""
        found = []
        for i, message in enumerate(self.conversation.messages):
            if message.role == "assistant":
                text, prompt = self.text(i + 1), self.text(i, reply=True)
                self.check(text, (i,), start=len(prompt))
                found.append((message, text, *self._span(i, text, prompt)))
        others = [i for i, message in enumerate(self.conversation.messages) if message.role != "assistant"]
        self.check(self.text(len(self.messages)), others)
        return found

    def earlier(self, text: str) -> list[tuple[int, int, Message]]:
        """Return where the replies stand that a prompt shows as they were generated, each with a weight of 0.

        The encoder cuts there, so a prompt has the ids that its beginning had in training.
        """
        found = []
        for i, message in enumerate(self.conversation.messages):
            if message.role != "assistant":
                continue
            try:
                start, end = self._span(i, self.text(i + 1), self.text(i, reply=True))
            except DataError:  # it could not be learned, but a prompt may show it
                continue
            if text.startswith(self.text(i + 1)[:end]):
                found.append((start, end, replace(message, weight=0.0)))
        return found

    def marked(self) -> list[Piece]:
        """Return the whole rendering, each ``{% generation %}`` block trained as its message says."""
        count = len(self.messages)
        text, marks = self.rendering(count)
        said = [message for message in self.conversation.messages if message.role == "assistant"]
        if marks is None or len(marks) != len(said):
            raise LmfError(f"The template {self.template.name!r} is not steady: it does not mark every reply once.")
        self.check(text, range(count))
        replies = [i for i, message in enumerate(self.conversation.messages) if message.role == "assistant"]
        spans = [(start, self._end(i, text, start, end)) for i, (start, end) in zip(replies, marks, strict=True)]
        return _cut(text, [(*span, message) for span, message in zip(spans, said, strict=True)])

    def _span(self, i: int, text: str, prompt: str) -> tuple[int, int]:
        name = self.template.called
        if not text.startswith(prompt):
            raise DataError(
                f"{name} writes messages[{i}] otherwise than it asks for it: the reply does not "
                "begin with the prompt, so its text cannot be told apart. Choose another --template."
            )
        start = len(prompt)
        if self.program.marked:
            marks = self.rendering(i + 1).generated
            if not marks:
                raise DataError(
                    f"{name} does not mark messages[{i}] with {{% generation %}}. Choose another --template."
                )
            return start, self._end(i, text, start, marks[-1][1])
        ends = [at + len(stop) for stop in self.stops if (at := text.rfind(stop, start)) >= 0]
        if not ends:
            raise self._endless(i)
        return start, max(ends)

    def _end(self, i: int, text: str, start: int, end: int) -> int:
        """Return where a marked reply ends: with its mark, or with the token right behind that ends it."""
        if not self.stops or any(text.find(stop, start, end) >= 0 for stop in self.stops):
            return end
        behind = _BLANK.match(text, end).end()  # type: ignore[union-attr]
        for stop in self.stops:
            if text.startswith(stop, behind):
                return behind + len(stop)
        raise self._endless(i)

    def _endless(self, i: int) -> DataError:
        return DataError(
            f"{self.template.called} ends messages[{i}] without {' or '.join(map(repr, self.stops))}; "
            "the model would not learn to stop. Choose another --template."
        )

    def check(self, text: str, indices: Sequence[int] | range, start: int = 0) -> None:
        """Raise DataError if the text lacks something of these messages, or if the template never writes the like."""
        for i in indices:
            message = self.conversation.messages[i]
            lost = self._lacks(text, message, start) or self._drops(self._part(i, message))
            if lost:
                remedy = "another --template, or leave the record out"
                if lost == "reasoning":
                    remedy = "another --template, or --reasoning keep where it has a switch for thinking"
                raise DataError(
                    f"{self.template.called} drops the {lost} of messages[{i}], or some of it. Choose {remedy}."
                )
        for tool in self.conversation.tools:
            function = tool.get("function", tool)
            name, described = str(function.get("name", "")), bool(function.get("description"))
            lost = self._drops(_Part("tools", content=described, system=self.system))
            if lost == "description":
                raise DataError(
                    f"{self.template.called} drops the description of the tool {name!r}. "
                    "Choose another --template, or leave the record out."
                )
            if lost or not _holds(text, name, 0):
                raise DataError(
                    f"{self.template.called} has no place for tools ({name!r} is declared). "
                    "`lmf templates list` shows which have."
                )

    def _lacks(self, text: str, message: Message, start: int) -> str:
        """Return what of a message does not stand in a text, or ""."""
        if not _holds(text, message.content, start):
            message = _read(message)
            if not _holds(text, message.content, start):
                return "content"
        if not self.quiet and not _holds(text, message.reasoning, start):
            return "reasoning"
        return "" if all(_holds(text, call.name, start) for call in message.calls) else "tool calls"

    def _drops(self, part: _Part) -> str:
        """Return what of such a part the template never writes, or "".

        A text alone does not tell: a tool that is declared, or what it returned, may also be spoken of. So
        a sample is rendered, once for each kind of part, whose words stand nowhere else.
        """
        key = part, self.bos, self.eos
        known = self.template._known
        if key not in known:
            sample, words = _sample(part)
            view, count = _View(self.template, sample, self.bos, self.eos), len(sample.messages)
            try:
                prompt = view.text(count - 1, reply=True) if part.role == "assistant" else ""
                text = view.text(count).removeprefix(prompt)
            except DataError:  # it asks for more than the sample has
                text, words = "", {}
            known[key] = next((lost for word, lost in words.items() if word not in text), "")
        return known[key]

    def _part(self, i: int, message: Message) -> _Part:
        """Return of what kind a message is."""
        role, calls, tools = message.role, message.calls, bool(self.conversation.tools)
        if role == "tool":
            calls = [call for other in self.conversation.messages[:i] for call in other.calls]
        content = _says(message.content) and (i == 0 or role != "system")  # a later one has no sample
        reasoning = _says(message.reasoning) and not self.quiet
        arguments = bool(calls) and any(call.arguments for call in calls)
        return _Part(role, content, reasoning, min(len(calls), 2), arguments, self.system, tools)


class _Part(NamedTuple):
    """A kind of message, or the declared tools, with what stands beside it that a template may look at.

    Attributes:
        role: Who speaks, or "tools".
        content: It has a content; of tools, descriptions.
        reasoning: It has reasoning that is to be written.
        calls: How many calls it has, or a result has before it; 2 for more.
        arguments: They have arguments.
        system: The conversation begins with a system text.
        tools: Tools are declared.
    """

    role: Role | Literal["tools"]
    content: bool
    reasoning: bool = False
    calls: int = 0
    arguments: bool = False
    system: bool = False
    tools: bool = True


_CALLS = (("zqfirst", "zqone", "call00001"), ("zqsecond", "zqtwo", "call00002"))  # Mistral's formats want such ids
_TOLD = "zqdescription"
_TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": _TOLD,
            "parameters": {"type": "object", "properties": {"zqname": {"type": "string", "description": "A text."}}},
        },
    }
    for name, *_ in _CALLS
)


def _sample(part: _Part) -> tuple[Conversation, dict[str, str]]:
    """Return the simplest conversation with such a part, and the words of the part with what each stands for."""
    named = {"zqname"} if part.arguments else ()
    calls = [ToolCall(name, dict.fromkeys(named, value), id) for name, value, id in _CALLS[: part.calls]]
    messages = [Message("user", "zqasked"), Message("assistant", "zqsaid")]
    words = {"system": "zqsystem", "user": "zqasked", "assistant": "zqsaid", "tool": "zqresult", "tools": _TOLD}
    found = {words[part.role]: "content"} if part.content else {}
    if part.role == "tools":
        found = {_CALLS[0][0]: "tools"} | dict.fromkeys(found, "description")
    elif part.role == "assistant":
        thought = "zqthought" if part.reasoning else ""
        messages[1] = Message("assistant", "zqsaid" if part.content else "", thought, tuple(calls))
        found |= {thought: "reasoning"} if thought else {}
        for call in calls:
            found |= dict.fromkeys((call.name, *call.arguments, *call.arguments.values()), "tool calls")
    elif part.role == "tool":
        name, id = (calls[0].name, calls[0].id) if calls else ("", "")
        called = Message("assistant", "" if calls else "zqspoken", calls=tuple(calls[:1]))
        messages[1:1] = [called, Message("tool", "zqresult", name=name, call_id=id)]
    if part.system:
        messages.insert(0, Message("system", "zqsystem"))
    return Conversation(tuple(messages), _TOOLS if part.tools else ()), found


def _says(text: str) -> bool:
    return bool(text) and not text.isspace()


def _holds(text: str, part: str, start: int) -> bool:
    """Tell whether a text has a part behind ``start``, without the white space around it or as JSON has it."""
    part = part.strip()
    return not part or text.find(part, start) >= 0 or text.find(json.dumps(part, ensure_ascii=False)[1:-1], start) >= 0


def parted(message: Message) -> Message:
    """Return a message whose content begins with ``<think>…</think>`` with that as its reasoning."""
    found = _THOUGHT.fullmatch(message.content)
    if message.role != "assistant" or message.reasoning or not found:
        return message
    return replace(message, reasoning=found[1].strip("\n"), content=found[2].lstrip("\n"))


def _read(message: Message) -> Message:
    """Return a message as a format may take it: a thought apart from what is said, switches obeyed and not written."""
    if message.role != "system":
        return parted(message)
    content = message.content
    for switch in _SWITCHES:
        content = content.replace(switch, "")
    return replace(message, content=content)


def _size(message: Message) -> int:
    return len(message.content) + len(message.reasoning) + sum(len(repr(call.arguments)) for call in message.calls)


def _cut(text: str, spans: Sequence[tuple[int, int, Message]]) -> list[Piece]:
    """Return a rendering as pieces, given where its replies stand."""
    pieces, position = [], 0
    for start, end, message in spans:
        pieces.append(Piece(text[position:start], control=True))
        pieces.append(Piece(text[start:end], control=True, trained=True, weight=message.weight))
        position = end
    pieces.append(Piece(text[position:], control=True))
    return [piece for piece in pieces if piece.text]


def _dict(message: Message) -> dict[str, Any]:
    """Return a message as transformers' chat templates read it."""
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        said["reasoning_content"] = message.reasoning
        said["thinking"] = message.reasoning  # gpt-oss reads this name
    if message.calls:
        said["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.calls
        ]
    if message.name:
        said["name"] = message.name
    if message.call_id:
        said["tool_call_id"] = message.call_id
    return said
