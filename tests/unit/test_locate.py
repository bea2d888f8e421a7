"""Locate's equations, by hand."""

from __future__ import annotations

import pytest
import torch

from evolver.locate import layer_similarity, located, pooled, votes


def test_pooling_never_sees_padding() -> None:
    """Two real tokens, (1, 0) and (3, 2), then padding of nines: the mean is (2, 1)."""
    h = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]]])
    assert pooled(h, torch.tensor([True, True, False])).tolist() == [[2.0, 1.0]]


def test_similarity_is_the_cosine_of_the_means_per_layer() -> None:
    """Layer 0: (1, 0) against (0, 1) is 0; layer 1: (1, 1) against (2, 2) is 1."""
    old = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    new = torch.tensor([[[0.0, 1.0]], [[2.0, 2.0]]])
    mask = torch.tensor([True])
    assert layer_similarity(old, new, mask, mask).tolist() == pytest.approx([0.0, 1.0])


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


@pytest.mark.parametrize(("n_layers", "expected"), [(10, 3), (28, 8), (36, 10), (3, 1), (1, 1)])
def test_the_number_of_located_layers_is_floored(n_layers: int, expected: int) -> None:
    assert len(located(torch.rand(4, n_layers)).layers) == expected
