"""The application: what is answered at each path."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from lmf import LmfError
from lmf.generate.opening import Chatter
from lmf.templates.calls import Notation, notation

from .answers import DONE, ChatForm, Form, TextForm, event, usage
from .errors import ApiError, failed, from_core, handle_errors, stopping
from .guard import Guard, body_of
from .metrics import Metrics
from .predict import History, predicted
from .requests import Asked, ChatRequest, CompletionRequest, read
from .settings import Serving
from .tools import Calls
from .worker import Busy, Part, Stopping, Ticket, Worker

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks for, encoded.

    Attributes:
        asked: The request.
        prompts: The ids of each prompt.
        continues: Whether replies go on from the text of the prompt.
        tools: The names of the tools that may be called.
        param: The key of the request that the prompts stand in.
    """

    asked: Asked
    prompts: Sequence[Sequence[int]]
    param: str
    continues: bool = False
    tools: Sequence[str] = ()


class Server:
    """Answers requests for one model.

    Args:
        chatter: The model.
        worker: Writes its replies.
        serving: The settings.
        name: What requests call the model.
    """

    def __init__(self, chatter: Chatter, worker: Worker, serving: Serving, name: str):
        self.chatter, self.worker, self.serving, self.name = chatter, worker, serving, name
        self.metrics = Metrics(worker)
        self.started = int(time.time())
        self.most_body = serving.max_body << 20
        template, encoder = chatter.template, chatter.encoder
        self._notation: Notation | None = notation(template, encoder.bos, encoder.eos) if template else None
        self._encoding = ThreadPoolExecutor(2, "lmf-encode")  # so that a long prompt does not stop the others

    def app(self) -> Guard:
        """Return the application."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
        handle_errors(app)
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/metrics", self.figures, methods=["GET"])
        app.add_api_route("/v1/models", self.models, methods=["GET"])
        app.add_api_route("/v1/models/{name:path}", self.model, methods=["GET"])
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        app.add_api_route("/v1/completions", self.complete, methods=["POST"])
        if self.serving.predict:
            app.add_api_route("/predict", self.predict, methods=["POST"])
        return Guard(app, key=self.serving.key(), local=self.serving.local, metrics=self.metrics)

    async def health(self) -> Response:
        if self.worker.ending:
            raise stopping()
        return JSONResponse({"status": "ok"})

    async def figures(self) -> Response:
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, name: str) -> Response:
        self._check_model(name)
        return JSONResponse(self._described())

    async def chat(self, request: Request) -> Response:
        work = await self._prepared(request, self._read_chat)
        return await self._answer(request, work, ChatForm(self.name, self.chatter.tokenizer))

    async def complete(self, request: Request) -> Response:
        work = await self._prepared(request, self._read_completion)
        return await self._answer(request, work, TextForm(self.name, self.chatter.tokenizer))

    async def predict(self, request: Request) -> Response:
        """Answer as LMFlow's server did: with the text so far, each time it grows."""
        work = await self._prepared(request, self._read_history)
        ticket = self._submit(work)
        return Stream(predicted(self._parts(ticket)), "text/plain; charset=utf-8", lambda: self._end(ticket))

    def _read_chat(self, body: bytes) -> Work:
        asked = read(ChatRequest, body)
        self._check_model(asked.model)
        messages, tools = asked.talk()
        if self.chatter.template is None:
            raise ApiError(
                400,
                "This model continues texts and has no template to talk with; use /v1/completions.",
                code="no_template",
            )
        if tools and self._notation is None:
            raise ApiError(
                400,
                "The template of this model has no place for tools that this server can read.",
                param="tools",
                code="invalid_value",
            )
        ids = self._encoded("messages", lambda: self.chatter.ids(messages, tools=tools))
        return Work(asked, [ids], "messages", tools=[tool["function"]["name"] for tool in tools])

    def _read_completion(self, body: bytes) -> Work:
        asked = read(CompletionRequest, body)
        self._check_model(asked.model)
        prompts = []
        for number, prompt in enumerate(found := asked.prompts()):
            param = f"prompt[{number}]" if len(found) > 1 else "prompt"
            if isinstance(prompt, str):
                ids = self._encoded(param, functools.partial(self.chatter.encoder.plain, prompt))
            else:
                ids = prompt
                if wrong := [id for id in ids if not 0 <= id < len(self.chatter.tokenizer)]:
                    raise ApiError(
                        400, f"{param} has {wrong[0]}, which is no token.", param=param, code="invalid_value"
                    )
            if not ids:
                raise ApiError(400, f"{param} is empty.", param=param, code="invalid_value")
            prompts.append(ids)
        if not prompts:
            raise ApiError(400, "prompt is empty.", param="prompt", code="invalid_value")
        return Work(asked, prompts, "prompt", continues=True)

    def _read_history(self, body: bytes) -> Work:
        asked = read(History, body)
        messages = asked.messages()
        return Work(asked.request(), [self._encoded("History", lambda: self.chatter.ids(messages))], "History")

    def _encoded(self, param: str, encode: Callable[[], T]) -> T:
        """Return what core makes of a prompt, or raise what it refuses as an answer."""
        try:
            return encode()
        except LmfError as error:
            told = from_core(error, param)
            template = self.chatter.template
            if template and os.sep in template.name:  # of a file, whose path is nobody's business
                told.message = told.message.replace(template.name, Path(template.name).name)
            raise told from None

    async def _prepared(self, request: Request, encode: Callable[[bytes], Work]) -> Work:
        body = await body_of(request, self.most_body)
        return await asyncio.get_running_loop().run_in_executor(self._encoding, encode, body)

    def _submit(self, work: Work) -> Ticket:
        """Have the replies to a request written.

        Raises:
            ApiError: There is no room for them.
        """
        asked, ticket = work.asked, Ticket()
        sampling = asked.sampling(self.serving.max_tokens)
        try:
            self.worker.submit(
                work.prompts, sampling, ticket, n=asked.choices, likeliest=asked.likeliest, continues=work.continues
            )
        except LmfError as error:
            raise from_core(error, work.param) from None
        except Busy:
            raise ApiError(
                429, "Too many requests wait; come again.", code="queue_full", headers={"Retry-After": "1"}
            ) from None
        except Stopping:
            raise stopping() from None
        self.metrics.read.inc(sum(map(len, work.prompts)))
        return ticket

    async def _answer(self, request: Request, work: Work, form: Form) -> Response:
        ticket = self._submit(work)
        if work.asked.stream:
            return Stream(self._events(ticket, work, form), "text/event-stream", lambda: self._end(ticket))
        try:
            return JSONResponse(await _unless_gone(request.receive, self._whole(ticket, work, form)))
        except _Gone:
            return Response(status_code=499)  # that nobody reads
        finally:
            self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        ticket.cancel()
        self.metrics.written.inc(sum(len(reply.ids) for reply in ticket.replies))

    async def _parts(self, ticket: Ticket) -> AsyncIterator[Part]:
        """Yield what is new of all replies until they are done.

        Raises:
            ApiError: The time is over, or they were given up.
        """
        began, left, first = time.monotonic(), len(ticket.replies), True
        while left:
            try:
                part = await asyncio.wait_for(ticket.part(), began + self.serving.timeout - time.monotonic())
            except TimeoutError:
                raise ApiError(
                    504, f"The reply took longer than {self.serving.timeout:g} seconds.", code="timeout"
                ) from None
            if part.finish == "cancelled":
                raise stopping() if self.worker.ending else failed()
            if first:
                self.metrics.first.observe(time.monotonic() - began)
                first = False
            left -= part.finish is not None
            yield part

    def _callings(self, ticket: Ticket, work: Work) -> list[Calls] | None:
        """Return what reads the calls of each reply; None if no tools may be called."""
        if not work.tools or self._notation is None:
            return None
        tokenizer, ends = self.chatter.tokenizer, self.worker.engine.ends
        return [Calls(self._notation, work.tools, tokenizer, ends) for _ in ticket.replies]

    async def _whole(self, ticket: Ticket, work: Work, form: Form) -> dict[str, Any]:
        async for _ in self._parts(ticket):
            pass
        callings = self._callings(ticket, work)
        choices = []
        for index, reply in enumerate(ticket.replies):
            text, calls = callings[index].whole(reply) if callings else (reply.text, [])
            tokens = None if work.asked.likeliest is None else self._told(reply.tokens)
            choices.append(form.choice(index, text, tokens, reply.finish or "stop", calls))
        return form.answer(choices, self._used(ticket, work))

    async def _events(self, ticket: Ticket, work: Work, form: Form) -> AsyncIterator[bytes]:
        callings = self._callings(ticket, work)
        more = {"usage": None} if work.asked.usage_streamed else {}
        try:
            for index in range(len(ticket.replies)):
                if (choice := form.begin(index)) is not None:
                    yield form.chunk([choice], **more)
            async for part in self._parts(ticket):
                reply, text, calls = ticket.replies[part.index], part.text, []
                if callings:
                    text = callings[part.index].add(text, reply)
                    if part.finish:
                        rest, calls = callings[part.index].end(reply)
                        text += rest
                if text or part.tokens:
                    yield form.chunk([form.next(part.index, text, self._told(part.tokens))], **more)
                if part.finish:
                    yield form.chunk([form.end(part.index, part.finish, calls)], **more)
        except ApiError as error:
            yield event(error.content())
            return
        if more:
            yield form.chunk([], usage=self._used(ticket, work))
        yield DONE

    def _told(self, tokens: Sequence[Any]) -> Sequence[Any]:
        """Return tokens without the one that ends a reply."""
        return [token for token in tokens if token.id not in self.worker.engine.ends]

    def _used(self, ticket: Ticket, work: Work) -> dict[str, int]:
        return usage(sum(map(len, work.prompts)), sum(len(reply.ids) for reply in ticket.replies))

    def _check_model(self, name: str) -> None:
        if name != self.name:
            raise ApiError(
                404,
                f"The model {name[:100]!r} is not here; this server has {self.name!r}.",
                param="model",
                code="model_not_found",
            )

    def _described(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "lmf",
            "max_model_len": self.worker.engine.context,
        }


class Stream(StreamingResponse):
    """An answer that comes in parts, and ends when nobody is there to read it."""

    def __init__(self, parts: AsyncIterator[Any], kind: str, end: Callable[[], None]):
        super().__init__(parts, media_type=kind, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.end = end

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        try:
            await _unless_gone(receive, self.stream_response(send))
        except _Gone:
            pass
        finally:
            self.end()


class _Gone(Exception):
    """The client went away."""


async def _unless_gone(receive: Callable[[], Awaitable[Any]], work: Awaitable[T]) -> T:
    """Wait for work, and give it up when the client goes away.

    Raises:
        _Gone: It did.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    watch, doing = asyncio.ensure_future(gone()), asyncio.ensure_future(work)
    try:
        await asyncio.wait({watch, doing}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise _Gone
        return doing.result()
    finally:
        watch.cancel()
        doing.cancel()
        await asyncio.gather(watch, doing, return_exceptions=True)
