"""Whether the process lives, and whether it should get requests."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.deps import ServicesDep
from service.schemas.health import LiveAnswer, ReadyAnswer

router = APIRouter(prefix="/health", tags=["health"])

NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ReadyAnswer, "description": "Not ready yet, and why"}}


@router.get("/live")
async def live() -> LiveAnswer:
    """The process answers, even while the engine starts."""
    return LiveAnswer()


@router.get("/ready", responses=NOT_READY)
async def ready(request: Request, services: ServicesDep, response: Response) -> ReadyAnswer:
    """The engine runs and every champion is loaded and warmed; a domain without champion counts as ready."""
    readiness = services.adapters.readiness()
    is_ready = readiness.ready and not request.app.state.draining
    if not is_ready:
        response.status_code = 503
    return ReadyAnswer(
        ready=is_ready,
        engine=services.host.state,
        error=services.host.error,
        domains={str(domain): standing for domain, standing in readiness.domains.items()},
        warnings=list(services.redis_watch.warnings),
    )
