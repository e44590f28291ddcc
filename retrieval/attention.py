"""Which attention a CPU computes fastest: a plain one where gradients are wanted, torch's fused one where not.

On a CPU the fused kernel's backward pass is slow and with dropout it falls back to slower code (MiniLM, 64 tokens:
40 pairs/s fused, 55 plain); in a forward pass alone it is half as fast again as the plain one. All agree up to
rounding. On a GPU nothing is changed.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from retrieval.fast_dropout import dropout as fast_dropout

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

_NAME = "rankwright_plain"


def set_attention(model: SentenceTransformer, *, training: bool) -> None:
    """Give a model on a CPU the attention for training or for inference.

    Models that fix their attention (MPNet) or whose attention is more than a softmax of q kᵀ (T5, Gemma 2) keep theirs.
    """
    transformer: Any = getattr(model[0], "auto_model", None)
    if (name := attention_for(transformer, model.device, training=training)) is not None:
        with contextlib.suppress(ValueError, ImportError, AttributeError):  # an architecture with one kind only
            transformer.set_attn_implementation(name)


def attention_for(transformer: Any, device: torch.device, *, training: bool) -> str | None:
    """Return the name, in transformers, of the attention that suits a model there; None where it keeps its own."""
    if device.type != "cpu" or not getattr(transformer, "_supports_attention_backend", False):
        return None
    if getattr(transformer.config, "attn_logit_softcapping", None) is not None:
        return None
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(_NAME, plain_attention)
    AttentionMaskInterface.register(_NAME, eager_mask)
    return _NAME if training else "sdpa"


def plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax(q kᵀ · scaling + mask) v, as transformers' eager attention, with the faster dropout.

    Args:
        module: the attention layer; its `training` switches dropout.
        query: (batch, heads, length, head_dim).
        key, value: (batch, key heads, length, head_dim); key heads may be a fraction of heads.
        attention_mask: (batch, 1, length, length) added to the logits, or None.
        scaling: default head_dim ** -0.5.
        dropout: probability that a weight is dropped in training.
        kwargs: what transformers hands to every attention function.

    Returns:
        (batch, length, heads, head_dim) and the weights.

    """
    import torch

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Under autocast the (batch, heads, length, length) matrices would go to fp32 for the softmax and back, which costs
    # a tenth of a training step; the softmax of bf16 logits is summed in fp32 all the same.
    with torch.autocast(query.device.type, enabled=False):
        weights = torch.matmul(query * scale, key.transpose(2, 3))
        if attention_mask is not None:
            weights = weights + attention_mask.to(weights.dtype)
        weights = torch.softmax(weights, dim=-1)
        if module.training:
            weights = fast_dropout(weights, dropout)
        return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights
