"""Muon on processors without bfloat16."""

from __future__ import annotations

import torch
from torch.optim import _muon

from evolver.pretrain.muon import MuonInFloat32


def orthogonalised() -> torch.Tensor:
    gradient = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return _muon._zeropower_via_newtonschulz(gradient, (3.4445, -4.775, 2.0315), 5, 1e-7)


def test_muon_orthogonalises_in_float32() -> None:
    """torch's own does not: should it change, the mode is not needed any more, or does nothing any more."""
    assert orthogonalised().dtype == torch.bfloat16
    with MuonInFloat32():
        exact = orthogonalised()
    assert exact.dtype == torch.float32
    assert torch.allclose(exact, orthogonalised().float(), atol=0.05)
