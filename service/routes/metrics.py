"""GET /metrics"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from service.deps import ServicesDep
from service.metrics import CONTENT_TYPE

router = APIRouter(tags=["metrics"])


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
async def metrics(services: ServicesDep) -> Response:
    """Prometheus' text format."""
    return Response(services.metrics.render(), media_type=CONTENT_TYPE)
