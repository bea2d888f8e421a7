"""POST /recommend"""

from __future__ import annotations

from fastapi import APIRouter, Depends

from service.auth import Scope
from service.deps import ServicesDep, requires
from service.problems import responses
from service.schemas.recommend import Recommendation, RecommendRequest

router = APIRouter(tags=["recommend"], dependencies=[Depends(requires(Scope.recommend))])


@router.post("/recommend", responses=responses(400, 401, 403, 404, 422, 503))
async def recommend(body: RecommendRequest, services: ServicesDep) -> Recommendation:
    """Items for a user, best first, with the adapter version that ranked them.

    Users without history get what is popular; where the LLM cannot rank in time, the retriever's order is served and
    `degraded` says why.
    """
    return await services.recommender.recommend(body)
