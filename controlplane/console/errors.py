"""Errors of the API: always ``{code, message, details}``, never a traceback, never an internal name.

=====  ===========================================================
400    the request is malformed, or asks for what cannot be
401    a token is needed
403    the Host header names another machine
404    there is no such thing
405    there is no such method
408    the request was not complete in time
413    the body is too large
429    too many wrong tokens from this address
503    the bus, the log or the read model does not answer
500    a defect: logged here, and only ``internal`` is said outside
=====  ===========================================================
"""

from __future__ import annotations

import logging
from typing import Any

from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec

from controlplane.console.schemas import ErrorBody
from events.errors import BadRequest, IsthmusError, Refused, Unavailable

log = logging.getLogger("isthmus.http")

_MEANINGS = {
    400: "The request is malformed, or asks for what cannot be.",
    401: "A token is needed.",
    403: "The Host header names another machine.",
    404: "There is no such thing.",
    413: "The body is too large.",
    429: "Too many wrong tokens from this address.",
    503: "Not able to answer now.",
}
_CODES = {
    401: "forbidden",
    403: "forbidden",
    404: "not_found",
    429: "too_many_attempts",
    503: "log_unavailable",
}


class NotFound(Exception):
    """There is no such thing; the text says which, ``code`` of which kind it is."""

    def __init__(self, message: str, *, code: str = "not_found") -> None:
        super().__init__(message)
        self.code = code


def failures(*statuses: int) -> dict[int, ResponseSpec]:
    """The error answers of a route, for its documentation. 401, 403 and 429 apply to every route."""
    return {
        status: ResponseSpec(data_container=ErrorBody, description=_MEANINGS[status], generate_examples=False)
        for status in (*statuses, 401, 403, 429)
    }


def _answer(status: int, code: str, message: str, details: dict[str, Any] | None = None) -> Response[ErrorBody]:
    return Response(
        ErrorBody(code=code, message=message, details=details or {}),
        status_code=status,
        media_type=MediaType.JSON,
    )


def on_isthmus_error(_: Request[Any, Any, Any], error: IsthmusError) -> Response[ErrorBody]:
    """Our own errors keep their code."""
    if isinstance(error, Unavailable):
        return _answer(503, error.code, error.message, error.details)
    if isinstance(error, (BadRequest, Refused)) and error.code != "internal":
        return _answer(400, error.code, error.message, error.details)
    log.error("request failed: %s [%s]", error.message, error.code)
    return _answer(503, error.code, error.message)


def on_not_found(_: Request[Any, Any, Any], error: NotFound) -> Response[ErrorBody]:
    """There is no such thing."""
    return _answer(404, error.code, str(error))


def on_malformed(_: Request[Any, Any, Any], __: RecursionError) -> Response[ErrorBody]:
    """A body that is nested without end."""
    return _answer(400, "bad_request", "the body is nested too deeply")


def on_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorBody]:
    """The framework's own: bad parameters, unknown paths and methods."""
    if error.status_code >= 500:
        return on_defect(request, error)
    details: dict[str, Any] = {}
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        details["fields"] = [
            {"field": str(item.get("key", "")), "message": str(item.get("message", ""))}
            for item in error.extra
            if isinstance(item, dict)
        ]
    answer = _answer(
        error.status_code, _CODES.get(error.status_code, "bad_request"), str(error.detail)[:400], details
    )
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    if error.status_code == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def on_defect(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
    """Anything else is a defect of ours."""
    log.error("request failed", exc_info=error)
    return _answer(500, "internal", "the controller could not answer; the reason is in its log")
