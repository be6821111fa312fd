"""Who may use the page, and what the page may load."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from ..guard import name_in
from ..settings import is_local

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'; object-src 'none'"
)
"""The browser loads nothing from elsewhere: no fonts, no scripts, no pictures that a model names."""
FETCHING = ("/gradio_api/file=", "/gradio_api/proxy=", "/file=", "/proxy=")
"""Paths by which Gradio reads files and addresses that a request names; the page has neither."""


class Fence:
    """Refuses requests that pages of other sites make, and keeps the page from loading anything from elsewhere.

    Args:
        app: What answers the others.
        local: Whether only names of this machine are answered to (DNS rebinding).
    """

    def __init__(self, app: Any, *, local: bool):
        self.app, self.local = app, local

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def fenced(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        link = scope.get("method") == "GET" and headers.get("sec-fetch-mode") == "navigate"  # somebody followed one
        other = headers.get("sec-fetch-site") in ("cross-site", "same-site") and not link
        if scope["path"].startswith(FETCHING):
            refused = "This page gives out no files."
        elif self.local and not is_local(name_in(host)):
            refused = "This page answers to localhost and to its address only, not to another name."
        elif other or (origin is not None and urlsplit(origin).netloc != host):
            refused = "This page answers no requests from pages of other sites."
        else:
            await self.app(scope, receive, fenced)
            return
        await PlainTextResponse(refused, 403)(scope, receive, fenced)
