"""Requests and responses of the HTTP interface. Requests are validated strictly: no coercion, no unknown fields."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from service.audit import AuditRecord
from shared.dead_letters import DeadLetter
from shared.errors import InvalidInput
from shared.evolutions import Evolution
from shared.manifest import Manifest
from shared.redis_keys import DOMAIN_PATTERN, validate_domain
from shared.refusals import Refusal

MAX_CANDIDATES = 100
MAX_BATCH = 1000
MAX_ID = 256
MAX_TITLE = 4096
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
EventType = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]


class Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(strict=True, extra="forbid", frozen=True, json_schema_extra={"examples": [values]})


# -- recommend ------------------------------------------------------------------------------------
class RecommendRequest(Request):
    """Whom to recommend to, and what may be recommended."""

    model_config = _example(user_id="u-42", domain="beauty", count=5)

    user_id: Identifier | None = Field(None, description="Optional where `history` is given")
    domain: DomainName | None = Field(None, description="Unset: the default domain")
    count: int = Field(10, ge=1, le=100)
    candidates: list[Identifier] | None = Field(
        None,
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="Rank exactly these items; unknown ones are an error that names them. Unset: the retriever chooses",
    )
    exclude_item_ids: list[Identifier] = Field([], max_length=MAX_BATCH)
    exclude_seen: bool = Field(
        True,
        description="Leave out what the user has interacted with; named `candidates` are kept unless set explicitly",
    )
    categories: list[Annotated[str, StringConstraints(min_length=1, max_length=512)]] | None = Field(
        None, min_length=1, max_length=100, description="Only items of these categories"
    )
    history: list[Identifier] | None = Field(
        None,
        max_length=MAX_BATCH,
        description="Item ids, oldest first; replaces the stored history for this call alone",
    )
    explain: bool = False

    @model_validator(mode="after")
    def _somebody_or_something(self) -> RecommendRequest:
        if self.user_id is None and self.history is None:
            raise ValueError("user_id is required unless history is given")
        return self


class Influence(BaseModel):
    item_id: str
    title: str
    weight: float = Field(description="Contribution of this history item to the retriever's score; larger is stronger")


class Reason(BaseModel):
    """Why an item stands where it stands (`explain`)."""

    llm_log_probability: float | None = Field(description="null where the LLM did not rank the item")
    retriever_score: float | None = Field(description="Log-probability over the catalog; null without a retriever")
    popularity_share: float
    history: list[Influence] = Field(description="The history items that weighed most, strongest first")


class RecommendedItem(BaseModel):
    item_id: str
    rank: int = Field(ge=1)
    score: float = Field(description="The probability that ranks")
    title: str
    reason: Reason | None = None


class Recommendation(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "recommendation_id": "0b7e1d3c5a6f4c1c9b0c9c6b8f3d2a11",
                    "user_id": "u-42",
                    "domain": "beauty",
                    "items": [{"item_id": "B00ABC", "rank": 1, "score": 0.31, "title": "Rose Day Cream"}],
                    "adapter": "beauty-v000007",
                    "degraded": False,
                    "took_ms": 38.2,
                }
            ]
        }
    )

    recommendation_id: str
    user_id: str | None
    domain: str
    items: list[RecommendedItem]
    adapter: str | None = Field(description="The adapter version that answered; null: popularity did")
    degraded: Literal[False] | str = Field(
        description="false, or why the LLM did not rank: no_adapter, no_history, engine_unavailable, engine_failed, "
        "rank_timeout, saturated, adapter_unavailable; or store_unavailable: the history is the last one this process "
        "knew, or none"
    )
    took_ms: float


# -- interactions ---------------------------------------------------------------------------------
class InteractionEvent(Request):
    """One event; an array of them is validated event by event."""

    model_config = _example(user_id="u-42", item_id="B00ABC", event_type="purchase", timestamp="2026-01-31T12:00:00Z")

    event_id: Identifier | None = Field(None, description="Events with the same id count once within 7 days")
    user_id: Identifier
    item_id: Identifier
    event_type: EventType = "purchase"
    value: FiniteFloat | None = None
    timestamp: Timestamp = Field(description="ISO 8601 with a zone, or unix seconds")
    recommendation_id: Identifier | None = None


class InteractionsRequest(Request):
    model_config = _example(
        domain="beauty",
        interactions=[{"user_id": "u-42", "item_id": "B00ABC", "timestamp": "2026-01-31T12:00:00Z"}],
    )

    domain: DomainName | None = None
    interactions: list[Any] = Field(
        min_length=1,
        max_length=MAX_BATCH,
        json_schema_extra={"items": {"$ref": "#/components/schemas/InteractionEvent"}},
    )


class Rejected(BaseModel):
    """A part of the batch that was left out; the rest was taken."""

    index: int = Field(description="Position in the request's array, from 0")
    reason: str = Field(examples=["item_id: there is no item 'B00XYZ' in domain 'beauty'"])


class InteractionsAnswer(BaseModel):
    accepted: int
    duplicates: int
    rejected: list[Rejected]


# -- items and users ------------------------------------------------------------------------------
class CatalogItem(Request):
    model_config = _example(item_id="B00ABC", title="Rose Day Cream", category="Skin Care", brand="Flora")

    item_id: Identifier
    title: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TITLE)]
    category: Annotated[str, StringConstraints(max_length=512)] = ""
    brand: Annotated[str, StringConstraints(max_length=512)] = ""
    available: bool = Field(True, description="An unavailable item is never recommended")


class ItemsRequest(Request):
    model_config = _example(domain="beauty", items=[{"item_id": "B00ABC", "title": "Rose Day Cream"}])

    domain: DomainName | None = None
    items: list[Any] = Field(
        min_length=1, max_length=MAX_BATCH, json_schema_extra={"items": {"$ref": "#/components/schemas/CatalogItem"}}
    )


class ItemsAnswer(BaseModel):
    upserted: int
    rejected: list[Rejected]


class ItemAnswer(BaseModel):
    item_id: str
    domain: str
    title: str
    category: str
    brand: str
    available: bool


class HistoryEntry(BaseModel):
    event_id: str
    item_id: str
    title: str | None = Field(description="null where the item has left the catalog")
    event_type: str
    value: float | None
    timestamp: float = Field(description="Unix seconds")
    recommendation_id: str | None
    forgotten: bool = Field(description="The champion has forgotten it: prompts leave it out")


class HistoryAnswer(BaseModel):
    user_id: str
    domain: str
    interactions: list[HistoryEntry] = Field(description="Oldest first")


class ErasureAnswer(BaseModel):
    user_id: str
    domain: str
    erased: int = Field(description="Interactions removed from history, stream and archive")
    learned_by: list[str] = Field(description="Adapter versions whose training window contained any of them, and heirs")


# -- administration -------------------------------------------------------------------------------
class EvolveRequest(Request):
    model_config = _example(domain="beauty", force=False, dry_run=False)

    domain: DomainName | None = None
    force: bool = Field(False, description="Skip the triggers, never the gate")
    dry_run: bool = Field(False, description="Run everything but the publication")


class EvolveAnswer(BaseModel):
    evolution_id: str


class EvolutionsAnswer(BaseModel):
    evolutions: list[Evolution] = Field(description="Newest first")


class DeadLettersAnswer(BaseModel):
    domain: str
    dead_letters: list[DeadLetter] = Field(description="Newest first")


class ReplicaAdapter(BaseModel):
    """An adapter version as this process sees it."""

    name: str
    state: str
    refusal: str | None = Field(description="Why this process will not serve it")
    in_flight: int


class DomainAdapters(BaseModel):
    domain: str
    aliases: dict[str, str]
    challenger_share: float
    paused: bool
    versions: list[Manifest] = Field(description="Newest first")
    replica: list[ReplicaAdapter]
    refusals: dict[str, Refusal] = Field(description="Versions that a replica last refused to serve, and why")


class AdaptersAnswer(BaseModel):
    domains: list[DomainAdapters]


class AliasAnswer(BaseModel):
    domain: str
    champion: str


class RollbackRequest(Request):
    domain: DomainName | None = None


class RouteRequest(Request):
    """Either a challenger with its share, or `paused`, or both; what is absent stays as it is."""

    model_config = _example(domain="beauty", challenger="beauty-v000008", share=0.1)

    domain: DomainName | None = None
    challenger: Identifier | None = Field(None, description="null ends the trial")
    share: float | None = Field(None, ge=0, le=1)
    paused: bool | None = None


class RouteAnswer(BaseModel):
    domain: str
    challenger: str | None
    share: float
    paused: bool


class AuditAnswer(BaseModel):
    records: list[AuditRecord] = Field(description="Newest first")


# -- health ---------------------------------------------------------------------------------------
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
