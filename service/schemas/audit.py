"""Who administered."""

from __future__ import annotations

from pydantic import BaseModel, Field

from service.audit import AuditRecord


class AuditAnswer(BaseModel):
    records: list[AuditRecord] = Field(description="Newest first")
