"""Whether the process lives, and whether it can serve."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class LiveAnswer(BaseModel):
    status: Literal["alive"] = "alive"


class ReadyAnswer(BaseModel):
    ready: bool
    engine: str = Field(examples=["running"])
    error: str | None = None
    domains: dict[str, str] = Field(examples=[{"beauty": "serving", "toys": "no_champion"}])
    warnings: list[str] = Field(
        default=[], description="How Redis would lose what is accepted; the service is ready all the same"
    )
