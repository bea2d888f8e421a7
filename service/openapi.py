"""What the OpenAPI document says beyond the routes' own words."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.callers import PUBLIC
from service.problems import MEDIA_TYPE, Problem, responses
from service.schemas.interactions import InteractionEvent
from service.schemas.items import CatalogItem

DESCRIPTION = """Recommendations from an LLM that keeps learning.

Interactions go in through `POST /interactions`; workers turn them into new LoRA adapters; `POST /recommend` answers
with the adapter that serves. Errors are RFC 9457 problem documents (`application/problem+json`). Send your key in
`X-API-Key`; scopes are `recommend`, `ingest` and `admin`.
"""
TAGS = [
    {"name": "recommend", "description": "Ranked items for a user"},
    {"name": "interactions", "description": "What users did: the log that everything is learned from"},
    {"name": "items", "description": "The catalog of a domain"},
    {"name": "users", "description": "What is known of a user, and its erasure"},
    {"name": "evolutions", "description": "Runs of Locate, Forget, Update, Evaluate, Publish"},
    {"name": "adapters", "description": "Adapter versions, aliases and routes"},
    {"name": "audit", "description": "Who administered what"},
    {"name": "health", "description": "For orchestrators"},
    {"name": "metrics", "description": "For Prometheus"},
]
# Models that only appear inside of batches, and so in no route's signature.
EXTRA_MODELS = (Problem, InteractionEvent, CatalogItem)


def describe(app: FastAPI) -> None:
    """Replaces FastAPI's generator: its validation error schema gives way to our problem documents."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document: dict[str, Any] = get_openapi(
        title="evorec", version="1", description=DESCRIPTION, routes=app.routes, tags=TAGS
    )
    schemas = document["components"]["schemas"]
    _, extra = models_json_schema(
        [(model, "validation") for model in EXTRA_MODELS], ref_template="#/components/schemas/{model}"
    )
    schemas.update(extra["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path not in PUBLIC:
                _add_limits(operation)
            _use_problems(operation["responses"])
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _add_limits(operation: dict[str, Any]) -> None:
    """What a call may be answered before its route sees it."""
    limits = responses(400, 408, 413, 429) if "requestBody" in operation else responses(429)
    found = {str(status): response for status, response in limits.items()} | operation["responses"]
    operation["responses"] = dict(sorted(found.items()))


def _use_problems(responses: dict[str, Any]) -> None:
    """FastAPI adds its own 422 body beside ours."""
    invalid = responses.get("422")
    if invalid is not None:
        invalid["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
