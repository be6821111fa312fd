"""Who may ask, and how: checked before a request is read."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

from .errors import ApiError
from .metrics import Metrics
from .settings import is_local

OPEN = ("/health",)  # what needs no key
BODY_SECONDS = 30.0  # within which a body must be there

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Guard:
    """Refuses requests from pages of other sites, without the key, or of another kind than JSON; counts all.

    Args:
        app: What answers the others.
        key: What requests must bring; None for no key.
        local: Whether only names of this machine are answered to. A page that has its own name point here (DNS
            rebinding) is told by the name that it asks for.
        metrics: Where requests are counted.
    """

    def __init__(self, app: Any, *, key: str | None, local: bool, metrics: Metrics):
        self.app, self.local, self.metrics = app, local, metrics
        self.key = None if key is None else key.encode()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self.check(scope["method"], scope["path"], Headers(scope=scope))
        except ApiError as error:
            await error.response()(scope, receive, counted)
        else:
            await self.app(scope, receive, counted)
        finally:
            self.metrics.answered(scope, status, time.monotonic() - began)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise ApiError for a request that is not to be read."""
        if self.local and not is_local(name_in(headers.get("host", ""))):
            raise ApiError(
                403,
                "This server answers to localhost and to its address only, not to another name.",
                code="host_not_allowed",
            )
        if self.key is not None and path not in OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self.key)
            if scheme.lower() != "bearer" or not right:
                raise ApiError(
                    401,
                    "The API key is wrong or missing; it stands in the header: Authorization: Bearer KEY.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind != "application/json":
            raise ApiError(
                415, "The body must be JSON, and its Content-Type application/json.", code="unsupported_media_type"
            )


async def body_of(request: Request, most: int) -> bytes:
    """Return the body of a request.

    Args:
        request: The request.
        most: The most bytes that it may have.

    Raises:
        ApiError: It has more, or does not come.
    """
    too_large = ApiError(413, f"The body has more than {most:,} bytes.", code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                found += piece
                if len(found) > most:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"The body did not come within {BODY_SECONDS:g} seconds.", code="timeout") from None
    return bytes(found)


def name_in(host: str) -> str:
    """Return the name in a Host header, without the port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
