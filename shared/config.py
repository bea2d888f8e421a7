"""All settings, in one model: environment variables with the prefix `EVOREC_`, or a `.env` file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.errors import InvalidInput
from shared.network import LOOPBACK, is_loopback
from shared.precision import Dtype
from shared.types import EVENT_TYPE_PATTERN

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
BROKER_SCHEMES = ("redis://", "rediss://", "redis+socket://")  # as Celery calls them
SHIPPED_BASE_MODEL = Path(__file__).parent / "models" / "tiny-stores"

# Of a prompt (`shared.prompt`), at most: separator, category and line end of each line, and template with answer.
LINE_TOKENS, TEMPLATE_TOKENS = 6, 20
MAX_CANDIDATES = 100  # in a prompt: one label each

# How often something looks: 0 would never rest, and infinity is a time that neither a thread nor Redis waits for.
Period = Annotated[float, Field(ge=0.1, le=24 * 3600)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes, in evolutions and in vLLM
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
EventTypes = frozenset[Annotated[str, StringConstraints(pattern=EVENT_TYPE_PATTERN)]]


class Settings(BaseSettings):
    """Settings of every process. Nothing is read from the environment at import; call `Settings()`."""

    model_config = SettingsConfigDict(env_prefix="EVOREC_", env_file=".env", extra="ignore", frozen=True)

    if not TYPE_CHECKING:  # calls are checked against pydantic's own signature

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except UnicodeDecodeError as error:  # its traceback would show the file
                raise InvalidInput(f"the file .env is not UTF-8 (byte {error.start}): save it as UTF-8") from None

    # -- state ------------------------------------------------------------------------------------
    state_dir: Path = Field(Path(".evorec"), description="State of a single machine: redis/, artifacts/, bench/")
    redis_url: str | None = Field(None, description="Unset: the embedded Redis under state_dir")
    broker_url: str | None = Field(None, description="Celery's broker (no Cluster); unset: redis_url, database 1")
    artifacts_url: str | None = Field(None, description="fsspec URL of the artifact store; unset: state_dir/artifacts")
    partitions: PositiveInt = Field(
        1, description="Of a domain's stream, by hash of the user; never changed once there is data"
    )
    redis_fsync: Literal["always", "everysec"] = Field(
        "always", description="Embedded Redis. everysec: its crash may lose what it answered in the last two seconds"
    )
    wait_replicas: NonNegativeInt = Field(
        0, description="Replicas of Redis that have an interaction before it is accepted; fewer: 503, Retry-After"
    )
    wait_replicas_ms: Annotated[int, Field(ge=1, le=2_500)] = Field(1000, description="How long they are waited for")

    # -- model ------------------------------------------------------------------------------------
    base_model: str = Field(str(SHIPPED_BASE_MODEL), description="Hugging Face id or folder of a causal LM")
    dtype: Dtype | Literal["auto"] = Field(
        "auto", description="auto: the base's own on a GPU; on a CPU bfloat16 where the processor has it, else float32"
    )
    lora_rank: Annotated[int, Field(ge=1, le=512)] = Field(
        16, description="Of domains to come, which keep theirs; the service refuses versions of a higher one"
    )
    lora_kernels: bool = Field(True, description="On CPUs: service.lora_kernels in place of vLLM's own LoRA products")
    max_loras: PositiveInt = Field(4, description="Adapters in one engine step")
    max_cpu_loras: PositiveInt = Field(
        64,
        description="Adapters held by the engine: one a domain, one more for each that changes or tries a challenger. "
        "What is beyond is refused and tried again",
    )
    max_model_len: PositiveInt = 2048
    kv_cache_gib: PositiveInt = Field(1, description="The engine's cache on CPUs; on a GPU see gpu_memory_share")
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.92, description="Of a card, for the engine; a worker trains beside it only in what is left"
    )
    engine_silent_s: Annotated[float, Field(ge=5, le=3600)] = Field(
        60.0, description="An engine that answers nothing for so long, not even a check, has hung: another is started"
    )
    prompt_history: PositiveInt = Field(10, description="Newest history items in a prompt, or up to 3 less")
    title_tokens: PositiveInt = Field(12, description="Tokens of a title in a prompt; the rest is cut")
    rank_candidates: Annotated[int, Field(ge=2, le=MAX_CANDIDATES)] = Field(20, description="Top K: what the LLM ranks")

    # -- service ----------------------------------------------------------------------------------
    host: str = "127.0.0.1"
    port: Port = 8000
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="`[name=]sha256$HEX:scope+scope` entries, comma separated; none: loopback only, every scope"
    )
    api_keys_file: Path | None = Field(None, description="More entries, one a line; read again when it changes")
    rate_limit: str | None = Field(
        None, description="Requests per API key, such as `200/second`, counted by each replica for itself; unset: none"
    )
    receive_timeout_s: PositiveFloat = Field(30, description="A request's head, then its body, must come within it")
    default_domain: str = "default"
    rank_timeout_ms: PositiveInt = 10_000
    max_concurrent_rankings: PositiveInt = Field(64, description="Beyond: the retriever's order, `degraded` says so")
    max_concurrent_requests: PositiveInt = Field(256, description="Recommendations at once; beyond: 503, Retry-After")
    store_timeout_ms: PositiveInt = Field(
        2000, description="Longest wait of a recommendation for Redis; beyond: what the process remembers, degraded"
    )
    remembered_interactions: PositiveInt = Field(
        200_000, description="Of the histories read last, kept in memory for when Redis is away (some 60 MB)"
    )
    max_concurrent_batches: PositiveInt = Field(
        32, description="Batches of interactions or items taken in at once; beyond: 503, Retry-After, body unread"
    )
    registry_poll_s: Period = Field(2.0, description="Fallback where a pub/sub message is missed")

    # -- interactions -----------------------------------------------------------------------------
    positive_events: Annotated[EventTypes, NoDecode] = Field(
        frozenset({"purchase"}),
        min_length=1,
        description="Event types that are learned from; others only make an item seen",
    )
    max_history: PositiveInt = Field(
        500, description="Newest interactions kept per user: so many that are learned from, and as many others"
    )
    event_id_ttl_s: PositiveInt = 7 * 24 * 3600
    max_clock_skew_s: PositiveInt = Field(24 * 3600, description="A timestamp further in the future is rejected")
    popularity_half_life_days: PositiveFloat = Field(
        60.0, description="Never changed once there is data: what Redis has counted up decays by it"
    )

    # -- evolution --------------------------------------------------------------------------------
    evolve_min_interactions: PositiveInt = Field(
        1000,
        description="Trigger: new interactions, of all types, since `considered`; only EVOREC_POSITIVE_EVENTS teach",
    )
    evolve_max_age_s: PositiveInt = Field(24 * 3600, description="Trigger: age of the oldest new interaction")
    trigger_tick_s: Period = 10.0
    lease_s: PositiveInt = 30
    panel_share: float = Field(
        0.10, ge=0, lt=1, description="Users who judge all versions and train none, by hash of their id"
    )
    enforce_gate: bool = Field(
        False, description="A version that ranks its panel clearly worse than its parent did is not published"
    )
    kept_versions: PositiveInt = Field(10, description="Newest versions kept, beside all that are aliased")
    archive: bool = Field(
        True, description="Published windows as Parquet in the artifact store; without it no stream is ever trimmed"
    )
    seed: Seed = 0
    max_train_examples: PositiveInt = 1200
    max_located_users: PositiveInt = 64
    max_evaluated_users: PositiveInt = 400
    max_validation_users: PositiveInt = Field(96, description="They choose checkpoint, blend and consistency weight")
    retriever_members: PositiveInt = Field(
        2, description="SASRecs whose mean the retriever is, from a domain's bootstrap on"
    )
    retriever_dropout: float = Field(0.5, ge=0, lt=1, description="While it trains, from a domain's bootstrap on")
    retriever_epochs: PositiveInt = Field(12, description="Training of the retriever at the bootstrap")
    retriever_window_epochs: PositiveInt = Field(4, description="Fine-tuning of the retriever on a window")
    bootstrap_epochs: PositiveInt = 1
    update_epochs: PositiveInt = 2
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    consistency_weights: Annotated[tuple[Weight, ...], NoDecode] = Field(
        (1.0,),
        min_length=1,
        description="Weights of the consistency term to choose from on validation, comma separated",
    )
    train_threads: PositiveInt | None = None
    train_device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        "auto",
        description="Of evolutions, pretraining and benchmarks. auto: a GPU that has room for them, else the CPU",
    )
    worker_metrics_port: Port | None = Field(None, description="Prometheus' figures of the worker; unset: none")
    worker_metrics_host: str = "127.0.0.1"

    log_format: Literal["console", "json"] = "console"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt whose titles and categories are all cut, and of its answer."""
        line = self.title_tokens + LINE_TOKENS  # a candidate's has a label as well
        return self.prompt_history * line + self.rank_candidates * (line + 1) + TEMPLATE_TOKENS

    @model_validator(mode="after")
    def _prompts_fit(self) -> Self:
        if self.longest_prompt > self.max_model_len:
            raise ValueError(
                f"a prompt can have {self.longest_prompt} tokens and EVOREC_MAX_MODEL_LEN is {self.max_model_len}: "
                f"raise it, or lower EVOREC_RANK_CANDIDATES ({self.rank_candidates}), EVOREC_TITLE_TOKENS "
                f"({self.title_tokens}) or EVOREC_PROMPT_HISTORY ({self.prompt_history})"
            )
        return self

    @property
    def listen_host(self) -> str:
        """`host`; without keys, whoever reaches the service may do everything, so then it is always loopback."""
        has_keys = bool(self.api_keys) or self.api_keys_file is not None
        return self.host if has_keys or is_loopback(self.host) else LOOPBACK

    @property
    def own_url(self) -> str:
        """Where this machine asks the service. One that listens everywhere is asked at loopback, of the same family."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.listen_host, self.listen_host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @field_validator("redis_url", "broker_url")
    @classmethod
    def _is_of_redis(cls, value: str | None, info: ValidationInfo) -> str | None:
        schemes = BROKER_SCHEMES if info.field_name == "broker_url" else REDIS_SCHEMES
        if value is not None and not value.startswith(schemes):
            raise ValueError(f"begins with none of {', '.join(schemes)}")
        try:
            _ = urlsplit(value or "").port
        except ValueError:  # it would name the half of a password that was taken for a port
            raise ValueError("is no URL; write #, / and ? of a password as %23, %2F and %3F") from None
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("api_keys_file", mode="before")
    @classmethod
    def _is_named(cls, value: object) -> object:
        if value == "":  # as a path it would be the current folder
            raise ValueError("names no file; unset it where there is none")
        return value

    @field_validator("api_keys", "positive_events", "consistency_weights", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value
