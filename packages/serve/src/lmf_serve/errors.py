"""Errors as OpenAI's API tells them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from lmf import LmfError
from lmf.generate.engine import TooLong
from starlette.exceptions import HTTPException

_KEY = re.compile(r"(messages|tools|functions|prompt)\b[\w.\[\]]*")  # what an error of core begins with


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        message: What is wrong, where, and what to do.
        param: The key of the request that it is about.
        code: A word for programs.
        headers: Of HTTP.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def content(self) -> dict[str, Any]:
        """Return the body."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, dict(self.headers or {}))


def from_core(error: LmfError, param: str) -> ApiError:
    """Return the answer to a request that core refuses.

    Args:
        error: Why.
        param: The key of the request that it is about, where it does not tell a better one.
    """
    if isinstance(error, TooLong):
        return ApiError(400, str(error), param=param, code="context_length_exceeded")
    found = _KEY.match(str(error))
    return ApiError(400, str(error), param=found[0] if found else param, code="invalid_value")


def failed() -> ApiError:
    """Return the answer where the server is at fault."""
    return ApiError(500, "The server failed to answer; its log tells why.", code="internal_error")


def stopping() -> ApiError:
    """Return the answer of a server that is being shut down."""
    return ApiError(503, "The server is shutting down.", code="shutting_down")


def handle_errors(app: FastAPI) -> None:
    """Have all errors of an application answered in one shape."""

    async def told(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        text = {404: "There is nothing here", 405: "This cannot be done here"}.get(error.status_code, error.detail)
        message = f"{text}: {request.method} {request.url.path[:100]}"
        return ApiError(error.status_code, message, code="unknown_url", headers=error.headers).response()

    async def bug(request: Request, error: Exception) -> JSONResponse:
        return failed().response()

    app.add_exception_handler(ApiError, told)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(Exception, bug)


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
