"""Errors that people see. Each carries the HTTP status and title of its RFC 9457 problem document."""

from __future__ import annotations

from typing import ClassVar


class EvorecError(Exception):
    """What is wrong, where, and what to do, in `str(error)`."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retry_after_s: int | None = None
    logged: ClassVar[bool] = True  # each one, where it is the server's fault


class InvalidInput(EvorecError):
    status = 422
    title = "Invalid input"


class NotFound(EvorecError):
    status = 404
    title = "Not found"


class Conflict(EvorecError):
    status = 409
    title = "Conflict"


class Unavailable(EvorecError):
    status = 503
    title = "Temporarily unavailable"
    retry_after_s = 5


class Overloaded(Unavailable):
    """More is asked at once than can be answered in time; counted, and not logged one by one."""

    title = "Too many requests at once"
    retry_after_s = 1
    logged = False


class NotReplicated(Unavailable):
    """Redis has the write, too few of its replicas do. Sending it again is safe: events count once."""

    title = "Too few replicas have the write"


class UnknownDomain(NotFound):
    title = "Unknown domain"


class EvolutionRunning(Conflict):
    title = "An evolution is already running"


class EvolutionEnded(Conflict):
    """Its record is final: nothing brings a run back to life."""


class AliasMoved(Conflict):
    """The alias no longer points where the caller believed (compare-and-set failed)."""

    title = "The alias moved meanwhile"


class LeaseLost(Conflict):
    """Another holder has a newer fencing token; nothing may be published with the old one."""

    title = "The evolution's lease was lost"


class DiskFull(EvorecError):
    status = 507
    title = "The disk is full"


class InvalidArtifact(EvorecError):
    """Something of the artifact store that cannot be what was written: a version whose files fail their checksums,
    shapes or manifest, a damaged file of the archive or of alias moves.
    """

    status = 422
    title = "Damaged artifact"
