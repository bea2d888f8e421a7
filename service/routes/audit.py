"""The audit trail."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.auth import Scope
from service.deps import ServicesDep, requires
from service.problems import responses
from service.schemas.audit import AuditAnswer

router = APIRouter(prefix="/admin", tags=["audit"], dependencies=[Depends(requires(Scope.admin))])


@router.get("/audit", responses=responses(401, 403, 422, 503))
async def list_audit(services: ServicesDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> AuditAnswer:
    """Administration, deletions, and who was denied them: newest first. Some 10,000 records of each are kept."""
    return AuditAnswer(records=await services.audit.newest(limit))
