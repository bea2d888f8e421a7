from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.router import DomainRoute, choose, on_trial
from shared.types import AdapterName, UserId

CHAMPION, CHALLENGER = AdapterName("shop-v000001"), AdapterName("shop-v000002")


@given(user=st.text(min_size=1), smaller=st.floats(0, 1), larger=st.floats(0, 1))
def test_a_larger_share_keeps_every_user_of_a_smaller_one(user: str, smaller: float, larger: float) -> None:
    smaller, larger = sorted((smaller, larger))
    assert not on_trial(UserId(user), CHALLENGER, smaller) or on_trial(UserId(user), CHALLENGER, larger)
    assert on_trial(UserId(user), CHALLENGER, 1.0)
    assert not on_trial(UserId(user), CHALLENGER, 0.0)


def test_the_share_is_met_and_each_trial_draws_anew() -> None:
    users = [UserId(f"u{n}") for n in range(10_000)]
    first = {user for user in users if on_trial(user, CHALLENGER, 0.2)}
    second = {user for user in users if on_trial(user, AdapterName("shop-v000003"), 0.2)}
    assert abs(len(first) - 2000) < 200
    assert abs(len(first & second) - 400) < 100


def test_who_answers() -> None:
    assert choose(DomainRoute(), UserId("u")) is None
    assert choose(DomainRoute(CHAMPION, None, 1.0), UserId("u")) == CHAMPION
    assert choose(DomainRoute(CHAMPION, CHALLENGER, 1.0), UserId("u")) == CHALLENGER
    assert choose(DomainRoute(CHAMPION, CHALLENGER, 1.0), None) == CHAMPION
    assert choose(DomainRoute(CHAMPION, CHALLENGER, 0.0), UserId("u")) == CHAMPION
