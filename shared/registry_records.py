"""What the registry writes beside the versions, for a rebuild where Redis is lost: alias moves, and routes."""

from __future__ import annotations

import re
from typing import Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.artifacts import ALIASES, ROUTE, ArtifactStore
from shared.errors import InvalidArtifact
from shared.types import AdapterName, DomainId

log = structlog.get_logger(__name__)

_MOVE_FILE = re.compile(r"\d{9,}\.json", re.ASCII)


class AliasMove(BaseModel):
    """One move of an alias. `at`: unix seconds; `before`/`to` are None where the alias was or became unset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int
    alias: str
    before: AdapterName | None
    to: AdapterName | None
    at: float
    reason: str


class Route(BaseModel):
    """`share` of the users (0..1) is answered by the challenger; `paused` stops evolutions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    challenger: AdapterName | None = None
    share: float = Field(0.0, ge=0.0, le=1.0)
    paused: bool = False

    @classmethod
    def of_record(cls, record: str | bytes | None) -> Self:
        """ValidationError where it is none."""
        return cls() if record is None else cls.model_validate_json(record)

    @property
    def record(self) -> str:
        """Without the challenger, whom its alias names."""
        return self.model_dump_json(exclude={"challenger"})


class RegistryRecords:
    """Synchronous, as the artifact store is."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def record_alias_move(self, domain: DomainId, move: AliasMove) -> None:
        """Writing the same move again changes nothing."""
        with self._store.write(domain, ALIASES, f"{move.sequence:09d}.json") as staged:
            staged.write_text(move.model_dump_json() + "\n")

    def alias_moves(self, domain: DomainId, since: int = 0) -> list[AliasMove]:
        """Every recorded move after that number, in order. One damaged file must not stop every move to come: it is
        logged, left out.
        """
        moves = []
        for file in self.move_files(domain):
            if _number(file) <= since:
                continue
            try:
                moves.append(self.alias_move(domain, file))
            except InvalidArtifact as error:
                log.warning("alias_move_unreadable", domain=domain, error=str(error))
        return moves

    def move_files(self, domain: DomainId) -> list[str]:
        """The names of the files of alias moves, oldest first, whatever is in them; others (a copy made by hand) are
        none of ours.
        """
        return [file for file in self._store.files(domain, ALIASES) if _MOVE_FILE.fullmatch(file)]

    def last_move(self, domain: DomainId) -> int:
        """The newest move's number, by the names of the files; 0 where there is none."""
        return max(map(_number, self.move_files(domain)), default=0)

    def alias_move(self, domain: DomainId, file: str) -> AliasMove:
        try:
            return AliasMove.model_validate_json(self._store.read(domain, ALIASES, file))
        except ValidationError as error:
            raise InvalidArtifact(f"alias move {file} of {domain} cannot be read: {error}") from error

    def record_route(self, domain: DomainId, record: str) -> None:
        """Replaces the copy of the domain's route."""
        with self._store.write(domain, ROUTE) as staged:
            staged.write_text(record + "\n")

    def route(self, domain: DomainId) -> str | None:
        """The copy of the domain's route, None where there is none."""
        try:
            return self._store.read(domain, ROUTE).decode(errors="replace")
        except FileNotFoundError:
            return None


def _number(file: str) -> int:
    return int(file.removesuffix(".json"))
