"""Scorers of feature vectors: linear, an MLP, and allRank's context-aware one, which looks at the whole list.

    linear    s_i = w · x_i + b
    mlp       h = dropout(relu(W h + b)) for each hidden layer, s_i = w · h_i + b
    context   the mlp's hidden layers, then blocks of self-attention over the documents of a list, then s_i

All three are one module: no hidden layer, no block, or both. There is no encoding of places, so a document's score does
not depend on where it stands in its list; with blocks it depends on which others stand there.

Source of the context-aware scorer: Pobrotyn et al. 2020, "Context-Aware Learning to Rank with Self-Attention"
(arXiv:2005.10084), and its code, allegro/allRank.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class FeatureScorer(nn.Module):
    """Scores the documents of lists by their features.

    Args:
        features: numbers of a document.
        hidden: units of each hidden layer; () has none.
        blocks: self-attention blocks behind them; 0 scores each document alone.
        heads: of each block; the width that enters the blocks must be a multiple.
        feed_forward: units of each block's inner layer.
        dropout: share of units left out in training, behind hidden layers and in blocks.

    Raises:
        ValueError: at sizes below 1, a share outside [0, 1), or heads that do not divide the width.

    """

    def __init__(
        self,
        features: int,
        *,
        hidden: Sequence[int] = (),
        blocks: int = 0,
        heads: int = 1,
        feed_forward: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(features, heads, feed_forward, *hidden) < 1 or blocks < 0:
            raise ValueError(
                f"features, hidden, heads and feed_forward must be >= 1 and blocks >= 0, got {features}, "
                f"{tuple(hidden)}, {heads}, {feed_forward} and {blocks}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a share in [0, 1), got {dropout}")
        self.features = features
        widths = [features, *hidden]
        if blocks and widths[-1] % heads:
            raise ValueError(f"{heads} heads do not divide the width {widths[-1]} of the last hidden layer")
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(_Block(widths[-1], heads, feed_forward, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(widths[-1]) if blocks else nn.Identity()
        self.output = nn.Linear(widths[-1], 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, where: Tensor | None = None) -> Tensor:
        """Return the scores.

        Args:
            features: (queries, docs, features) float, finite; what stands at padding does not matter.
            where: (queries, docs) bool, False at padding; None: every document is one.

        Returns:
            (queries, docs) float, 0 at padding.

        Raises:
            ValueError: if the shapes do not fit.

        """
        if features.ndim != 3 or features.shape[2] != self.features:
            raise ValueError(f"features must be (queries, docs, {self.features}), got {tuple(features.shape)}")
        if where is None:
            where = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if where.shape != features.shape[:2] or where.dtype != torch.bool:
            raise ValueError(f"where must be bool {tuple(features.shape[:2])}, got {where.dtype} {tuple(where.shape)}")
        values = features.masked_fill(~where[..., None], 0)
        for layer in self.hidden:
            values = self.dropout(torch.relu(layer(values)))
        if len(self.blocks):
            # A list without documents may look at its padding: softmax over nothing is nan.
            seen = (where | ~where.any(1, keepdim=True))[:, None, None, :]
            for block in self.blocks:
                values = block(values, seen)
        scores: Tensor = self.output(self.norm(values)).squeeze(-1)
        return scores.masked_fill(~where, 0)


class _Block(nn.Module):
    """One pre-norm transformer block over the documents of a list: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, seen: Tensor) -> Tensor:
        """Return (queries, docs, width); `seen` is (queries, 1, 1, docs) bool, which documents may be looked at."""
        queries, docs, width = values.shape
        split = self.projections(self.attention_norm(values)).view(queries, docs, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        share = self.dropout.p if self.training else 0.0
        found = scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=share)
        values = values + self.dropout(self.joined(found.transpose(1, 2).reshape(queries, docs, width)))
        inner = self.dropout(torch.relu(self.up(self.mlp_norm(values))))
        changed: Tensor = values + self.dropout(self.down(inner))
        return changed
