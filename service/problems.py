"""Every error as an RFC 9457 problem document."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from shared.errors import EvorecError
from shared.telemetry import described

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20
MAX_TEXT = 300


class FieldProblem(BaseModel):
    """One thing that is wrong with the request."""

    location: str = Field(description="Where: body.items[3].title", examples=["body.count"])
    message: str = Field(examples=["Input should be less than or equal to 100"])


class Problem(BaseModel):
    """RFC 9457 problem document."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:evorec:problem:unknown-domain",
                "title": "Unknown domain",
                "status": 404,
                "detail": "there is no domain 'toys'; PUT /items creates it",
                "instance": "/recommend",
                "request_id": "5f0c6e0d6c0a4a3f8f1d2f7a",
                "errors": [],
            }
        }
    )

    type: str = Field(description="urn:evorec:problem:<kind>; the same kind of error always has the same")
    title: str
    status: int
    detail: str = ""
    instance: str = ""
    request_id: str | None = None
    errors: list[FieldProblem] = []


class ProblemResponse(Response):
    """ASCII-only JSON: a message may quote halves of surrogate pairs, which have no UTF-8 form."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def problem(
    request: Request,
    status: int,
    title: str,
    detail: str = "",
    *,
    errors: Sequence[FieldProblem] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    """The problem document as a response."""
    request_id = _request_id(request)
    document = Problem(
        type=f"urn:evorec:problem:{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}",
        title=title,
        status=status,
        detail=detail,
        instance=request.scope["path"][:MAX_TEXT],
        request_id=request_id,
        errors=list(errors),
    )
    if request_id and status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        # Answers to unexpected errors are made outside of the middleware that adds the header.
        headers = {**(headers or {}), "X-Request-ID": request_id}
    return ProblemResponse(document.model_dump(), status_code=status, headers=headers)


def _request_id(request: Request) -> str | None:
    request_id: str | None = request.scope.get("state", {}).get("request_id")
    return request_id


def path_of(scope: Scope) -> str:
    """The path as it was sent, for logs: percent signs in place of whatever a terminal might obey."""
    raw: bytes = scope["raw_path"]
    return raw.decode("latin-1")[:MAX_TEXT]


def location_of(path: Sequence[str | int]) -> str:
    """A pydantic error's `loc` as text.

    >>> location_of(("body", "items", 3, "title"))
    'body.items[3].title'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")[:MAX_TEXT]


def _on_evorec_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EvorecError)  # noqa: S101 - Starlette's handlers are typed for Exception
    return refusal(request, error)


def refusal(request: Request, error: EvorecError) -> Response:
    """The answer to one of our own errors."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'ApiKey header="X-API-Key"'
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR and error.logged:
        log.error("request_failed", path=path_of(request.scope), error=repr(error))
    return problem(request, error.status, error.title, str(error), headers=headers)


def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    # Neither the input nor its context is echoed: it may be huge, NaN, or somebody's secret.
    found = error.errors()
    errors = [FieldProblem(location=location_of(each["loc"]), message=str(each["msg"])[:MAX_TEXT]) for each in found]
    if any(each["type"] == "json_invalid" for each in found):
        reason = str(found[0].get("ctx", {}).get("error", "not valid JSON"))[:MAX_TEXT]
        detail = f"the body is not valid JSON: {reason}"
        return problem(request, HTTPStatus.BAD_REQUEST, "Malformed JSON", detail, errors=errors)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    detail = f"{errors[0].location}: {errors[0].message}{more}" if errors else ""
    return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid input", detail, errors=errors[:MAX_ERRORS])


def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    title = HTTPStatus(error.status_code).phrase
    detail = error.detail if error.detail != title else f"{request.method} {request.scope['path'][:MAX_TEXT]}"
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods_of(request))
    return problem(request, error.status_code, title, detail, headers=headers)


def _methods_of(request: Request) -> list[str]:
    """What the path takes, over all of its routes; Starlette's own answer knows the first one alone."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    own = [route.methods or () for route in routes if isinstance(route, Route) and route.path == routes[0].path]
    return sorted({method for methods in own for method in methods})


def _on_redis_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        event, detail = "redis_unreachable", "the data store cannot be reached"
    else:
        event, detail = "redis_refused", "the data store refused the command; the service's log says why"
    log.error(event, path=path_of(request.scope), error=described(error))
    headers = {"Retry-After": "5"}
    return problem(request, HTTPStatus.SERVICE_UNAVAILABLE, "Temporarily unavailable", detail, headers=headers)


def _on_unexpected(request: Request, error: Exception) -> Response:
    # Called outside of the middleware that binds the id to records.
    log.error("unexpected_error", path=path_of(request.scope), request_id=_request_id(request), exc_info=error)
    detail = "an unexpected error; the service's log has it under this request id"
    return problem(request, HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error", detail)


def install(app: FastAPI) -> None:
    """Registers the handlers; the most specific one answers."""
    app.add_exception_handler(EvorecError, _on_evorec_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RedisError, _on_redis_error)
    app.add_exception_handler(Exception, _on_unexpected)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the problem documents that a route may answer with."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }
