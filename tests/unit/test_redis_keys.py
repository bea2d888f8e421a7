from __future__ import annotations

import pytest

from shared.domains import validate_domain
from shared.errors import InvalidInput
from shared.redis_keys import DomainKeys, PartitionKeys, partition_of
from shared.types import DomainId, UserId


@pytest.mark.parametrize("domain", ["beauty", "a", "0-9_z", "x" * 64])
def test_accepts_domains(domain: str) -> None:
    assert validate_domain(domain) == domain


@pytest.mark.parametrize("domain", ["", "Beauty", "-a", "a/b", "..", "a b", "x" * 65, "a\n", "{a}", "ä"])
def test_refuses_what_could_leave_a_folder_or_a_hash_tag(domain: str) -> None:
    with pytest.raises(InvalidInput, match="domain"):
        validate_domain(domain)


def test_a_users_partition_never_changes() -> None:
    # Written down once: another hash would part users from their histories.
    assert [partition_of(UserId(f"u{n}"), 4) for n in range(8)] == [0, 2, 0, 2, 1, 3, 1, 3]


def test_keys_of_a_script_share_their_hash_tag() -> None:
    keys = PartitionKeys(DomainId("beauty"), 3)
    of_a_user = [key(UserId("u")) for key in (keys.history, keys.seen, keys.erased_ids)]
    assert {key.split("}")[0] for key in (keys.stream, keys.users, keys.event("e"), *of_a_user)} == {"evorec:{beauty:3"}
    assert DomainKeys(DomainId("beauty")).aliases == "evorec:{beauty}:aliases"
