"""What requests may ask for, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from lmf import DataError, Message, Sampling
from lmf.data.jsonfile import noun, parse
from lmf.formats import messages, toolcalls
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ApiError, from_core

MOST_STOPS, LONGEST_STOP = 4, 200  # texts; characters of each
MOST_CHOICES = 32  # replies to one request

Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Unread = Any  # may be there and means nothing here


class Asked(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = None
    user: Unread = None

    @model_validator(mode="after")
    def _check(self) -> Asked:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options: it is only for requests with stream.")
        if self.logit_bias:
            raise ValueError("logit_bias: this server cannot do that; leave it out.")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def likeliest(self) -> int | None:
        """How many likeliest tokens are told at each place; None if no log-probabilities are."""
        return None

    @property
    def usage_streamed(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, most: int) -> Sampling:
        """Return how replies are drawn; what is not said is as OpenAI has it.

        Args:
            most: Tokens that a reply may have.

        Raises:
            ApiError: More are asked for.
        """
        wanted, param = self.length()
        if wanted is not None and wanted > most:
            raise ApiError(
                400,
                f"{param} is {wanted}; this server writes at most {most} tokens.",
                param=param,
                code="invalid_value",
            )
        given = {name: value for name in (*_NUMBERS, "seed") if (value := getattr(self, name)) is not None}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(**{"temperature": 1.0, **given, "max_tokens": wanted or self.usual(most), "stop": stop})

    def length(self) -> tuple[int | None, str]:
        """Return how long a reply may be, and the key that says so."""
        return self.max_tokens, "max_tokens"

    def usual(self, most: int) -> int:
        """Return how many tokens a reply may have where nothing is said."""
        return most


_NUMBERS = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


class StreamOptions(BaseModel):
    """What a stream tells besides."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: Unread = None


class ResponseFormat(BaseModel):
    """The form of a reply: text, and nothing else."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]


class ChatRequest(Asked):
    """A request to ``/v1/chat/completions``."""

    messages: list[Any] = Field(min_length=1)
    tools: list[Any] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    metadata: Unread = None
    store: Literal[False] | None = None
    parallel_tool_calls: Unread = None
    service_tier: Unread = None
    safety_identifier: Unread = None
    prompt_cache_key: Unread = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: it is only for requests with logprobs.")
        return self

    @property
    def likeliest(self) -> int | None:
        """How many likeliest tokens are told at each place; None if no log-probabilities are."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def length(self) -> tuple[int | None, str]:
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens, "max_completion_tokens"
        return super().length()

    def talk(self) -> tuple[list[Message], Sequence[Mapping[str, Any]]]:
        """Return the conversation, and the tools that may be called.

        Raises:
            ApiError: Something in them is not understood.
        """
        try:
            said = [
                each.message for each in messages.read("messages", [_bare(m) for m in self.messages], messages.OPENAI)
            ]
            tools = toolcalls.declared({"tools": self.tools}) if self.tools else ()
        except DataError as error:
            raise from_core(error, "messages") from None
        if said[-1].role not in ("user", "tool"):
            raise ApiError(
                400,
                f"messages[{len(said) - 1}] is of the role {said[-1].role}; a user or tool message asks for a reply.",
                param="messages",
                code="invalid_value",
            )
        return said, () if self.tool_choice == "none" else tools


class CompletionRequest(Asked):
    """A request to ``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def likeliest(self) -> int | None:
        """How many likeliest tokens are told at each place; None if no log-probabilities are."""
        return self.logprobs

    def usual(self, most: int) -> int:
        return min(16, most)

    def prompts(self) -> list[str] | list[list[int]]:
        """Return the prompts: texts, or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


R = TypeVar("R", bound=BaseModel)


def read(kind: type[R], body: bytes) -> R:
    """Return a request.

    Raises:
        ApiError: It is no JSON, or does not say what such a request says.
    """
    try:
        value = parse(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body is not UTF-8: byte {error.start}.", code="invalid_json") from None
    except (DataError, RecursionError) as error:
        text = str(error) if isinstance(error, DataError) else "it is nested too deeply"
        raise ApiError(400, f"The body cannot be read as JSON: {text}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"The body is {noun(value)}; it must be an object.", code="invalid_json")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _refused(error) from None


def _refused(error: ValidationError) -> ApiError:
    """Return the answer to a request with a wrong value."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = _path(first["loc"])
    text, code = first["msg"].replace("Input should", "it must"), "invalid_value"
    if first["type"] == "missing":
        return ApiError(400, f"{param} is required.", param=param, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} is no parameter of this request.", param=param, code="unknown_parameter")
    if first["type"] == "value_error":
        text = text.removeprefix("Value error, ")
        param = param or text.partition(":")[0]
        return ApiError(400, text, param=param, code=code)
    return ApiError(400, f"{param} is {noun(first['input'])}: {text}.", param=param, code=code)


def _path(location: Sequence[int | str]) -> str:
    """Return a key path as core writes them, without the names of alternatives."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int"):
            path += f".{part}" if path else part
    return path


def _bare(message: Any) -> Any:
    """Return a message without what answers have and questions need not."""
    if not isinstance(message, dict):
        return message
    unsaid = {key for key, value in message.items() if key in _ANSWERED or (value is None and key != "content")}
    return {key: value for key, value in message.items() if key not in unsaid}


_ANSWERED = frozenset({"refusal", "annotations", "audio"})
