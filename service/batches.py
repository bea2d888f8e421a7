"""Batches whose parts are validated one by one, so that one bad part does not cost the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from service.problems import MAX_TEXT, location_of
from service.schemas.common import Rejected

Part = TypeVar("Part", bound=BaseModel)


def parse_each(model: type[Part], parts: Sequence[Any]) -> tuple[dict[int, Part], list[Rejected]]:
    """The valid parts by their index, and why the others are not."""
    valid: dict[int, Part] = {}
    rejected: list[Rejected] = []
    for index, part in enumerate(parts):
        try:
            valid[index] = model.model_validate(part)
        except ValidationError as error:
            rejected.append(Rejected(index=index, reason=reason_of(error)))
    return valid, rejected


def reason_of(error: ValidationError) -> str:
    """The first things that are wrong, without echoing the input. Always printable ASCII-safe text."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [f"{location_of(each['loc'])}: {each['msg']}".removeprefix(": ") for each in found[:3]]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    # A field's name is the caller's: halves of surrogate pairs in it have no UTF-8 form.
    return ("; ".join(parts) + more)[: 2 * MAX_TEXT].encode("utf-8", "backslashreplace").decode()
