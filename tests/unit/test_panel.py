"""The panel: a stable share of users, by hash."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.panel import in_panel
from shared.types import UserId

USERS = [UserId(f"user-{n}") for n in range(20_000)]


def test_share_of_users_is_as_asked() -> None:
    panel = sum(in_panel(user, 0.10) for user in USERS)

    assert 0.09 < panel / len(USERS) < 0.11


def test_membership_never_changes() -> None:
    # Pinned: a user who moved out of the panel would have trained versions that the panel then judges.
    assert [user for user in USERS[:40] if in_panel(user, 0.10)] == [
        "user-10", "user-12", "user-15", "user-19", "user-23", "user-37",
    ]  # fmt: skip


@given(user=st.text(max_size=40), small=st.floats(0, 1), large=st.floats(0, 1))
def test_larger_share_contains_the_smaller(user: str, small: float, large: float) -> None:
    small, large = sorted((small, large))

    assert not in_panel(UserId(user), small) or in_panel(UserId(user), large)


@given(user=st.text(max_size=40))
def test_every_user_is_in_one_fold(user: str) -> None:
    assert sum(in_panel(UserId(user), 0.20, fold) for fold in range(5)) == 1


@given(user=st.text(max_size=40))
def test_nobody_and_everybody(user: str) -> None:
    assert not in_panel(UserId(user), 0.0)
    assert in_panel(UserId(user), 1.0)
