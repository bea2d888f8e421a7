"""Locate's equations, by hand."""

from __future__ import annotations

import pytest
import torch

from evolver.locate import layer_similarity, located, located_in_upper, pooled, raised, votes


def test_pooling_never_sees_padding() -> None:
    """Two real tokens, (1, 0) and (3, 2), then padding of nines: the mean is (2, 1)."""
    h = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]]])
    assert pooled(h, torch.tensor([[True, True, False]])).tolist() == [[2.0, 1.0]]


def test_similarity_is_the_cosine_of_the_means_per_layer() -> None:
    """Layer 0: (1, 0) against (0, 1) is 0; layer 1: (1, 1) against (2, 2) is 1."""
    old = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    new = torch.tensor([[0.0, 1.0], [2.0, 2.0]])
    assert layer_similarity(old, new).tolist() == pytest.approx([0.0, 1.0])


def test_each_user_votes_for_the_layer_of_lowest_similarity() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4], [0.9, 0.0, 0.9]])
    assert votes(similarity).tolist() == [1, 2, 0]


def test_ties_go_to_the_lower_mean_similarity() -> None:
    """Ten layers, so three are located: layer 4 has two votes, 7 and 1 one each (in), 2 one as well but a higher mean
    (out).
    """
    similarity = torch.full((5, 10), 0.9)
    similarity[0, 4] = similarity[1, 4] = 0.1
    similarity[2, 7], similarity[3, 1], similarity[4, 2] = 0.2, 0.3, 0.4
    location = located(similarity)
    assert location.layers == (1, 4, 7)
    assert location.votes == (0, 1, 1, 0, 2, 0, 0, 1, 0, 0)


def test_in_the_upper_two_thirds_users_vote_for_what_is_lowest_there() -> None:
    """Ten layers, so 4 to 9 may be chosen: every user's lowest layer is 0, then 5, 6 or 8. Similarities stay."""
    similarity = torch.full((60, 10), 0.9)
    similarity[:, 0] = 0.1
    similarity[:20, 5] = similarity[20:40, 6] = similarity[40:, 8] = 0.2
    location = located_in_upper(similarity)
    assert location.layers == (5, 6, 8)
    assert location.votes == (0, 0, 0, 0, 0, 20, 20, 0, 20, 0)
    assert location.similarity == pytest.approx(tuple(similarity.mean(0).tolist()))


def test_a_handful_of_users_cannot_hold_a_lower_layer_against_a_higher_one() -> None:
    """One user each: what they say may be chance, and the highest layers cost least."""
    similarity = torch.full((3, 10), 0.9)
    similarity[0, 5] = similarity[1, 6] = similarity[2, 8] = 0.2
    assert located_in_upper(similarity).layers == (7, 8, 9)


def test_a_layer_with_clearly_more_votes_stays() -> None:
    """76 and 25 differ by 51 (more than 2 sqrt(101) = 20.1); 40 and 32 by 8 (less than 2 sqrt(72) = 17.0)."""
    assert raised((6, 8, 9), (0, 0, 0, 0, 12, 17, 76, 25, 26, 100)) == (6, 8, 9)
    assert raised((6, 7, 9), (0, 0, 0, 0, 7, 9, 40, 40, 32, 128)) == (7, 8, 9)


def test_a_layer_does_not_give_way_step_by_step_to_one_with_clearly_fewer_votes() -> None:
    """20 to 10 to 4 to 0 are small steps; from 20 to 4 it is a large one."""
    assert raised((4, 8, 9), (0, 0, 0, 0, 20, 10, 4, 0, 15, 15)) == (5, 8, 9)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 10, 28])
def test_there_are_always_enough_upper_layers(n_layers: int) -> None:
    layers = located_in_upper(torch.rand(4, n_layers)).layers
    assert len(layers) == len(located(torch.rand(4, n_layers)).layers)
    assert n_layers == 1 or min(layers) >= n_layers / 3


@pytest.mark.parametrize(("n_layers", "expected"), [(10, 3), (28, 8), (36, 10), (3, 1), (1, 1)])
def test_the_number_of_located_layers_is_floored(n_layers: int, expected: int) -> None:
    assert len(located(torch.rand(4, n_layers)).layers) == expected
