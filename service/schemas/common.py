"""What requests have in common. They are validated strictly: no coercion, no unknown fields."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    WithJsonSchema,
)

from shared.domains import DOMAIN_PATTERN, validate_domain
from shared.errors import InvalidInput
from shared.types import EVENT_TYPE_PATTERN

MAX_BATCH = 1000
MAX_ID = 256
# A guard against overflow alone; how far in the future an event may lie is a setting.
MAX_UNIX_S = 1e15


def _identifier(value: str) -> str:
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise ValueError("must not contain control characters")
    return value


def _domain(value: str) -> str:
    try:
        return validate_domain(value)
    except InvalidInput as error:
        raise ValueError(str(error)) from error


def _unix_seconds(value: object) -> object:
    """ISO 8601 with a zone, or unix seconds -> unix seconds."""
    if not isinstance(value, str):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("is neither ISO 8601 nor unix seconds") from None
    if moment.tzinfo is None:
        raise ValueError("has no time zone; write 2026-01-31T12:00:00Z or unix seconds")
    try:
        return moment.timestamp()
    except OverflowError:
        raise ValueError("is out of range") from None


# The validators speak more plainly than a pattern's error would; the document has the patterns.
Identifier = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_ID),
    AfterValidator(_identifier),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_ID, "pattern": r"^[^\u0000-\u001f\u007f]+$"}),
]
DomainName = Annotated[
    str, AfterValidator(_domain), WithJsonSchema({"type": "string", "pattern": f"^{DOMAIN_PATTERN}$"})
]
Timestamp = Annotated[
    FiniteFloat,
    Field(ge=0, le=MAX_UNIX_S),
    BeforeValidator(_unix_seconds),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number", "minimum": 0}]}),
]
EventType = Annotated[str, StringConstraints(pattern=EVENT_TYPE_PATTERN)]


class Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def example(**values: Any) -> ConfigDict:
    """A request's configuration, with an example for the interface's document."""
    return ConfigDict(strict=True, extra="forbid", frozen=True, json_schema_extra={"examples": [values]})


class Rejected(BaseModel):
    """A part of the batch that was left out; the rest was taken."""

    index: int = Field(description="Position in the request's array, from 0")
    reason: str = Field(examples=["item_id: there is no item 'B00XYZ' in domain 'beauty'"])
