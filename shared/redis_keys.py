"""Every Redis key and channel of the project. Nothing else builds one.

Keys that one script touches together share a hash tag: `{domain:p}` for what grows with the users (partition p by
hash of the user, so that a Cluster can spread a large domain), `{domain}` for the catalog and the registry.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

from shared.types import DomainId, EvolutionId, UserId

DOMAINS = "evorec:domains"
FIXED_SETTINGS = "evorec:fixed-settings"  # hash: setting -> what the interactions of this Redis were written by
CHANGES_CHANNEL = "evorec:changes"  # message: the domain whose aliases, routes or catalog changed
AUDIT = "evorec:audit"  # stream, capped: administration and deletions
AUDIT_DENIED = "evorec:audit-denied"  # stream, capped: those who were not allowed to


def heartbeat(host: str) -> str:
    """String with expiry: a worker of the host has ended a tick."""
    return f"evorec:heartbeat:{host}"


def partition_of(user_id: UserId, partitions: int) -> int:
    """The user's partition; the same in every process and release (Python's own `hash` is salted)."""
    return zlib.crc32(user_id.encode()) % partitions


def user_digest(user_id: UserId) -> str:
    """Names a user whose id must not be kept."""
    return _digest(user_id)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class PartitionKeys:
    """Keys of one partition of a domain."""

    domain: DomainId
    partition: int

    def _key(self, name: str) -> str:
        return f"evorec:{{{self.domain}:{self.partition}}}:{name}"

    @property
    def stream(self) -> str:
        return self._key("stream")

    @property
    def users(self) -> str:
        """Sorted set: user -> time of the user's newest interaction."""
        return self._key("users")

    @property
    def capped(self) -> str:
        """Set of users whose oldest interactions left the history, or `seen` (they are still in the stream)."""
        return self._key("capped")

    @property
    def popularity(self) -> str:
        return self._key("popularity")

    @property
    def archived(self) -> str:
        """Stream id up to which this Redis let go of, or took back, what the archive holds; unset in an emptied one."""
        return self._key("archived")

    @property
    def lost(self) -> str:
        """Hash: up to where this Redis lacks what the archive holds; from a rebuild until that is brought back."""
        return self._key("lost")

    @property
    def restored(self) -> str:
        """Stream of what the archive gives back, until it takes the place of the stream."""
        return self._key("restored")

    @property
    def restoring(self) -> str:
        """Hash: how far the archive has been brought back, while it is."""
        return self._key("restoring")

    @property
    def erased(self) -> str:
        """Set of users who were erased while the archive is brought back."""
        return self._key("erased")

    @property
    def archive_lock(self) -> str:
        """String with expiry: who rewrites archive files."""
        return self._key("archive-lock")

    @property
    def barrier(self) -> str:
        """Written after an append: a replica that has it has everything before it."""
        return self._key("barrier")

    def erased_ids(self, user_id: UserId) -> str:
        """Set with expiry: stream ids of what erasures have removed of a user."""
        return self._key(f"erased-ids:{user_digest(user_id)}")

    def history(self, user_id: UserId) -> str:
        """Sorted set: the user's newest interactions that are learned from."""
        return self._key(f"history:{user_id}")

    def seen(self, user_id: UserId) -> str:
        """Sorted set: the user's newest interactions of other types, apart, so that views push no purchase out."""
        return self._key(f"seen:{user_id}")

    def event(self, event_id: str) -> str:
        """String with expiry: the event was appended. A digest, since it outlives the user's erasure, and the caller's
        id may name the user."""
        return self._key(f"event:{_digest(event_id)}")


@dataclass(frozen=True, slots=True)
class DomainKeys:
    """Keys of a domain that are not partitioned."""

    domain: DomainId

    def _key(self, name: str) -> str:
        return f"evorec:{{{self.domain}}}:{name}"

    @property
    def items(self) -> str:
        return self._key("items")

    @property
    def catalog_version(self) -> str:
        return self._key("catalog-version")

    @property
    def version_counter(self) -> str:
        """The highest adapter number ever handed out."""
        return self._key("version-counter")

    @property
    def moves_counted(self) -> str:
        """The alias move up to which the version counter is known to be above every name. Set with it: a Redis restored
        from an older state has both as they were, and what was published since is looked at again.
        """
        return self._key("moves-counted")

    @property
    def versions(self) -> str:
        """Hash: adapter name -> manifest."""
        return self._key("versions")

    @property
    def aliases(self) -> str:
        """Hash: alias -> adapter name."""
        return self._key("aliases")

    @property
    def route(self) -> str:
        return self._key("route")

    @property
    def refusals(self) -> str:
        """Hash: adapter name -> why a serving process refused it."""
        return self._key("refusals")

    @property
    def upkeep(self) -> str:
        """What the last upkeep (archive, pruning, trimming) has seen."""
        return self._key("upkeep")

    @property
    def upkeep_enqueued(self) -> str:
        """String with expiry: an upkeep waits in the broker's queue, or has just begun."""
        return self._key("upkeep-enqueued")

    @property
    def catalog_copied(self) -> str:
        """The catalog version that the archive has a copy of."""
        return self._key("catalog-copied")

    @property
    def catalog_copy_rests(self) -> str:
        """String with expiry: the catalog has been copied lately."""
        return self._key("catalog-copy-rests")

    @property
    def pruned(self) -> str:
        """Set of versions that are no longer registered and whose artifacts have yet to go."""
        return self._key("pruned")

    @property
    def considered(self) -> str:
        """Hash: partition -> stream id up to which a finished run has looked."""
        return self._key("considered")

    @property
    def move_counter(self) -> str:
        return self._key("move-counter")

    @property
    def move_outbox(self) -> str:
        """List of alias moves that the artifact store has not recorded yet."""
        return self._key("move-outbox")

    @property
    def lease(self) -> str:
        """String with expiry: who runs the domain's evolution."""
        return self._key("lease")

    @property
    def fence(self) -> str:
        """Counter: the newest fencing token that a lease was given."""
        return self._key("fence")

    @property
    def evolutions(self) -> str:
        """Hash: evolution id -> evolution."""
        return self._key("evolutions")

    @property
    def evolution_order(self) -> str:
        """List of evolution ids, newest first."""
        return self._key("evolution-order")

    @property
    def evolution_counter(self) -> str:
        return self._key("evolution-counter")

    @property
    def active_evolution(self) -> str:
        return self._key("active-evolution")

    def enqueued(self, evolution_id: EvolutionId) -> str:
        """String with expiry: the evolution waits in the broker's queue, so nobody needs to put it there again."""
        return self._key(f"enqueued:{evolution_id}")

    def attempts(self, evolution_id: EvolutionId) -> str:
        """Counter with expiry: how often a worker has started this evolution."""
        return self._key(f"attempts:{evolution_id}")

    @property
    def dead_letters(self) -> str:
        """Stream of what could not be read or learned from."""
        return self._key("dead-letters")

    def dead_letter_marker(self, digest: str) -> str:
        """String with expiry: the letter with this digest has been written."""
        return self._key(f"dead-letter:{digest}")

    @property
    def cancel_requests(self) -> str:
        return self._key("cancel-requests")
