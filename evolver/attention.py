"""Causal attention for processors that multiply bfloat16, exact: softmax(q k^T / sqrt(d) + causal) v in a few products.

torch's attention for CPUs took 41 % of a prompt's scores and 37 % of a training step there; by a profile its products
run in float32 kernels. Plain products in bfloat16 do reach the processor's units for it, and where a block of queries
stands, keys behind it need not be multiplied at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "evorec_blockwise"
BLOCK = 128  # queries at once: fewer waste less above the diagonal, more make larger products


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """softmax(scaling * q k^T, position by position up to its own) v, heads of a group sharing their keys.

    query: [B, H, T, d]; key, value: [B, K, T, d], K dividing H -> [B, H, T, d]
    """
    batch, heads, length, width = query.shape
    n_keys = key.shape[1]
    grouped = (query * scaling).view(batch, n_keys, heads // n_keys, length, width)
    causal = torch.full((length, length), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
    parts = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        rows = grouped[:, :, :, start:end].reshape(batch, n_keys, -1, width)  # [B, K, G R, d]
        logits = (rows @ key[:, :, :end].transpose(-1, -2)).view(batch, n_keys, -1, end - start, end)
        weights = logits.add_(causal[start:end, :end]).softmax(-1).view(batch, n_keys, -1, end)
        parts.append((weights @ value[:, :, :end]).view(batch, heads, end - start, width))
    return torch.cat(parts, dim=2)


def attend_blockwise(model: PreTrainedModel) -> None:
    """Let a model attend so wherever it attends causally without more ado; elsewhere as it did before."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        plain = attention_mask is None and value.dtype == torch.bfloat16 and query.shape[2] == key.shape[2]
        unusual = [name for name in _CHANGE_THE_RESULT if kwargs.get(name)]
        if not plain or unusual or not getattr(module, "is_causal", False):
            attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
            return attended
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        # Norms and rotations leave float32, which autocast casts for torch's own attention.
        query, key = query.to(value.dtype), key.to(value.dtype)
        return blockwise_attention(query, key, value, scaling).transpose(1, 2), None

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


_CHANGE_THE_RESULT = ("dropout", "softcap", "s_aux", "position_bias", "cache", "is_causal", "sliding_window")
